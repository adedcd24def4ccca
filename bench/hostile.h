// `kvd-bench hostile`: what well-behaved clients of a daemon feel while others abuse it, and what
// the abuse leaves behind. README.md says what the phases are and what the figures contain.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "bench/hostile_board.h"

namespace kvd {

// The bars. A phase with oversized messages may instead keep the absolute one.
inline constexpr double kHostileMaxP99Ratio = 3;  // To the quiet phase.
inline constexpr double kHostileMaxOversizedP99Us = 10'000;
inline constexpr double kHostileMaxMemoryRatio = 1.05;  // After to before.

struct HostileOptions {
  std::string program;  // Path of kvd; empty: the one beside this program.
  std::string daemon;   // unix:PATH of one that runs already; empty: one of our own.
  absl::Duration time = absl::Seconds(60);  // Of all phases together.
  std::vector<std::string> only;            // Names of phases between the quiet ones; empty: all.
};

struct HostilePhase {
  std::string name;
  double p50_us = 0;  // Of the well-behaved clients' lookups of 256 blocks.
  double p99_us = 0;
  double ratio_p99 = 0;  // To the quiet phase.
  uint64_t samples = 0;
  uint64_t failed_calls = 0;  // Of the well-behaved clients; a failed lookup counts as its timeout.
  bool oversized = false;     // The absolute bar will do.
};

struct HostileResult {
  std::vector<HostilePhase> phases;
  uint64_t gets = 0;
  uint64_t blocks_checked = 0;
  uint64_t wrong_blocks = 0;
  uint64_t missed_blocks = 0;
  uint64_t attacks[kAttacks] = {};  // How often each was done.
  uint64_t memory_before = 0;       // Of the daemon, beside the arena, bytes.
  uint64_t memory_after = 0;
  int64_t left_sessions = 0;  // After less before.
  int64_t left_holds = 0;
  int64_t left_leases = 0;
  int64_t left_reservations = 0;
  std::string newcomer;  // Why a client that comes afterwards is not served; empty: it is.
};

// Starts all the processes and ends them. Errors are of the run itself; what the daemon did wrong
// is in the result. Requires: called on the main thread, before gRPC is used.
absl::StatusOr<HostileResult> RunHostile(const HostileOptions& options);

// One sentence for each bar that was missed.
std::vector<std::string> MissedHostileBars(const HostileResult& result);

std::string HostileTable(const HostileResult& result);
std::string HostileJson(const HostileResult& result);

}  // namespace kvd
