// The way in: a put in one call, and one that reserves, fills and commits.

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/client_impl.h"
#include "proto/types/limits.h"
#include "proto/types/packed.h"
#include "proto/types/session_wire.h"

namespace kvd {
namespace {

using v1::Engine;

// A put up to this size is one call: to ask first would cost more than to copy for nothing.
constexpr uint64_t kMaxOneCallBytes = 256 << 10;
constexpr uint32_t kMaxOneCallParts = 64;
constexpr absl::Duration kAnswerTime = absl::Milliseconds(5);  // Of an answer on its way.

// What the answer to a reservation says of each block, until the commit says more.
std::vector<CommitResult> ResultsOf(const std::string& states) {
  std::vector<CommitResult> results;
  for (char state : states) {
    switch (static_cast<ReserveState>(state)) {
      case ReserveState::kGranted:
        results.push_back(CommitResult::kNotFilled);
        break;
      case ReserveState::kPresent:
      case ReserveState::kInProduction:
        results.push_back(CommitResult::kPresent);
        break;
      case ReserveState::kNoRoom:
        results.push_back(CommitResult::kNoRoom);
        break;
      case ReserveState::kNoParent:
        results.push_back(CommitResult::kNoParent);
        break;
      default:
        results.push_back(CommitResult::kFailed);
    }
  }
  return results;
}

bool IsGranted(const v1::ReserveReply& reserved, size_t block) {
  return static_cast<ReserveState>(reserved.states()[block]) == ReserveState::kGranted;
}

// What a put that reserved and committed came to.
PutResult ResultOf(const v1::ReserveReply& reserved, const v1::CommitReply& committed) {
  if (committed.results().size() != reserved.states().size()) {
    return {absl::InternalError("results: not one a block")};
  }
  PutResult result;
  result.results = ResultsOf(reserved.states());
  for (size_t block = 0; block < result.results.size(); ++block) {
    if (!IsGranted(reserved, block)) continue;
    result.results[block] = static_cast<CommitResult>(committed.results()[block]);
  }
  result.stored = committed.stored();
  return result;
}

// Where each source begins in `own`; empty when one does not lie in it.
std::vector<uint64_t> OffsetsIn(const OwnMemory& own,
                                absl::Span<const absl::Span<const std::byte>> sources) {
  std::vector<uint64_t> offsets;
  offsets.reserve(sources.size());
  for (const absl::Span<const std::byte> source : sources) {
    const std::optional<uint64_t> offset = own.OffsetOf(source);
    if (!offset.has_value()) return {};
    offsets.push_back(*offset);
  }
  return offsets;
}

}  // namespace

PutResult Client::Impl::Put(const Namespace& ns, std::string_view keys,
                            absl::Span<const absl::Span<const std::byte>> sources,
                            const PutOptions& options) {
  const absl::Time deadline = DeadlineOf(options.timeout);
  const absl::StatusOr<const KnownNamespace*> known = Find(ns);
  if (!known.ok()) return {known.status()};
  const absl::StatusOr<Selection> parts = Select(**known, options.parts);
  if (!parts.ok()) return {parts.status()};
  const absl::StatusOr<PutCall> put = CheckPut(**known, keys, *parts, sources, options, deadline);
  if (!put.ok()) return {put.status()};

  const absl::StatusOr<LinkPtr> link = Connected(deadline);
  if (!link.ok()) return {link.status()};
  const absl::StatusOr<uint32_t> id = NamespaceId(**link, **known, deadline);
  if (!id.ok()) return {id.status()};
  if (remote_.has_value()) {
    PutResult result = PutStreamed(**link, *id, *put);
    result.present = static_cast<uint32_t>(
        std::count(result.results.begin(), result.results.end(), CommitResult::kPresent));
    return result;
  }
  const absl::StatusOr<Staging*> staging = StagingOf(**link, deadline);
  if (!staging.ok()) return {staging.status()};
  const bool one_call = put->total_bytes <= std::min(kMaxOneCallBytes, (*staging)->size()) &&
                        sources.size() <= kMaxOneCallParts && options.wait == absl::ZeroDuration();
  OwnFills* own_fills = nullptr;
  std::vector<uint64_t> offsets;
  if (const auto own = one_call ? nullptr : Own(); own != nullptr) {
    offsets = OffsetsIn(*own, sources);
    if (!offsets.empty()) {
      // Refused, the bytes are copied as all others.
      own_fills = OwnFillsOf(**link, *own, deadline).value_or(nullptr);
    }
  }
  PutResult result = one_call               ? PutInOneCall(**link, **staging, *id, *put)
                     : own_fills != nullptr ? PutFromOwn(*link, *own_fills, offsets, *id, *put)
                                            : PutReserved(*link, **staging, *id, *put);
  if ((*staging)->broken() || (own_fills != nullptr && own_fills->broken())) {
    (*link)->session->End();
  }
  result.present = static_cast<uint32_t>(
      std::count(result.results.begin(), result.results.end(), CommitResult::kPresent));
  return result;
}

absl::StatusOr<Client::Impl::PutCall> Client::Impl::CheckPut(
    const KnownNamespace& ns, std::string_view keys, const Selection& parts,
    absl::Span<const absl::Span<const std::byte>> sources, const PutOptions& options,
    absl::Time deadline) const {
  const absl::StatusOr<uint32_t> blocks = CountKeys(ns, keys, PageBlocks(parts.size()));
  if (!blocks.ok()) return blocks.status();
  if (absl::Status status = CheckParent(ns, options.parent); !status.ok()) return status;
  if (sources.size() != *blocks * parts.size()) {
    return absl::InvalidArgumentError("sources: must be blocks times parts");
  }
  uint64_t total_bytes = 0;
  for (size_t i = 0; i < sources.size(); ++i) {
    if (sources[i].size() != parts.bytes[i % parts.size()]) {
      return absl::InvalidArgumentError(absl::StrCat("sources[", i, "]: not part_bytes long"));
    }
    total_bytes += sources[i].size();
  }
  if (!options.announce.empty() && options.announce.size() != *blocks) {
    return absl::InvalidArgumentError("announce: must be empty or one for each block");
  }
  uint64_t announced_bytes = keys.size();
  for (const std::string& announce : options.announce) {
    if (announce.size() > kMaxAnnounceBytes) {
      return absl::InvalidArgumentError("announce: one is longer than 16 KiB");
    }
    announced_bytes += announce.size() + 8;
  }
  // Releases and the rest of the message need far less than the quarter that is left for them.
  if (announced_bytes > kMaxMessageBytes / 4 * 3) {
    return absl::InvalidArgumentError("announce: too many bytes for one call; put fewer blocks");
  }
  return PutCall{ns, keys, *blocks, parts, sources, options, total_bytes, deadline};
}

absl::StatusOr<Staging*> Client::Impl::StagingOf(Link& link, absl::Time deadline) {
  TurnLock turn(link.opening_staging, deadline);
  if (!turn.held()) return absl::DeadlineExceededError("staging: others are asking");
  {
    absl::MutexLock lock(&link.mu);
    if (link.staging != nullptr) return link.staging.get();
  }
  absl::StatusOr<StagingMemory> memory = link.session->OpenStaging(
      std::min<uint64_t>(options_.staging_bytes, kMaxStagingBytes), deadline);
  if (!memory.ok()) return memory.status();
  absl::MutexLock lock(&link.mu);
  link.staging = std::make_unique<Staging>(*std::move(memory), *copier_);
  return link.staging.get();
}

absl::Status Client::Impl::AdoptMemory(int fd, absl::Span<const std::byte> memory,
                                       absl::Duration timeout) {
  const absl::Time deadline = DeadlineOf(timeout);
  if (remote_.has_value()) {
    return absl::FailedPreconditionError(
        "own memory: this endpoint shares no memory with the daemon; Put streams the bytes");
  }
  TurnLock turn(adopting_, deadline);
  if (!turn.held()) return absl::DeadlineExceededError("own memory: others are asking");
  if (Own() != nullptr) {
    return absl::FailedPreconditionError("own memory: this client has adopted some already");
  }
  absl::StatusOr<std::shared_ptr<const OwnMemory>> own = OwnMemory::Open(fd, memory);
  if (!own.ok()) return own.status();
  const absl::StatusOr<LinkPtr> link = Connected(deadline);
  if (!link.ok()) return link.status();
  if (absl::Status status = OwnFillsOf(**link, **own, deadline).status(); !status.ok()) {
    absl::MutexLock lock(&(*link)->mu);
    (*link)->own_refused = absl::OkStatus();  // Other memory may do.
    return status;
  }
  absl::MutexLock lock(&mu_);
  own_ = *std::move(own);
  return absl::OkStatus();
}

std::shared_ptr<const OwnMemory> Client::Impl::Own() {
  absl::MutexLock lock(&mu_);
  return own_;
}

absl::StatusOr<OwnFills*> Client::Impl::OwnFillsOf(Link& link, const OwnMemory& own,
                                                   absl::Time deadline) {
  // First, because what a put in one call names as staged lies in the memory that came first.
  if (absl::Status status = StagingOf(link, deadline).status(); !status.ok()) return status;
  TurnLock turn(link.opening_staging, deadline);
  if (!turn.held()) return absl::DeadlineExceededError("own memory: others are asking");
  {
    absl::MutexLock lock(&link.mu);
    if (link.own_fills != nullptr) return link.own_fills.get();
    if (!link.own_refused.ok()) return link.own_refused;
  }
  absl::StatusOr<UniqueFd> channel = link.session->OpenOwnStaging(own.fd(), own.size(), deadline);
  absl::MutexLock lock(&link.mu);
  if (!channel.ok()) return link.own_refused = channel.status();
  link.own_fills = std::make_unique<OwnFills>(*std::move(channel));
  return link.own_fills.get();
}

// Few bytes: copied into staging and committed by one call. The answer says what was present.
PutResult Client::Impl::PutInOneCall(Link& link, Staging& staging, uint32_t namespace_id,
                                     const PutCall& put) {
  PutResult result;
  StagingSlot slot;
  std::vector<uint32_t> sums;
  {
    Staging::Filling filling(staging, put.deadline, put.deadline);
    if (!filling.held()) return {absl::DeadlineExceededError("put: others are putting")};
    absl::StatusOr<StagingSlot> staged = filling.Stage(put.sources, put.total_bytes, sums);
    if (!staged.ok()) return {staged.status()};
    slot = *staged;
  }

  v1::CommitRequest request;
  request.set_namespace_id(namespace_id);
  request.set_keys(put.keys.data(), put.keys.size());
  request.set_parent(put.options.parent.data(), put.options.parent.size());
  request.set_parts(put.parts.packed);
  std::string& staged = *request.mutable_staged();
  staged.resize(put.sources.size() * sizeof(PackedStaged));
  uint64_t offset = slot.offset;
  for (size_t i = 0; i < put.sources.size(); ++i) {
    PackAt(staged, i, PackedStaged{offset, static_cast<uint32_t>(put.sources[i].size()), sums[i]});
    offset += put.sources[i].size();
  }
  request.set_staged_sums(true);
  for (const std::string& announce : put.options.announce) request.add_announce(announce);
  v1::CommitReply reply;
  result.status = Call(link, &Engine::Stub::Commit, request, &reply, put.deadline);
  if (OutcomeUnknown(result.status)) {
    // The daemon may read the slot at any later time. To use it again could store other bytes under
    // these keys; so the session ends, and its staging memory with it.
    link.session->End();
    return result;
  }
  staging.Free(slot);
  if (!result.status.ok()) return result;
  if (reply.results().size() != put.blocks) {
    result.status = absl::InternalError("results: not one a block");
    return result;
  }
  for (char committed : reply.results()) {
    result.results.push_back(static_cast<CommitResult>(committed));
  }
  result.stored = reply.stored();
  return result;
}

v1::ReserveRequest Client::Impl::ReserveRequestOf(uint32_t namespace_id, const PutCall& put) {
  v1::ReserveRequest request;
  request.set_namespace_id(namespace_id);
  request.set_keys(put.keys.data(), put.keys.size());
  request.set_parent(put.options.parent.data(), put.options.parent.size());
  request.set_parts(put.parts.packed);
  const absl::Duration left =
      std::max(put.deadline - absl::Now() - kAnswerTime, absl::ZeroDuration());
  const absl::Duration wait = std::clamp(put.options.wait, absl::ZeroDuration(), left);
  request.set_wait_ms(static_cast<uint32_t>(absl::ToInt64Milliseconds(wait)));
  for (const std::string& announce : put.options.announce) request.add_announce(announce);
  return request;
}

// Many bytes: reserve, fill what is missing, commit. The first bytes are staged while the daemon
// reserves, and the commit is sent while it copies the last ones.
PutResult Client::Impl::PutReserved(const LinkPtr& link, Staging& staging, uint32_t namespace_id,
                                    const PutCall& put) {
  v1::ReserveRequest request = ReserveRequestOf(namespace_id, put);
  PutResult result;
  auto reserving =
      Start<PendingReserve>(link, &Engine::Stub::AsyncReserve, request, put.deadline + kLateAnswer);
  // Nobody else is kept from filling by an answer that may take long.
  std::optional<Staging::Filling> filling;
  std::string sums(put.sources.size() * sizeof(uint32_t), '\0');
  if (request.wait_ms() == 0 && expects_new_.load(std::memory_order_relaxed)) {
    filling.emplace(staging, put.deadline, /*turn_by=*/absl::InfinitePast());
    if (filling->held()) {
      filling->StageAhead(put.sources, put.total_bytes, sums,
                          [&] { return reserving.call->Await(absl::InfinitePast()); });
    } else {
      filling.reset();
    }
  }
  v1::ReserveReply reserved;
  result.status = Finish(reserving, &reserved, put.deadline,
                         [this](Link& late, const v1::ReserveReply& answer) {
                           if (answer.reservation_id() == 0) return;
                           releases_.AddAbort(late.number, answer.reservation_id());
                         });
  if (!result.status.ok()) return result;
  if (reserved.states().size() != put.blocks) {
    releases_.AddAbort(link->number, reserved.reservation_id());
    result.status = absl::InternalError("states: not one a block");
    return result;
  }
  expects_new_.store(static_cast<ReserveState>(reserved.states()[0]) == ReserveState::kGranted,
                     std::memory_order_relaxed);

  if (reserved.reservation_id() == 0) {  // Nothing to send.
    result.results = ResultsOf(reserved.states());
    return result;
  }

  if (!filling.has_value()) filling.emplace(staging, put.deadline, put.deadline);
  result.status = FillGranted(*link, *filling, put, reserved, sums);
  if (!result.status.ok()) {
    releases_.AddAbort(link->number, reserved.reservation_id());
    return result;
  }

  // The daemon waits for the last fills, and compares the sums: nothing of what this side would yet
  // find wrong becomes visible.
  v1::CommitRequest commit;
  commit.set_reservation_id(reserved.reservation_id());
  uint32_t granted = 0;
  for (uint32_t block = 0; block < put.blocks; ++block) granted += IsGranted(reserved, block);
  commit.set_fills(granted * static_cast<uint32_t>(put.parts.size()));
  commit.set_sums(std::move(sums));
  auto committing =
      Start<PendingCommit>(link, &Engine::Stub::AsyncCommit, commit, put.deadline + kLateAnswer);
  absl::Status filled = filling->Finish();
  filling.reset();
  v1::CommitReply committed;
  if (filled.ok()) {
    result.status = Finish(committing, &committed, put.deadline,
                           [](Link&, const v1::CommitReply&) {});  // What is stored is stored.
  } else {
    committing.call->Cancel();
    NoteEnd(*link, filled, std::move(committing.owed));
    result.status = std::move(filled);
  }
  if (!result.status.ok()) {
    releases_.AddAbort(link->number, reserved.reservation_id());
    return result;
  }
  return ResultOf(reserved, committed);
}

// Many bytes that lie in adopted memory: reserve, have the copier fetch what is missing, commit.
// The commit is sent only when the last byte was fetched: the caller may use its memory again once
// this returned, so nothing that is read later may become visible. The daemon goes by its own sums,
// as nobody else has any.
PutResult Client::Impl::PutFromOwn(const LinkPtr& link, OwnFills& fills,
                                   absl::Span<const uint64_t> offsets, uint32_t namespace_id,
                                   const PutCall& put) {
  v1::ReserveRequest request = ReserveRequestOf(namespace_id, put);
  v1::ReserveReply reserved;
  PutResult result;
  result.status =
      CallToGet<PendingReserve>(link, &Engine::Stub::AsyncReserve, request, &reserved, put.deadline,
                                [this](Link& late, const v1::ReserveReply& answer) {
                                  if (answer.reservation_id() == 0) return;
                                  releases_.AddAbort(late.number, answer.reservation_id());
                                });
  if (!result.status.ok()) return result;
  if (reserved.states().size() != put.blocks) {
    releases_.AddAbort(link->number, reserved.reservation_id());
    result.status = absl::InternalError("states: not one a block");
    return result;
  }
  if (reserved.reservation_id() == 0) {  // Nothing to send.
    result.results = ResultsOf(reserved.states());
    return result;
  }

  std::vector<OwnFills::Part> parts;
  uint64_t bytes = 0;
  for (uint32_t index = 0; index < put.sources.size(); ++index) {
    if (!IsGranted(reserved, index / put.parts.size())) continue;
    parts.push_back({index, offsets[index], put.sources[index].size()});
    bytes += put.sources[index].size();
  }
  result.status = fills.Store(reserved.reservation_id(), parts, put.deadline);
  v1::CommitReply committed;
  if (result.status.ok()) {
    own_bytes_.fetch_add(bytes, std::memory_order_relaxed);
    v1::CommitRequest commit;
    commit.set_reservation_id(reserved.reservation_id());
    result.status =
        CallToGet<PendingCommit>(link, &Engine::Stub::AsyncCommit, commit, &committed, put.deadline,
                                 [](Link&, const v1::CommitReply&) {});  // Stored is stored.
  }
  if (!result.status.ok()) {
    releases_.AddAbort(link->number, reserved.reservation_id());
    return result;
  }
  return ResultOf(reserved, committed);
}

// The copy. This side fills slots while the daemon's copier empties them; both are at work until
// the last part. Returns when all has been sent; sets the sums of what was staged.
absl::Status Client::Impl::FillGranted(Link& link, Staging::Filling& filling, const PutCall& put,
                                       const v1::ReserveReply& reserved, std::string& sums) {
  if (!filling.held()) return absl::DeadlineExceededError("put: others are putting");
  const size_t parts = put.parts.size();
  const auto granted = [&](uint32_t index) { return IsGranted(reserved, index / parts); };
  uint64_t bytes = 0;
  for (uint32_t index = 0; index < put.sources.size(); ++index) {
    if (granted(index)) bytes += put.sources[index].size();
  }
  filling.Begin(reserved.reservation_id(), bytes, granted);
  for (uint32_t index = 0; index < put.sources.size(); ++index) {
    if (!granted(index)) continue;
    if (index % parts == 0) {
      if (link.session->ended()) return absl::UnavailableError("put: the session has ended");
      if (absl::Now() > put.deadline) return absl::DeadlineExceededError("put: ran out of time");
    }
    absl::Status status = filling.Fill(index, put.sources[index], sums);
    if (!status.ok()) return status;
  }
  return filling.Send();
}

}  // namespace kvd
