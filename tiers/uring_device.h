// An NvmeDevice by io_uring: one thread of its own, which alone talks to the ring, so that the
// kernel does its part of the work there too (deferred task work) and completions cost no
// interrupt of anybody else.
//
// Submit() puts the job into a queue and wakes the thread by an eventfd, but only when it sleeps
// and may begin more: a busy device costs one wake-up for each completion and none for submitting.
// Sums are taken after the next jobs have been handed to the kernel, while the disk works.
//
// Memory that is registered is pinned, and a transfer into it costs the kernel no walk over pages.
// Where registering is refused (RLIMIT_MEMLOCK), everything works without, and notes() says so.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "proto/types/clock.h"
#include "tiers/device_file.h"
#include "tiers/nvme_device.h"
#include "tiers/nvme_queue.h"
#include "tiers/nvme_transfer.h"

namespace kvd {

class UringDevice final : public NvmeDevice {
 public:
  struct Options {
    NvmeLimits limits;
    // To be registered, whole pages each; it outlives the device, or is replaced.
    std::vector<absl::Span<std::byte>> memory;
    // How long the destructor waits for what the kernel has. What has not ended then is never told,
    // and its buffers must not be used for anything else while this process lives.
    Nanos close_wait = 5 * kSecond;
    NvmeFault fault;  // On the device's thread.
  };

  // kUnavailable: io_uring is refused here, and why.
  static absl::StatusOr<std::unique_ptr<UringDevice>> Open(std::shared_ptr<const DeviceFile> file,
                                                           Options options, const Clock& clock);
  // Jobs that have not begun end with ECANCELED.
  ~UringDevice() override;

  void SetSink(Sink sink) override;
  bool Submit(NvmeJob job) override;
  // A span larger than 1 GiB, or one that was not registered, is served unregistered from then on.
  void ReplaceMemory(absl::Span<std::byte> before, absl::Span<std::byte> after) override;
  uint64_t size_bytes() const override { return file_->size_bytes(); }
  std::string_view name() const override { return file_->path(); }
  std::string_view engine() const override { return "io_uring"; }
  absl::Status ReadNow(uint64_t offset, absl::Span<std::byte> bytes) override {
    return file_->ReadNow(offset, bytes);
  }
  absl::Status WriteNow(uint64_t offset, absl::Span<const std::byte> bytes) override {
    return file_->WriteNow(offset, bytes);
  }
  absl::Status SyncNow() override { return file_->SyncNow(); }

  // What was wished for and refused. One sentence each.
  const std::vector<std::string>& notes() const;

 private:
  class Worker;
  UringDevice(std::shared_ptr<const DeviceFile> file, std::unique_ptr<Worker> worker);

  const std::shared_ptr<const DeviceFile> file_;
  const std::unique_ptr<Worker> worker_;
};

}  // namespace kvd
