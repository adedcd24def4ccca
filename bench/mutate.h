// Damage to what a daemon stored, while it is down: bits flip, pages become zeros, pages and whole
// parts change places, files are cut. Then it starts, everything is read, and whatever was damaged
// must have been noticed: nothing wrong is served, and nothing crashes.
//
// There are two daemons in turn, so that each damaged copy is the one that is met: one with an
// arena alone, and one whose arena is removed before each start, so that all is read from NVMe.
// Many mutations share a start. A mutation is damaging when the bytes of a stored part, or of what
// says whose they are, differ from before.
//
// Threads: RunMutate() blocks; call it where no other thread runs yet, as it forks.

#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvd {

struct MutateOptions {
  uint64_t mutations = 10'000;
  uint64_t seed = 1;
  uint64_t mutations_a_start = 500;
  std::string program;    // kvd; empty: the one beside this program.
  bool with_nvme = true;  // False: the arena alone.
};

struct MutateResult {
  uint64_t mutations = 0;
  uint64_t damaging = 0;
  uint64_t detected = 0;  // Of the damaging ones.
  uint64_t wrong_blocks = 0;
  uint64_t crashes = 0;  // Daemons that ended, or did not start.

  uint64_t starts = 0;
  uint64_t blocks_verified = 0;
  uint64_t lost_beside = 0;  // Blocks that were not damaged, and not found either.
  std::string first_failure;
};

// Errors: kUnavailable when no daemon can be started at all.
absl::StatusOr<MutateResult> RunMutate(const MutateOptions& options);

std::string MutateJson(const MutateResult& result);
// kDataLoss with a sentence unless all that was damaged was detected, and nothing was wrong.
absl::Status JudgeMutate(const MutateResult& result);

}  // namespace kvd
