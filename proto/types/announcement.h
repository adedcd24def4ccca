// What an engine announces a block by to cache-aware routers: the part of vLLM's BlockStored event
// that only the engine knows, as the entries of a MessagePack map.
//
//   block_hashes       array of 64-bit integers, one or more: what routers know the block by. A
//   block
//                      of ours that is several of the engine's names each, in order.
//   parent_block_hash  integer or nil
//   token_ids          array of integers, block_size for each hash
//   block_size         integer, tokens
//   others             as the engine's own events have them (lora_name, extra_keys, group_idx,
//   ...),
//                      with values that nest at most MsgpackReader::kMaxDepth deep
//
// The daemon adds what it knows (type, medium, ...) and passes on the rest as it is, so a key that
// a later engine adds needs no later daemon. Names that the daemon writes are refused.
//
// Threads: pure functions of their arguments.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace kvd {

inline constexpr uint32_t kMaxAnnouncedEntries = 32;  // Of the map.

// Views into the announced bytes.
struct Announcement {
  std::string_view entries;  // Of the map, without its head: key, value, key, value, ...
  uint32_t entry_count = 0;
  std::string_view hashes;  // The value of block_hashes, ...
  uint32_t blocks = 0;      // ... so many.
  std::string_view group;   // The value of group_idx; empty: it is not said.
};

// kInvalidArgument says what is wrong.
absl::StatusOr<Announcement> ReadAnnouncement(std::string_view bytes);

// The least that is one, for clients in C++.
struct AnnouncedBlock {
  absl::Span<const uint64_t> hashes;
  const uint64_t* parent = nullptr;  // Null: a root.
  absl::Span<const uint32_t> tokens;
  uint32_t block_tokens = 0;
  std::string_view lora_name;  // Empty: none.
};
std::string WriteAnnouncement(const AnnouncedBlock& block);

}  // namespace kvd
