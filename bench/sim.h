// A trace through the index and a policy alone: no daemon, no payload, no clock. It is the very
// object code of the daemon (Residency, EvictionPolicy), so its hit ratios are the daemon's; a
// replay by one client in order has exactly the same hits.
//
// A request looks up its chain, which uses the deepest block found, and then stores what is missing
// from root to leaf. Its own chain cannot leave meanwhile. When nothing else may leave, the rest is
// not stored: a chain longer than the capacity keeps its head.
//
// Threads: one at a time.

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "bench/trace.h"
#include "daemon/residency.h"
#include "policy/eviction.h"

namespace kvd {

struct SimResult {
  std::string policy;
  uint32_t capacity_blocks = 0;
  uint64_t requests = 0;
  uint64_t blocks_asked = 0;
  uint64_t blocks_hit = 0;
  uint64_t blocks_stored = 0;
  uint64_t evicted_blocks = 0;
  uint64_t stranded_blocks = 0;
  // Of two tiers.
  uint64_t nvme_blocks = 0;  // Capacity; 0: one tier.
  std::string admission;
  uint64_t nvme_blocks_hit = 0;      // Of blocks_hit; not in DRAM when they were looked up.
  uint64_t nvme_blocks_written = 0;  // With ancestors.
  uint64_t lost_blocks = 0;          // Left DRAM before they were on NVMe.

  double hit_ratio() const {  // 0 when nothing was asked.
    return blocks_asked == 0 ? 0
                             : static_cast<double>(blocks_hit) / static_cast<double>(blocks_asked);
  }
};

class TraceSimulator {
 public:
  virtual ~TraceSimulator() = default;

  // One request: its blocks in order, root first.
  virtual void Request(absl::Span<const uint64_t> hash_ids) = 0;

  // What happened so far. Walks the whole index for stranded blocks.
  virtual SimResult Result() const = 0;
};

class Simulator final : public TraceSimulator {
 public:
  // kInvalidArgument when there is no such policy (the message names all), or when `capacity` is
  // zero or more than the index can count; kResourceExhausted when there is no memory for it.
  static absl::StatusOr<std::unique_ptr<Simulator>> Create(const std::string& policy,
                                                           uint64_t capacity_blocks);

  void Request(absl::Span<const uint64_t> hash_ids) override;
  SimResult Result() const override;

 private:
  class NoRoom final : public RoomOwner {
    void FreeRoom(const Part&) override {}
  };

  Simulator(std::unique_ptr<EvictionPolicy> policy, uint32_t capacity_blocks);
  void Store(const KeyList& keys, uint32_t from, BlockRef above);
  void MoveLease(BlockRef& leased, BlockRef to);

  const std::unique_ptr<EvictionPolicy> policy_;
  NoRoom room_;
  Residency residency_;
  const NamespaceId ns_;
  uint64_t tick_ = 0;
  SimResult result_;
  std::string keys_;  // Of one request; its memory is used again.
};

struct SimOptions {
  std::string trace;  // As TraceReader::Open() takes it.
  std::vector<std::string> policies;
  std::vector<uint64_t> capacities_blocks;
  uint64_t nvme_blocks = 0;                // 0: one tier.
  std::string admission = "second-touch";  // Of two tiers.
  uint64_t limit = 0;                      // Requests; 0: all.
  bool quiet = true;                       // No progress bar.
};

// Reads the trace once for all pairs of a policy and a capacity; results in the order of policies,
// then capacities. Errors are those of TraceReader and of Simulator::Create().
absl::StatusOr<std::vector<SimResult>> Simulate(const SimOptions& options);

}  // namespace kvd
