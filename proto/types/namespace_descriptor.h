// What the bytes of a block mean, typed: everything that, if it differed, would make them wrong.
// Its canonical encoding decides identity; the fingerprint is a digest of that to show and to
// store. Nothing is ever inferred from a shape.

#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/types/block.h"

namespace kvd {

enum class GroupKind : uint8_t {
  kFull = 1,    // Attention over the whole prefix: every block's part is needed.
  kWindow = 2,  // Sliding window: the last window_tokens are needed.
  kState = 3,   // Recurrent state: only the part at the very end is needed.
};

// One KV-cache group of a (possibly hybrid) model.
struct GroupDescriptor {
  GroupKind kind = GroupKind::kFull;
  uint32_t window_tokens = 0;  // Of a kWindow, else 0. At most 32,768 blocks.
  uint32_t shards = 1;         // Parts of this group; 1 when replicated.
  uint32_t block_tokens = 0;   // Tokens of one block.
  uint32_t part_bytes = 0;     // Bytes of one part; every part of the group has this size.

  // Blocks that a window needs. Requires: kWindow, block_tokens and window_tokens not zero.
  uint32_t window_blocks() const { return (window_tokens - 1) / block_tokens + 1; }

  friend bool operator==(const GroupDescriptor&, const GroupDescriptor&) = default;
};

struct NamespaceDescriptor {
  std::string model;
  std::string weights_revision;
  std::string kv_dtype;
  std::string quantization;
  std::string page_layout;
  std::string engine_family;
  std::string draft_model;
  std::string hash_algorithm;
  std::string hash_seed;
  uint32_t hash_bytes = 32;
  uint32_t tensor_parallel = 1;
  uint32_t pipeline_parallel = 1;
  uint32_t context_parallel = 1;
  std::vector<GroupDescriptor> groups;
  std::map<std::string, std::string> extra;  // Whatever else an engine must tell apart.

  friend bool operator==(const NamespaceDescriptor&, const NamespaceDescriptor&) = default;

  // kInvalidArgument naming the first field that will not do.
  absl::Status Validate() const;

  // Deterministic and injective: two descriptors have the same encoding if and only if they are
  // equal. A golden test keeps it: it is part of what is stored.
  std::string Canonical() const;

  // The descriptor of which `canonical` is the encoding. kInvalidArgument: of none that is valid.
  static absl::StatusOr<NamespaceDescriptor> FromCanonical(std::string_view canonical);

  // The first 16 bytes of SHA-256 of Canonical().
  std::array<uint8_t, 16> Fingerprint() const;

  // Parts of one block: the sum of shards over the groups.
  uint32_t parts_per_block() const;
};

}  // namespace kvd
