// The file or block device behind an NvmeDevice: found or made, locked, and read and written at
// once, without a queue. The engines share it.
//
// Nothing is ever formatted or shortened here: a file that exists keeps its bytes.
//
// Threads: immutable after Open(); everything is safe from any thread.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "proto/types/clock.h"
#include "tiers/nvme_transfer.h"

namespace kvd {

class DeviceFile {
 public:
  // Opens `path` for us alone, until the object is gone or the process has ended.
  //
  // A file that is not there (its folder must be) or is empty is made of `size_bytes`, all of them
  // allocated on the disk; killed meanwhile, it is empty still. One that is there must have
  // `size_bytes` at least, and only those are used. Of a block device 0 means all of it. Sizes are
  // cut to whole pages.
  //
  // The lock of a process that was killed is free only when the kernel has ended what that process
  // had under way, so nothing of it can be written after we have looked. That takes some 50 ms, on
  // a sick disk for ever: `lock_wait` bounds how long we wait for it.
  //
  // kNotFound: no folder, or no such device. kResourceExhausted: the disk has no room. kAborted:
  // another process has it still, or it is mounted. kPermissionDenied, kFailedPrecondition: may not
  // be written; the file system is read-only. kInvalidArgument: neither file nor block device, or
  // smaller than asked. Otherwise what the system said.
  static absl::StatusOr<std::shared_ptr<const DeviceFile>> Open(const std::string& path,
                                                                uint64_t size_bytes,
                                                                Nanos lock_wait = 10 * kSecond);
  // Takes over a descriptor, for tests.
  static std::shared_ptr<const DeviceFile> Adopt(std::string path, int fd, uint64_t size_bytes);

  ~DeviceFile();
  DeviceFile(const DeviceFile&) = delete;
  DeviceFile& operator=(const DeviceFile&) = delete;

  int fd() const { return fd_; }
  const std::string& path() const { return path_; }
  uint64_t size_bytes() const { return size_bytes_; }
  // What a person should know: O_DIRECT refused, a file larger than asked. One sentence each.
  const std::vector<std::string>& notes() const { return notes_; }

  // Block. Whole pages. kUnavailable with errno's text; kDataLoss: the file ends before.
  absl::Status ReadNow(uint64_t offset, absl::Span<std::byte> bytes) const;
  absl::Status WriteNow(uint64_t offset, absl::Span<const std::byte> bytes) const;
  absl::Status SyncNow() const;
  // One request for the rest of a transfer: what the kernel says, for Take(). Blocks.
  int64_t Ask(const NvmeTransfer& transfer) const;

 private:
  DeviceFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  absl::Status Lock(Nanos wait) const;
  absl::Status TakeFile(uint64_t size_bytes, uint64_t file_bytes);
  absl::Status TakeBlockDevice(uint64_t size_bytes);
  absl::Status Allocate(uint64_t size_bytes);

  const std::string path_;
  const int fd_;
  uint64_t size_bytes_ = 0;
  std::vector<std::string> notes_;
};

}  // namespace kvd
