// A number that one thread changes and any thread may read: a counter, or a level that goes up and
// down. It costs what a plain integer costs, and a reader needs no turn of the writer.
//
// Threads: one writer; reading is safe from any thread. Two of them are not read as of one moment.

#pragma once

#include <atomic>
#include <cstdint>

namespace kvd {

class SharedCount {
 public:
  SharedCount() = default;
  SharedCount(const SharedCount&) = delete;
  SharedCount& operator=(const SharedCount&) = delete;

  operator uint64_t() const {  // NOLINT(google-explicit-constructor): it stands for the number.
    return value_.load(std::memory_order_relaxed);
  }
  // Relaxed, and no read-modify-write: there is one writer, and only the value matters.
  SharedCount& operator+=(uint64_t by) {
    value_.store(value_.load(std::memory_order_relaxed) + by, std::memory_order_relaxed);
    return *this;
  }
  SharedCount& operator-=(uint64_t by) { return *this += -by; }
  SharedCount& operator++() { return *this += 1; }
  SharedCount& operator--() { return *this -= 1; }
  SharedCount& operator=(uint64_t value) {
    value_.store(value, std::memory_order_relaxed);
    return *this;
  }

 private:
  std::atomic<uint64_t> value_{0};
};

}  // namespace kvd
