#include "daemon/scrubber.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace kvd {
namespace {

constexpr uint32_t kSlotsPerTurn = 1024;
constexpr uint32_t kWorkOfBlock = 16;        // As much as looking at so many slots.
constexpr uint64_t kLeastBytes = 64u << 10;  // That a part counts: two threads are woken for it.
constexpr Nanos kPatience = 60 * kSecond;
constexpr Nanos kIdle = 100 * kMillisecond;  // Between looks at an index that has nothing.

}  // namespace

Scrubber::Scrubber(Store& store, Mover& mover, ScrubCounters& counters, const Options& options)
    : store_(store),
      residency_(store.residency()),
      mover_(mover),
      counters_(counters),
      options_(options) {
  SetBandwidth(options.bytes_per_second);
}

void Scrubber::SetBandwidth(uint64_t bytes_per_second) {
  options_.bytes_per_second = bytes_per_second;
  next_turn_ = bytes_per_second == 0 ? INT64_MAX : 0;
}

// --- walking -------------------------------------------------------------------------------------

// 0: the walk is over (run.walked), or this turn is.
BlockRef Scrubber::NextBlock(Run& run, uint32_t& work) const {
  if (run.deepest != 0) {
    const BlockRef block = run.at;
    if (block != 0) run.at = residency_.block(block).parent;
    run.walked = run.at == 0;
    return block;
  }
  for (; run.next <= residency_.max_blocks() && work > 0; --work) {
    const BlockRef at = run.next++;
    const Block& block = residency_.block(at);
    if (block.state != BlockState::kFree && (run.ns == 0 || block.ns == run.ns)) return at;
  }
  run.walked = run.next > residency_.max_blocks();
  return 0;
}

// Starts the checks of all that a block has. Returns their cost, in bytes.
uint64_t Scrubber::CheckBlock(Run& run, RunId id, BlockRef ref) {
  uint64_t bytes = 0;
  ++run.progress.blocks;
  const Block& block = residency_.block(ref);
  for (PartRef part = block.first_part; part != 0; part = residency_.part(part).next) {
    const Part& p = residency_.part(part);
    if (p.state != static_cast<uint32_t>(PartState::kCommitted)) continue;
    if (parts_.contains(part) || !CheckPart(part)) {
      Skip(run, TierIndex::kDram);
      continue;
    }
    parts_[part] = {.run = id, .length = p.length};
    bytes += std::max<uint64_t>(p.length, kLeastBytes);
    ++run.in_flight;
  }
  for (ColdRef cold = block.first_cold; cold != 0; cold = residency_.cold(cold).next) {
    const ColdPart& record = residency_.cold(cold);
    if (record.state != ColdState::kCommitted) continue;
    if (records_.contains(cold) || !movement_->Check(cold)) {
      Skip(run, TierIndex::kNvme);
      continue;
    }
    records_[cold] = {.run = id, .length = record.length};
    bytes += std::max<uint64_t>(record.length, kLeastBytes);
    ++run.in_flight;
  }
  return bytes;
}

bool Scrubber::CheckPart(PartRef ref) {
  const Part& part = residency_.part(ref);
  if (!residency_.Hold(ref)) return false;
  if (mover_.Verify({{store_.Address(part), part.length}, part.sum, ref})) return true;
  residency_.Unhold(ref);
  return false;
}

bool Scrubber::PartChecked(PartRef part, bool intact) {
  const auto it = parts_.find(part);
  if (it == parts_.end()) return false;
  Ended(it->second, TierIndex::kDram, intact);
  parts_.erase(it);
  return true;
}

bool Scrubber::RecordChecked(ColdRef cold, NvmeOutcome outcome) {
  const auto it = records_.find(cold);
  if (it == records_.end()) return false;
  const bool looked = outcome == NvmeOutcome::kOk || outcome == NvmeOutcome::kCorrupt;
  if (looked) {
    Ended(it->second, TierIndex::kNvme, outcome == NvmeOutcome::kOk);
  } else if (Run* run = Find(it->second.run)) {
    --run->in_flight;
    Skip(*run, TierIndex::kNvme);
  }
  records_.erase(it);
  return true;
}

Scrubber::Run* Scrubber::Find(RunId id) {
  if (id == 0) return &background_;
  const auto it = runs_.find(id);
  return it == runs_.end() ? nullptr : it->second.get();
}

void Scrubber::Skip(Run& run, TierIndex tier) {
  ++Count(tier).skipped;
  ++run.progress.skipped;
}

void Scrubber::Ended(const Check& check, TierIndex tier, bool intact) {
  ++Count(tier).parts;
  Count(tier).bytes += check.length;
  Run* run = Find(check.run);
  if (run == nullptr) return;  // Its operator has gone.
  --run->in_flight;
  ++run->progress.parts;
  run->progress.bytes += check.length;
  run->progress.damaged += !intact;
}

// --- in the background ---------------------------------------------------------------------------

// One block at a time, as fast as the budget pays for what was looked at.
void Scrubber::Turn(Nanos now) {
  if (options_.bytes_per_second == 0 || background_.in_flight > 0 || now < next_turn_) return;
  const auto rate = static_cast<int64_t>(options_.bytes_per_second);
  const Nanos elapsed = std::min(now - std::exchange(refilled_, now), kSecond);
  allowance_ = std::min(rate, allowance_ + rate * elapsed / kSecond);
  if (allowance_ <= 0) {
    next_turn_ = now + (1 - allowance_) * kSecond / rate + kMillisecond;
    return;
  }
  uint32_t work = kSlotsPerTurn;
  next_turn_ = now + kIdle;
  while (work > 0) {
    const BlockRef block = NextBlock(background_, work);
    if (block != 0) {
      allowance_ -= static_cast<int64_t>(CheckBlock(background_, 0, block));
      if (background_.in_flight > 0) return;
    }
    if (!background_.walked) continue;
    background_.walked = false;
    background_.next = 1;
    ++counters_.passes;
    return;  // Whatever it found: the next pass is another turn's.
  }
}

Nanos Scrubber::NextDeadline() const { return background_.in_flight > 0 ? INT64_MAX : next_turn_; }

// --- for an operator -----------------------------------------------------------------------------

Scrubber::RunId Scrubber::Begin(NamespaceId ns, BlockRef deepest, Nanos now) {
  std::vector<RunId> forgotten;
  for (const auto& [id, run] : runs_) {
    if (run->seen + kPatience < now) forgotten.push_back(id);
  }
  for (const RunId id : forgotten) End(id);
  if (runs_.size() >= kMostRuns) return 0;
  auto run = std::make_unique<Run>();
  run->ns = ns;
  run->seen = now;
  run->deepest = run->at = deepest;
  if (deepest != 0) residency_.Lease(deepest);  // What it stands on stays.
  runs_[++last_run_] = std::move(run);
  return last_run_;
}

std::optional<Scrubber::Progress> Scrubber::Continue(RunId id, Nanos now) {
  Run* run = id == 0 ? nullptr : Find(id);
  if (run == nullptr) return std::nullopt;
  run->seen = now;
  uint32_t work = kSlotsPerTurn;
  while (!run->walked && work > 0 && run->in_flight < options_.checks_in_flight) {
    const BlockRef block = NextBlock(*run, work);
    if (block != 0) CheckBlock(*run, id, block);
    work -= std::min(work, kWorkOfBlock);
  }
  Progress progress = run->progress;
  progress.done = run->walked && run->in_flight == 0;
  if (progress.done) End(id);
  return progress;
}

void Scrubber::End(RunId id) {
  const auto it = runs_.find(id);
  if (it == runs_.end()) return;
  if (it->second->deepest != 0) residency_.Unlease(it->second->deepest);
  runs_.erase(it);
}

}  // namespace kvd
