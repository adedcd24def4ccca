// SIGKILL, again and again: real daemons under the load of real clients, killed at random instants
// and at every kill point in turn (proto/types/kill_point.h), started again on what they left, and
// every byte of every answer compared with what its key says.
//
// Every second cycle ends at a kill point, the others at a random instant. Each start is followed
// by an account: of the blocks that the daemon had acknowledged a second before the last kill, how
// many are found. Some starts find no arena, so that what they find is from NVMe alone.
//
// Threads: RunCrash() blocks; call it where no other thread runs yet, as it forks.

#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvd {

struct CrashOptions {
  uint64_t cycles = 300;
  uint64_t seed = 1;
  std::string program;  // kvd; empty: the one beside this program.
  uint64_t dram_bytes = 16u << 20;
  uint64_t nvme_bytes = 64u << 20;  // 0: no NVMe.
  uint32_t clients = 3;
  std::string only;    // One kill point, every time; empty: all in turn.
  std::string folder;  // Where the data lies, and stays; empty: a fresh one that goes.
};

struct CrashResult {
  struct Hits {
    uint64_t expected = 0;
    uint64_t found = 0;
    // NaN: nothing was expected.
    double ratio() const;
  };
  uint64_t cycles = 0;
  std::map<std::string, uint64_t> kills_by_point;  // Also "random".
  uint64_t blocks_verified = 0;
  Hits dram;  // Of blocks that were in DRAM, with the arena as it was left.
  Hits nvme;  // Of blocks that were on NVMe.
  uint64_t wrong_blocks = 0;
  uint64_t failed_starts = 0;
  std::vector<double> restart_ms;
  std::string first_failure;  // What a start that failed said, or an audit.
};

// Errors: kUnavailable when no daemon can be started at all; kCancelled after SIGINT or SIGTERM.
absl::StatusOr<CrashResult> RunCrash(const CrashOptions& options);

std::string CrashJson(const CrashResult& result);

// kDataLoss with a sentence when a promise was broken: wrong bytes, a failed start, too few hits,
// or (in a run that is long enough to have visited each twice) a kill point that never killed.
absl::Status JudgeCrash(const CrashResult& result);

}  // namespace kvd
