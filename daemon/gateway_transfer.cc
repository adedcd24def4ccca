#include "daemon/gateway_transfer.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "daemon/control_call.h"
#include "daemon/grpc_status.h"
#include "daemon/put_buffer.h"
#include "proto/types/checksum.h"
#include "proto/types/limits.h"
#include "proto/types/packed.h"
#include "proto/types/status.h"

namespace kvd {
namespace {

// Held at a time by one Get: what a slow reader keeps from being evicted.
constexpr uint64_t kPageBytes = 16u << 20;
constexpr uint32_t kFirstPageBlocks = 4;  // Before it is known how large a block is.
constexpr absl::Duration kFarewell = absl::Seconds(5);

// For what must be said to the control thread although the caller's time is over.
std::chrono::system_clock::time_point Farewell() {
  return std::chrono::system_clock::now() + absl::ToChronoSeconds(kFarewell);
}

// One part under a hold.
struct HeldPart {
  const std::byte* bytes = nullptr;
  uint32_t length = 0;  // 0: not there.
  uint32_t sum = 0;
};

// The parts of some blocks of a chain, held until this goes.
class HeldPage {
 public:
  HeldPage(Inbox& inbox, const GatewaySession& session) : inbox_(inbox), session_(session) {}
  ~HeldPage() { Release({}); }

  absl::Status Load(const v1::LoadRequest& request,
                    std::chrono::system_clock::time_point deadline) {
    v1::LoadReply reply;
    ControlCall<LoadMethod> call(inbox_, request, deadline);
    absl::Status status = call.Run(reply, [&](Control& control, const LoadCall&) {
      // Only this thread knows where a region lies; under the hold it stays there.
      const Arena& arena = control.store().arena();
      for (size_t i = 0; i < reply.extents().size() / sizeof(PackedExtent); ++i) {
        const auto extent = UnpackAt<PackedExtent>(reply.extents(), i);
        HeldPart part{.length = extent.length, .sum = extent.sum};
        if (extent.length > 0) {
          part.bytes = arena.Address(*arena.IndexOf(extent.region), 0) + extent.offset;
        }
        parts_.push_back(part);
      }
    });
    if (!status.ok()) return status;
    hold_ = reply.hold_id();
    blocks_ = reply.blocks();
    outcome_ = reply.outcome();
    return absl::OkStatus();
  }

  // Ends the hold, saying which of its parts are damaged.
  void Release(absl::Span<const uint32_t> damaged) {
    if (hold_ == 0) return;
    v1::ReleaseRequest request;
    request.set_session(session_.token());
    request.mutable_releases()->add_hold_ids(hold_);
    if (!damaged.empty()) {
      v1::Damage& report = *request.mutable_releases()->add_damaged();
      report.set_hold_id(hold_);
      for (const uint32_t position : damaged) report.add_extents(position);
    }
    v1::ReleaseReply reply;
    // When the session has ended, its holds end as soon as the last of its streams lets go of it.
    ControlCall<ReleaseMethod>(inbox_, request, Farewell()).Run(reply).IgnoreError();
    hold_ = 0;
  }

  uint32_t blocks() const { return blocks_; }
  const std::vector<HeldPart>& parts() const { return parts_; }
  v1::LoadOutcome outcome() const { return outcome_; }

 private:
  Inbox& inbox_;
  const GatewaySession& session_;
  uint64_t hold_ = 0;
  uint32_t blocks_ = 0;
  std::vector<HeldPart> parts_;
  v1::LoadOutcome outcome_ = v1::LOAD_COMPLETE;
};

enum class Sent : uint8_t { kAll, kDamaged, kStopped };

// Sends one part, summed while it is copied into the messages. The last chunk, without which a part
// counts for nothing, goes only when the sum is right.
Sent SendPart(const StreamContext& context, const HeldPart& part, uint32_t index,
              v1::GetChunk& chunk, grpc::ServerWriter<v1::GetChunk>& writer) {
  uint32_t sum = 0;
  for (uint32_t offset = 0; offset < part.length;) {
    if (context.session->ended()) return Sent::kStopped;
    const uint32_t size = std::min(kMaxChunkBytes, part.length - offset);
    v1::PartBytes& bytes = *chunk.mutable_bytes();
    bytes.set_index(index);
    bytes.set_length(part.length);
    bytes.set_offset(offset);
    bytes.set_sum(0);
    std::string& data = *bytes.mutable_data();
    data.resize(size);
    const uint32_t chunk_sum =
        context.copier.CopySum({reinterpret_cast<std::byte*>(data.data()), size},
                               {part.bytes + offset, size}, CopyUse::kCache);
    sum = Crc32cConcat(sum, chunk_sum, size);
    offset += size;
    if (offset == part.length) {
      if (sum != part.sum) return Sent::kDamaged;
      bytes.set_sum(sum);
    }
    if (!writer.Write(chunk)) return Sent::kStopped;
  }
  return Sent::kAll;
}

// What a commit would say of blocks of which none was granted.
std::string ResultsOf(std::string_view states) {
  std::string results;
  for (const char state : states) {
    const auto reserved = static_cast<ReserveState>(state);
    results.push_back(static_cast<char>(reserved == ReserveState::kNoRoom ? CommitResult::kNoRoom
                                        : reserved == ReserveState::kNoParent
                                            ? CommitResult::kNoParent
                                            : CommitResult::kPresent));
  }
  return results;
}

}  // namespace

grpc::Status StreamGet(const StreamContext& context, const v1::GetRequest& request,
                       grpc::ServerWriter<v1::GetChunk>& writer) {
  const auto deadline = context.call.deadline();
  v1::LookupRequest lookup;
  lookup.set_session(request.session());
  lookup.set_namespace_id(request.namespace_id());
  lookup.set_keys(request.keys());
  lookup.set_parent(request.parent());
  *lookup.mutable_releases() = request.releases();
  // Pages are held one after the other: a lease keeps the rest findable meanwhile.
  lookup.set_lease_ms(request.lease_ms() > 0 ? request.lease_ms() : kMaxLeaseMs);
  v1::LookupReply found;
  ControlCall<LookupMethod> looking(context.inbox, lookup, deadline);
  size_t hash_bytes = 0;
  absl::Status status = looking.Run(found, [&](Control& control, const LookupCall& call) {
    hash_bytes = control.hash_bytes(call.header.ns);
  });
  if (!status.ok()) return ToGrpc(status);
  const bool own_lease = request.lease_ms() == 0 && found.lease_id() != 0;
  const absl::Cleanup end_lease = [&] {
    if (!own_lease) return;
    v1::ReleaseRequest release;
    release.set_session(request.session());
    release.mutable_releases()->add_lease_ids(found.lease_id());
    v1::ReleaseReply released;
    ControlCall<ReleaseMethod>(context.inbox, release, Farewell()).Run(released).IgnoreError();
  };

  v1::GetChunk chunk;
  v1::GetEnd end;
  const uint32_t most = request.max_blocks() == 0 ? UINT32_MAX : request.max_blocks();
  const uint32_t wanted = std::min(found.hit_blocks(), most);
  bool started = false;
  const auto start = [&](uint32_t parts) {
    started = true;
    v1::GetStart& message = *chunk.mutable_start();
    message.set_hit_blocks(found.hit_blocks());
    message.set_lease(request.lease_ms() > 0 ? found.lease() : v1::LEASE_NONE);
    message.set_lease_id(request.lease_ms() > 0 ? found.lease_id() : 0);
    message.set_parts(parts);
    return writer.Write(chunk);
  };

  uint32_t page_blocks = kFirstPageBlocks;
  while (end.blocks() < wanted && end.outcome() == v1::LOAD_COMPLETE && end.damaged() == 0) {
    v1::LoadRequest load;
    load.set_session(request.session());
    load.set_namespace_id(request.namespace_id());
    load.set_parts(request.parts());
    load.set_keys(request.keys().substr(end.blocks() * hash_bytes,
                                        std::min(page_blocks, wanted - end.blocks()) * hash_bytes));
    HeldPage page(context.inbox, *context.session);
    if (status = page.Load(load, deadline); !status.ok()) return ToGrpc(status);
    end.set_outcome(page.outcome());
    if (page.blocks() == 0) break;
    const auto parts = static_cast<uint32_t>(page.parts().size() / page.blocks());
    if (!started && !start(parts)) return grpc::Status::CANCELLED;

    uint64_t bytes = 0;
    const uint32_t first = end.blocks() * parts;
    for (uint32_t i = 0; i < page.parts().size(); ++i) {
      const HeldPart& part = page.parts()[i];
      bytes += part.length;
      const Sent sent = SendPart(context, part, first + i, chunk, writer);
      if (sent == Sent::kStopped) return grpc::Status::CANCELLED;
      if (sent == Sent::kDamaged) {
        page.Release({i});
        end.set_damaged(1);
        end.set_blocks(end.blocks() + i / parts);
        break;
      }
    }
    if (end.damaged() == 0) end.set_blocks(end.blocks() + page.blocks());
    const uint64_t block_bytes = std::max<uint64_t>(1, bytes / page.blocks());
    page_blocks = static_cast<uint32_t>(std::clamp<uint64_t>(
        kPageBytes / block_bytes, 1, std::min(kMaxPageBlocks, kMaxPageExtents / parts)));
  }
  if (!started && !start(0)) return grpc::Status::CANCELLED;
  *chunk.mutable_end() = std::move(end);
  if (!writer.Write(chunk)) return grpc::Status::CANCELLED;
  return grpc::Status::OK;
}

grpc::Status StreamPut(const StreamContext& context, const v1::PutStart& start,
                       grpc::ServerReader<v1::PutChunk>& reader, v1::PutReply& reply) {
  const auto deadline = context.call.deadline();
  uint64_t reservation_id = start.reservation_id();
  v1::ReserveReply reserved;
  uint32_t parts = 0;  // Of a block; 0: the caller knows what was granted.
  if (reservation_id == 0) {
    v1::ReserveRequest reserve;
    reserve.set_session(start.session());
    reserve.set_namespace_id(start.namespace_id());
    reserve.set_keys(start.keys());
    reserve.set_parent(start.parent());
    reserve.set_parts(start.parts());
    *reserve.mutable_releases() = start.releases();
    ControlCall<ReserveMethod> reserving(context.inbox, reserve, deadline);
    if (absl::Status status = reserving.Run(reserved); !status.ok()) return ToGrpc(status);
    reservation_id = reserved.reservation_id();
    parts = reserving.state().parts;
    if (reservation_id == 0) {  // Nothing to send: the answer comes before the bytes.
      reply.set_results(ResultsOf(reserved.states()));
      return grpc::Status::OK;
    }
  } else if (!start.keys().empty()) {
    return ToGrpc(InvalidField("keys", "a reservation has its own; name one or the other"));
  }
  bool open = true;
  const absl::Cleanup give_up = [&] {
    if (!open) return;
    v1::AbortRequest abort;
    abort.set_session(start.session());
    abort.set_reservation_id(reservation_id);
    v1::AbortReply aborted;
    ControlCall<AbortMethod>(context.inbox, abort, Farewell()).Run(aborted).IgnoreError();
  };

  auto buffer = PutBuffer::Open(context.copiers, context.copier, context.session->serial(),
                                reservation_id, absl::FromChrono(deadline));
  if (!buffer.ok()) return ToGrpc(buffer.status());
  v1::PutChunk message;
  while (reader.Read(&message)) {
    if (context.session->ended()) return grpc::Status::CANCELLED;
    if (!message.has_bytes()) return ToGrpc(InvalidField("what", "after the start come bytes"));
    const v1::PartBytes& bytes = message.bytes();
    bool keep = true;
    if (parts > 0) {
      const uint32_t block = bytes.index() / parts;
      if (block >= reserved.states().size()) {
        return ToGrpc(InvalidField(
            "index", absl::StrCat("there are ", reserved.states().size(), " blocks of ", parts,
                                  " parts, got part ", bytes.index())));
      }
      keep = static_cast<ReserveState>(reserved.states()[block]) == ReserveState::kGranted;
    }
    const absl::Status status = (*buffer)->Add({.index = bytes.index(),
                                                .length = bytes.length(),
                                                .offset = bytes.offset(),
                                                .data = bytes.data(),
                                                .sum = bytes.sum()},
                                               keep);
    if (!status.ok()) return ToGrpc(status);
  }
  // No more messages: the caller has said all, or has gone.
  if (context.call.IsCancelled()) return grpc::Status::CANCELLED;
  if (absl::Status status = (*buffer)->Finish(); !status.ok()) return ToGrpc(status);

  v1::CommitRequest commit;
  commit.set_session(start.session());
  commit.set_reservation_id(reservation_id);
  v1::CommitReply committed;
  ControlCall<CommitMethod> committing(context.inbox, commit, deadline);
  if (absl::Status status = committing.Run(committed); !status.ok()) return ToGrpc(status);
  const bool all =
      committed.results().find(static_cast<char>(CommitResult::kNotFilled)) == std::string::npos;
  open = !all;  // What was not sent is given up.
  if (!all && (*buffer)->unwanted().has_value()) {
    return ToGrpc(InvalidField(
        "length", absl::StrCat("part ", *(*buffer)->unwanted(),
                               " was not granted, came twice, or has another length in this "
                               "namespace; ",
                               committed.stored(), " blocks were stored")));
  }
  reply.set_results(std::move(*committed.mutable_results()));
  reply.set_stored(committed.stored());
  return grpc::Status::OK;
}

}  // namespace kvd
