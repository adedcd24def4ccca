// What a cache-aware router makes of the messages of one stream: which blocks are in which tier, by
// the 64-bit hashes that engines announce. It believes only what it reads, and checks what
// publishers owe it: sequence numbers, and a block that is never stored twice or removed where it
// is not.
//
// Threads: one.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/container/flat_hash_map.h"
#include "daemon/events.h"
#include "proto/types/msgpack.h"

namespace kvd {

class Router {
 public:
  enum class Heard : uint8_t { kApplied, kOld, kGap };

  // A message of the subscription or of a replay; kGap: it is not the next, and not applied.
  Heard Hear(uint64_t sequence, std::string_view payload) {
    if (sequence < next_) return Heard::kOld;
    if (sequence > next_) return Heard::kGap;
    Apply(payload);
    ++next_;
    return Heard::kApplied;
  }
  // A message of a snapshot, whose first begins with AllBlocksCleared.
  void HearSnapshot(uint64_t sequence, std::string_view payload) {
    Apply(payload);
    next_ = sequence + 1;
  }

  uint64_t next() const { return next_; }  // Sequence number that is wanted.
  const absl::flat_hash_map<uint64_t, TierSet>& blocks() const { return blocks_; }
  uint64_t events() const { return events_; }
  uint64_t clears() const { return clears_; }
  // Of the publisher: stored twice, removed where it was not, or a payload that is none.
  uint64_t mistakes() const { return mistakes_; }

 private:
  void Apply(std::string_view payload) {
    MsgpackReader reader(payload);
    if (reader.Array() != 3) ++mistakes_;
    reader.Double();
    const uint32_t events = reader.Array();
    for (uint32_t i = 0; i < events && !reader.failed(); ++i) ApplyEvent(reader);
    if (!reader.Nil() || !reader.at_end() || reader.failed()) ++mistakes_;
  }

  void ApplyEvent(MsgpackReader& reader) {
    std::string_view type;
    std::string_view medium;
    std::string_view hashes;
    uint64_t tokens = 0;
    const uint32_t entries = reader.Map();
    for (uint32_t i = 0; i < entries && !reader.failed(); ++i) {
      const std::string_view key = reader.Str();
      if (key == "type") {
        type = reader.Str();
      } else if (key == "medium") {
        medium = reader.Str();
      } else if (key == "block_hashes") {
        hashes = reader.Any();
      } else if (key == "token_ids") {
        MsgpackReader list(reader.Any());
        tokens = list.Array();
      } else {
        reader.Any();
      }
    }
    ++events_;
    if (type == "AllBlocksCleared") {
      blocks_.clear();
      ++clears_;
      return;
    }
    const bool stored = type == "BlockStored";
    const TierSet tier = medium == "CPU" ? kDramTier : medium == "STORAGE" ? kNvmeTier : 0;
    if (tier == 0 || (!stored && type != "BlockRemoved") || (stored && tokens == 0)) ++mistakes_;
    MsgpackReader list(hashes);
    for (uint32_t left = list.Array(); left > 0 && !list.failed(); --left) {
      const auto it = blocks_.try_emplace(list.Integer(), TierSet{0}).first;
      if (((it->second & tier) != 0) == stored) ++mistakes_;
      it->second = static_cast<TierSet>(stored ? it->second | tier : it->second & ~tier);
      if (it->second == 0) blocks_.erase(it);
    }
  }

  absl::flat_hash_map<uint64_t, TierSet> blocks_;
  uint64_t next_ = 0;
  uint64_t events_ = 0;
  uint64_t clears_ = 0;
  uint64_t mistakes_ = 0;
};

}  // namespace kvd
