// Opens a device by path: finds or makes the file (device_file.h), and serves it by io_uring where
// that is allowed, by threads where it is not.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "proto/types/clock.h"
#include "tiers/nvme_device.h"
#include "tiers/nvme_queue.h"

namespace kvd {

struct NvmeDeviceOptions {
  std::string path;
  uint64_t size_bytes = 0;         // As of DeviceFile::Open().
  Nanos lock_wait = 10 * kSecond;  // Likewise.
  NvmeLimits limits;
  // Where most jobs have their bytes: registered with io_uring. Outlives the device.
  std::vector<absl::Span<std::byte>> memory;
  bool may_use_uring = true;  // False: threads.
};

struct OpenedNvmeDevice {
  std::unique_ptr<NvmeDevice> device;
  // For the log: what was wished for and refused, and why. One sentence each, with the path.
  std::vector<std::string> notes;
};

// Errors: those of DeviceFile::Open(). `clock` outlives the process.
absl::StatusOr<OpenedNvmeDevice> OpenNvmeDevice(const NvmeDeviceOptions& options,
                                                const Clock& clock);

}  // namespace kvd
