// NvmeTier over one or several devices that are cut into segments. README.md has the format.
//
// Appends go to the device with the fewest bytes in flight, so devices fill evenly and a slow one
// gets less; a record lies on one device. Superblocks are written by a maintenance thread (or by
// whatever Options::run_blocking does).
//
// Threads: as NvmeTier. OpenSegmentTier() blocks.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/types/clock.h"
#include "tiers/nvme_completions.h"
#include "tiers/nvme_tier.h"
#include "tiers/recovery.h"
#include "tiers/segment_device.h"

namespace kvd {

struct SegmentTierOptions {
  std::vector<NvmeDevice*> devices;  // Borrowed; in any order. Their sinks are the tier's.
  RecordIndex* index = nullptr;      // Borrowed; none: every start reads the media.
  const Clock* clock = nullptr;      // Borrowed.
  NvmeTier::Owner* owner = nullptr;  // Borrowed; may come later, by SetOwner().
  NvmeDurability durability = NvmeDurability::kAsync;
  std::function<void()> wake;  // On any thread: Poll() has something to do.
  // Called where the start waits for a device; empty: it sleeps. For devices in virtual time.
  std::function<void()> pump;
  // Runs a task that blocks, tasks in order; empty: on a thread of the tier's own.
  std::function<void(std::function<void()>)> run_blocking;
  // A random identity; empty: the system's randomness.
  std::function<MediaId()> new_id;
  // Of each device; ordinal and geometry are set by the tier.
  SegmentDevice::Options device;
};

// What the tier shows of each device.
struct NvmeDeviceState {
  std::string_view name;
  std::string_view engine;
  bool out = false;
  uint32_t segments[kSegmentStates] = {};
  uint64_t live_bytes = 0;
  uint64_t capacity_bytes = 0;  // Of segments.
  uint64_t write_bytes_in_flight = 0;
};

class SegmentTier : public NvmeTier {
 public:
  // Before the first Poll().
  virtual void SetOwner(Owner* owner) = 0;
  virtual const std::vector<StoredScope>& scopes() const = 0;
  virtual std::string set_id() const = 0;
  virtual const NvmeTierCounters& counters() const = 0;
  virtual std::vector<NvmeDeviceState> devices() const = 0;
  // Ends the open segments and waits until all is written, so that the next start need not look for
  // the ends of things: at most `timeout`. Nothing may be called after it.
  virtual absl::Status Close(absl::Duration timeout) = 0;
};

// Opens the devices' set, or formats what is new (all zeros); `found` gets what lives on it. Those
// of `found` that the owner wants are to be adopted before the first Poll().
//   kFailedPrecondition  a newer format, another set, or what is not kvd's; nothing was changed
//   kDataLoss            both copies of a superblock are damaged; nothing was changed
//   kInvalidArgument     a device is too small, there are too many, or one was given twice
// Errors of the devices come as they are.
absl::StatusOr<std::unique_ptr<SegmentTier>> OpenSegmentTier(const SegmentTierOptions& options,
                                                             std::vector<RecoveredRecord>& found,
                                                             RecoveryReport& report);

}  // namespace kvd
