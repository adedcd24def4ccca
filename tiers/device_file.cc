#include "tiers/device_file.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "proto/types/status.h"
#include "tiers/nvme_device.h"
#include "tiers/nvme_transfer.h"

namespace kvd {
namespace {

constexpr mode_t kMode = 0600;  // Payload of all tenants: ours alone.

std::string FolderOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

absl::Status OpenError(const std::string& path, int error) {
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(
          absl::StrCat(path, ": cannot be made: there is no folder ", FolderOf(path)));
    case EBUSY:
      return absl::AbortedError(absl::StrCat(path, ": is mounted or used by something else"));
    case EROFS:
      return absl::FailedPreconditionError(absl::StrCat(path, ": the file system is read-only"));
    case ENOSPC:
    case EDQUOT:
      return absl::ResourceExhaustedError(
          absl::StrCat(path, ": the disk is full: ", std::strerror(error)));
    case EACCES:
    case EPERM:
      return absl::PermissionDeniedError(
          absl::StrCat(path, ": may not be read and written: ", std::strerror(error)));
    default:
      return ErrnoStatus(error, path);
  }
}

absl::Status NotAFile(const std::string& path) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": is neither a file nor a block device"));
}

absl::Status Move(const DeviceFile& file, NvmeTransfer transfer, absl::string_view verb) {
  while (true) {
    const int64_t result = file.Ask(transfer);
    switch (transfer.Take(result)) {
      case NvmeTransfer::Step::kDone:
        return absl::OkStatus();
      case NvmeTransfer::Step::kAgain:
        continue;
      case NvmeTransfer::Step::kFailed:
        break;
    }
    const std::string what = absl::StrCat(file.path(), ": ", verb, " at ", transfer.offset());
    if (result >= 0) return absl::DataLossError(absl::StrCat(what, ": the file ends there"));
    return absl::UnavailableError(absl::StrCat(what, ": ", std::strerror(transfer.error())));
  }
}

}  // namespace

absl::StatusOr<std::shared_ptr<const DeviceFile>> DeviceFile::Open(const std::string& path,
                                                                   uint64_t size_bytes,
                                                                   Nanos lock_wait) {
  struct stat status = {};
  // Before it is opened: opening a pipe or a tape does things.
  const bool exists = stat(path.c_str(), &status) == 0;
  if (!exists && errno != ENOENT) return OpenError(path, errno);
  if (exists && !S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode)) return NotAFile(path);

  const bool block_device = exists && S_ISBLK(status.st_mode);
  // O_EXCL of a block device: not while it is mounted.
  const int flags = O_RDWR | O_CLOEXEC | (block_device ? O_EXCL : O_CREAT);
  int fd = open(path.c_str(), flags | O_DIRECT, kMode);
  const bool direct = fd >= 0 || errno != EINVAL;
  if (!direct) fd = open(path.c_str(), flags, kMode);
  if (fd < 0) return OpenError(path, errno);

  auto file = std::shared_ptr<DeviceFile>(new DeviceFile(path, fd));
  if (!direct) {
    file->notes_.push_back(absl::StrCat(
        path, ": this file system refuses O_DIRECT; reads and writes go through the page cache"));
  }
  if (absl::Status locked = file->Lock(lock_wait); !locked.ok()) return locked;
  // Under the lock: another opener may have filled it meanwhile.
  if (fstat(fd, &status) != 0) return ErrnoStatus(errno, path);
  absl::Status taken = block_device
                           ? file->TakeBlockDevice(size_bytes)
                           : file->TakeFile(size_bytes, static_cast<uint64_t>(status.st_size));
  if (!taken.ok()) {
    if (!exists && status.st_size == 0) unlink(path.c_str());  // Made just now.
    return taken;
  }
  return file;
}

std::shared_ptr<const DeviceFile> DeviceFile::Adopt(std::string path, int fd, uint64_t size_bytes) {
  auto file = std::shared_ptr<DeviceFile>(new DeviceFile(std::move(path), fd));
  file->size_bytes_ = size_bytes;
  return file;
}

DeviceFile::~DeviceFile() { close(fd_); }

absl::Status DeviceFile::Lock(Nanos wait) const {
  const SystemClock clock;
  const Nanos give_up = clock.Now() + wait;
  while (flock(fd_, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return ErrnoStatus(errno, absl::StrCat(path_, ": locking"));
    if (clock.Now() >= give_up) {
      return absl::AbortedError(absl::StrCat(path_, ": is in use by another process"));
    }
    absl::SleepFor(absl::Milliseconds(5));
  }
  return absl::OkStatus();
}

absl::Status DeviceFile::TakeFile(uint64_t size_bytes, uint64_t file_bytes) {
  size_bytes_ = size_bytes - size_bytes % kNvmePageBytes;
  if (size_bytes_ == 0) {
    return absl::InvalidArgumentError(absl::StrCat(path_, ": a file needs a size"));
  }
  if (file_bytes != 0 && file_bytes < size_bytes_) {
    return absl::InvalidArgumentError(absl::StrCat(path_, ": has ", file_bytes, " bytes, ",
                                                   size_bytes_,
                                                   " are asked for; it is not grown in place"));
  }
  if (file_bytes > size_bytes_) {
    notes_.push_back(absl::StrCat(path_, ": has ", file_bytes, " bytes, of which only the first ",
                                  size_bytes_, " are used"));
  }
  return Allocate(file_bytes);
}

absl::Status DeviceFile::Allocate(uint64_t file_bytes) {
  // The size comes last: a file whose making was interrupted is empty, and made again.
  const auto size = static_cast<off_t>(size_bytes_);
  int result = 0;
  do {
    result = fallocate(fd_, FALLOC_FL_KEEP_SIZE, 0, size);
  } while (result != 0 && errno == EINTR);
  if (result != 0 && errno == EOPNOTSUPP) {
    notes_.push_back(absl::StrCat(
        path_, ": this file system cannot allocate ahead; a full disk will show as write errors"));
    result = 0;
  }
  if (result == 0 && file_bytes == 0) result = ftruncate(fd_, size);
  if (result != 0) {
    const int error = errno;
    if (file_bytes == 0 && ftruncate(fd_, 0) != 0) {  // Gives back what was allocated so far.
      notes_.push_back(absl::StrCat(path_, ": cannot be emptied: ", std::strerror(errno)));
    }
    return error == ENOSPC || error == EDQUOT
               ? absl::ResourceExhaustedError(
                     absl::StrCat(path_, ": the disk has no room for ", size_bytes_, " bytes"))
               : OpenError(path_, error);
  }
  if (fsync(fd_) != 0) return OpenError(path_, errno);
  if (file_bytes != 0) return absl::OkStatus();
  // Its name, too.
  const int folder = open(FolderOf(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  const bool synced = folder >= 0 && fsync(folder) == 0;
  const int error = errno;
  if (folder >= 0) close(folder);
  return synced ? absl::OkStatus() : ErrnoStatus(error, FolderOf(path_));
}

absl::Status DeviceFile::TakeBlockDevice(uint64_t size_bytes) {
  uint64_t bytes = 0;
  if (ioctl(fd_, BLKGETSIZE64, &bytes) != 0) return ErrnoStatus(errno, path_);
  if (bytes < size_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path_, ": has ", bytes, " bytes, ", size_bytes, " are asked for"));
  }
  size_bytes_ = size_bytes == 0 ? bytes : size_bytes;
  size_bytes_ -= size_bytes_ % kNvmePageBytes;
  return absl::OkStatus();
}

int64_t DeviceFile::Ask(const NvmeTransfer& transfer) const {
  const std::vector<iovec>& rest = transfer.rest();
  const auto count = static_cast<int>(rest.size());
  const auto offset = static_cast<off_t>(transfer.offset());
  int64_t result = 0;
  switch (transfer.kind()) {
    case NvmeJob::Kind::kRead:
      result = preadv(fd_, rest.data(), count, offset);
      break;
    case NvmeJob::Kind::kWrite:
      result = pwritev(fd_, rest.data(), count, offset);
      break;
    case NvmeJob::Kind::kSync:
      result = fdatasync(fd_);
      break;
  }
  return result < 0 ? -errno : result;
}

absl::Status DeviceFile::ReadNow(uint64_t offset, absl::Span<std::byte> bytes) const {
  return Move(*this, {NvmeJob::Kind::kRead, offset, {bytes}}, "reading");
}

absl::Status DeviceFile::WriteNow(uint64_t offset, absl::Span<const std::byte> bytes) const {
  // A transfer has one kind of span; nothing is stored through this one.
  auto* data = const_cast<std::byte*>(bytes.data());
  return Move(*this, {NvmeJob::Kind::kWrite, offset, {{data, bytes.size()}}}, "writing");
}

absl::Status DeviceFile::SyncNow() const {
  if (fdatasync(fd_) == 0) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(path_, ": syncing: ", std::strerror(errno)));
}

}  // namespace kvd
