// Calls as plain structs: what `service.cc` makes of messages, and what another front end (a
// shared-memory ring) would make of its own. Views point into the caller's message, which outlives
// the call.
//
// A call that takes long is done in slices: a handler returns kMore when it has used its share of
// the control thread, kWait when it waits for somebody; the front end runs it again then.

#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/types/span.h"
#include "daemon/hold_table.h"
#include "daemon/lease_table.h"
#include "proto/types/block.h"
#include "proto/types/clock.h"
#include "proto/types/namespace_descriptor.h"

namespace kvd {

enum class Step : uint8_t { kDone, kMore, kWait };

// A call that may have to wait. The control thread's queue of what can go on names these.
class Resumable {
 public:
  virtual ~Resumable() = default;
  virtual void Resume() = 0;
};

struct DamageReport {
  HoldId hold = 0;
  absl::Span<const uint32_t> extents;
};

struct ReleaseList {
  absl::Span<const uint64_t> holds;
  absl::Span<const uint64_t> leases;
  absl::InlinedVector<DamageReport, 2> damaged;

  // What the bound of a call counts: everything that is named.
  size_t size() const {
    size_t named = holds.size() + leases.size() + damaged.size();
    for (const DamageReport& report : damaged) named += report.extents.size();
    return named;
  }
};

// How long a call may wait whose caller's deadline is so far away, less what an answer takes on its
// way back.
inline constexpr uint32_t kAnswerMs = 5;
inline uint32_t PatienceMs(uint32_t remaining_ms) {
  return remaining_ms - std::min(remaining_ms, kAnswerMs);
}

enum class LeaseOutcome : uint8_t { kNone, kGranted, kRefused };
enum class LoadOutcome : uint8_t { kComplete, kMiss, kHoldBudget };

// What every call names.
struct CallHeader {
  std::string_view session;  // Token.
  NamespaceId ns = 0;
  std::string_view keys;
  std::string_view parent;
  std::string_view parts;  // Group and shard, a byte each; empty: all.
  ReleaseList releases;
};

// Progress of a call that answers extents.
struct ExtentCursor {
  absl::InlinedVector<PartId, 4> parts;
  uint32_t next = 0;   // Block.
  uint32_t limit = 0;  // Blocks.
  HoldId hold = 0;
  LoadOutcome outcome = LoadOutcome::kComplete;
  // Of a call that waits for blocks to come from NVMe.
  bool may_wait = false;
  Nanos deadline = 0;
  bool gave_up = false;    // What it waited for did not come.
  BlockRef waits_for = 0;  // 0: for any.
};

struct LookupCall {
  CallHeader header;
  uint32_t lease_ms = 0;
  uint32_t extent_blocks = 0;
  double prefill_us_per_token = 0;  // What the caller needs to compute one; 0: not told.
  // Answer.
  uint32_t hit_blocks = 0;
  uint32_t nvme_blocks = 0;  // Of those, from the end of the prefix: not in DRAM.
  LeaseOutcome lease = LeaseOutcome::kNone;
  LeaseId lease_id = 0;
  uint64_t load_time_us = 0;
  std::string extents;
  // Progress.
  bool found = false;
  ExtentCursor cursor;
};

struct LoadCall {
  CallHeader header;
  uint32_t range_offset = 0;
  uint32_t range_bytes = 0;
  uint32_t remaining_ms = UINT32_MAX;  // Until the caller's own deadline: no wait is longer.
  Resumable* resumable = nullptr;      // Null: it waits for nothing.
  // Answer: cursor.next blocks.
  std::string extents;
  // Progress.
  bool started = false;
  Nanos wait_until = 0;
  ExtentCursor cursor;
};

struct ReserveCall {
  CallHeader header;
  uint32_t wait_ms = 0;
  uint32_t remaining_ms = UINT32_MAX;  // Until the caller's own deadline: no wait is longer.
  Resumable* resumable = nullptr;      // Requires: set when wait_ms is.
  // What routers are told of each block (proto/types/announcement.h), empty of one: nothing; or
  // none at all.
  std::vector<std::string_view> announce;
  // Answer.
  uint64_t reservation_id = 0;
  std::string states;
  uint32_t granted = 0;
  uint32_t parts = 0;  // Of each block.
  uint32_t expires_ms = 0;
  // Progress.
  bool started = false;
  Nanos wait_until = 0;
  uint32_t next = 0;
};

struct CommitCall {
  CallHeader header;
  uint64_t reservation_id = 0;
  uint32_t first_block = 0;
  uint32_t blocks = 0;
  std::string_view staged;
  bool staged_sums = false;                // `staged` carries the sums of the parts.
  uint32_t fills = 0;                      // Full parts of the reservation that this waits for.
  std::string_view sums;                   // Of the parts of the range, 4 bytes each; or empty.
  std::vector<std::string_view> announce;  // Of a put without a reservation, as in ReserveCall.
  uint32_t remaining_ms = UINT32_MAX;      // Until the caller's own deadline: no wait is longer.
  Resumable* resumable = nullptr;          // Required when there is no reservation_id, or `fills`.
  // Answer.
  std::string results;
  uint32_t stored = 0;
  // Progress.
  enum class Phase : uint8_t { kStart, kReserve, kFill, kAwait, kCommit } phase = Phase::kStart;
  bool inline_put = false;
  bool sums_differ = false;
  uint32_t next = 0;
  ReserveCall reserve;  // Of a put without a reservation.
};

struct PinCall {
  CallHeader header;
  std::string_view key;
  std::string_view owner;
  uint64_t budget_bytes = 0;
  uint64_t ttl_ms = 0;
  // Answer.
  LeaseId pin_id = 0;
  uint32_t blocks = 0;
  uint64_t bytes = 0;
};

}  // namespace kvd
