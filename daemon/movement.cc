#include "daemon/movement.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "proto/types/check.h"
#include "proto/types/kill_point.h"
#include "proto/types/safety.h"

namespace kvd {
namespace {

// Victims let go before one record, at most: records of one layout have one size.
constexpr uint32_t kColdVictims = 1024;
// Chains that are being written at a time; each is a lease.
constexpr size_t kMaxJobs = 1024;
constexpr uint32_t kWritingShare = 8;  // Of DRAM, at most.
constexpr Nanos kPrefetchPatience = 30 * kSecond;
constexpr Nanos kCheckPatience = 30 * kSecond;
constexpr size_t kMaxBridges = 4096;        // That are remembered.
constexpr uint32_t kBlocksLookedAt = 1024;  // For bridges, a turn.
constexpr Nanos kBetweenLooks = kSecond;

// The memory of a part as the tier wants it: whole pages, where it is more than one.
absl::Span<std::byte> Payload(std::byte* address, uint32_t length) {
  const uint64_t pages = NvmeTier::RoomOf(length) - kNvmePageBytes;
  return {address, length <= kNvmePageBytes ? length : pages};
}

}  // namespace

Movement::Movement(Store& store, NvmeTier& tier, AdmissionPolicy& admission, const Clock& clock,
                   Listener& listener, MovementCounters& counters, const Options& options)
    : store_(store),
      residency_(store.residency()),
      tier_(tier),
      admission_(admission),
      clock_(clock),
      listener_(listener),
      counters_(counters),
      options_(options) {
  store_.Listen(this);
}

Movement::~Movement() { store_.Listen(nullptr); }

void Movement::SetScope(NamespaceId ns, ScopeNumber scope) {
  if (scopes_.size() <= ns) scopes_.resize(size_t{ns} + 1);
  scopes_[ns] = scope;
}

void Movement::PurgeScope(NamespaceId ns) {
  const ScopeNumber scope = this->scope(ns);
  if (scope == 0) return;
  scopes_[ns] = 0;
  // What a device does not take in now, it says in its log and counts; the index has no block of
  // it.
  tier_.PurgeScope(scope, [](const absl::Status&) {}).IgnoreError();
}

void Movement::Stored(BlockRef block) {
  admission_.Stored(residency_.block(block).key, residency_.block(block).ns);
  NoteBridge(block);
}

// --- what the tier tells -------------------------------------------------------------------------

// The tier is in the middle of its work when it tells: nothing is asked of it until it is done.
void Movement::NvmeEnded(const NvmeTier::Completion& completion) {
  const auto number = static_cast<uint32_t>(completion.tag);
  const bool write = ops_[number].kind == Op::Kind::kWrite;
  (write ? counters_.write_time : counters_.read_time)
      .Observe(static_cast<uint64_t>(std::max<Nanos>(0, completion.took)));
  told_.push_back({.number = number, .outcome = completion.outcome});
}

void Movement::NvmeMoved(uint32_t occupant, RecordPlace to) { residency_.MoveCold(occupant, to); }

void Movement::NvmeLost(uint32_t occupant, NvmeOutcome outcome) {
  told_.push_back({.number = occupant, .outcome = outcome, .lost = true});
}

void Movement::FreeRecord(const ColdPart& cold) { tier_.Drop(cold.place, cold.length); }

void Movement::Lost(const Block& block) {
  if (!declining_) ++counters_.lost_blocks;
  admission_.Left(block.key, block.ns, block.uses);
}

void Movement::Turn(Nanos now, bool asked) {
  if (asked) {
    for (const PartRef part : std::exchange(landed_, {})) residency_.Unhold(part);
  }
  tier_.Poll(now);
  std::swap(told_, taking_in_);
  for (const Told& told : taking_in_) {
    if (told.lost) continue;
    const Op op = std::exchange(ops_[told.number], {});
    free_ops_.push_back(told.number);
    if (op.kind == Op::Kind::kWrite) EndWrite(op, told.outcome);
    if (op.kind == Op::Kind::kRead) EndRead(op, told.outcome);
    if (op.kind == Op::Kind::kCheck) EndCheck(op, told.outcome);
  }
  // A record may be lost in the very turn in which its write is told to have ended.
  for (const Told& told : taking_in_) {
    if (!told.lost) continue;
    const ColdPart& cold = residency_.cold(told.number);
    if (cold.block == 0 || cold.state != ColdState::kCommitted) continue;
    if (told.outcome == NvmeOutcome::kExpired) {
      const BlockRef block = cold.block;
      residency_.GiveUpCold(told.number);
      NoteBridge(block);
    } else {
      Damaged(told.number, Listener::Finder::kReclaim);
    }
  }
  taking_in_.clear();
  SubmitReads();
  // A restart may find more than may live, and then nothing can be reclaimed.
  if (tier_.live_bytes() > tier_.live_capacity_bytes()) MakeNvmeRoom(0);
  const uint64_t reserved = store_.arena().reserved_bytes();
  MakeRoomAhead(now);
  WriteBridges(now);
  const bool ended = WriteJobs(now);
  if (ended || store_.arena().reserved_bytes() < reserved) listener_.RoomMade();
  counters_.moves = moves();
}

Nanos Movement::NextDeadline() const {
  if (!landed_.empty() || (behind_ > 0 && MayBeginJob())) return 0;
  Nanos next = std::min(tier_.NextDeadline(), look_at_);
  for (const Job& job : jobs_) next = std::min(next, job.deadline);
  return next;
}

uint32_t Movement::NewOp(Op op) {
  uint32_t tag = 0;
  if (free_ops_.empty()) {
    tag = static_cast<uint32_t>(ops_.size());
    ops_.emplace_back();
  } else {
    tag = free_ops_.back();
    free_ops_.pop_back();
  }
  ops_[tag] = std::move(op);
  return tag;
}

void Movement::ForgetOp(uint32_t tag) {
  ops_[tag] = {};
  free_ops_.push_back(tag);
}

RecordInfo Movement::InfoOf(const ColdPart& cold) const {
  const Block& block = residency_.block(cold.block);
  RecordInfo info{.scope = scope(block.ns),
                  .key = block.key,
                  .has_parent = block.parent != 0,
                  .depth = block.depth,
                  .id = cold.id,
                  .length = cold.length,
                  .sum = cold.sum,
                  .generation = cold.generation};
  if (info.has_parent) info.parent = residency_.block(block.parent).key;
  return info;
}

// --- demotion ------------------------------------------------------------------------------------

uint64_t Movement::FreeTarget() const {
  return std::min(options_.free_bytes_max, store_.arena().capacity_bytes() / options_.free_share);
}

// What is being written cannot leave for anybody else.
uint64_t Movement::WritingMost() const {
  return std::min(options_.demotion_bytes, store_.arena().capacity_bytes() / kWritingShare);
}

bool Movement::WantsRoom() const {
  const Arena& arena = store_.arena();
  const uint64_t free = arena.capacity_bytes() - arena.reserved_bytes();
  return free + leaving_bytes_ < FreeTarget();
}

// A pool may lack room while others have it.
bool Movement::WantsRoom(EvictionPolicy::Pool pool) const {
  const Store::Layout& layout = store_.layout(pool);
  return layout.slot_bytes != 0 && store_.RoomFor(layout) + leaving_bytes_ < FreeTarget();
}

bool Movement::MayBeginJob() const {
  return jobs_.size() < kMaxJobs && writing_bytes_ < WritingMost() &&
         leaving_bytes_ < WritingMost();
}

void Movement::MakeRoomAhead(Nanos now) {
  behind_ = 0;
  no_victims_ = false;
  if (!tier_.writable()) return;  // What must leave does so when somebody needs the room.
  uint32_t victims = options_.victims_per_turn;
  while (WantsRoom()) {
    const std::optional<EvictionPolicy::Victim> victim = residency_.NextVictim();
    no_victims_ = !victim.has_value();
    if (no_victims_) break;
    if (victims == 0 || !Demote(victim->block, now)) {
      behind_ = 1;
      return;
    }
    --victims;
  }
  if (store_.arena().reserved_bytes() == reserved_when_roomy_) return;
  bool roomy = true;
  for (EvictionPolicy::Pool pool = 0; pool < EvictionPolicy::kMaxPools; ++pool) {
    if (!MakeRoomInPool(pool, victims, now)) behind_ = 1;
    roomy = roomy && !WantsRoom(pool);
  }
  // A pool of which all is held has no victims now, and may have some although nothing else
  // changes; what is being written may not leave after all.
  if (roomy && jobs_.empty()) reserved_when_roomy_ = store_.arena().reserved_bytes();
}

// False: not done yet.
bool Movement::MakeRoomInPool(EvictionPolicy::Pool pool, uint32_t& victims, Nanos now) {
  while (WantsRoom(pool)) {
    const std::optional<EvictionPolicy::Victim> victim = residency_.NextVictim(pool);
    no_victims_ |= !victim.has_value();
    if (!victim.has_value()) break;
    if (victims == 0 || !Demote(victim->block, now)) return false;
    --victims;
  }
  return true;
}

// Lets a victim leave, or begins to write it. False: as much is on its way as may be.
bool Movement::Demote(BlockRef victim, Nanos now, EvictReason reason) {
  if (residency_.OnNvme(victim)) {
    residency_.LeaveDram(victim);
    KVD_KILL_POINT("demote.clean");
    ++counters_.clean_blocks;
    return true;
  }
  if (!MayBeginJob()) return false;
  if (!Admitted(victim, now)) {
    ++counters_.declined_blocks;
    LetGo(victim, reason);
    return true;
  }
  BeginJob(victim, now);
  return true;
}

void Movement::BeginJob(BlockRef victim, Nanos now) {
  Job job{.victim = victim, .deadline = now + options_.write_patience};
  const Block& block = residency_.block(victim);
  for (PartRef part = block.first_part; part != 0; part = residency_.part(part).next) {
    if (!residency_.Hold(part)) continue;
    job.bytes += residency_.part(part).length;
    job.held.push_back(part);
  }
  residency_.Lease(victim);
  const BlockRef above = residency_.NearestCold(block.parent);
  job.next_depth = !SafetyOn(Safety::kAncestors) ? block.depth
                   : above == 0                  ? 0
                                                 : residency_.block(above).depth + 1;
  leaving_bytes_ += job.bytes;
  jobs_.push_back(std::move(job));
  KVD_KILL_POINT("demote.begun");
}

bool Movement::IsBridge(BlockRef ref) const {
  const Block& block = residency_.block(ref);
  return block.state == BlockState::kVisible && block.first_part != 0 &&
         block.reserved_parts == 0 && block.cold_children != 0 && scope(block.ns) != 0 &&
         !residency_.OnNvme(ref);
}

void Movement::NoteBridge(BlockRef block) {
  if (bridges_.size() < kMaxBridges && IsBridge(block)) bridges_.push_back(block);
}

// Some of all blocks, in the order of their numbers, while there is nothing else that may leave.
void Movement::LookForBridges(Nanos now) {
  if (!no_victims_ || !bridges_.empty()) {
    look_at_ = INT64_MAX;
    return;
  }
  if (look_at_ != INT64_MAX && now < look_at_) return;
  look_at_ = now;
  for (uint32_t i = 0; i < kBlocksLookedAt && bridges_.empty(); ++i) {
    NoteBridge(next_looked_at_);
    if (++next_looked_at_ <= residency_.max_blocks()) continue;
    next_looked_at_ = 1;
    look_at_ = now + kBetweenLooks;
    return;
  }
}

void Movement::WriteBridges(Nanos now) {
  if (!tier_.writable()) {
    look_at_ = INT64_MAX;
    return;
  }
  LookForBridges(now);
  while (!bridges_.empty() && MayBeginJob()) {
    const BlockRef block = bridges_.front();
    bridges_.pop_front();
    if (IsBridge(block)) BeginJob(block, now);
  }
}

void Movement::LetGo(BlockRef victim, EvictReason reason) {
  declining_ = true;
  residency_.LeaveDram(victim, reason);
  declining_ = false;
}

Movement::Leave Movement::LetLeave(BlockRef block, Nanos now) {
  if (!tier_.writable() && !residency_.OnNvme(block)) {
    LetGo(block, EvictReason::kAdmin);
    return Leave::kLeft;
  }
  const size_t jobs = jobs_.size();
  if (!Demote(block, now, EvictReason::kAdmin)) return Leave::kBusy;
  return jobs_.size() > jobs ? Leave::kUnderWay : Leave::kLeft;
}

// What is not found any more cannot be found on NVMe either; and what has no scope has no name.
bool Movement::Admitted(BlockRef victim, Nanos now) {
  const Block& block = residency_.block(victim);
  if (block.state != BlockState::kVisible || scope(block.ns) == 0) return false;
  const BlockRef above = residency_.NearestCold(block.parent);
  const uint32_t blocks =
      above == 0 ? block.depth + 1 : block.depth - residency_.block(above).depth;
  uint64_t bytes = 0;
  for (PartRef part = block.first_part; part != 0; part = residency_.part(part).next) {
    if (residency_.part(part).length > tier_.max_payload_bytes()) return false;
    bytes += NvmeTier::RoomOf(residency_.part(part).length);
  }
  return admission_.Admit({.ns = block.ns,
                           .depth = block.depth,
                           .uses = block.uses,
                           .blocks = blocks,
                           .bytes = blocks * bytes,
                           .key = block.key},
                          now);
}

// Whether the tier has taken all of the chain.
bool Movement::Written(const Job& job) const {
  return job.victim != 0 && job.next_depth > residency_.block(job.victim).depth;
}

// Whether any has ended.
bool Movement::WriteJobs(Nanos now) {
  bool ended = false;
  bool full = false;
  for (JobPtr at = jobs_.begin(); at != jobs_.end();) {
    const JobPtr job = at++;
    if (now >= job->deadline && !Written(*job)) job->failed = true;  // The tier does not take it.
    if (!job->failed && !full) full = !WriteChain(job);
    if ((!job->failed && !Written(*job)) || job->writing > 0) continue;
    EndJob(job);
    ended = true;
  }
  return ended;
}

// The oldest victim of which nothing is being written yet leaves as it would without NVMe.
bool Movement::GiveWay() {
  for (Job& job : jobs_) {
    if (job.victim == 0 || Written(job)) continue;
    job.failed = true;
    LetGoOf(job);
    return true;
  }
  return false;
}

void Movement::LetGoOf(Job& job) {
  leaving_bytes_ -= job.bytes;
  for (const PartRef part : job.held) residency_.Unhold(part);
  residency_.Unlease(std::exchange(job.victim, 0));  // A stub goes with it.
}

// Writes what NVMe lacks of the chain, root first. False: as much is on its way as may be.
bool Movement::WriteChain(JobPtr job) {
  const uint32_t depth = residency_.block(job->victim).depth;
  for (; job->next_depth <= depth; ++job->next_depth) {
    const BlockRef block = residency_.AncestorAt(job->victim, job->next_depth);
    const BlockRef parent = residency_.block(block).parent;
    const bool stands =
        parent == 0 || residency_.block(parent).first_cold != 0 || !SafetyOn(Safety::kAncestors);
    if (!stands || residency_.block(block).state != BlockState::kVisible) {
      job->failed = true;  // What is above it was damaged, or left: nobody would find it there.
      return true;
    }
    if (residency_.OnNvme(block)) continue;
    bool wrote = false;
    if (!WriteBlock(job, block, wrote)) return false;
    counters_.written_blocks += wrote;
  }
  return true;
}

bool Movement::WriteBlock(JobPtr job, BlockRef block, bool& wrote) {
  PartRef next = 0;
  for (PartRef part = residency_.block(block).first_part; part != 0; part = next) {
    next = residency_.part(part).next;
    if (residency_.part(part).state != static_cast<uint32_t>(PartState::kCommitted)) continue;
    if (residency_.FindCold(block, residency_.part(part).id) != 0) continue;
    if (!WritePart(job, block, part)) return false;
    wrote = true;
  }
  return true;
}

bool Movement::WritePart(JobPtr job, BlockRef block, PartRef ref) {
  const Part& part = residency_.part(ref);
  if (writing_bytes_ >= WritingMost()) return false;
  if (residency_.colds_full() && !residency_.EvictNextCold()) return false;
  if (!MakeNvmeRoom(part.length) || residency_.colds_full() || !residency_.Hold(ref)) return false;
  const ColdRef cold = residency_.AddCold(block, part.id, part.length, part.sum, part.generation);
  const uint32_t tag = NewOp({.kind = Op::Kind::kWrite,
                              .part = ref,
                              .cold = cold,
                              .block = block,
                              .length = part.length,
                              .job = job});
  const std::optional<RecordPlace> place = tier_.Append(
      InfoOf(residency_.cold(cold)), Payload(store_.Address(part), part.length), cold, tag);
  if (!place.has_value()) {
    ForgetOp(tag);
    residency_.DropCold(cold);
    residency_.Unhold(ref);
    return false;
  }
  residency_.MoveCold(cold, *place);
  KVD_KILL_POINT("demote.part_appended");
  ++job->writing;
  writing_bytes_ += part.length;
  counters_.written_bytes += NvmeTier::RoomOf(part.length);
  return true;
}

// The owner sees to it that live records stay below what the tier can reclaim.
bool Movement::MakeNvmeRoom(uint32_t length) {
  for (uint32_t victims = 0;
       tier_.live_bytes() + NvmeTier::RoomOf(length) > tier_.live_capacity_bytes(); ++victims) {
    if (victims == kColdVictims || !residency_.EvictNextCold()) return false;
    ++counters_.nvme_evicted_blocks;
    KVD_KILL_POINT("nvme.evicted");
  }
  return true;
}

void Movement::EndWrite(const Op& op, NvmeOutcome outcome) {
  writing_bytes_ -= op.length;
  if (outcome == NvmeOutcome::kOk) {
    residency_.CommitCold(op.cold, residency_.tick());
    counters_.demoted_bytes += op.length;
    KVD_KILL_POINT("demote.part_written");
  } else {
    ++counters_.failed_writes;
    residency_.DropCold(op.cold);
    op.job->failed = true;
  }
  residency_.Unhold(op.part);
  --op.job->writing;  // WriteJobs() ends it.
}

// The victim leaves, if its room is still wanted: somebody may have used it meanwhile, or others
// may have left more than was needed.
void Movement::EndJob(JobPtr job) {
  const bool failed = job->failed;
  if (failed) ++counters_.failed_blocks;
  const BlockRef victim = job->victim;
  if (victim == 0) {
    jobs_.erase(job);
    return;
  }
  const Block block = residency_.block(victim);
  LetGoOf(*job);
  jobs_.erase(job);
  if (!residency_.evictable(victim) || !(residency_.block(victim).key == block.key)) return;
  const bool wanted = WantsRoom() || WantsRoom(residency_.shape(block.ns).pool);
  if (!wanted) return;
  if (residency_.OnNvme(victim)) {
    KVD_KILL_POINT("demote.before_leaving");
    residency_.LeaveDram(victim);
    KVD_KILL_POINT("demote.left");
    ++counters_.demoted_blocks;
  } else if (failed && tier_.writable()) {
    residency_.LeaveDram(victim);  // Lost: or it would be the next victim again.
  }
}

// --- promotion -----------------------------------------------------------------------------------

void Movement::Prefetch(const Residency::Prefix& prefix, uint32_t from) {
  const uint32_t base = residency_.block(prefix.deepest).depth + 1 - prefix.blocks;
  for (uint32_t i = from; i < prefix.blocks && promoting_bytes_ < options_.prefetch_bytes; ++i) {
    const BlockRef block = residency_.AncestorAt(prefix.deepest, base + i);
    if (promoting(block)) continue;
    const Fetch fetch = Begin(block, clock_.Now() + kPrefetchPatience);
    if (fetch == Fetch::kNo || fetch == Fetch::kBusy) return;
    counters_.prefetched_blocks += fetch == Fetch::kUnderWay;
  }
}

Movement::Fetch Movement::Begin(BlockRef ref, Nanos deadline) {
  if (promoting(ref)) return Fetch::kUnderWay;
  const Block& block = residency_.block(ref);
  Promotion promotion{.deadline = deadline};
  for (ColdRef cold = block.first_cold; cold != 0; cold = residency_.cold(cold).next) {
    const ColdPart& record = residency_.cold(cold);
    if (record.state != ColdState::kCommitted) continue;
    if (residency_.FindPart(ref, record.id) == 0) promotion.bytes += record.length;
  }
  if (promotion.bytes == 0) return Fetch::kThere;
  if (!tier_.readable()) return Fetch::kNo;
  const uint64_t most = std::min(options_.promotion_bytes, store_.arena().capacity_bytes() / 4);
  if (promoting_bytes_ > 0 && promoting_bytes_ + promotion.bytes > most) return Fetch::kBusy;

  residency_.Lease(ref);  // Room is made for it now, and it is not to leave for that.
  const size_t first_read = reads_.size();
  for (ColdRef cold = block.first_cold; cold != 0; cold = residency_.cold(cold).next) {
    const ColdPart& record = residency_.cold(cold);
    if (record.state != ColdState::kCommitted || residency_.FindPart(ref, record.id) != 0) continue;
    const bool read = residency_.BeginRead(cold);
    const PartRef part = read ? TakeRoom(ref, record) : 0;
    if (part == 0) {
      if (read) residency_.EndRead(cold);
      Undo(ref, first_read);
      if (read && RoomIsComing()) return Fetch::kBusy;
      ++counters_.promotions_without_room;
      return Fetch::kNo;
    }
    reads_.push_back({.block = ref, .part = part, .cold = cold});
    ++promotion.parts;
  }
  promoting_bytes_ += promotion.bytes;
  promotions_[ref] = promotion;
  KVD_KILL_POINT("promote.begun");
  SubmitReads();
  return promotions_.contains(ref) ? Fetch::kUnderWay : Fetch::kNo;
}

// Victims are being written, or will be once NVMe has room for them.
bool Movement::RoomIsComing() const {
  return tier_.writable() ? !jobs_.empty() : tier_.making_room();
}

PartRef Movement::TakeRoom(BlockRef block, const ColdPart& record) {
  const auto take = [&](Store::MayLeave may_leave) {
    return store_.TakePart(block, record.id, record.length, may_leave);
  };
  if (const PartRef part = take(Store::MayLeave::kCopies); part != 0) return part;
  reserved_when_roomy_ = UINT64_MAX;
  MakeRoomAhead(clock_.Now());
  return take(RoomIsComing() ? Store::MayLeave::kCopies : Store::MayLeave::kAnything);
}

void Movement::Undo(BlockRef block, size_t first_read) {
  for (; reads_.size() > first_read; reads_.pop_back()) {
    residency_.DropReserved(reads_.back().part);
    residency_.EndRead(reads_.back().cold);
  }
  residency_.Unlease(block);
}

// Oldest first; the rest waits until the tier has taken or ended some.
void Movement::SubmitReads() {
  while (!reads_.empty()) {
    const Read read = reads_.front();
    const ColdPart& cold = residency_.cold(read.cold);
    const Part& part = residency_.part(read.part);
    if (cold.block == 0 || !tier_.readable()) {  // Found damaged meanwhile, or the tier is out.
      reads_.pop_front();
      residency_.DropReserved(read.part);
      residency_.EndRead(read.cold);
      EndPromotionPart(read.block, /*arrived=*/false);
      continue;
    }
    const uint32_t tag = NewOp({.kind = Op::Kind::kRead,
                                .part = read.part,
                                .cold = read.cold,
                                .block = read.block,
                                .length = cold.length});
    const absl::Span<std::byte> target = Payload(store_.Address(part), cold.length);
    if (!tier_.Read(cold.place, InfoOf(cold), target, promotions_.at(read.block).deadline, tag)) {
      ForgetOp(tag);
      return;
    }
    reads_.pop_front();
  }
}

void Movement::EndRead(const Op& op, NvmeOutcome outcome) {
  const bool arrived = outcome == NvmeOutcome::kOk;
  if (arrived) {
    const uint32_t sum = residency_.cold(op.cold).sum;
    KVD_KILL_POINT("promote.before_part");
    residency_.CommitPart(op.part, sum, residency_.tick());
    KVD_KILL_POINT("promote.part_visible");
    if (residency_.Hold(op.part)) landed_.push_back(op.part);
    counters_.promoted_bytes += op.length;
  } else {
    ++counters_.failed_reads;
    residency_.DropReserved(op.part);
    if (IsDamage(outcome) && residency_.cold(op.cold).block != 0) {
      Damaged(op.cold, Listener::Finder::kRead);
    }
  }
  residency_.EndRead(op.cold);
  EndPromotionPart(op.block, arrived);
}

// Whether it is the record: one that cannot be read while others can. Where the breaker has taken
// the device out, it is the device, and the record may well be there when it comes back.
bool Movement::IsDamage(NvmeOutcome outcome) const {
  return outcome == NvmeOutcome::kCorrupt || (outcome == NvmeOutcome::kError && tier_.readable());
}

bool Movement::Check(ColdRef ref) {
  const ColdPart& cold = residency_.cold(ref);
  if (!tier_.readable() || !residency_.BeginRead(ref)) return false;
  const uint64_t size = NvmeTier::RoomOf(cold.length) - kNvmePageBytes;
  auto* memory = static_cast<std::byte*>(std::aligned_alloc(kNvmePageBytes, size));
  if (memory == nullptr) {
    residency_.EndRead(ref);
    return false;
  }
  Op op{.kind = Op::Kind::kCheck, .cold = ref, .length = cold.length};
  op.buffer.reset(memory);
  const uint32_t tag = NewOp(std::move(op));
  if (tier_.Read(cold.place, InfoOf(cold), {memory, size}, clock_.Now() + kCheckPatience, tag)) {
    return true;
  }
  ForgetOp(tag);
  residency_.EndRead(ref);
  return false;
}

void Movement::EndCheck(const Op& op, NvmeOutcome outcome) {
  if (IsDamage(outcome)) outcome = NvmeOutcome::kCorrupt;
  if (outcome == NvmeOutcome::kCorrupt && residency_.cold(op.cold).block != 0) {
    Damaged(op.cold, Listener::Finder::kCheck);
  }
  residency_.EndRead(op.cold);
  listener_.RecordChecked(op.cold, outcome);
}

void Movement::Damaged(ColdRef cold, Listener::Finder finder) {
  ++counters_.damaged_records;
  const ColdPart record = residency_.cold(cold);
  listener_.RecordDamaged(residency_.block(record.block), record, finder);
  residency_.MarkColdDamaged(cold);
  NoteBridge(record.block);
}

void Movement::EndPromotionPart(BlockRef block, bool arrived) {
  const auto it = promotions_.find(block);
  Promotion& promotion = it->second;
  promotion.failed |= !arrived;
  if (--promotion.parts > 0) return;
  const bool landed = !promotion.failed;
  promoting_bytes_ -= promotion.bytes;
  promotions_.erase(it);
  if (landed) ++counters_.promoted_blocks;
  KVD_KILL_POINT("promote.landed");
  // What was damaged meanwhile and is in production by nobody does not stay so.
  residency_.Abandon(block);
  residency_.Unlease(block);
  listener_.Landed(block, landed);
}

}  // namespace kvd
