#include "daemon/event_streams.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_replace.h"
#include "proto/types/announcement.h"
#include "proto/types/check.h"

namespace kvd {
namespace {

constexpr const char* kModel = "{model}";
constexpr TierSet kEachTier[] = {kDramTier, kNvmeTier};

}  // namespace

EventStreams::EventStreams(EventMetrics& metrics, Options options)
    : metrics_(metrics), options_(std::move(options)) {
  // So that somebody who asks finds the stream before the first block.
  if (options_.topic.find(kModel) == std::string::npos) StreamAt(options_.topic);
}

// --- telling -------------------------------------------------------------------------------------

EventStreams::Stream& EventStreams::StreamAt(const std::string& topic) {
  std::unique_ptr<Stream>& stream = streams_[topic];
  if (stream == nullptr) {
    stream = std::make_unique<Stream>(
        Stream{.topic = topic, .batch = KvEventBatch(options_.backend_id), .blocks = {}});
    stream->batch.Cleared(stream->next_event++);
  }
  return *stream;
}

EventStreams::Stream& EventStreams::StreamOf(NamespaceId ns) {
  Stream*& stream = of_namespace_[ns];
  if (stream == nullptr) {
    const bool one = options_.topic.find(kModel) == std::string::npos;
    const std::string topic =
        one ? options_.topic
            : absl::StrReplaceAll(options_.topic, {{kModel, options_.model_name(ns)}});
    stream = &StreamAt(topic);
  }
  return *stream;
}

const std::string& EventStreams::TenantOf(DomainId domain) const {
  std::string& name = tenants_[domain];
  if (name.empty()) name = options_.domain_name(domain);
  return name;
}

void EventStreams::Lost() {
  ++metrics_.losses;
  blocks_ = 0;
  for (auto& [topic, stream] : streams_) {
    EndMessage(*stream);
    stream->blocks.clear();
    ++stream->next_sequence;  // So that whoever only counts notices.
    stream->batch.Cleared(stream->next_event++);
  }
}

void EventStreams::Apply(const Control::FollowedEvent& followed) {
  const Event& event = followed.event;
  if (event.kind == EventKind::kNamespaceDropped) {
    Stream& stream = StreamOf(event.ns);
    if (stream.blocks.empty()) stream.batch.Cleared(stream.next_event++);
    EndMessageIfFull(stream);
    return;
  }
  if (!TellsTiers(event.kind)) return;
  Stream& stream = StreamOf(event.ns);
  const BlockKey key{event.ns, event.key};
  const auto known = stream.blocks.find(key);
  if (event.tiers == 0) {
    if (known == stream.blocks.end()) return;
    Tell(stream, known->second, known->second.tiers, 0);
    stream.blocks.erase(known);
    --blocks_;
  } else if (known != stream.blocks.end()) {
    Tell(stream, known->second, known->second.tiers, event.tiers);
    known->second.tiers = event.tiers;
  } else if (followed.announcement != nullptr) {
    const Snapshot::Block block{.announced = followed.announcement,
                                .depth = static_cast<uint32_t>(event.number),
                                .tiers = event.tiers,
                                .domain = event.domain};
    Tell(stream, block, 0, event.tiers);
    stream.blocks.emplace(key, block);
    ++blocks_;
  } else if (event.kind == EventKind::kStored) {
    ++metrics_.unannounced;
  }
}

// The new tier before the old one goes: nobody may think that the block is nowhere.
void EventStreams::Tell(Stream& stream, const Snapshot::Block& block, TierSet from, TierSet to) {
  const absl::StatusOr<Announcement> announced = ReadAnnouncement(block.announced->bytes());
  KVD_CHECK(announced.ok()) << announced.status();  // It was read when it was taken.
  KvEventBatch::Block told{
      .announced = *announced, .depth = block.depth, .tenant = TenantOf(block.domain)};
  for (const TierSet tier : kEachTier) {
    if ((to & ~from & tier) == 0) continue;
    told.tier = tier;
    stream.batch.Stored(told, stream.next_event++);
    ++metrics_.stored;
  }
  for (const TierSet tier : kEachTier) {
    if ((from & ~to & tier) == 0) continue;
    told.tier = tier;
    stream.batch.Removed(told, stream.next_event++);
    ++metrics_.removed;
  }
  EndMessageIfFull(stream);
}

void EventStreams::EndMessageIfFull(Stream& stream) {
  if (stream.batch.events() >= options_.message_events ||
      stream.batch.bytes() >= options_.message_bytes) {
    EndMessage(stream);
  }
}

void EventStreams::EndMessage(Stream& stream) {
  if (stream.batch.events() == 0) return;
  const auto message = std::make_shared<const EventMessage>(
      EventMessage{.topic = stream.topic,
                   .sequence = stream.next_sequence++,
                   .payload = stream.batch.Take(unix_seconds_)});
  ended_.push_back(message);
  kept_bytes_ += message->payload.size();
  kept_.push_back(message);
  while (kept_.size() > options_.replay_messages || kept_bytes_ > options_.replay_bytes) {
    kept_bytes_ -= kept_.front()->payload.size();
    kept_.pop_front();
    ++kept_first_;
  }
}

std::vector<EventMessagePtr> EventStreams::Take() {
  for (auto& [topic, stream] : streams_) EndMessage(*stream);
  return std::exchange(ended_, {});
}

// --- asking again --------------------------------------------------------------------------------

EventMessagePtr EventStreams::Next(Replay& replay) const {
  replay.next = std::max(replay.next, kept_first_);
  for (; replay.next < kept_first_ + kept_.size(); ++replay.next) {
    const EventMessagePtr& message = kept_[replay.next - kept_first_];
    if (message->sequence < replay.from) continue;
    if (!replay.any_topic && message->topic != replay.topic) continue;
    ++replay.next;
    return message;
  }
  return nullptr;
}

EventStreams::Snapshot EventStreams::TakeSnapshot(std::string_view topic, bool any_topic) const {
  Snapshot snapshot;
  for (const auto& [name, stream] : streams_) {
    if (!any_topic && name != topic) continue;
    KVD_CHECK(stream->batch.events() == 0);
    if (stream->next_sequence == 0) continue;  // Nothing was ever said there.
    Snapshot::Stream& taken = snapshot.streams.emplace_back();
    taken.topic = name;
    taken.sequence = stream->next_sequence - 1;
    taken.blocks.reserve(stream->blocks.size());
    for (const auto& [key, block] : stream->blocks) taken.blocks.push_back(block);
    std::sort(taken.blocks.begin(), taken.blocks.end(),
              [](const auto& a, const auto& b) { return a.depth < b.depth; });
  }
  return snapshot;
}

EventMessagePtr EventStreams::Next(Snapshot& snapshot) const {
  if (snapshot.stream == snapshot.streams.size()) return nullptr;
  Snapshot::Stream& stream = snapshot.streams[snapshot.stream];
  KvEventBatch batch(options_.backend_id);
  uint64_t event_id = 0;  // Of what is told again nobody can count.
  if (snapshot.block == 0) batch.Cleared(event_id);
  for (; snapshot.block < stream.blocks.size() && batch.events() < options_.message_events &&
         batch.bytes() < options_.message_bytes;
       ++snapshot.block) {
    const Snapshot::Block& block = stream.blocks[snapshot.block];
    const absl::StatusOr<Announcement> announced = ReadAnnouncement(block.announced->bytes());
    KVD_CHECK(announced.ok()) << announced.status();
    for (const TierSet tier : kEachTier) {
      if ((block.tiers & tier) == 0) continue;
      batch.Stored({.announced = *announced,
                    .depth = block.depth,
                    .tier = tier,
                    .tenant = TenantOf(block.domain)},
                   event_id);
    }
  }
  const std::string topic = stream.topic;
  const uint64_t sequence = stream.sequence;
  if (snapshot.block == stream.blocks.size()) {
    stream.blocks = {};  // They may be all that keeps their announcements.
    ++snapshot.stream;
    snapshot.block = 0;
  }
  return std::make_shared<const EventMessage>(
      EventMessage{.topic = topic, .sequence = sequence, .payload = batch.Take(unix_seconds_)});
}

}  // namespace kvd
