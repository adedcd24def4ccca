// What routers are told: which of the announced blocks are in which tier, as numbered messages of
// KV events. One stream for each topic, each with sequence numbers of its own from 0; a router that
// misses one asks for messages again (a bounded number is kept), or for all that is there.
//
// A topic may name the model of a block's namespace by {model}; without that there is one stream.
// Every stream begins with AllBlocksCleared, and so does what follows a loss, before which a number
// is left out. Blocks that nobody announced are not told.
//
// No socket, no clock, no wait: daemon/event_publisher.h has those.
//
// Threads: one; metrics are read by any.

#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "daemon/announcements.h"
#include "daemon/control.h"
#include "daemon/kv_events.h"
#include "daemon/metrics.h"

namespace kvd {

struct EventMessage {
  std::string topic;
  uint64_t sequence = 0;
  std::string payload;
};
using EventMessagePtr = std::shared_ptr<const EventMessage>;

class EventStreams {
 public:
  struct Options {
    std::string topic;       // May have {model}.
    std::string backend_id;  // What the cache is called in events.
    // Messages that can be asked for again: the newest, as far as both bounds allow.
    uint32_t replay_messages = 10'000;
    uint64_t replay_bytes = uint64_t{64} << 20;
    // Of one message; it ends with the event that reaches one of them.
    uint32_t message_events = 512;
    size_t message_bytes = 64u << 10;
    std::function<std::string(DomainId)> domain_name;
    std::function<std::string(NamespaceId)> model_name;  // Called once for each namespace.
  };

  // Collaborators must outlive this.
  EventStreams(EventMetrics& metrics, Options options);

  // What the messages that end from now on say of their time.
  void SetTime(double unix_seconds) { unix_seconds_ = unix_seconds; }
  // Events were lost: everything that is there follows anew.
  void Lost();
  // Of a block, or of anything else. Requires: in order.
  void Apply(const Control::FollowedEvent& followed);
  // Ends the messages under way. All that are due, in the order of their numbers.
  std::vector<EventMessagePtr> Take();

  // --- asking again ------------------------------------------------------------------------------

  // Where a reader of old messages stands.
  struct Replay {
    std::string topic;
    bool any_topic = false;
    uint64_t from = 0;  // The least sequence number.
    uint64_t next = 0;  // Of all messages ever, in order.
  };
  // The next message that is kept and asked for; null: that was the last.
  EventMessagePtr Next(Replay& replay) const;

  // All that is there, as it was when this was made.
  struct Snapshot {
    struct Block {
      AnnouncementPtr announced;
      uint32_t depth = 0;
      TierSet tiers = 0;
      DomainId domain = 0;
    };
    struct Stream {
      std::string topic;
      uint64_t sequence = 0;      // Of the last message that is in it.
      std::vector<Block> blocks;  // Parents before children.
    };
    std::vector<Stream> streams;
    size_t stream = 0;  // Where its reader stands: stream and block.
    size_t block = 0;
  };
  // Requires: Take() was called since the last Apply() or Lost().
  Snapshot TakeSnapshot(std::string_view topic, bool any_topic) const;
  // The next message of it, numbered as the last that is in it; the first of each stream begins
  // with AllBlocksCleared. Null: that was the last.
  EventMessagePtr Next(Snapshot& snapshot) const;

  uint64_t blocks() const { return blocks_; }  // Announced, in any tier.

 private:
  struct BlockKey {
    NamespaceId ns = 0;
    ChainHash key;
    friend bool operator==(const BlockKey& a, const BlockKey& b) = default;
    template <typename H>
    friend H AbslHashValue(H h, const BlockKey& block) {
      return H::combine_contiguous(H::combine(std::move(h), block.ns), block.key.bytes.data(),
                                   block.key.bytes.size());
    }
  };
  struct Stream {
    std::string topic;
    uint64_t next_sequence = 0;
    uint64_t next_event = 0;
    KvEventBatch batch;
    absl::flat_hash_map<BlockKey, Snapshot::Block> blocks;
  };

  Stream& StreamOf(NamespaceId ns);
  Stream& StreamAt(const std::string& topic);
  void EndMessage(Stream& stream);
  void EndMessageIfFull(Stream& stream);
  void Tell(Stream& stream, const Snapshot::Block& block, TierSet from, TierSet to);
  const std::string& TenantOf(DomainId domain) const;

  EventMetrics& metrics_;
  const Options options_;
  std::map<std::string, std::unique_ptr<Stream>> streams_;  // By topic.
  absl::flat_hash_map<NamespaceId, Stream*> of_namespace_;
  mutable absl::flat_hash_map<DomainId, std::string> tenants_;
  uint64_t blocks_ = 0;

  double unix_seconds_ = 0;
  std::vector<EventMessagePtr> ended_;  // For Take().
  std::deque<EventMessagePtr> kept_;
  uint64_t kept_first_ = 0;  // Of all messages ever, the number of kept_.front().
  uint64_t kept_bytes_ = 0;
};

}  // namespace kvd
