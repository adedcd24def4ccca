// The segment tier and its recovery over simulated devices: records come, are read, die and are
// reclaimed, and again and again an image is taken of what the media would hold if the power failed
// (or the process were killed) just now. Each image is opened as a start would open it, and held
// against an oracle: what was promised to be durable is there, whatever is there is what was
// written, and nothing that was purged comes back.
//
// Everything follows from the seed: the same seed, the same run.

#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "tests/sim/sim_device.h"
#include "tests/sim/sim_index.h"
#include "tiers/nvme_buffer.h"
#include "tiers/segment_tier.h"

namespace kvd {

struct PowerLossOptions {
  uint64_t seed = 1;
  uint32_t images = 50;
  uint32_t images_of_a_life = 10;   // Then the run goes on from the last of them.
  uint32_t steps_to_an_image = 60;  // On average.
};

struct PowerLossResult {
  uint32_t images = 0;
  uint64_t records_promised = 0;  // Looked for in images, and ...
  uint64_t records_lost = 0;      // ... not found, or damaged.
  uint64_t records_verified = 0;
  uint64_t given_up = 0;      // For want of a free segment, of those or later.
  uint64_t wrong_blocks = 0;  // Read as good, and not what was written.
  uint64_t resurrected = 0;   // Found after their scope had been purged.
  uint64_t failed_opens = 0;
  std::string first_failure;

  // How much happened, so that a run in which nothing did is seen.
  uint64_t appended = 0;
  uint64_t reclaimed_segments = 0;
  uint64_t moved = 0;
  uint64_t purges = 0;
  PowerLoss writes;
  std::map<SimFault, uint64_t> faults;

  bool ok() const {
    return records_lost + wrong_blocks + resurrected + failed_opens == 0 && first_failure.empty();
  }
};

PowerLossResult RunPowerLoss(const PowerLossOptions& options);

}  // namespace kvd
