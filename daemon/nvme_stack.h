// The NVMe tier of a daemon with all that stands below and beside it: devices, index, admission and
// budget. Opened before anybody is served; what was found on the media is for daemon/restore.h.
//
// Threads: as NvmeTier; numbers() any.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "daemon/config.h"
#include "daemon/restore.h"
#include "policy/budgeted_admission.h"
#include "proto/types/clock.h"
#include "proto/types/shared_count.h"
#include "tiers/open_device.h"
#include "tiers/rocks_index.h"
#include "tiers/segment_tier.h"

namespace kvd {

// What is scraped of the tier, as of the last Publish().
struct NvmeNumbers {
  struct Device {
    std::string name;
    std::string engine;
    SharedCount out;  // 1: the breaker has taken it out.
    SharedCount capacity_bytes;
    SharedCount live_bytes;
    SharedCount write_bytes_in_flight;
    SharedCount segments[kSegmentStates];
  };
  std::vector<std::unique_ptr<Device>> devices;  // As many as there are from the start.
  SharedCount live_capacity_bytes;
  SharedCount live_bytes;
  SharedCount readable;
  SharedCount writable;
  SharedCount in_flight;
  SharedCount appended_bytes;
  SharedCount append_errors;
  SharedCount read_bytes;
  SharedCount read_errors;
  SharedCount reads_corrupt;
  SharedCount reads_expired;
  SharedCount copied_bytes;
  SharedCount lost_records;
  SharedCount given_up_records;
  SharedCount segments_freed;
  SharedCount segments_bad;
  SharedCount syncs;
  SharedCount sync_errors;
  SharedCount superblock_errors;
  SharedCount breaker_changes;
  SharedCount index_rows_dropped;
  SharedCount index_write_errors;
  SharedCount index_rows_waiting;
  SharedCount write_budget_remaining_bytes;  // 0 without a limit, and in debt.
};

class NvmeStack {
 public:
  // `index_path` is made if its parent is there. `memory` is what blocks are read into and written
  // from, region by region. `wake`: the control thread has a turn to take; any thread. Errors as of
  // OpenNvmeDevice(), OpenSegmentTier() and RocksIndex::Open(): kAborted, when another process has
  // a device or the index. Nothing that was not understood was changed.
  static absl::StatusOr<std::unique_ptr<NvmeStack>> Open(
      const Config& config, const std::string& index_path,
      const std::vector<absl::Span<std::byte>>& memory, const Clock& clock,
      std::function<void()> wake);

  SegmentTier& tier() { return *tier_; }
  BudgetedAdmission& admission() { return *admission_; }
  const BudgetedAdmission& admission() const { return *admission_; }
  const RecoveryReport& recovery() const { return recovery_; }
  const std::string& index_moved_to() const { return index_moved_to_; }  // Empty: it was not.
  const std::vector<std::string>& notes() const { return notes_; }       // For the log.
  NvmeRemains remains() const { return {*tier_, tier_->scopes(), found_}; }
  void ForgetRemains() { found_ = {}; }

  // Control thread: what there is to see now. Logs what a breaker did since the last time.
  void Publish();
  const NvmeNumbers& numbers() const { return numbers_; }

  // Before it goes: ends writing, so that the next start has less to look at.
  absl::Status Close(absl::Duration patience) { return tier_->Close(patience); }

 private:
  explicit NvmeStack(const Clock& clock) : clock_(&clock) {}

  const Clock* clock_;
  std::vector<std::unique_ptr<NvmeDevice>> devices_;
  std::unique_ptr<RocksIndex> index_;
  std::unique_ptr<SegmentTier> tier_;
  std::unique_ptr<BudgetedAdmission> admission_;
  std::vector<RecoveredRecord> found_;
  RecoveryReport recovery_;
  std::string index_moved_to_;
  std::vector<std::string> notes_;
  NvmeNumbers numbers_;
};

}  // namespace kvd
