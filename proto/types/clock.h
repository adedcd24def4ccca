// Time as an argument. The control thread reads one clock; tests and the simulator own theirs.

#pragma once

#include <cstdint>
#include <ctime>

namespace kvd {

using Nanos = int64_t;  // Since an arbitrary start; monotonic.

inline constexpr Nanos kMillisecond = 1'000'000;
inline constexpr Nanos kSecond = 1'000'000'000;

class Clock {
 public:
  virtual ~Clock() = default;
  virtual Nanos Now() const = 0;
};

class SystemClock final : public Clock {
 public:
  Nanos Now() const override {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * kSecond + now.tv_nsec;
  }
};

class ManualClock final : public Clock {
 public:
  Nanos Now() const override { return now_; }
  void Advance(Nanos by) { now_ += by; }

 private:
  Nanos now_ = kSecond;
};

}  // namespace kvd
