// KV events in the form of vLLM (vllm/distributed/kv_events.py, maps since 2026-06), with the keys
// that Dynamo, llm-d and Mooncake's conductor (RFC 1527) read besides. Payload of a message:
//
//   [unix seconds, [event, ...], nil]
//
// BlockStored     what the engine announced (proto/types/announcement.h), and medium, locality,
//                 event_type "stored", seq_hashes, base_block_idx, backend_id, tenant_id, event_id
// BlockRemoved    block_hashes, group_idx if announced, and the same but base_block_idx; "removed"
// AllBlocksCleared  event_type "cleared", backend_id, event_id
//
// medium is "CPU" for DRAM and "STORAGE" for NVMe; locality is always "LOCAL": routers drop others.
//
// Threads: values; each belongs to one thread.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "daemon/events.h"
#include "proto/types/announcement.h"

namespace kvd {

// The events of one message, as they are added.
class KvEventBatch {
 public:
  // `backend_id` says which cache speaks.
  explicit KvEventBatch(std::string backend_id) : backend_id_(std::move(backend_id)) {}

  // Of a block, 1 for a root, which has entered or left one tier.
  struct Block {
    const Announcement& announced;
    uint64_t depth = 0;
    TierSet tier = 0;  // One of them.
    std::string_view tenant;
  };
  void Stored(const Block& block, uint64_t event_id);
  void Removed(const Block& block, uint64_t event_id);
  void Cleared(uint64_t event_id);

  uint32_t events() const { return events_; }
  size_t bytes() const { return body_.size(); }

  // The payload, and an empty batch.
  std::string Take(double unix_seconds);

 private:
  void Common(const Block& block, std::string_view event_type, uint64_t event_id);

  const std::string backend_id_;
  std::string body_;
  uint32_t events_ = 0;
};

}  // namespace kvd
