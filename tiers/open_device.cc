#include "tiers/open_device.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "tiers/device_file.h"
#include "tiers/thread_device.h"
#include "tiers/uring_device.h"

namespace kvd {

absl::StatusOr<OpenedNvmeDevice> OpenNvmeDevice(const NvmeDeviceOptions& options,
                                                const Clock& clock) {
  absl::StatusOr<std::shared_ptr<const DeviceFile>> file =
      DeviceFile::Open(options.path, options.size_bytes, options.lock_wait);
  if (!file.ok()) return file.status();

  OpenedNvmeDevice opened;
  opened.notes = (*file)->notes();
  if (options.may_use_uring) {
    auto uring =
        UringDevice::Open(*file, {.limits = options.limits, .memory = options.memory}, clock);
    if (uring.ok()) {
      opened.notes.insert(opened.notes.end(), (*uring)->notes().begin(), (*uring)->notes().end());
      opened.device = *std::move(uring);
      return opened;
    }
    opened.notes.push_back(absl::StrCat(options.path, ": ", uring.status().message(),
                                        "; a pool of threads serves it instead"));
  }
  ThreadDevice::Options threads;
  threads.limits = options.limits;
  opened.device = std::make_unique<ThreadDevice>(*std::move(file), std::move(threads), clock);
  return opened;
}

}  // namespace kvd
