// What operators ask of the control thread: lists, pins, blocks that must leave, draining. Each
// function is one turn of bounded work, so that nobody who looks stands in an engine's way.

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/control.h"
#include "proto/types/check.h"
#include "proto/types/kill_point.h"
#include "proto/types/status.h"

namespace kvd {
namespace {

// Of one turn, about 50 us: slots looked at, with what costs more counted for several.
constexpr uint32_t kWorkPerTurn = 1024;
constexpr uint32_t kWorkOfEviction = 16;
constexpr uint32_t kWorkOfRow = 8;
constexpr uint32_t kSessionsPerTurn = 128;
constexpr uint32_t kNamespacesPerTurn = 32;
constexpr uint32_t kChildrenCounted = 4096;  // Of one block; a root may have as many as there are.
constexpr uint32_t kMaxRestarts = 64;        // Of a walk whose place others have taken.
constexpr uint32_t kMaxFlushWalks = 4;       // Others go on storing.
constexpr uint32_t kMaxFlushWaits = 1000;    // Turns, for what is being written.
constexpr Nanos kDrainLook = 20 * kMillisecond;  // Copies tell the copiers when they end, not us.

void Spend(uint32_t& work, uint32_t cost) { work -= std::min(work, cost); }

}  // namespace

// --- events --------------------------------------------------------------------------------------

void Control::Record(EventKind kind, DomainId domain, uint64_t number, NamespaceId ns) {
  event_ring_.Add({.number = number, .ns = ns, .domain = domain, .kind = kind});
}

void Control::RecordChain(EventKind kind, LeaseId id, BlockRef ref, EventReason why) {
  const Block& block = residency_.block(ref);
  event_ring_.Add({.number = id,
                   .ns = block.ns,
                   .domain = namespaces_[block.ns].domain,
                   .kind = kind,
                   .reason = why,
                   .key = block.key});
}

Control::FollowedBatch Control::FollowEvents(uint64_t from, size_t most) const {
  control_.AssertHeld();
  std::vector<Event> events(most);
  const EventRing::Batch read = event_ring_.Read(from, absl::MakeSpan(events));
  FollowedBatch batch{.first = read.first};
  batch.events.resize(read.size);
  for (size_t i = 0; i < read.size; ++i) {
    FollowedEvent& followed = batch.events[i];
    followed.event = events[i];
    followed.key_bytes = static_cast<uint8_t>(hash_bytes(events[i].ns));
    // Another block may have its number by now.
    const Block& block = residency_.block(events[i].block_ref);
    if (block.key == events[i].key && block.ns == events[i].ns) {
      followed.announcement = announcements_.Find(events[i].block_ref);
    }
  }
  return batch;
}

uint32_t Control::FollowBlocks(uint32_t from, std::vector<FollowedEvent>& found) const {
  control_.AssertHeld();
  const uint32_t last = residency_.max_blocks();
  uint32_t work = kWorkPerTurn;
  uint32_t ref = from;
  for (; ref <= last && work > 0; ++ref) {
    const bool is_found = residency_.block(ref).state == BlockState::kVisible;
    Spend(work, is_found ? kWorkOfRow : 1);
    if (!is_found) continue;
    found.push_back({.event = residency_.Describe(EventKind::kStored, ref),
                     .key_bytes = static_cast<uint8_t>(hash_bytes(residency_.block(ref).ns)),
                     .announcement = announcements_.Find(ref)});
  }
  return ref <= last ? ref : 0;
}

void Control::ConfigReloaded() {
  control_.AssertHeld();
  Record(EventKind::kConfigReloaded, kNoDomain, 0);
}

// --- lists ---------------------------------------------------------------------------------------

uint32_t Control::ListSessions(uint32_t from, std::vector<SessionRow>& rows) const {
  control_.AssertHeld();
  // Sessions stand at their indexes, from 0.
  uint32_t at = std::max(from, 1u) - 1;
  const auto end =
      static_cast<uint32_t>(std::min<size_t>(by_index_.size(), uint64_t{at} + kSessionsPerTurn));
  for (; at < end; ++at) {
    const Session* session = by_index_[at];
    if (session == nullptr) continue;
    rows.push_back(
        {.serial = session->serial,
         .domain = session->domain,
         .uid = session->uid,
         .pid = session->pid,
         .age = clock_.Now() - session->opened,
         .leases = leases_.CountOf(at),
         .extents = holds_.held_extents(at),
         .held_bytes = holds_.held_bytes(at),
         .reservations = session->reservations,
         .staging_bytes = session->staging == nullptr ? 0 : session->staging->bytes().size(),
         .ended = session->ended});
  }
  return at < by_index_.size() ? at + 1 : 0;
}

uint32_t Control::ListLeases(uint32_t from, size_t most, std::vector<LeaseRow>& rows) const {
  control_.AssertHeld();
  const Nanos now = clock_.Now();
  uint32_t at = std::max(from, 1u);
  for (uint32_t work = kWorkPerTurn; at <= leases_.entries() && work > 0 && most > 0; ++at) {
    Spend(work, 1);
    const LeaseId id = leases_.At(at);
    if (id == 0) continue;
    Spend(work, kWorkOfRow);
    --most;
    const LeaseTable::Lease& lease = *leases_.Find(id);
    const Block& block = residency_.block(lease.block);
    LeaseRow row{.id = id,
                 .pin = lease.owner == LeaseTable::kPinOwner,
                 .domain = namespaces_[block.ns].domain,
                 .ns = block.ns,
                 .key = KeyOf(lease.block),
                 .depth = block.depth + 1,
                 .owner = {},
                 .left = std::max<Nanos>(0, lease.expires - now)};
    if (row.pin) {
      const PinInfo& pin = pins_.find(id)->second;
      row.owner = pin.owner;
      row.bytes = pin.bytes;
    } else {
      row.session = by_index_[lease.owner]->serial;
    }
    rows.push_back(std::move(row));
  }
  return at <= leases_.entries() ? at : 0;
}

uint32_t Control::ListNamespaces(uint32_t from, std::vector<NamespaceRow>& rows) const {
  control_.AssertHeld();
  const auto size = static_cast<uint32_t>(namespaces_.size());
  uint32_t at = std::max(from, 1u);
  uint32_t listed = 0;
  for (uint32_t work = kWorkPerTurn; at < size && work > 0 && listed < kNamespacesPerTurn; ++at) {
    Spend(work, 1);
    const NamespaceInfo& info = namespaces_[at];
    if (info.dropped) continue;
    ++listed;
    const Residency::NamespaceUse& use = residency_.use(at);
    rows.push_back({.id = at,
                    .domain = info.domain,
                    .descriptor = info.descriptor,
                    .blocks = use.visible,
                    .bytes = use.bytes});
  }
  return at < size ? at : 0;
}

std::vector<DomainRow> Control::ListDomains() const {
  control_.AssertHeld();
  std::map<DomainId, uint64_t> used;
  const Arena& arena = store_.arena();
  for (uint32_t region = 0; region < arena.regions(); ++region) {
    if (arena.slot_bytes(region) == 0) continue;
    used[arena.domain(region)] += uint64_t{arena.used_slots(region)} * arena.slot_bytes(region);
  }
  std::map<DomainId, uint64_t> held;
  for (const Session* session : by_index_) {
    if (session != nullptr) held[session->domain] += holds_.held_bytes(session->index);
  }
  std::vector<DomainRow> rows;
  rows.reserve(uses_.size());
  for (const auto& [domain, use] : uses_) {
    rows.push_back({.domain = domain,
                    .sessions = use.sessions,
                    .lookups = use.lookups,
                    .lookup_blocks = use.lookup_blocks,
                    .hit_blocks = use.hit_blocks,
                    .used_bytes = used[domain],
                    .leases = use.leases,
                    .pins = use.pins,
                    .held_bytes = held[domain],
                    .committed_blocks = use.committed_blocks,
                    .rejected_blocks = use.rejected_blocks});
  }
  return rows;
}

// --- blocks --------------------------------------------------------------------------------------

std::string Control::KeyOf(BlockRef ref) const {
  const Block& block = residency_.block(ref);
  return {reinterpret_cast<const char*>(block.key.bytes.data()), hash_bytes(block.ns)};
}

BlockRow Control::RowOf(BlockRef ref, const BlockFilter& filter, uint32_t& work) const {
  const Block& block = residency_.block(ref);
  BlockRow row{.ns = block.ns,
               .domain = namespaces_[block.ns].domain,
               .key = KeyOf(ref),
               .parent = block.parent != 0 ? KeyOf(block.parent) : std::string(),
               .depth = block.depth + 1,
               .state = block.state,
               .leases = block.leases,
               .parts = {}};
  for (BlockRef child = block.first_child; child != 0 && row.children < kChildrenCounted;
       child = residency_.block(child).next_sibling) {
    ++row.children;
  }
  uint32_t parts = 0;
  for (PartRef at = block.first_part; at != 0; at = residency_.part(at).next) {
    const Part& part = residency_.part(at);
    const bool committed = part.state == static_cast<uint32_t>(PartState::kCommitted);
    if (committed) row.bytes += part.length;
    ++parts;
    if (!filter.with_parts) continue;
    row.parts.push_back({.id = part.id,
                         .region = store_.arena().Number(part.region),
                         .offset = store_.arena().Offset(part.region, part.slot),
                         .length = part.length,
                         .generation = part.generation,
                         .sum = part.sum,
                         .holds = part.holds,
                         .committed = committed});
  }
  for (ColdRef at = block.first_cold; at != 0; at = residency_.cold(at).next) {
    const ColdPart& cold = residency_.cold(at);
    const bool committed = cold.state == ColdState::kCommitted;
    if (committed) row.nvme_bytes += cold.length;
    ++parts;
    if (!filter.with_parts) continue;
    row.parts.push_back({.id = cold.id,
                         .on_nvme = true,
                         .region = cold.place.segment,
                         .offset = uint64_t{cold.place.page} * kNvmePageBytes,
                         .length = cold.length,
                         .generation = cold.generation,
                         .sum = cold.sum,
                         .committed = committed});
  }
  Spend(work, kWorkOfRow + row.children + parts);
  return row;
}

uint32_t Control::ListBlocks(const BlockFilter& filter, uint32_t from, size_t most,
                             std::vector<BlockRow>& rows) const {
  control_.AssertHeld();
  const std::string& prefix = filter.key_prefix;
  uint32_t at = std::max(from, 1u);
  for (uint32_t work = kWorkPerTurn; at <= residency_.max_blocks() && work > 0 && most > 0; ++at) {
    Spend(work, 1);
    const Block& block = residency_.block(at);
    if (block.state == BlockState::kFree) continue;
    if (filter.ns != 0 && block.ns != filter.ns) continue;
    if (prefix.size() > hash_bytes(block.ns) ||
        std::memcmp(block.key.bytes.data(), prefix.data(), prefix.size()) != 0) {
      continue;
    }
    --most;
    rows.push_back(RowOf(at, filter, work));
  }
  return at <= residency_.max_blocks() ? at : 0;
}

uint32_t Control::FindBlocks(const BlockFilter& filter, uint32_t from, size_t most,
                             std::vector<BlockRow>& rows) const {
  control_.AssertHeld();
  const auto size = static_cast<uint32_t>(namespaces_.size());
  const std::string& key = filter.key_prefix;
  uint32_t at = std::max(from, 1u);
  for (uint32_t work = kWorkPerTurn; at < size && work > 0 && most > 0; ++at) {
    Spend(work, 1);
    if (namespaces_[at].dropped || hash_bytes(at) != key.size()) continue;
    if (filter.ns != 0 && at != filter.ns) continue;
    const BlockRef block = residency_.Find(at, KeyList(key, hash_bytes(at))[0]);
    if (block == 0) continue;
    --most;
    rows.push_back(RowOf(block, filter, work));
  }
  return at < size ? at : 0;
}

// --- pins ----------------------------------------------------------------------------------------

absl::Status Control::PinChain(OperatorPin& pin) {
  control_.AssertHeld();
  const NamespaceInfo* info = FindNamespace(pin.ns);
  if (info == nullptr) {
    return absl::NotFoundError(absl::StrCat("namespace_id: no namespace ", pin.ns));
  }
  if (pin.key.size() != hash_bytes(pin.ns)) {
    return InvalidField("key", absl::StrCat("must be one whole hash of ", hash_bytes(pin.ns),
                                            " bytes, got ", pin.key.size()));
  }
  const absl::StatusOr<LeaseId> id =
      AddPin({.ns = pin.ns,
              .key = KeyList(pin.key, hash_bytes(pin.ns))[0],
              .owner = pin.owner,
              .budget_bytes = pin.budget_bytes == 0 ? UINT64_MAX : pin.budget_bytes,
              .ttl_ms = pin.ttl_ms},
             pin.blocks, pin.bytes);
  if (!id.ok()) return id.status();
  pin.pin_id = *id;
  return absl::OkStatus();
}

absl::Status Control::UnpinChain(LeaseId pin_id) {
  control_.AssertHeld();
  if (!pins_.contains(pin_id)) return absl::NotFoundError("pin_id: no such pin");
  EndLease(pin_id, EventReason::kAdmin);
  return absl::OkStatus();
}

// --- checking ------------------------------------------------------------------------------------

absl::StatusOr<Scrubber::RunId> Control::BeginVerify(NamespaceId ns, std::string_view key) {
  control_.AssertHeld();
  if (ns != 0 && FindNamespace(ns) == nullptr) {
    return absl::NotFoundError(absl::StrCat("namespace_id: no namespace ", ns));
  }
  BlockRef deepest = 0;
  if (!key.empty()) {
    if (ns == 0) return InvalidField("namespace_id", "must name the namespace of the key");
    if (key.size() != hash_bytes(ns)) {
      return InvalidField("key", absl::StrCat("must be one whole hash of ", hash_bytes(ns),
                                              " bytes, got ", key.size()));
    }
    deepest = residency_.Find(ns, KeyList(key, hash_bytes(ns))[0]);
    if (deepest == 0) return absl::NotFoundError("key: no such block");
  }
  const Scrubber::RunId run = scrubber_.Begin(ns, deepest, clock_.Now());
  if (run == 0) return absl::ResourceExhaustedError("verify: as many run as may; wait for one");
  return run;
}

absl::StatusOr<Scrubber::Progress> Control::ContinueVerify(Scrubber::RunId run) {
  control_.AssertHeld();
  const std::optional<Scrubber::Progress> progress = scrubber_.Continue(run, clock_.Now());
  if (!progress.has_value()) return absl::NotFoundError("run: there is no such run, or it is over");
  return *progress;
}

void Control::SetScrubBandwidth(uint64_t bytes_per_second) {
  control_.AssertHeld();
  scrubber_.SetBandwidth(bytes_per_second);
}

// --- letting blocks leave ------------------------------------------------------------------------

absl::StatusOr<Sweep> Control::BeginEvict(NamespaceId ns, std::string_view key) const {
  control_.AssertHeld();
  if (FindNamespace(ns) == nullptr) {
    return absl::NotFoundError(absl::StrCat("namespace_id: no namespace ", ns));
  }
  if (key.size() != hash_bytes(ns)) {
    return InvalidField("key", absl::StrCat("must be one whole hash of ", hash_bytes(ns),
                                            " bytes, got ", key.size()));
  }
  const BlockRef top = residency_.Find(ns, KeyList(key, hash_bytes(ns))[0]);
  if (top == 0) return absl::NotFoundError("key: no such block");
  const ChainHash hash = residency_.block(top).key;
  return Sweep{.ns = ns, .top = top, .top_key = hash, .at = top, .at_key = hash};
}

absl::StatusOr<Sweep> Control::BeginDrop(NamespaceId ns) const {
  control_.AssertHeld();
  if (FindNamespace(ns) == nullptr) {
    return absl::NotFoundError(absl::StrCat("namespace_id: no namespace ", ns));
  }
  return Sweep{.reason = EvictReason::kPurge, .ns = ns};
}

absl::StatusOr<Sweep> Control::BeginFlush(TierIndex tier) const {
  control_.AssertHeld();
  if (movement_ != nullptr) return Sweep{.tier = tier};
  if (tier != TierIndex::kDram) return absl::NotFoundError("tier: this daemon has no NVMe");
  return Sweep{};  // What leaves the only tier is gone.
}

bool Control::Continue(Sweep& sweep) {
  control_.AssertHeld();
  sweep.waits = false;
  const bool done = sweep.tier.has_value() ? ContinueFlush(sweep)
                    : sweep.top != 0       ? ContinueChain(sweep)
                                           : ContinueSlots(sweep);
  if (!done) return false;
  if (sweep.reason == EvictReason::kPurge && FindNamespace(sweep.ns) != nullptr &&
      residency_.use(sweep.ns).used == 0) {
    DropNamespace(sweep.ns);
    sweep.dropped = true;
  }
  return true;
}

// Every block in the order of the slots. One that must wait for what hangs below it goes when the
// last of that has gone: from there the walk climbs.
bool Control::ContinueSlots(Sweep& sweep) {
  for (uint32_t work = kWorkPerTurn; work > 0;) {
    if (sweep.climb == 0) {
      if (sweep.next > residency_.max_blocks()) return true;
      Spend(work, 1);
      const BlockRef at = sweep.next++;
      const Block& block = residency_.block(at);
      if (block.state == BlockState::kFree || block.state == BlockState::kStub) continue;
      if (sweep.ns != 0 && block.ns != sweep.ns) continue;
      ++sweep.kept;  // Until it leaves.
      sweep.climb = at;
    }
    const BlockRef at = std::exchange(sweep.climb, 0);
    const Block& block = residency_.block(at);
    // Another block may be there by now: it may go as well, if it is one of those.
    if (!residency_.removable(at) || (sweep.ns != 0 && block.ns != sweep.ns)) continue;
    BlockRef above = block.parent;
    while (above != 0 && residency_.block(above).state == BlockState::kStub) {
      above = residency_.block(above).parent;  // It goes with what it was kept for.
    }
    residency_.Evict(at, sweep.reason);
    Spend(work, kWorkOfEviction);
    ++sweep.evicted;
    if (at < sweep.next && sweep.kept > 0) --sweep.kept;
    sweep.climb = above;
  }
  return false;
}

// Every block that has something in the tier, in the order of the slots, climbing as above. From
// memory it takes several walks: what NVMe lacks of a leaf's chain is written first, and the chain
// leaves in the walk after that.
bool Control::ContinueFlush(Sweep& sweep) {
  const bool dram = *sweep.tier == TierIndex::kDram;
  for (uint32_t work = kWorkPerTurn; work > 0;) {
    if (sweep.climb == 0) {
      if (sweep.next > residency_.max_blocks()) return EndFlushWalk(sweep);
      Spend(work, 1);
      const BlockRef at = sweep.next++;
      const Block& block = residency_.block(at);
      if ((dram ? block.first_part : block.first_cold) == 0) continue;
      ++sweep.kept;  // Until it leaves.
      sweep.climb = at;
    }
    const BlockRef at = std::exchange(sweep.climb, 0);
    if (!(dram ? residency_.evictable(at) : residency_.cold_evictable(at))) continue;
    BlockRef above = residency_.block(at).parent;
    while (above != 0 && residency_.block(above).state == BlockState::kStub) {
      above = residency_.block(above).parent;  // It goes with what it was kept for.
    }
    Spend(work, kWorkOfEviction);
    if (LeaveTier(sweep, at)) {
      if (at < sweep.next && sweep.kept > 0) --sweep.kept;
      sweep.climb = above;
    } else if (sweep.waits) {
      sweep.climb = at;  // Once more, in another turn.
      return false;
    }
  }
  return false;
}

// False: it is still there, and the sweep waits if it is to be asked again.
bool Control::LeaveTier(Sweep& sweep, BlockRef ref) {
  if (*sweep.tier == TierIndex::kNvme) {
    residency_.LeaveNvme(ref, sweep.reason);
  } else {
    const Movement::Leave left = movement_->LetLeave(ref, clock_.Now());
    sweep.waits = left == Movement::Leave::kBusy;
    sweep.began |= left == Movement::Leave::kUnderWay;
    if (left != Movement::Leave::kLeft) return false;
  }
  ++(residency_.block(ref).state == BlockState::kFree ? sweep.evicted : sweep.moved);
  return true;
}

// True: that was the last one. What was begun has ended before the next, or has had its time.
bool Control::EndFlushWalk(Sweep& sweep) {
  if (!sweep.began) return true;
  if (movement_->moves() > 0 && sweep.waited < kMaxFlushWaits) {
    ++sweep.waited;
    sweep.waits = true;
    return false;
  }
  if (++sweep.restarts > kMaxFlushWalks) return true;
  sweep.next = 1;
  sweep.kept = 0;  // Will be met again.
  sweep.began = false;
  return false;
}

// What hangs below a block, and last the block: postorder, as only leaves leave.
bool Control::ContinueChain(Sweep& sweep) {
  const auto is_there = [&](BlockRef ref, const ChainHash& key) {
    const Block& block = residency_.block(ref);
    return block.state != BlockState::kFree && block.ns == sweep.ns && block.key == key;
  };
  const auto restart = [&] {
    sweep.at = sweep.top;
    sweep.descending = true;
    sweep.kept = 0;  // Will be met again.
  };
  if (!is_there(sweep.top, sweep.top_key)) return true;
  if (!is_there(sweep.at, sweep.at_key)) {
    if (++sweep.restarts > kMaxRestarts) return true;
    restart();
  }
  for (uint32_t work = kWorkPerTurn; work > 0; Spend(work, 1)) {
    const BlockRef at = sweep.at;
    const Block& block = residency_.block(at);
    if (std::exchange(sweep.descending, false) && block.first_child != 0) {
      sweep.at = block.first_child;
      sweep.descending = true;
      continue;
    }
    const BlockRef sibling = block.next_sibling;
    const BlockRef parent = block.parent;
    if (residency_.removable(at)) {
      residency_.Evict(at, sweep.reason);
      Spend(work, kWorkOfEviction);
      ++sweep.evicted;
    } else if (block.state != BlockState::kStub) {
      ++sweep.kept;
    }
    if (at == sweep.top) return true;
    if (sibling != 0) {
      sweep.at = sibling;
      sweep.descending = true;
    } else if (residency_.block(parent).state != BlockState::kFree) {
      sweep.at = parent;
    } else {  // A stub, which went with the last that it was kept for.
      if (!is_there(sweep.top, sweep.top_key)) return true;
      restart();
    }
  }
  sweep.at_key = residency_.block(sweep.at).key;
  return false;
}

// Its number stays taken: calls may still name it, and must not find another in its place.
void Control::DropNamespace(NamespaceId ns) {
  NamespaceInfo& info = namespaces_[ns];
  KVD_CHECK(residency_.use(ns).used == 0) << ns;
  namespace_ids_.erase({info.domain, info.descriptor.Canonical()});
  DomainUse& use = uses_[info.domain];
  --use.namespaces;
  const auto pool = pools_.find({info.domain, info.slots});
  if (--pool->second.namespaces == 0) {
    free_pools_.push_back(pool->second.number);
    pools_.erase(pool);
    --use.layouts;
  }
  if (options_.record != nullptr) options_.record->NamespaceDropped(ns);
  NamespaceInfo rest{.domain = info.domain};
  rest.descriptor.hash_bytes = info.descriptor.hash_bytes;
  rest.dropped = true;
  info = std::move(rest);
  if (movement_ != nullptr) movement_->PurgeScope(ns);
  KVD_KILL_POINT("namespace.dropped");
  Record(EventKind::kNamespaceDropped, info.domain, ns, ns);
}

// --- draining ------------------------------------------------------------------------------------

absl::Status Control::CheckDraining() {
  if (!draining()) return absl::OkStatus();
  ++counters_.drain_refusals;
  return absl::UnavailableError(
      "draining: this daemon takes no new leases, holds, pins and reservations; take it for a "
      "miss");
}

DrainProgress Control::Drain(DrainEnd end, Nanos patience) {
  control_.AssertHeld();
  if (!draining_.exchange(true)) Record(EventKind::kDrainBegan, kNoDomain, 0);
  if (end != DrainEnd::kStay) {
    drain_end_ = end;
    drain_deadline_ = clock_.Now() + std::max<Nanos>(patience, 0);
    drain_look_ = 0;
    EndWaits();
  }
  return {.holds = holds_.total_extents(), .moves = reservations_.size()};
}

absl::Status Control::Undrain() {
  control_.AssertHeld();
  if (drain_over_) {
    return absl::FailedPreconditionError("the drain is over and the daemon ends: start another");
  }
  if (draining_.exchange(false)) Record(EventKind::kDrainEnded, kNoDomain, 0);
  drain_end_ = DrainEnd::kStay;
  drain_deadline_ = drain_look_ = INT64_MAX;
  waits_ended_ = false;
  return absl::OkStatus();
}

void Control::EndDrainIfOver(Nanos now) {
  if (drain_end_ == DrainEnd::kStay || drain_over_) return;
  const bool copying = drain_end_ == DrainEnd::kExitPromptly && board_.copying() > 0;
  const bool waits = holds_.total_extents() > 0 || copying ||
                     (drain_end_ == DrainEnd::kExit && !reservations_.empty());
  if (waits && now < drain_deadline_) {
    drain_look_ = copying ? std::min(drain_deadline_, now + kDrainLook) : drain_deadline_;
    return;
  }
  drain_over_ = true;
  drain_look_ = INT64_MAX;
  if (options_.drained) options_.drained();
}

}  // namespace kvd
