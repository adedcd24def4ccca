#include "daemon/kv_events.h"

#include <utility>

#include "proto/types/msgpack.h"

namespace kvd {

// The seven entries that stored and removed have in common.
void KvEventBatch::Common(const Block& block, std::string_view event_type, uint64_t event_id) {
  MsgpackWriter writer(body_);
  writer.Str("medium");
  writer.Str(block.tier == kDramTier ? "CPU" : "STORAGE");
  writer.Str("locality");
  writer.Str("LOCAL");
  writer.Str("event_type");
  writer.Str(event_type);
  writer.Str("seq_hashes");
  writer.Raw(block.announced.hashes);
  writer.Str("backend_id");
  writer.Str(backend_id_);
  writer.Str("tenant_id");
  writer.Str(block.tenant);
  writer.Str("event_id");
  writer.Uint(event_id);
}

void KvEventBatch::Stored(const Block& block, uint64_t event_id) {
  MsgpackWriter writer(body_);
  writer.Map(block.announced.entry_count + 9);
  writer.Str("type");
  writer.Str("BlockStored");
  writer.Raw(block.announced.entries);
  writer.Str("base_block_idx");
  writer.Uint((block.depth - 1) * block.announced.blocks);
  Common(block, "stored", event_id);
  ++events_;
}

void KvEventBatch::Removed(const Block& block, uint64_t event_id) {
  const bool has_group = !block.announced.group.empty();
  MsgpackWriter writer(body_);
  writer.Map(has_group ? 10 : 9);
  writer.Str("type");
  writer.Str("BlockRemoved");
  writer.Str("block_hashes");
  writer.Raw(block.announced.hashes);
  if (has_group) {
    writer.Str("group_idx");
    writer.Raw(block.announced.group);
  }
  Common(block, "removed", event_id);
  ++events_;
}

void KvEventBatch::Cleared(uint64_t event_id) {
  MsgpackWriter writer(body_);
  writer.Map(4);
  writer.Str("type");
  writer.Str("AllBlocksCleared");
  writer.Str("event_type");
  writer.Str("cleared");
  writer.Str("backend_id");
  writer.Str(backend_id_);
  writer.Str("event_id");
  writer.Uint(event_id);
  ++events_;
}

std::string KvEventBatch::Take(double unix_seconds) {
  std::string payload;
  payload.reserve(body_.size() + 16);
  MsgpackWriter writer(payload);
  writer.Array(3);
  writer.Double(unix_seconds);
  writer.Array(std::exchange(events_, 0));
  writer.Raw(body_);
  writer.Nil();
  body_.clear();
  return payload;
}

}  // namespace kvd
