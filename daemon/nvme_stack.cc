#include "daemon/nvme_stack.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "policy/admissions.h"

namespace kvd {

absl::StatusOr<std::unique_ptr<NvmeStack>> NvmeStack::Open(
    const Config& config, const std::string& index_path,
    const std::vector<absl::Span<std::byte>>& memory, const Clock& clock,
    std::function<void()> wake) {
  auto stack = std::unique_ptr<NvmeStack>(new NvmeStack(clock));
  SegmentTierOptions options{
      .clock = &clock,
      .durability = config.durable_sync ? NvmeDurability::kSync : NvmeDurability::kAsync,
      .wake = std::move(wake)};
  for (const NvmeConfig& device : config.nvme) {
    absl::StatusOr<OpenedNvmeDevice> opened = OpenNvmeDevice(
        {.path = device.path, .size_bytes = device.capacity_bytes, .memory = memory}, clock);
    if (!opened.ok()) return opened.status();
    for (std::string& note : opened->notes) stack->notes_.push_back(std::move(note));
    options.devices.push_back(opened->device.get());
    stack->devices_.push_back(std::move(opened->device));
  }
  absl::StatusOr<std::unique_ptr<RocksIndex>> index =
      RocksIndex::Open({.path = index_path}, &stack->index_moved_to_);
  if (!index.ok()) return index.status();
  stack->index_ = *std::move(index);
  options.index = stack->index_.get();
  absl::StatusOr<std::unique_ptr<SegmentTier>> tier =
      OpenSegmentTier(options, stack->found_, stack->recovery_);
  if (!tier.ok()) return tier.status();
  stack->tier_ = *std::move(tier);
  stack->admission_ = std::make_unique<BudgetedAdmission>(
      MakeAdmission(config.admission, config.max_blocks), config.nvme_write_budget, clock.Now());
  for (const NvmeDeviceState& state : stack->tier_->devices()) {
    auto device = std::make_unique<NvmeNumbers::Device>();
    device->name = state.name;
    device->engine = state.engine;
    stack->numbers_.devices.push_back(std::move(device));
  }
  stack->Publish();
  return stack;
}

void NvmeStack::Publish() {
  const std::vector<NvmeDeviceState> states = tier_->devices();
  for (size_t i = 0; i < states.size(); ++i) {
    NvmeNumbers::Device& device = *numbers_.devices[i];
    if (states[i].out != (device.out != 0)) {
      if (states[i].out) {
        spdlog::warn("nvme.out device={} action=\"no reads and writes until a probe succeeds\"",
                     device.name);
      } else {
        spdlog::info("nvme.back device={}", device.name);
      }
    }
    device.out = states[i].out ? 1 : 0;
    device.capacity_bytes = states[i].capacity_bytes;
    device.live_bytes = states[i].live_bytes;
    device.write_bytes_in_flight = states[i].write_bytes_in_flight;
    for (size_t s = 0; s < kSegmentStates; ++s) device.segments[s] = states[i].segments[s];
  }
  const NvmeTierCounters& c = tier_->counters();
  numbers_.live_capacity_bytes = tier_->live_capacity_bytes();
  numbers_.live_bytes = tier_->live_bytes();
  numbers_.readable = tier_->readable() ? 1 : 0;
  numbers_.writable = tier_->writable() ? 1 : 0;
  numbers_.in_flight = tier_->in_flight();
  numbers_.appended_bytes = c.appended_bytes;
  numbers_.append_errors = c.append_errors;
  numbers_.read_bytes = c.read_bytes;
  numbers_.read_errors = c.read_errors;
  numbers_.reads_corrupt = c.reads_corrupt;
  numbers_.reads_expired = c.reads_expired;
  numbers_.copied_bytes = c.copied_bytes;
  numbers_.lost_records = c.lost_records;
  numbers_.given_up_records = c.given_up_records;
  numbers_.segments_freed = c.segments_freed;
  numbers_.segments_bad = c.segments_bad;
  numbers_.syncs = c.syncs;
  numbers_.sync_errors = c.sync_errors;
  numbers_.superblock_errors = c.superblock_errors;
  numbers_.breaker_changes = c.breaker_changes;
  const RocksIndexStats index = index_->stats();
  numbers_.index_rows_dropped = index.rows_dropped;
  numbers_.index_write_errors = index.write_errors;
  numbers_.index_rows_waiting = index.rows_waiting;
  const int64_t budget =
      admission_->bytes_per_day() == 0 ? 0 : admission_->available(clock_->Now());
  numbers_.write_budget_remaining_bytes = static_cast<uint64_t>(std::max<int64_t>(0, budget));
}

}  // namespace kvd
