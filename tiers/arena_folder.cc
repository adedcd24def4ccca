#include "tiers/arena_folder.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "proto/types/status.h"

namespace kvd {
namespace {

constexpr const char* kRegionPrefix = "region-";

}  // namespace

absl::StatusOr<ArenaFolder> ArenaFolder::Open(const std::string& parent, const std::string& name) {
  ArenaFolder folder;
  folder.path_ = absl::StrCat(parent, "/", name);
  const char* path = folder.path_.c_str();
  struct statfs system;
  if (statfs(parent.c_str(), &system) != 0) return ErrnoStatus(errno, parent);
  folder.hugetlb_ = system.f_type == HUGETLBFS_MAGIC;
  if (system.f_type != TMPFS_MAGIC && !folder.hugetlb_) {
    return absl::FailedPreconditionError(absl::StrCat(
        parent, " is neither a tmpfs nor a hugetlbfs: memory that lies there would be a disk"));
  }
  if (folder.hugetlb_) folder.page_bytes_ = static_cast<uint64_t>(system.f_bsize);
  if (mkdir(path, 0700) != 0 && errno != EEXIST) return ErrnoStatus(errno, folder.path_);
  folder.fd_ = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
  if (folder.fd_ < 0) return ErrnoStatus(errno, folder.path_);
  struct stat info;
  if (fstat(folder.fd_, &info) != 0) return ErrnoStatus(errno, folder.path_);
  if (info.st_uid != geteuid() || (info.st_mode & 077) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(folder.path_, " is not this user's alone (mode 0700)"));
  }
  // The umask of the process may have taken our own way in.
  if (fchmod(folder.fd_, 0700) != 0) return ErrnoStatus(errno, folder.path_);
  return folder;
}

ArenaFolder::ArenaFolder(ArenaFolder&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      path_(std::move(other.path_)),
      hugetlb_(other.hugetlb_),
      page_bytes_(other.page_bytes_) {}

ArenaFolder::~ArenaFolder() {
  if (fd_ >= 0) close(fd_);
}

uint64_t ArenaFolder::free_bytes() const {
  struct statfs system;
  if (fstatfs(fd_, &system) != 0) return 0;
  if (system.f_blocks == 0) return UINT64_MAX;  // A tmpfs without a limit.
  return uint64_t{system.f_bavail} * static_cast<uint64_t>(system.f_bsize);
}

std::string ArenaFolder::RegionFile(uint32_t number) { return absl::StrCat(kRegionPrefix, number); }

std::set<uint32_t> ArenaFolder::RegionNumbers() const {
  std::set<uint32_t> numbers;
  DIR* files = opendir(path_.c_str());
  if (files == nullptr) return numbers;
  while (const dirent* file = readdir(files)) {
    absl::string_view name = file->d_name;
    uint32_t number = 0;
    if (absl::ConsumePrefix(&name, kRegionPrefix) && absl::SimpleAtoi(name, &number)) {
      numbers.insert(number);
    }
  }
  closedir(files);
  return numbers;
}

void ArenaFolder::RemoveRegion(uint32_t number) const {
  unlinkat(fd_, RegionFile(number).c_str(), 0);
}

void ArenaFolder::Clear() const {
  unlinkat(fd_, kTableFile, 0);
  for (const uint32_t number : RegionNumbers()) RemoveRegion(number);
}

}  // namespace kvd
