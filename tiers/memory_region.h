// A piece of shared memory that the daemon writes and that clients can only read.
//
// It is a memfd, mapped by the daemon and then sealed against any further writable mapping, against
// shrinking (a reader would get SIGBUS), growing, and new seals. So a client that is handed the
// descriptor, or that reopens it through /proc, can do nothing but read.
//
// Or it is a file of an ArenaFolder, which outlives the process. Linux seals no file that has a
// name: a client of another user id cannot do more with the descriptor, one of the daemon's own can
// open the file like the daemon, and then only checksums keep what it writes from being believed.
//
// Threads: immutable after construction.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>

#include "absl/status/statusor.h"
#include "tiers/arena_folder.h"
#include "tiers/page_kind.h"

namespace kvd {

class MemoryRegion {
 public:
  // Every page is there when this returns. `wanted` is a wish: hugetlb falls back to shmem pages,
  // which are huge where the system allows it. kResourceExhausted when the memory is not there.
  static absl::StatusOr<MemoryRegion> Create(uint64_t size_bytes, PageKind wanted);

  // The same as the new file `number` of `folder`.
  static absl::StatusOr<MemoryRegion> CreateNamed(const ArenaFolder& folder, uint32_t number,
                                                  uint64_t size_bytes);
  // A file of `folder` as it lies there. kNotFound: there is none; kDataLoss: it has another size,
  // or holes.
  static absl::StatusOr<MemoryRegion> Attach(const ArenaFolder& folder, uint32_t number,
                                             uint64_t size_bytes);

  MemoryRegion(MemoryRegion&& other) noexcept { *this = std::move(other); }
  MemoryRegion& operator=(MemoryRegion&& other) noexcept;
  ~MemoryRegion();

  std::byte* data() const { return data_; }
  uint64_t size_bytes() const { return size_bytes_; }
  int read_only_fd() const { return fd_; }           // Stays this object's.
  PageKind page_kind() const { return page_kind_; }  // What was got.
  uint32_t number() const { return number_; }        // In its folder; 0: it has no name.

 private:
  MemoryRegion() = default;

  std::byte* data_ = nullptr;
  uint64_t size_bytes_ = 0;
  int fd_ = -1;
  PageKind page_kind_ = PageKind::kSmall;
  uint32_t number_ = 0;
};

}  // namespace kvd
