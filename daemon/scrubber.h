// Looks at stored bytes that nobody reads: all of them, slowly, in the background, and those that
// an operator names, now. Parts in DRAM are summed by the mover, records are read into a buffer.
// What is damaged is dealt with where every damage is (daemon/control.h); here it is counted.
//
// Threads: one, the control thread. Nothing blocks; a turn looks at some slots and starts some
// checks.

#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/container/flat_hash_map.h"
#include "daemon/metrics.h"
#include "daemon/movement.h"
#include "daemon/mover.h"
#include "daemon/residency.h"
#include "daemon/store.h"
#include "proto/types/clock.h"

namespace kvd {

class Scrubber {
 public:
  struct Options {
    // Of the background walk; 0: there is none. A part counts as 64 KiB at least.
    uint64_t bytes_per_second = 0;
    uint32_t checks_in_flight = 16;  // Of one operator's walk.
  };
  // What a walk has seen so far.
  struct Progress {
    uint64_t blocks = 0;
    uint64_t parts = 0;  // Checked, ...
    uint64_t bytes = 0;
    uint64_t damaged = 0;  // ... of those,
    uint64_t skipped = 0;  // and not: they are held too often, or too much waits already.
    bool done = false;
  };
  using RunId = uint64_t;  // 0: none.

  // Collaborators must outlive this.
  Scrubber(Store& store, Mover& mover, ScrubCounters& counters, const Options& options);

  // There is NVMe.
  void Attach(Movement& movement) { movement_ = &movement; }
  // Of the background walk, from now on.
  void SetBandwidth(uint64_t bytes_per_second);

  // Goes on with the background walk.
  void Turn(Nanos now);
  Nanos NextDeadline() const;

  // A walk over all blocks of `ns` (0: of all), or, where `deepest` is not 0, over its chain. At
  // most four at a time: 0 then. It ends when it is done, or when nobody went on with it for a
  // minute.
  RunId Begin(NamespaceId ns, BlockRef deepest, Nanos now);
  // One turn. Empty: there is no such walk (any more).
  std::optional<Progress> Continue(RunId run, Nanos now);

  // A check of a part, or of a record, has ended. False: it was not one of these.
  bool PartChecked(PartRef part, bool intact);
  bool RecordChecked(ColdRef cold, NvmeOutcome outcome);

  const Progress& background() const { return background_.progress; }  // Since start.
  uint64_t passes() const { return counters_.passes; }                 // Over all blocks, ended.

 private:
  struct Run {
    NamespaceId ns = 0;
    BlockRef deepest = 0;  // Leased.
    BlockRef at = 0;       // The next of its chain.
    uint32_t next = 1;     // The next slot.
    uint32_t in_flight = 0;
    bool walked = false;
    Nanos seen = 0;  // Somebody went on with it.
    Progress progress;
  };
  struct Check {
    RunId run = 0;  // 0: the background's.
    uint32_t length = 0;
  };
  static constexpr size_t kMostRuns = 4;

  BlockRef NextBlock(Run& run, uint32_t& work) const;
  uint64_t CheckBlock(Run& run, RunId id, BlockRef block);
  bool CheckPart(PartRef part);
  Run* Find(RunId run);
  void Skip(Run& run, TierIndex tier);
  void Ended(const Check& check, TierIndex tier, bool intact);
  ScrubCounters::OfTier& Count(TierIndex tier) {
    return counters_.tiers[static_cast<size_t>(tier)];
  }
  void End(RunId run);

  Store& store_;
  Residency& residency_;
  Mover& mover_;
  Movement* movement_ = nullptr;
  ScrubCounters& counters_;
  Options options_;

  Run background_;
  int64_t allowance_ = 0;  // Bytes.
  Nanos refilled_ = 0;
  Nanos next_turn_ = 0;
  RunId last_run_ = 0;
  absl::flat_hash_map<RunId, std::unique_ptr<Run>> runs_;
  absl::flat_hash_map<PartRef, Check> parts_;  // Under way.
  absl::flat_hash_map<ColdRef, Check> records_;
};

}  // namespace kvd
