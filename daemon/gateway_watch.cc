#include "daemon/gateway_watch.h"

#include <string>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "daemon/grpc_status.h"
#include "daemon/residency_follower.h"

namespace kvd {
namespace {

// A busy daemon is asked this often, not for each event.
constexpr absl::Duration kBetweenReads = absl::Milliseconds(5);
// How late we notice that the call or the session has ended.
constexpr absl::Duration kUntilCancelled = absl::Milliseconds(200);

// False: it is not of a block, or says nothing of where that is.
bool Write(const Control::FollowedEvent& followed, v1::WatchEvent& out) {
  const Event& event = followed.event;
  if (!TellsTiers(event.kind)) return false;
  const auto write = [&followed](const ChainHash& hash) {
    return std::string(reinterpret_cast<const char*>(hash.bytes.data()), followed.key_bytes);
  };
  out.set_kind(v1::WATCH_BLOCK);
  out.set_namespace_id(event.ns);
  out.set_key(write(event.key));
  if (event.has_parent) out.set_parent(write(event.parent));
  out.set_depth(static_cast<uint32_t>(event.number));
  if ((event.tiers & kDramTier) != 0) out.add_tiers(v1::TIER_DRAM);
  if ((event.tiers & kNvmeTier) != 0) out.add_tiers(v1::TIER_NVME);
  if (event.tiers != 0 && followed.announcement != nullptr) {
    out.set_announce(followed.announcement->bytes());
  }
  return true;
}

}  // namespace

grpc::Status StreamWatch(Inbox& inbox, EventRing& events, const grpc::ServerContext& call,
                         const GatewaySession& session, const v1::WatchRequest& request,
                         grpc::ServerWriter<v1::WatchEvent>& writer) {
  ResidencyFollower follower(inbox, request.from_sequence());
  v1::WatchEvent message;
  const auto mark = [&](v1::WatchKind kind, uint64_t sequence) {
    message.Clear();
    message.set_kind(kind);
    message.set_sequence(sequence);
    return writer.Write(message);
  };
  bool synced = request.from_sequence() > 0;
  while (!call.IsCancelled() && !session.ended()) {
    const absl::Time read_at = absl::Now();
    ResidencyFollower::Turn turn;
    if (const absl::Status status = follower.Next(turn); !status.ok()) return ToGrpc(status);
    if (turn.cleared) {
      synced = false;
      if (!mark(v1::WATCH_CLEARED, 0)) break;
    }
    const int64_t unix_ms = absl::ToUnixMillis(absl::Now());
    for (size_t i = 0; i < turn.events.size(); ++i) {
      message.Clear();
      if (turn.events[i].event.domain != session.domain() || !Write(turn.events[i], message)) {
        continue;
      }
      if (synced) message.set_sequence(turn.first + i);
      if (turn.first != 0) {
        message.set_unix_ms(
            static_cast<uint64_t>(unix_ms - (turn.now - turn.events[i].event.time) / kMillisecond));
      }
      if (!writer.Write(message)) return grpc::Status::CANCELLED;
    }
    if (turn.synced) {
      synced = true;
      if (!mark(v1::WATCH_SYNCED, follower.next() - 1)) break;
    }
    if (!turn.idle) continue;
    absl::SleepFor(read_at + kBetweenReads - absl::Now());
    events.WaitFor(follower.next(), kUntilCancelled);
  }
  return grpc::Status::CANCELLED;
}

}  // namespace kvd
