// An array of plain records in memory of its own, zeroed, set aside at start. Pages may be touched
// at once (no fault in a request) or left to the first use: in large pages what will be filled, in
// small ones what is a bound that is rarely met, and of which no more is to be resident than used.

#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <type_traits>
#include <utility>

namespace kvd {

enum class Touch : uint8_t { kNow, kOnUse, kOnUseSmall };

template <typename T>
class MappedArray {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  // Throws std::bad_alloc when the address space or the memory is not there; only used at start.
  MappedArray(size_t size, Touch touch) : size_(size), bytes_(size * sizeof(T)) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    // Fewer TLB misses; a refusal is harmless.
    madvise(memory, bytes_, touch == Touch::kOnUseSmall ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
    if (touch == Touch::kNow && madvise(memory, bytes_, MADV_POPULATE_WRITE) != 0) {
      munmap(memory, bytes_);
      throw std::bad_alloc();
    }
    data_ = static_cast<T*>(memory);
  }
  ~MappedArray() { munmap(data_, bytes_); }
  MappedArray(const MappedArray&) = delete;
  MappedArray& operator=(const MappedArray&) = delete;

  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }
  size_t size() const { return size_; }

 private:
  T* data_ = nullptr;
  size_t size_;
  size_t bytes_;
};

}  // namespace kvd
