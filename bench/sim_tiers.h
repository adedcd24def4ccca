// A trace through two tiers: the daemon's index, store and movement over an NVMe tier that ends its
// jobs at once, and no payload. What moves has moved before the next request, as in a replay with
// --quiesce.
//
// A request is that of bench/sim.h; in between it loads what it found, page by page, and counts as
// hit what came.
//
// Threads: one at a time.

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "bench/sim.h"
#include "daemon/movement.h"
#include "daemon/store.h"
#include "policy/admission.h"
#include "policy/eviction.h"
#include "proto/types/clock.h"
#include "tiers/arena.h"
#include "tiers/nvme_tier.h"
#include "tiers/region_directory.h"

namespace kvd {

class TwoTierSimulator final : public TraceSimulator, private Movement::Listener {
 public:
  // As Simulator::Create(), with `nvme_blocks` on NVMe.
  static absl::StatusOr<std::unique_ptr<TwoTierSimulator>> Create(const std::string& policy,
                                                                  uint64_t capacity_blocks,
                                                                  uint64_t nvme_blocks,
                                                                  const std::string& admission);
  ~TwoTierSimulator() override;

  void Request(absl::Span<const uint64_t> hash_ids) override;
  SimResult Result() const override;

 private:
  // Keeps no bytes: a record is what its owner remembers of it.
  class InstantTier;

  TwoTierSimulator(std::unique_ptr<EvictionPolicy> policy,
                   std::unique_ptr<EvictionPolicy> cold_policy,
                   std::unique_ptr<AdmissionPolicy> admission, uint32_t capacity_blocks,
                   uint64_t nvme_blocks);
  static std::unique_ptr<Arena> MakeArena(RegionDirectory& directory, uint32_t capacity_blocks);
  void Landed(BlockRef, bool) override {}
  void RoomMade() override {}
  void RecordDamaged(const Block&, const ColdPart&, Finder) override {}
  void RecordChecked(ColdRef, NvmeOutcome) override {}

  uint32_t LoadPrefix(const Residency::Prefix& prefix);
  void StoreRest(const KeyList& keys, uint32_t from, BlockRef above);
  BlockRef StoreOne(const ChainHash& key, BlockRef above);
  void MoveLease(BlockRef& leased, BlockRef to);
  void Quiesce();

  const std::unique_ptr<EvictionPolicy> policy_;
  const std::unique_ptr<EvictionPolicy> cold_policy_;
  const std::unique_ptr<AdmissionPolicy> admission_;
  const ManualClock clock_;
  RegionDirectory directory_;
  const std::unique_ptr<Arena> arena_;
  Store store_;
  Residency& residency_;
  const std::unique_ptr<InstantTier> tier_;
  MovementCounters counters_;
  Movement movement_;
  const NamespaceId ns_;
  uint64_t tick_ = 0;
  SimResult result_;
  std::string keys_;  // Of one request; its memory is used again.
};

}  // namespace kvd
