#include "tiers/memory_region.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "proto/types/status.h"

namespace kvd {
namespace {

constexpr uint64_t kHugePage = 2u << 20;

// Whether the kernel backs the mapping at `address` with huge shmem pages, as its smaps entry says.
bool HasHugeShmemPages(const void* address) {
  FILE* smaps = std::fopen("/proc/self/smaps", "re");
  if (smaps == nullptr) return false;
  char line[512];
  bool inside = false;
  bool huge = false;
  while (std::fgets(line, sizeof line, smaps) != nullptr) {
    uint64_t from = 0;
    uint64_t to = 0;
    uint64_t kib = 0;
    if (std::sscanf(line, "%" SCNx64 "-%" SCNx64 " ", &from, &to) == 2) {
      if (inside) break;
      inside =
          from <= reinterpret_cast<uint64_t>(address) && reinterpret_cast<uint64_t>(address) < to;
    } else if (inside && std::sscanf(line, "ShmemPmdMapped: %" SCNu64, &kib) == 1) {
      huge = kib > 0;
    }
  }
  std::fclose(smaps);
  return huge;
}

// A mapped, populated, not yet sealed memfd; -1 and errno when that cannot be had.
int CreateMapped(uint64_t size, PageKind wanted, unsigned flags, std::byte** data) {
  const int fd = memfd_create("kvd-arena", MFD_CLOEXEC | MFD_ALLOW_SEALING | flags);
  if (fd < 0) return -1;
  void* memory = MAP_FAILED;
  if (fchmod(fd, 0600) == 0 && ftruncate(fd, static_cast<off_t>(size)) == 0) {
    memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  }
  if (memory != MAP_FAILED) {
    if (wanted != PageKind::kSmall) {
      madvise(memory, size, MADV_HUGEPAGE);  // Refused where shmem huge pages are off.
    }
    if (madvise(memory, size, MADV_POPULATE_WRITE) == 0) {
      *data = static_cast<std::byte*>(memory);
      return fd;
    }
  }
  const int error = errno;
  if (memory != MAP_FAILED) munmap(memory, size);
  close(fd);
  errno = error;
  return -1;
}

}  // namespace

absl::StatusOr<MemoryRegion> MemoryRegion::Create(uint64_t size_bytes, PageKind wanted) {
  MemoryRegion region;
  region.size_bytes_ = size_bytes;
  int fd = -1;
  if (wanted == PageKind::kHugetlb && size_bytes % kHugePage == 0) {
    fd = CreateMapped(size_bytes, wanted, MFD_HUGETLB | MFD_HUGE_2MB, &region.data_);
    region.page_kind_ = PageKind::kHugetlb;
  }
  if (fd < 0) {
    fd = CreateMapped(size_bytes, wanted, 0, &region.data_);
    if (fd < 0) {
      return absl::ResourceExhaustedError(
          absl::StrCat("no memory for a region of ", size_bytes, " bytes: ", std::strerror(errno)));
    }
    // Looking takes the kernel a walk over all our memory: not for who does not want to know.
    region.page_kind_ = wanted != PageKind::kSmall && HasHugeShmemPages(region.data_)
                            ? PageKind::kShmemHuge
                            : PageKind::kSmall;
  }
  const int seals = F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
  if (fcntl(fd, F_ADD_SEALS, seals) == 0) {
    const std::string path = absl::StrCat("/proc/self/fd/", fd);
    region.fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  }
  const int error = errno;
  close(fd);  // The writable descriptor ends here; the mapping stays.
  if (region.fd_ < 0) return ErrnoStatus(error, "sealing an arena region");
  return region;
}

absl::StatusOr<MemoryRegion> MemoryRegion::CreateNamed(const ArenaFolder& folder, uint32_t number,
                                                       uint64_t size_bytes) {
  const std::string name = ArenaFolder::RegionFile(number);
  bool made = false;
  const auto no_room = [&](int error) {
    if (made) unlinkat(folder.fd(), name.c_str(), 0);
    return absl::ResourceExhaustedError(absl::StrCat("no room for ", size_bytes, " bytes in ",
                                                     folder.path(), ": ", std::strerror(error)));
  };
  // Asked first, because to find out would take all that is left.
  if (folder.free_bytes() < size_bytes) return no_room(ENOSPC);
  const int fd =
      openat(folder.fd(), name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) return ErrnoStatus(errno, absl::StrCat("making ", folder.path(), "/", name));
  made = true;
  MemoryRegion region;
  region.size_bytes_ = size_bytes;
  region.number_ = number;
  void* memory = MAP_FAILED;
  if (ftruncate(fd, static_cast<off_t>(size_bytes)) == 0) {
    memory = mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  }
  int error = errno;
  close(fd);  // The writable descriptor ends here; the mapping stays.
  if (memory == MAP_FAILED) return no_room(error);
  region.data_ = static_cast<std::byte*>(memory);
  madvise(memory, size_bytes, MADV_HUGEPAGE);  // Refused where shmem huge pages are off.
  // A file system that is full shows as a fault that would be a SIGBUS.
  if (madvise(memory, size_bytes, MADV_POPULATE_WRITE) != 0) {
    return no_room(errno == EFAULT ? ENOSPC : errno);
  }
  region.fd_ = openat(folder.fd(), name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  if (region.fd_ < 0) return ErrnoStatus(errno, absl::StrCat("opening ", folder.path(), "/", name));
  region.page_kind_ = folder.hugetlb()                  ? PageKind::kHugetlb
                      : HasHugeShmemPages(region.data_) ? PageKind::kShmemHuge
                                                        : PageKind::kSmall;
  return region;
}

absl::StatusOr<MemoryRegion> MemoryRegion::Attach(const ArenaFolder& folder, uint32_t number,
                                                  uint64_t size_bytes) {
  const std::string name = ArenaFolder::RegionFile(number);
  const int fd = openat(folder.fd(), name.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0) return ErrnoStatus(errno, absl::StrCat("opening ", folder.path(), "/", name));
  MemoryRegion region;
  region.size_bytes_ = size_bytes;
  region.number_ = number;
  struct stat info;
  const bool whole = fstat(fd, &info) == 0 && S_ISREG(info.st_mode) &&
                     static_cast<uint64_t>(info.st_size) == size_bytes &&
                     static_cast<uint64_t>(info.st_blocks) * 512 >= size_bytes;
  void* memory =
      whole ? mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
  const int error = errno;
  close(fd);
  if (!whole) {
    return absl::DataLossError(absl::StrCat(folder.path(), "/", name, " is not a whole region"));
  }
  if (memory == MAP_FAILED) return ErrnoStatus(error, absl::StrCat("mapping ", name));
  region.data_ = static_cast<std::byte*>(memory);
  region.fd_ = openat(folder.fd(), name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  if (region.fd_ < 0) return ErrnoStatus(errno, absl::StrCat("opening ", folder.path(), "/", name));
  region.page_kind_ = folder.hugetlb() ? PageKind::kHugetlb : PageKind::kSmall;
  return region;
}

MemoryRegion& MemoryRegion::operator=(MemoryRegion&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_bytes_, other.size_bytes_);
  std::swap(fd_, other.fd_);
  std::swap(page_kind_, other.page_kind_);
  std::swap(number_, other.number_);
  return *this;
}

MemoryRegion::~MemoryRegion() {
  if (data_ != nullptr) munmap(data_, size_bytes_);
  if (fd_ >= 0) close(fd_);
}

}  // namespace kvd
