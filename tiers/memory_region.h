// A piece of shared memory that the daemon writes and that clients can only read.
//
// It is a memfd, mapped by the daemon and then sealed against any further writable mapping, against
// shrinking (a reader would get SIGBUS), growing, and new seals. So a client that is handed the
// descriptor, or that reopens it through /proc, can do nothing but read.
//
// Threads: immutable after construction.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>

#include "absl/status/statusor.h"

namespace kvd {

enum class PageKind : uint8_t { kSmall, kShmemHuge, kHugetlb };
std::string_view PageKindName(PageKind kind);

class MemoryRegion {
 public:
  // Every page is there when this returns. `wanted` is a wish: hugetlb falls back to shmem pages,
  // which are huge where the system allows it. kResourceExhausted when the memory is not there.
  static absl::StatusOr<MemoryRegion> Create(uint64_t size_bytes, PageKind wanted);

  MemoryRegion(MemoryRegion&& other) noexcept { *this = std::move(other); }
  MemoryRegion& operator=(MemoryRegion&& other) noexcept;
  ~MemoryRegion();

  std::byte* data() const { return data_; }
  uint64_t size_bytes() const { return size_bytes_; }
  int read_only_fd() const { return fd_; }           // Stays this object's.
  PageKind page_kind() const { return page_kind_; }  // What was got.

 private:
  MemoryRegion() = default;

  std::byte* data_ = nullptr;
  uint64_t size_bytes_ = 0;
  int fd_ = -1;
  PageKind page_kind_ = PageKind::kSmall;
};

}  // namespace kvd
