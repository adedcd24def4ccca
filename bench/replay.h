// A trace through a running daemon, as engines would send it.
//
// Each request looks up its chain under a lease, loads the prefix that was hit and checks every
// byte of it, puts the rest, and ends the lease. The payload of a block is a function of its key
// (bench/payload.h), so no expectation is stored and another reader can check it too.
//
// Clients are threads with a session each; they take the requests in the order of the trace from a
// shared cursor, so one client is in trace order, and then has exactly the hits of bench/sim.h.
//
// Threads: Replay() blocks; call it where no other thread runs yet, as it forks.

#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvd {

struct ReplayOptions {
  std::string trace;     // As TraceReader::Open() takes it.
  std::string endpoint;  // unix:PATH of a daemon; empty: one of our own.
  // Of a daemon of our own. It gets room for more bytes than these blocks have, so that the count
  // of blocks is what evicts, as in the simulator.
  uint64_t capacity_blocks = 18279;
  std::string policy = "lru";
  // Records that its NVMe tier has room for beside them, in a file that goes with it; 0: no tier.
  // Then memory has room for capacity_blocks, and what leaves it is `admission`'s to admit.
  uint64_t nvme_blocks = 0;
  std::string admission = "second-touch";
  bool quiesce = false;  // Each request waits until no block moves between the tiers.
  uint64_t limit = 0;    // Requests; 0: all.
  uint32_t clients = 1;
  uint32_t block_bytes = 4096;
  // Every request keeps a lease on what is stored of its chain until the end, so nothing leaves
  // (for as long as a lease may live: kMaxLeaseMs).
  bool hold_leases = false;
  // Requests wait for their arrival instead of following each other at once.
  bool at_trace_time = false;
  bool quiet = true;  // No progress bar.
};

struct ReplayResult {
  std::string policy;
  uint64_t capacity_blocks = 0;
  uint32_t block_bytes = 0;
  uint32_t clients = 0;
  double seconds = 0;

  uint64_t requests = 0;
  uint64_t blocks_asked = 0;
  uint64_t blocks_hit = 0;  // Loaded and verified, not merely promised.
  uint64_t prompt_tokens = 0;
  uint64_t prompt_tokens_not_recomputed = 0;
  uint64_t blocks_stored = 0;        // Made visible by our puts.
  uint64_t blocks_without_room = 0;  // Not stored, as nothing could be evicted.
  // Of the NVMe tier, since the daemon started; 0 without one.
  std::string admission;
  uint64_t nvme_blocks = 0;
  uint64_t nvme_written_blocks = 0;
  uint64_t nvme_written_bytes = 0;  // With headers.
  uint64_t nvme_promoted_blocks = 0;
  uint64_t nvme_lost_blocks = 0;  // Left memory before they could be written.
  // Why nobody could ask the daemon about itself: without that there is neither its policy, nor its
  // capacity, nor an audit. Empty: it was asked.
  std::string not_audited;
  uint64_t stranded_blocks = 0;  // By the daemon's audit after the last request.
  uint64_t audit_errors = 0;
  std::string audit_first_error;
  uint64_t wrong_blocks = 0;   // Verified, and still not the bytes of their key.
  uint64_t damaged_parts = 0;  // Found by the client's own verification: misses.
  uint64_t refused_calls = 0;  // Overload or a deadline: misses.
  uint64_t leases_held = 0;    // At the end, before they were released.

  // Of one client: payload bytes by the time spent in these calls. NaN: there were none.
  double put_gib_s = std::numeric_limits<double>::quiet_NaN();
  double get_gib_s = std::numeric_limits<double>::quiet_NaN();
  double lookup_us_p50 = std::numeric_limits<double>::quiet_NaN();
  double lookup_us_p99 = std::numeric_limits<double>::quiet_NaN();

  // The floors, measured in the same run.
  double copy_gib_s = 0;
  std::string_view copy_loop;
  uint64_t echo_bytes = 0;  // Of the median lookup's keys.
  double echo_us_p50 = 0;
  double echo_us_p99 = 0;

  double hit_ratio() const {  // 0 when nothing was asked.
    return blocks_asked == 0 ? 0
                             : static_cast<double>(blocks_hit) / static_cast<double>(blocks_asked);
  }
};

// Errors: those of TraceReader; kUnavailable when the daemon cannot be reached, does not start or
// goes away; kCancelled after SIGINT or SIGTERM, which are handled meanwhile. A daemon of our own
// has ended when this returns. A running daemon whose operators' socket is not ours to connect to
// is replayed to without its audit.
absl::StatusOr<ReplayResult> Replay(const ReplayOptions& options);

// kDataLoss with a sentence when the daemon broke its word: wrong or stranded blocks, or an index
// that does not add up.
absl::Status JudgeReplay(const ReplayResult& result);

}  // namespace kvd
