// The way in: a put in one call, and one that reserves, fills and commits.

#include <algorithm>
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

// Whether the daemon may still act on a call that ended like this.
bool OutcomeUnknown(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kCancelled:
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kInternal:
      return true;
    case absl::StatusCode::kUnavailable:
      return !status.GetPayload(kDrainingKey).has_value();
    default:
      return false;
  }
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
  const uint32_t largest = *std::max_element(parts->bytes.begin(), parts->bytes.end());
  if (largest > (*staging)->size()) {
    return {absl::InvalidArgumentError(absl::StrCat("part_bytes: ", largest, " do not fit in ",
                                                    (*staging)->size(), " of staging memory"))};
  }

  const bool one_call = put->total_bytes <= std::min(kMaxOneCallBytes, (*staging)->size()) &&
                        sources.size() <= kMaxOneCallParts && options.wait == absl::ZeroDuration();
  PutResult result = one_call ? PutInOneCall(**link, **staging, *id, *put)
                              : PutReserved(**link, **staging, *id, *put);
  if ((*staging)->broken()) (*link)->session->End();
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

// Few bytes: copied into staging and committed by one call. The answer says what was present.
PutResult Client::Impl::PutInOneCall(Link& link, Staging& staging, uint32_t namespace_id,
                                     const PutCall& put) {
  PutResult result;
  StagingSlot slot;
  std::vector<uint32_t> sums;
  {
    Staging::Filling filling(staging, put.deadline);
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

// Many bytes: reserve, fill what is missing, commit.
PutResult Client::Impl::PutReserved(Link& link, Staging& staging, uint32_t namespace_id,
                                    const PutCall& put) {
  v1::ReserveRequest request;
  request.set_namespace_id(namespace_id);
  request.set_keys(put.keys.data(), put.keys.size());
  request.set_parent(put.options.parent.data(), put.options.parent.size());
  request.set_parts(put.parts.packed);
  const absl::Duration left = std::max(put.deadline - absl::Now(), absl::ZeroDuration());
  const absl::Duration wait = std::clamp(put.options.wait, absl::ZeroDuration(), left);
  request.set_wait_ms(static_cast<uint32_t>(absl::ToInt64Milliseconds(wait)));
  for (const std::string& announce : put.options.announce) request.add_announce(announce);
  v1::ReserveReply reserved;
  PutResult result;
  result.status = Call(link, &Engine::Stub::Reserve, request, &reserved, put.deadline);
  if (!result.status.ok()) return result;
  if (reserved.states().size() != put.blocks) {
    releases_.AddAbort(link.number, reserved.reservation_id());
    result.status = absl::InternalError("states: not one a block");
    return result;
  }

  std::vector<CommitResult> results;
  for (char state : reserved.states()) {
    switch (static_cast<ReserveState>(state)) {
      case ReserveState::kGranted:
        results.push_back(CommitResult::kNotFilled);  // Until the commit says more.
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
  if (reserved.reservation_id() == 0) {  // Nothing to send.
    result.results = std::move(results);
    return result;
  }

  result.status = FillGranted(link, staging, put, reserved);
  if (!result.status.ok()) {
    releases_.AddAbort(link.number, reserved.reservation_id());
    return result;
  }

  v1::CommitRequest commit;
  commit.set_reservation_id(reserved.reservation_id());
  v1::CommitReply committed;
  result.status = Call(link, &Engine::Stub::Commit, commit, &committed, put.deadline);
  if (!result.status.ok()) {
    releases_.AddAbort(link.number, reserved.reservation_id());
    return result;
  }
  if (committed.results().size() != put.blocks) {
    result.status = absl::InternalError("results: not one a block");
    return result;
  }
  for (uint32_t block = 0; block < put.blocks; ++block) {
    if (static_cast<ReserveState>(reserved.states()[block]) != ReserveState::kGranted) continue;
    results[block] = static_cast<CommitResult>(committed.results()[block]);
  }
  result.results = std::move(results);
  result.stored = committed.stored();
  return result;
}

// The copy. This side fills slots while the daemon's copier empties them; both are at work until
// the last part.
absl::Status Client::Impl::FillGranted(Link& link, Staging& staging, const PutCall& put,
                                       const v1::ReserveReply& reserved) {
  Staging::Filling filling(staging, put.deadline);
  if (!filling.held()) return absl::DeadlineExceededError("put: others are putting");
  const size_t parts = put.parts.size();
  for (uint32_t block = 0; block < put.blocks; ++block) {
    if (static_cast<ReserveState>(reserved.states()[block]) != ReserveState::kGranted) continue;
    if (link.session->ended()) return absl::UnavailableError("put: the session has ended");
    if (absl::Now() > put.deadline) return absl::DeadlineExceededError("put: ran out of time");
    for (size_t part = 0; part < parts; ++part) {
      const auto index = static_cast<uint32_t>(block * parts + part);
      absl::Status status = filling.Fill(reserved.reservation_id(), index, put.sources[index]);
      if (!status.ok()) return status;
    }
  }
  return filling.Finish();
}

}  // namespace kvd
