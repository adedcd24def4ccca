// An NvmeDevice by a pool of threads that read and write one job each and wait for it: for systems
// that refuse io_uring. Same order, bounds and outcomes; more CPU, and a thread for each job that
// the kernel has.

#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "proto/types/clock.h"
#include "tiers/device_file.h"
#include "tiers/nvme_device.h"
#include "tiers/nvme_queue.h"
#include "tiers/nvme_transfer.h"

namespace kvd {

class ThreadDevice final : public NvmeDevice {
 public:
  static constexpr uint32_t kThreadsMax = 16;

  struct Options {
    NvmeLimits limits;  // depth_jobs is cut to kThreadsMax.
    // As of UringDevice. Threads that hang in the kernel stay behind, and touch nothing of ours but
    // the buffers of their jobs.
    Nanos close_wait = 5 * kSecond;
    NvmeFault fault;  // On the thread that has the job.
  };

  // `clock` outlives the process when a thread hangs.
  ThreadDevice(std::shared_ptr<const DeviceFile> file, Options options, const Clock& clock);
  // Jobs that have not begun end with ECANCELED.
  ~ThreadDevice() override;

  void SetSink(Sink sink) override;
  bool Submit(NvmeJob job) override;
  uint64_t size_bytes() const override { return file_->size_bytes(); }
  std::string_view name() const override { return file_->path(); }
  std::string_view engine() const override { return "threads"; }
  absl::Status ReadNow(uint64_t offset, absl::Span<std::byte> bytes) override {
    return file_->ReadNow(offset, bytes);
  }
  absl::Status WriteNow(uint64_t offset, absl::Span<const std::byte> bytes) override {
    return file_->WriteNow(offset, bytes);
  }
  absl::Status SyncNow() override { return file_->SyncNow(); }

 private:
  class Pool;

  const std::shared_ptr<const DeviceFile> file_;
  const std::shared_ptr<Pool> pool_;  // Shared with its threads.
};

}  // namespace kvd
