#include "daemon/methods.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/types/announcement.h"
#include "proto/types/limits.h"
#include "proto/types/status.h"

namespace kvd {
namespace {

void ReadReleases(const v1::Releases& from, ReleaseList& to) {
  to.holds = {from.hold_ids().data(), static_cast<size_t>(from.hold_ids_size())};
  to.leases = {from.lease_ids().data(), static_cast<size_t>(from.lease_ids_size())};
  for (const v1::Damage& damage : from.damaged()) {
    if (to.damaged.size() > kMaxReleasesPerCall) break;  // Refused already; do not copy the rest.
    to.damaged.push_back(
        {damage.hold_id(), {damage.extents().data(), static_cast<size_t>(damage.extents_size())}});
  }
}

template <typename Request>
void ReadHeader(const Request& from, CallHeader& to) {
  to.session = from.session();
  to.ns = from.namespace_id();
  to.keys = from.keys();
  to.parts = from.parts();
  ReadReleases(from.releases(), to.releases);
}

// What routers are told: of each block or of none, each bounded. Whether there is one for each key
// knows who knows how long a key is.
absl::Status ReadAnnounce(const google::protobuf::RepeatedPtrField<std::string>& announce,
                          size_t key_bytes, std::vector<std::string_view>& read) {
  if (static_cast<size_t>(announce.size()) > key_bytes / kMinHashBytes) {
    return InvalidField("announce", "more entries than keys");
  }
  read.reserve(static_cast<size_t>(announce.size()));
  for (int i = 0; i < announce.size(); ++i) {
    const std::string& bytes = announce[i];
    if (bytes.size() > kMaxAnnounceBytes) {
      return InvalidField(absl::StrCat("announce[", i, "]"), "more than 16 KiB");
    }
    if (const auto checked = ReadAnnouncement(bytes); !bytes.empty() && !checked.ok()) {
      return InvalidField(absl::StrCat("announce[", i, "]"), checked.status().message());
    }
    read.push_back(bytes);
  }
  return absl::OkStatus();
}

void GiveBack(Control& control, std::string_view session, HoldId hold, LeaseId lease) {
  const uint64_t holds[] = {hold};
  const uint64_t leases[] = {lease};
  ReleaseList releases;
  if (hold != 0) releases.holds = holds;
  if (lease != 0) releases.leases = leases;
  // The session may have ended meanwhile, and these with it or with its process.
  if (releases.size() > 0) control.Release(session, releases).IgnoreError();
}

NamespaceDescriptor ReadDescriptor(const v1::NamespaceDescriptor& from) {
  NamespaceDescriptor to{.model = from.model(),
                         .weights_revision = from.weights_revision(),
                         .kv_dtype = from.kv_dtype(),
                         .quantization = from.quantization(),
                         .page_layout = from.page_layout(),
                         .engine_family = from.engine_family(),
                         .draft_model = from.draft_model(),
                         .hash_algorithm = from.hash_algorithm(),
                         .hash_seed = from.hash_seed(),
                         .hash_bytes = from.hash_bytes(),
                         .tensor_parallel = from.tensor_parallel(),
                         .pipeline_parallel = from.pipeline_parallel(),
                         .context_parallel = from.context_parallel()};
  // A message has room for half a million of these. One more than there may be is refused.
  for (const v1::Group& group : from.groups()) {
    if (to.groups.size() > kMaxGroups) break;
    // An enum of the wire is any int32, ours is a byte: 257 must not become 1.
    const int kind = v1::GroupKind_IsValid(group.kind()) ? group.kind() : 0;
    to.groups.push_back({.kind = static_cast<GroupKind>(kind),
                         .window_tokens = group.window_tokens(),
                         .shards = group.shards(),
                         .block_tokens = group.block_tokens(),
                         .part_bytes = group.part_bytes()});
  }
  for (const auto& [key, value] : from.extra()) {
    if (to.extra.size() > kMaxExtra) break;
    to.extra[key] = value;
  }
  return to;
}

}  // namespace

absl::StatusOr<Step> RegisterNamespaceMethod::Run(Control& control,
                                                  const RegisterNamespaceMethod::Request& request,
                                                  RegisterNamespaceMethod::State&,
                                                  RegisterNamespaceMethod::Reply& reply) {
  const auto registered =
      control.RegisterNamespace(request.session(), ReadDescriptor(request.describes()));
  if (!registered.ok()) return registered.status();
  reply.set_namespace_id(registered->id);
  reply.set_fingerprint(registered->fingerprint.data(), registered->fingerprint.size());
  reply.set_created(registered->created);
  return Step::kDone;
}

absl::StatusOr<Step> LookupMethod::Run(Control& control, const LookupMethod::Request& request,
                                       LookupMethod::State& call, LookupMethod::Reply& reply) {
  if (!std::exchange(call.read, true)) {
    ReadHeader(request, call.header);
    call.header.parent = request.parent();
    call.lease_ms = request.lease_ms();
    call.extent_blocks = request.extent_blocks();
    call.prefill_us_per_token = request.prefill_us_per_token();
    if (!(call.prefill_us_per_token >= 0)) {
      return InvalidField("prefill_us_per_token", "must be a number from 0 on");
    }
  }
  const absl::StatusOr<Step> step = control.Lookup(call);
  if (!step.ok() || *step != Step::kDone) return step;
  reply.set_hit_blocks(call.hit_blocks);
  reply.set_lease(static_cast<v1::LeaseOutcome>(call.lease));
  reply.set_lease_id(call.lease_id);
  reply.set_load_time_us(call.load_time_us);
  const std::pair<v1::Tier, uint32_t> shares[] = {
      {v1::TIER_DRAM, call.hit_blocks - call.nvme_blocks}, {v1::TIER_NVME, call.nvme_blocks}};
  for (const auto& [tier, blocks] : shares) {
    if (blocks == 0) continue;
    v1::TierShare& share = *reply.add_tiers();
    share.set_tier(tier);
    share.set_blocks(blocks);
  }
  reply.set_extent_blocks(call.cursor.next);
  reply.set_extents(std::move(call.extents));
  reply.set_hold_id(call.cursor.hold);
  return Step::kDone;
}

void LookupMethod::Unheard(Control& control, const LookupMethod::Request& request,
                           const LookupMethod::State& call) {
  GiveBack(control, request.session(), call.cursor.hold, call.lease_id);
}

absl::StatusOr<Step> LoadMethod::Run(Control& control, const LoadMethod::Request& request,
                                     LoadMethod::State& call, LoadMethod::Reply& reply) {
  if (!std::exchange(call.read, true)) {
    ReadHeader(request, call.header);
    call.range_offset = request.range_offset();
    call.range_bytes = request.range_bytes();
  }
  const absl::StatusOr<Step> step = control.Load(call);
  if (!step.ok() || *step != Step::kDone) return step;
  reply.set_blocks(call.cursor.next);
  reply.set_outcome(static_cast<v1::LoadOutcome>(call.cursor.outcome));
  reply.set_extents(std::move(call.extents));
  reply.set_hold_id(call.cursor.hold);
  reply.set_range_offset(call.range_offset);
  reply.set_range_bytes(call.range_bytes);
  return Step::kDone;
}

void LoadMethod::Unheard(Control& control, const LoadMethod::Request& request,
                         const LoadMethod::State& call) {
  GiveBack(control, request.session(), call.cursor.hold, 0);
}

absl::StatusOr<Step> ReleaseMethod::Run(Control& control, const ReleaseMethod::Request& request,
                                        ReleaseMethod::State&, ReleaseMethod::Reply& reply) {
  ReleaseList releases;
  ReadReleases(request.releases(), releases);
  const absl::StatusOr<uint32_t> released = control.Release(request.session(), releases);
  if (!released.ok()) return released.status();
  reply.set_released(*released);
  return Step::kDone;
}

absl::StatusOr<Step> ReserveMethod::Run(Control& control, const ReserveMethod::Request& request,
                                        ReserveMethod::State& call, ReserveMethod::Reply& reply) {
  if (!std::exchange(call.read, true)) {
    ReadHeader(request, call.header);
    call.header.parent = request.parent();
    call.wait_ms = request.wait_ms();
    if (call.wait_ms > kMaxLeaseMs) return InvalidField("wait_ms", "at most 600000");
    if (absl::Status status =
            ReadAnnounce(request.announce(), request.keys().size(), call.announce);
        !status.ok()) {
      return status;
    }
  }
  const absl::StatusOr<Step> step = control.Reserve(call);
  if (!step.ok() || *step != Step::kDone) return step;
  reply.set_reservation_id(call.reservation_id);
  reply.set_states(std::move(call.states));
  reply.set_granted(call.granted);
  reply.set_expires_ms(call.expires_ms);
  return Step::kDone;
}

void ReserveMethod::Unheard(Control& control, const ReserveMethod::Request& request,
                            const ReserveMethod::State& call) {
  if (call.reservation_id != 0) control.Abort(request.session(), call.reservation_id).IgnoreError();
}

absl::StatusOr<Step> CommitMethod::Run(Control& control, const CommitMethod::Request& request,
                                       CommitMethod::State& call, CommitMethod::Reply& reply) {
  if (!std::exchange(call.read, true)) {
    ReadHeader(request, call.header);
    call.header.parent = request.parent();
    call.reservation_id = request.reservation_id();
    call.first_block = request.first_block();
    call.blocks = request.blocks();
    call.staged = request.staged();
    call.staged_sums = request.staged_sums();
    call.fills = request.fills();
    call.sums = request.sums();
    if (call.reservation_id != 0 && !request.keys().empty()) {
      return InvalidField("keys", "a reservation has its own; name one or the other");
    }
    if (call.reservation_id != 0 && !request.announce().empty()) {
      return InvalidField("announce", "of a put without a reservation only; say it to Reserve");
    }
    if (absl::Status status =
            ReadAnnounce(request.announce(), request.keys().size(), call.announce);
        !status.ok()) {
      return status;
    }
    if (call.reservation_id == 0 && (call.fills > 0 || !call.sums.empty())) {
      return InvalidField(call.fills > 0 ? "fills" : "sums",
                          "of a reservation only; name its reservation_id");
    }
  }
  const absl::StatusOr<Step> step = control.Commit(call);
  if (!step.ok() || *step != Step::kDone) return step;
  reply.set_results(std::move(call.results));
  reply.set_stored(call.stored);
  return Step::kDone;
}

absl::StatusOr<Step> AbortMethod::Run(Control& control, const AbortMethod::Request& request,
                                      AbortMethod::State&, AbortMethod::Reply&) {
  const absl::Status status = control.Abort(request.session(), request.reservation_id());
  if (!status.ok()) return status;
  return Step::kDone;
}

absl::StatusOr<Step> PinMethod::Run(Control& control, const PinMethod::Request& request,
                                    PinMethod::State& state, PinMethod::Reply& reply) {
  PinCall call{.key = request.key(),
               .owner = request.owner(),
               .budget_bytes = request.budget_bytes(),
               .ttl_ms = request.ttl_ms()};
  call.header.session = request.session();
  call.header.ns = request.namespace_id();
  const absl::Status status = control.Pin(call);
  if (!status.ok()) return status;
  state.pin_id = call.pin_id;
  reply.set_pin_id(call.pin_id);
  reply.set_blocks(call.blocks);
  reply.set_bytes(call.bytes);
  return Step::kDone;
}

void PinMethod::Unheard(Control& control, const PinMethod::Request& request,
                        const PinMethod::State& state) {
  if (state.pin_id != 0) control.Unpin(request.session(), state.pin_id).IgnoreError();
}

absl::StatusOr<Step> UnpinMethod::Run(Control& control, const UnpinMethod::Request& request,
                                      UnpinMethod::State&, UnpinMethod::Reply&) {
  const absl::Status status = control.Unpin(request.session(), request.pin_id());
  if (!status.ok()) return status;
  return Step::kDone;
}

absl::StatusOr<Step> HintMethod::Run(Control& control, const HintMethod::Request& request,
                                     HintMethod::State&, HintMethod::Reply&) {
  if (absl::Status status = control.CheckSession(request.session()); !status.ok()) return status;
  if (request.kind() == v1::HINT_UNSPECIFIED || !v1::HintKind_IsValid(request.kind())) {
    return InvalidField("kind", absl::StrCat("unknown hint ", static_cast<int>(request.kind())));
  }
  return absl::UnimplementedError("hints are not in this version");
}

}  // namespace kvd
