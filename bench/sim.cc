#include "bench/sim.h"

#include <algorithm>
#include <array>
#include <iostream>
#include <limits>
#include <new>
#include <utility>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/commands.h"
#include "bench/payload.h"
#include "bench/progress.h"
#include "bench/sim_tiers.h"
#include "bench/table.h"
#include "nlohmann/json.hpp"
#include "policy/admissions.h"
#include "policy/policies.h"
#include "proto/types/check.h"
#include "proto/types/limits.h"

namespace kvd {
namespace {

constexpr uint64_t kMaxCapacityBlocks = (1u << 30) - 1;  // As Residency allows.
constexpr uint64_t kSecret = 1;  // The keys are ours: nobody chooses ones that collide.

}  // namespace

absl::StatusOr<std::unique_ptr<Simulator>> Simulator::Create(const std::string& policy,
                                                             uint64_t capacity_blocks) {
  if (capacity_blocks == 0 || capacity_blocks > kMaxCapacityBlocks) {
    return absl::InvalidArgumentError(absl::StrCat("capacity of ", capacity_blocks,
                                                   " blocks: must be 1 to ", kMaxCapacityBlocks));
  }
  const auto blocks = static_cast<uint32_t>(capacity_blocks);
  try {
    std::unique_ptr<EvictionPolicy> made = MakePolicy(policy, blocks);
    if (made == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("no policy \"", policy, "\"; there is ", std::string(PolicyNames())));
    }
    return std::unique_ptr<Simulator>(new Simulator(std::move(made), blocks));
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for an index of ", capacity_blocks, " blocks"));
  }
}

Simulator::Simulator(std::unique_ptr<EvictionPolicy> policy, uint32_t capacity_blocks)
    : policy_(std::move(policy)),
      residency_(*policy_, room_,
                 {.max_blocks = capacity_blocks, .max_parts = capacity_blocks, .secret = kSecret}),
      ns_(residency_.AddNamespace({})) {
  result_.policy = std::string(policy_->name());
  result_.capacity_blocks = capacity_blocks;
}

void Simulator::Request(absl::Span<const uint64_t> hash_ids) {
  keys_.clear();
  for (const uint64_t id : hash_ids) {
    const std::array<std::byte, kMaxHashBytes> key = KeyOf(id, kSecret);
    keys_.append(reinterpret_cast<const char*>(key.data()), key.size());
  }
  const KeyList keys(keys_, kMaxHashBytes);

  const Residency::Prefix prefix = residency_.LongestPrefix(ns_, keys, nullptr);
  if (prefix.deepest != 0) residency_.Use(prefix.deepest, ++tick_);
  Store(keys, prefix.blocks, prefix.deepest);

  ++result_.requests;
  result_.blocks_asked += keys.size();
  result_.blocks_hit += prefix.blocks;
}

// Stores the keys from `from` on below `above` (0: as a root), as Control::Reserve and Commit do.
void Simulator::Store(const KeyList& keys, uint32_t from, BlockRef above) {
  BlockRef leased = 0;  // The deepest block of the chain so far: it keeps all above it.
  MoveLease(leased, above);
  for (uint32_t i = from; i < keys.size(); ++i) {
    if (above != 0 && residency_.block(above).depth + 1 >= kMaxChainDepth) break;
    const ChainHash key = keys[i];
    BlockRef block = residency_.Find(ns_, key);
    if (block != 0) {  // Only in a trace whose chains contradict each other.
      if (residency_.block(block).parent != above) break;
    } else {
      if (residency_.full() && !residency_.EvictNext()) break;
      block = residency_.Add(ns_, key, above, ++tick_);
      const PartRef part = residency_.AddPart(block, PartId{}, 0, 0, 0, 0);
      result_.blocks_stored += residency_.CommitPart(part, 0, tick_);
    }
    MoveLease(leased, block);
    above = block;
  }
  MoveLease(leased, 0);
}

void Simulator::MoveLease(BlockRef& leased, BlockRef to) {
  if (to != 0) residency_.Lease(to);
  if (leased != 0) residency_.Unlease(leased);
  leased = to;
}

SimResult Simulator::Result() const {
  SimResult result = result_;
  const Residency::AuditResult audit = residency_.Audit(0, std::numeric_limits<uint32_t>::max());
  KVD_CHECK(audit.errors == 0) << audit.first_error;
  result.stranded_blocks = audit.stranded;
  result.evicted_blocks = residency_.counts().evicted;
  return result;
}

namespace {

absl::StatusOr<std::unique_ptr<TraceSimulator>> MakeSimulator(const SimOptions& options,
                                                              const std::string& policy,
                                                              uint64_t capacity) {
  if (options.nvme_blocks == 0) return Simulator::Create(policy, capacity);
  return TwoTierSimulator::Create(policy, capacity, options.nvme_blocks, options.admission);
}

}  // namespace

absl::StatusOr<std::vector<SimResult>> Simulate(const SimOptions& options) {
  std::vector<std::unique_ptr<TraceSimulator>> simulators;
  for (const std::string& policy : options.policies) {
    for (const uint64_t capacity : options.capacities_blocks) {
      absl::StatusOr<std::unique_ptr<TraceSimulator>> simulator =
          MakeSimulator(options, policy, capacity);
      if (!simulator.ok()) return simulator.status();
      simulators.push_back(*std::move(simulator));
    }
  }
  absl::StatusOr<std::unique_ptr<TraceReader>> reader = TraceReader::Open(options.trace);
  if (!reader.ok()) return reader.status();

  const uint64_t limit = options.limit == 0 ? UINT64_MAX : options.limit;
  const SystemClock clock;
  ProgressBar progress(
      clock, ProgressBar::OnStandardError(
                 "sim", std::min((*reader)->request_count().value_or(options.limit), limit),
                 options.quiet));
  TraceRequest request;
  for (uint64_t i = 0; i < limit; ++i) {
    absl::StatusOr<bool> more = (*reader)->Next(request);
    if (!more.ok()) return more.status();
    if (!*more) break;
    for (const std::unique_ptr<TraceSimulator>& simulator : simulators) {
      simulator->Request(request.hash_ids);
    }
    progress.Add();
  }
  progress.Finish();

  std::vector<SimResult> results;
  for (const std::unique_ptr<TraceSimulator>& simulator : simulators) {
    results.push_back(simulator->Result());
  }
  return results;
}

namespace {

void PrintJson(const std::vector<SimResult>& results) {
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const SimResult& result : results) {
    rows.push_back({{"policy", result.policy},
                    {"capacity_blocks", result.capacity_blocks},
                    {"hit_ratio", result.hit_ratio()},
                    {"stranded_blocks", result.stranded_blocks},
                    {"requests", result.requests},
                    {"blocks_asked", result.blocks_asked},
                    {"blocks_hit", result.blocks_hit},
                    {"blocks_stored", result.blocks_stored},
                    {"evicted_blocks", result.evicted_blocks}});
    if (result.nvme_blocks == 0) continue;
    rows.back().update({{"nvme_blocks", result.nvme_blocks},
                        {"admission", result.admission},
                        {"nvme_blocks_hit", result.nvme_blocks_hit},
                        {"nvme_blocks_written", result.nvme_blocks_written},
                        {"lost_blocks", result.lost_blocks}});
  }
  std::cout << rows.dump(2) << std::endl;
}

void PrintTable(const std::vector<SimResult>& results) {
  Table table({"policy", "capacity", "NVMe", "requests", "blocks asked", "blocks hit", "hit ratio",
               "hit on NVMe", "written", "lost", "evicted", "stranded"});
  for (const SimResult& result : results) {
    table.AddRow({result.policy, WithCommas(result.capacity_blocks), WithCommas(result.nvme_blocks),
                  WithCommas(result.requests), WithCommas(result.blocks_asked),
                  WithCommas(result.blocks_hit), absl::StrFormat("%.4f", result.hit_ratio()),
                  WithCommas(result.nvme_blocks_hit), WithCommas(result.nvme_blocks_written),
                  WithCommas(result.lost_blocks), WithCommas(result.evicted_blocks),
                  WithCommas(result.stranded_blocks)});
  }
  std::cout << table.ToString() << std::flush;
}

}  // namespace

void AddSimCommand(CLI::App& app) {
  auto options = std::make_shared<SimOptions>();
  auto json = std::make_shared<bool>(false);
  CLI::App* command =
      app.add_subcommand("sim", "Runs a trace through the index and a policy alone, no daemon");
  command->add_option("--trace", options->trace, "Trace in any form; - is standard input")
      ->required();
  command
      ->add_option("--policy", options->policies,
                   absl::StrCat("Policies, separated by commas: ", std::string(PolicyNames())))
      ->delimiter(',')
      ->required();
  command
      ->add_option("--capacity-blocks", options->capacities_blocks,
                   "Most blocks kept, separated by commas")
      ->delimiter(',')
      ->required();
  command
      ->add_option("--nvme-blocks", options->nvme_blocks,
                   "Most blocks kept on NVMe beside them; 0: one tier")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--admission", options->admission,
                      absl::StrCat("What NVMe takes: ", std::string(AdmissionNames())));
  command->add_option("--limit", options->limit, "Only the first requests of the trace")
      ->check(CLI::PositiveNumber);
  command->add_flag("--json", *json, "One JSON array on standard output");
  command->callback([options, json] {
    options->quiet = *json;
    absl::StatusOr<std::vector<SimResult>> results = Simulate(*options);
    FinishCommand(results.status());
    if (*json) {
      PrintJson(*results);
    } else {
      PrintTable(*results);
    }
    for (const SimResult& result : *results) {
      if (result.stranded_blocks == 0) continue;
      FinishCommand(absl::DataLossError(
          absl::StrCat(WithCommas(result.stranded_blocks), " blocks are stranded: policy ",
                       result.policy, ", capacity ", WithCommas(result.capacity_blocks))));
    }
  });
}

}  // namespace kvd
