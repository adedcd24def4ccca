// Storing: reserve, commit, abort. The order of a put is the order of this file.

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/control.h"
#include "proto/types/check.h"
#include "proto/types/kill_point.h"
#include "proto/types/packed.h"
#include "proto/types/status.h"

namespace kvd {
namespace {

constexpr int kLeasesExpiredForRoom = 4096;

}  // namespace

// --- reserve -------------------------------------------------------------------------------------

absl::StatusOr<Step> Control::Reserve(ReserveCall& call) {
  absl::StatusOr<Chain> chain = ResolveChain(call.header, kMaxPageBlocks);
  if (!chain.ok()) return chain.status();
  if (!call.started) {
    if (draining_) {
      ApplyReleases(*chain->session, call.header.releases);  // A drain waits for what they end.
      return CheckDraining();
    }
    if (absl::Status status = StartReservation(call, *chain); !status.ok()) {
      ++counters_.calls_refused;
      return status;
    }
    ApplyReleases(*chain->session, call.header.releases);
    ++counters_.reserves;
    ExpireLeases(kLeasesExpiredForRoom);
  }
  const Step step = ReserveBlocks(call, *chain);
  if (step == Step::kDone) FinishReserve(call);
  return step;
}

absl::Status Control::StartReservation(ReserveCall& call, const Chain& chain) {
  if (!call.announce.empty() && call.announce.size() != chain.keys.size()) {
    return InvalidField(
        "announce", absl::StrCat("must be none, or one for each of ", chain.keys.size(), " keys"));
  }
  auto parts = ResolveParts(*chain.info, call.header.parts);
  if (!parts.ok()) return parts.status();
  if (chain.keys.size() * parts->size() > kMaxPageExtents) {
    return InvalidField("keys", "blocks times parts is more than 16384");
  }
  if (chain.session->reservations >= options_.session_reservations) {
    ++counters_.reservations_refused;
    return absl::ResourceExhaustedError(
        absl::StrCat("reservations: this session has ", options_.session_reservations, " open"));
  }
  if (chain.session->use->reservations >= options_.domain_reservations) {
    ++counters_.reservations_refused;
    return absl::ResourceExhaustedError(absl::StrCat(
        "reservations: the sessions of this user have ", options_.domain_reservations, " open"));
  }
  call.reservation_id = board_.Open(chain.session->serial);
  if (call.reservation_id == 0) {
    ++counters_.reservations_refused;
    return absl::ResourceExhaustedError("reservations: this daemon has as many open as it may");
  }
  std::unique_ptr<Reservation> reservation;
  if (spare_reservations_.empty()) {
    reservation = std::make_unique<Reservation>();
  } else {
    reservation = std::move(spare_reservations_.back());
    spare_reservations_.pop_back();
  }
  reservation->use = chain.session->use;
  reservation->session = chain.session->serial;
  reservation->ns = call.header.ns;
  reservation->parts = *std::move(parts);
  call.parts = static_cast<uint32_t>(reservation->parts.size());
  reservation->blocks.clear();
  reservation->states.clear();
  reservation->part_refs.clear();
  reservation->anchor = 0;
  reservation->root = !chain.has_parent;
  reservation->closing = false;
  reservation->expires = clock_.Now() + options_.reservation_life;
  next_expiry_ = std::min(next_expiry_, reservation->expires);

  const BlockRef parent = chain.has_parent ? residency_.Find(call.header.ns, chain.parent) : 0;
  reservation->last = parent;
  if (parent != 0) Anchor(*reservation, parent);
  ++chain.session->reservations;
  ++chain.session->use->reservations;
  reservations_[call.reservation_id] = std::move(reservation);
  call.started = true;
  // An answer after the caller's deadline would grant room to somebody who has gone.
  call.wait_until =
      clock_.Now() + std::min(call.wait_ms, PatienceMs(call.remaining_ms)) * kMillisecond;
  return absl::OkStatus();
}

Step Control::ReserveBlocks(ReserveCall& call, const Chain& chain) {
  const auto it = reservations_.find(call.reservation_id);
  if (it == reservations_.end() || it->second->closing)
    return Step::kDone;  // It expired meanwhile.
  Reservation& reservation = *it->second;
  const uint32_t end =
      std::min(chain.keys.size(), call.next + SliceBlocks(reservation.parts.size()));
  const uint64_t parts_bytes =  // Of one block, as many as were asked for.
      chain.info->block_bytes * reservation.parts.size() / chain.info->parts.size();
  while (call.next < end) {
    const BlockRef above = reservation.last;
    const ReserveState state = ReserveBlock(reservation, chain, call.next);
    if (state == ReserveState::kInProduction && !waits_ended_ && clock_.Now() < call.wait_until &&
        waiters_.size() - LoadWaiters() < options_.max_waiters &&
        WaitersOf(chain.session->domain) < options_.domain_waiters) {
      ++counters_.reserve_waits;
      reservation.last = above;  // The same block again, when there is news of it.
      waiters_.push_back({.call = &call, .resumable = call.resumable, .until = call.wait_until});
      return Step::kWait;
    }
    if (state != ReserveState::kGranted) {
      reservation.blocks.push_back(0);
      reservation.part_refs.insert(reservation.part_refs.end(), reservation.parts.size(), 0);
      reservation.rooms.assign(reservation.parts.size(), {});
    }
    const bool known = state != ReserveState::kNoRoom && state != ReserveState::kNoParent;
    if (known && !call.announce.empty()) Announce(reservation.last, call.announce[call.next]);
    board_.Append(call.reservation_id, reservation.rooms);
    reservation.states.push_back(static_cast<char>(state));
    ++call.next;
    switch (state) {
      case ReserveState::kGranted:
        ++call.granted;
        ++counters_.reserve_granted_blocks;
        break;
      case ReserveState::kPresent:
        ++counters_.reserve_present_blocks;
        counters_.dedup_saved_bytes += parts_bytes;
        break;
      case ReserveState::kInProduction:
        ++counters_.reserve_in_production_blocks;
        counters_.dedup_saved_bytes += parts_bytes;
        break;
      case ReserveState::kNoRoom:
      case ReserveState::kNoParent:
        // Nothing can stand below: the rest of the list has the same answer.
        if (state == ReserveState::kNoRoom) {
          ++counters_.reserves_refused;
          ++counters_.reserve_no_room_blocks;
          const uint32_t rest = chain.keys.size() - call.next + 1;
          reservation.use->rejected_blocks += rest;
          reservation.use->tenant->rejected_blocks += rest;
        } else {
          ++counters_.reserve_no_parent_blocks;
        }
        reservation.states.resize(chain.keys.size(), static_cast<char>(state));
        call.next = chain.keys.size();
        return Step::kDone;
    }
  }
  return call.next < chain.keys.size() ? Step::kMore : Step::kDone;
}

// Keeps what routers are told of a block, which may be there or in production.
void Control::Announce(BlockRef block, std::string_view bytes) {
  const Block& announced = residency_.block(block);
  if (announcements_.Keep(block, namespaces_[announced.ns].domain, bytes)) {
    residency_.TellAnnounced(block);
  }
}

// What becomes of one block of the list. When granted, its parts are reserved with room, and
// reservation.rooms says where.
ReserveState Control::ReserveBlock(Reservation& reservation, const Chain& chain,
                                   uint32_t position) {
  const ChainHash key = chain.keys[position];
  const bool root = position == 0 && reservation.root;
  const BlockRef above = reservation.last;
  if (!root && (above == 0 || residency_.block(above).state == BlockState::kStub ||
                residency_.block(above).depth + 1 >= kMaxChainDepth)) {
    return ReserveState::kNoParent;
  }
  BlockRef block = residency_.Find(reservation.ns, key);
  const bool is_new = block == 0;
  if (is_new) {
    if (!store_.MakeIndexRoom()) return ReserveState::kNoRoom;
    block = residency_.Add(reservation.ns, key, above, ++tick_);
  } else if (residency_.block(block).parent != above) {
    return ReserveState::kNoParent;  // The list is not a chain.
  }
  Anchor(reservation, block);

  bool missing = false;
  bool reserved = false;
  for (const PartId id : reservation.parts) {
    const PartRef part = residency_.FindPart(block, id);
    missing |= Lacks(block, id);
    // What is on its way from NVMe is in nobody's production.
    reserved |= part != 0 && (residency_.block(block).cold_groups >> id.group & 1) == 0 &&
                residency_.part(part).state == static_cast<uint32_t>(PartState::kReserved);
  }
  if (missing) {
    const size_t first_part = reservation.part_refs.size();
    if (!GrantParts(reservation, *chain.info, block, first_part)) {
      reservation.part_refs.resize(first_part);
      Anchor(reservation, above);
      residency_.Abandon(block);
      return ReserveState::kNoRoom;
    }
    reservation.blocks.push_back(block);
    reservation.last = block;
    KVD_KILL_POINT("reserve.granted_block");
    return ReserveState::kGranted;
  }
  reservation.last = block;
  return reserved ? ReserveState::kInProduction : ReserveState::kPresent;
}

// Neither DRAM has the part, or will, nor NVMe.
bool Control::Lacks(BlockRef block, PartId id) const {
  return (residency_.block(block).cold_groups >> id.group & 1) == 0 &&
         residency_.FindPart(block, id) == 0;
}

// Reserves the parts that a block lacks. False: no room for one of them, and none is reserved.
bool Control::GrantParts(Reservation& reservation, const NamespaceInfo& info, BlockRef block,
                         size_t first_part) {
  reservation.rooms.clear();
  for (const PartId id : reservation.parts) {
    PartRef part = 0;
    FillBoard::Room room;
    if (Lacks(block, id)) {
      part = store_.TakePart(block, id, info.group_part_bytes[id.group]);
      if (part == 0) {
        for (size_t i = first_part; i < reservation.part_refs.size(); ++i) {
          if (reservation.part_refs[i] != 0) residency_.DropReserved(reservation.part_refs[i]);
        }
        return false;
      }
      room = {store_.Address(residency_.part(part)), residency_.part(part).length};
    }
    reservation.part_refs.push_back(part);
    reservation.rooms.push_back(room);
  }
  return true;
}

// Keeps `block` in place until the next call of this: nothing else holds what a new block is about
// to hang below.
void Control::Anchor(Reservation& reservation, BlockRef block) {
  if (block != 0) residency_.Lease(block);
  if (reservation.anchor != 0) residency_.Unlease(reservation.anchor);
  reservation.anchor = block;
}

void Control::FinishReserve(ReserveCall& call) {
  const auto it = reservations_.find(call.reservation_id);
  if (it == reservations_.end() || it->second->closing) {
    call.reservation_id = 0;
    call.states.assign(call.header.keys.size() / namespaces_[call.header.ns].descriptor.hash_bytes,
                       static_cast<char>(ReserveState::kNoRoom));
    call.granted = 0;
    return;
  }
  KVD_KILL_POINT("reserve.finished");
  call.states = it->second->states;
  Anchor(*it->second, 0);
  call.expires_ms =
      static_cast<uint32_t>(std::max<Nanos>(0, it->second->expires - clock_.Now()) / kMillisecond);
  if (call.granted > 0) return;
  CloseReservation(call.reservation_id);
  call.reservation_id = 0;
}

// --- commit --------------------------------------------------------------------------------------

absl::StatusOr<Step> Control::Commit(CommitCall& call) {
  absl::StatusOr<Session*> session = FindSession(call.header.session);
  if (!session.ok()) return session.status();
  if (call.phase == CommitCall::Phase::kStart) {
    call.inline_put = call.reservation_id == 0;
    if (call.header.releases.size() > kMaxReleasesPerCall) {
      return InvalidField("releases", absl::StrCat("at most ", kMaxReleasesPerCall, " a call"));
    }
    if (!call.inline_put) ApplyReleases(**session, call.header.releases);
    ++counters_.commits;
  }
  return call.inline_put ? CommitInline(call, **session) : CommitReserved(call, **session);
}

absl::StatusOr<Step> Control::CommitReserved(CommitCall& call, Session& session) {
  const auto it = reservations_.find(call.reservation_id);
  if (it == reservations_.end() || it->second->session != session.serial || it->second->closing) {
    ++counters_.calls_refused;
    return absl::NotFoundError(
        "reservation_id: no such reservation of this session, or it expired");
  }
  Reservation& reservation = *it->second;
  if (call.phase == CommitCall::Phase::kStart) {
    const auto size = static_cast<uint32_t>(reservation.states.size());
    if (call.first_block >= size) return InvalidField("first_block", "beyond the reservation");
    if (call.blocks == 0) call.blocks = size - call.first_block;
    if (call.blocks > size - call.first_block)
      return InvalidField("blocks", "beyond the reservation");
    if (call.staged_sums || !call.staged.empty()) {  // Nothing here says how long it would be.
      return InvalidField("staged", "of a put without a reservation only");
    }
    const size_t parts = call.blocks * reservation.parts.size();
    if (!call.sums.empty() && call.sums.size() != parts * sizeof(uint32_t)) {
      return InvalidField("sums", absl::StrCat("must have 4 bytes for each of ", parts, " parts"));
    }
    if (call.fills > 0) {
      if (absl::Status status = CheckFills(call); !status.ok()) return status;
      call.phase = CommitCall::Phase::kAwait;
      if (AwaitFills(call)) return Step::kWait;
    }
    call.phase = CommitCall::Phase::kCommit;
  }
  // One that waited commits what is full now: all of it, unless its time was up.
  if (call.phase == CommitCall::Phase::kAwait) call.phase = CommitCall::Phase::kCommit;
  const Step step = CommitBlocks(call, call.reservation_id, reservation);
  if (step != Step::kDone) return step;
  const bool open = std::any_of(reservation.blocks.begin(), reservation.blocks.end(),
                                [](BlockRef block) { return block != 0; });
  if (!open) CloseReservation(call.reservation_id);
  return Step::kDone;
}

absl::Status Control::CheckFills(const CommitCall& call) const {
  const uint32_t fillable = board_.fillable(call.reservation_id);
  if (call.fills > fillable) {
    return InvalidField("fills",
                        absl::StrCat("at most the ", fillable, " parts that were granted"));
  }
  if (std::any_of(waiters_.begin(), waiters_.end(), [&call](const Waiter& waiter) {
        return waiter.call == nullptr && waiter.reservation_id == call.reservation_id;
      })) {
    return absl::FailedPreconditionError("fills: another commit of this reservation waits already");
  }
  return absl::OkStatus();
}

// Fills and commits travel on different sockets, so a commit may come first. True: it waits. There
// are no more of those than reservations, and each ends with its caller's patience or with its
// reservation.
bool Control::AwaitFills(CommitCall& call) {
  if (waits_ended_ || call.remaining_ms <= kAnswerMs) return false;
  if (board_.Await(call.reservation_id, call.fills)) return false;
  ++counters_.commit_waits;
  const Nanos patience = (call.remaining_ms - kAnswerMs) * kMillisecond;
  waiters_.push_back({.reservation_id = call.reservation_id,
                      .resumable = call.resumable,
                      .until = clock_.Now() + patience});
  return true;
}

Step Control::CommitBlocks(CommitCall& call, uint64_t id, Reservation& reservation) {
  const uint32_t end = std::min(call.blocks, call.next + SliceBlocks(reservation.parts.size()));
  const uint32_t stored_before = call.stored;
  ++tick_;
  for (; call.next < end; ++call.next) {
    const CommitResult result = CommitBlock(call, id, reservation, call.first_block + call.next);
    call.results.push_back(static_cast<char>(result));
  }
  counters_.committed_blocks += call.stored - stored_before;
  reservation.use->committed_blocks += call.stored - stored_before;
  reservation.use->tenant->committed_blocks += call.stored - stored_before;
  ProductionChanged();
  if (call.next == call.blocks) KVD_KILL_POINT("commit.finished");
  return call.next < call.blocks ? Step::kMore : Step::kDone;
}

CommitResult Control::CommitBlock(CommitCall& call, uint64_t id, Reservation& reservation,
                                  uint32_t position) {
  const BlockRef block = position < reservation.blocks.size() ? reservation.blocks[position] : 0;
  if (block == 0) {
    switch (static_cast<ReserveState>(reservation.states[position])) {
      case ReserveState::kNoRoom:
        return CommitResult::kNoRoom;
      case ReserveState::kNoParent:
        return CommitResult::kNoParent;
      default:
        return CommitResult::kPresent;
    }
  }
  if (call.sums_differ) return CommitResult::kFailed;  // Nothing stands below a block that failed.
  const size_t parts = reservation.parts.size();
  const size_t first = position * parts;
  for (size_t i = first; i < first + parts; ++i) {
    if (reservation.part_refs[i] == 0) continue;
    const FillBoard::Part part = board_.Get(id, static_cast<uint32_t>(i));
    if (part.state != FillBoard::State::kFull) return CommitResult::kNotFilled;
    const bool differs =
        (call.staged_sums && part.sum != UnpackAt<PackedStaged>(call.staged, i).sum) ||
        (!call.sums.empty() &&
         part.sum != UnpackAt<uint32_t>(call.sums, i - call.first_block * parts));
    if (differs) {
      ++counters_.put_sums_differ;  // Somebody wrote into staging after the caller had.
      call.sums_differ = true;
      return CommitResult::kFailed;
    }
  }
  for (size_t i = first; i < first + parts; ++i) {
    const PartRef part = std::exchange(reservation.part_refs[i], 0);
    if (part == 0) continue;
    const uint32_t sum = board_.Get(id, static_cast<uint32_t>(i)).sum;
    counters_.committed_bytes += residency_.part(part).length;
    KVD_KILL_POINT("commit.before_part");
    call.stored += residency_.CommitPart(part, sum, tick_);
    KVD_KILL_POINT("commit.part_visible");
  }
  reservation.blocks[position] = 0;
  if (movement_ != nullptr) movement_->Stored(block);
  if (residency_.block(block).state != BlockState::kParked) return CommitResult::kCommitted;
  if (residency_.block(residency_.block(block).parent).state == BlockState::kStub) {
    residency_.DropParked(block);  // Its parent's producer gave up meanwhile.
    return CommitResult::kNoParent;
  }
  ++counters_.parked_blocks;
  KVD_KILL_POINT("commit.block_parked");
  return CommitResult::kParked;
}

// A put in one call: reserve, let a copier fill from staging, commit.
absl::StatusOr<Step> Control::CommitInline(CommitCall& call, Session& session) {
  if (call.phase == CommitCall::Phase::kStart) {
    if (call.first_block != 0 || call.blocks != 0) {
      return InvalidField(call.first_block != 0 ? "first_block" : "blocks",
                          "of a reservation only; name its reservation_id");
    }
    call.reserve.header = call.header;
    call.reserve.wait_ms = 0;
    call.reserve.announce = std::move(call.announce);
    call.phase = CommitCall::Phase::kReserve;
  }
  if (call.phase == CommitCall::Phase::kReserve) {
    const bool first_slice = !call.reserve.started;
    absl::StatusOr<Chain> chain = ResolveChain(call.header, kMaxPageBlocks);
    if (!chain.ok()) return chain.status();
    if (first_slice) {
      auto parts = ResolveParts(*chain->info, call.header.parts);
      if (!parts.ok()) return parts.status();
      const size_t fills = chain->keys.size() * parts->size();
      if (call.staged.size() != fills * sizeof(PackedStaged)) {
        return InvalidField("staged",
                            absl::StrCat("must have 16 bytes for each of ", fills, " parts"));
      }
      const size_t staging = session.staging == nullptr ? 0 : session.staging->bytes().size();
      for (size_t i = 0; i < fills; ++i) {
        const auto staged = UnpackAt<PackedStaged>(call.staged, i);
        const uint32_t expected = chain->info->group_part_bytes[(*parts)[i % parts->size()].group];
        if (staged.length != expected || staged.offset > staging ||
            staged.length > staging - staged.offset) {
          return InvalidField(absl::StrCat("staged[", i, "]"),
                              "outside the session's staging memory, or not a part's length");
        }
      }
    }
    absl::StatusOr<Step> step = Reserve(call.reserve);
    if (!step.ok() || *step != Step::kDone) return step;
    call.blocks = static_cast<uint32_t>(call.reserve.states.size());
    if (call.reserve.reservation_id == 0) {  // Nothing to store.
      for (const char state : call.reserve.states) {
        const auto reserve_state = static_cast<ReserveState>(state);
        call.results.push_back(
            static_cast<char>(reserve_state == ReserveState::kNoRoom     ? CommitResult::kNoRoom
                              : reserve_state == ReserveState::kNoParent ? CommitResult::kNoParent
                                                                         : CommitResult::kPresent));
      }
      return Step::kDone;
    }
    return StartInlineFills(call, session);
  }
  const uint64_t id = call.reserve.reservation_id;
  const auto it = reservations_.find(id);
  if (it == reservations_.end() || it->second->closing) {
    return absl::AbortedError("the reservation of this put ended before its bytes were copied");
  }
  call.phase = CommitCall::Phase::kCommit;
  const Step step = CommitBlocks(call, id, *it->second);
  if (step == Step::kDone) CloseReservation(id);
  return step;
}

absl::StatusOr<Step> Control::StartInlineFills(CommitCall& call, Session& session) {
  const uint64_t id = call.reserve.reservation_id;
  const Reservation& reservation = *reservations_.find(id)->second;
  const size_t staging = session.staging == nullptr ? 0 : session.staging->bytes().size();
  FillJob job{.session = session.serial, .staging = session.staging, .reservation_id = id};
  for (size_t i = 0; i < reservation.part_refs.size(); ++i) {
    if (reservation.part_refs[i] == 0) continue;
    const auto staged = UnpackAt<PackedStaged>(call.staged, i);
    // Checked before, but against the staging of then: the session may have brought another.
    if (staged.offset > staging || staged.length > staging - staged.offset) {
      CloseReservation(id);
      return InvalidField(absl::StrCat("staged[", i, "]"), "outside the session's staging memory");
    }
    job.fills.push_back({.reservation_id = id,
                         .staging_offset = staged.offset,
                         .index = static_cast<uint32_t>(i),
                         .length = staged.length,
                         .whole = 1});
  }
  if (!mover_.Fill(std::move(job))) {
    CloseReservation(id);
    ++counters_.puts_refused;
    return absl::ResourceExhaustedError("copiers: too many puts wait already");
  }
  KVD_KILL_POINT("commit.inline_filling");
  call.phase = CommitCall::Phase::kFill;
  waiters_.push_back({.reservation_id = id, .resumable = call.resumable});
  return Step::kWait;
}

// --- giving up -----------------------------------------------------------------------------------

absl::Status Control::Abort(std::string_view token, uint64_t reservation_id) {
  absl::StatusOr<Session*> session = FindSession(token);
  if (!session.ok()) return session.status();
  const auto it = reservations_.find(reservation_id);
  if (it == reservations_.end() || it->second->session != (*session)->serial ||
      it->second->closing) {
    ++counters_.calls_refused;
    return absl::NotFoundError("reservation_id: no such reservation of this session");
  }
  ++counters_.reservations_aborted;
  CloseReservation(reservation_id);
  return absl::OkStatus();
}

void Control::CloseReservation(uint64_t id) {
  Reservation& reservation = *reservations_.find(id)->second;
  reservation.closing = true;
  KVD_KILL_POINT("reservation.closing");
  Anchor(reservation, 0);
  for (size_t i = 0; i < waiters_.size(); ++i) {  // An inline put that waited for copiers.
    if (waiters_[i].call != nullptr || waiters_[i].reservation_id != id) continue;
    ready_.push_back(waiters_[i].resumable);
    waiters_.erase(waiters_.begin() + static_cast<ptrdiff_t>(i));
    break;
  }
  FinishClosing(id, reservation);
}

// Frees what was not committed, once no copier writes there any more.
void Control::FinishClosing(uint64_t id, Reservation& reservation) {
  if (!board_.Close(id)) return;  // FillsDone comes when the last copy has ended.
  for (const PartRef part : reservation.part_refs) {
    if (part != 0) residency_.DropReserved(part);
  }
  // Children first, so that what is alone goes at once.
  const bool somebody_waits = std::any_of(waiters_.begin(), waiters_.end(),
                                          [](const Waiter& w) { return w.call != nullptr; });
  for (auto block = reservation.blocks.rbegin(); block != reservation.blocks.rend(); ++block) {
    if (*block == 0) continue;
    if (somebody_waits) {
      orphans_.emplace_back(*block, residency_.block(*block).key);
    } else {
      residency_.Abandon(*block);
    }
  }
  --reservation.use->reservations;
  const auto session = by_serial_.find(reservation.session);
  if (session != by_serial_.end()) --session->second->reservations;
  const auto it = reservations_.find(id);
  if (spare_reservations_.size() < 64) spare_reservations_.push_back(std::move(it->second));
  reservations_.erase(it);
  KVD_KILL_POINT("reservation.freed");
  ProductionChanged();
}

uint32_t Control::WaitersOf(DomainId domain) const {
  return static_cast<uint32_t>(
      std::count_if(waiters_.begin(), waiters_.end(), [this, domain](const Waiter& waiter) {
        return waiter.call != nullptr && namespaces_[waiter.call->header.ns].domain == domain;
      }));
}

uint32_t Control::LoadWaiters() const {
  return static_cast<uint32_t>(
      std::count_if(waiters_.begin(), waiters_.end(),
                    [](const Waiter& waiter) { return waiter.load != nullptr; }));
}

// Those who wait for blocks that others produce look again.
void Control::ProductionChanged() {
  for (size_t i = 0; i < waiters_.size();) {
    if (waiters_[i].call == nullptr) {
      ++i;
      continue;
    }
    ready_.push_back(waiters_[i].resumable);
    waiters_.erase(waiters_.begin() + static_cast<ptrdiff_t>(i));
  }
}

}  // namespace kvd
