// What the operator's service asks of the control thread, as plain structs: rows of its tables, and
// the progress of what takes several turns. Names and messages are made from them on the thread of
// the caller (daemon/admin.h), so that the control thread only copies.

#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "daemon/events.h"
#include "daemon/lease_table.h"
#include "daemon/residency.h"
#include "daemon/tier_index.h"
#include "proto/types/block.h"
#include "proto/types/clock.h"
#include "proto/types/namespace_descriptor.h"

namespace kvd {

struct SessionRow {
  uint32_t serial = 0;
  DomainId domain = 0;
  uid_t uid = 0;
  pid_t pid = 0;  // 0: its bytes are streamed.
  Nanos age = 0;
  uint32_t leases = 0;
  uint32_t extents = 0;  // Under holds.
  uint64_t held_bytes = 0;
  uint32_t reservations = 0;
  uint64_t staging_bytes = 0;
  bool ended = false;
};

struct LeaseRow {
  LeaseId id = 0;
  bool pin = false;
  DomainId domain = 0;
  NamespaceId ns = 0;
  std::string key;     // The deepest block.
  uint32_t depth = 0;  // Blocks.
  std::string owner;   // Of a pin.
  uint32_t session = 0;
  Nanos left = 0;
  uint64_t bytes = 0;  // Of a pin.
};

struct NamespaceRow {
  NamespaceId id = 0;
  DomainId domain = 0;
  NamespaceDescriptor descriptor;
  uint64_t blocks = 0;
  uint64_t bytes = 0;
};

struct PartRow {
  PartId id;
  bool on_nvme = false;
  uint32_t region = 0;  // As clients know it; or segment.
  uint64_t offset = 0;
  uint32_t length = 0;
  uint32_t generation = 0;
  uint32_t sum = 0;
  uint32_t holds = 0;
  bool committed = false;
};

struct BlockRow {
  NamespaceId ns = 0;
  DomainId domain = 0;
  std::string key;
  std::string parent;  // Empty: a root.
  uint32_t depth = 0;  // 1 for a root.
  BlockState state = BlockState::kFree;
  uint64_t bytes = 0;       // In DRAM ...
  uint64_t nvme_bytes = 0;  // ... and on NVMe.
  uint32_t children = 0;
  uint32_t leases = 0;
  std::vector<PartRow> parts;  // Where they were asked for.
};

struct BlockFilter {
  NamespaceId ns = 0;  // 0: all.
  std::string key_prefix;
  bool with_parts = false;
};

struct DomainRow {
  DomainId domain = 0;
  uint32_t sessions = 0;
  uint64_t lookups = 0;
  uint64_t lookup_blocks = 0;
  uint64_t hit_blocks = 0;
  uint64_t used_bytes = 0;
  uint32_t leases = 0;
  uint32_t pins = 0;
  uint64_t held_bytes = 0;
  uint64_t committed_blocks = 0;
  uint64_t rejected_blocks = 0;
};

struct OperatorPin {
  NamespaceId ns = 0;
  std::string_view key;
  std::string_view owner;
  uint64_t budget_bytes = 0;  // 0: none.
  uint64_t ttl_ms = 0;
  // Answer.
  LeaseId pin_id = 0;
  uint32_t blocks = 0;
  uint64_t bytes = 0;
};

// A verb that lets blocks leave, over many turns. Begun by Control::BeginEvict(), BeginDrop() or
// BeginFlush().
struct Sweep {
  EvictReason reason = EvictReason::kAdmin;  // kPurge: the namespace goes as well.
  std::optional<TierIndex> tier;             // Blocks leave this alone; empty: every tier.
  NamespaceId ns = 0;                        // 0: all.
  BlockRef top = 0;                          // Only this and what hangs below it; 0: all.
  ChainHash top_key;
  // How far it has come.
  uint32_t next = 1;   // Slot.
  BlockRef climb = 0;  // A block that may leave since its last child has left.
  BlockRef at = 0;     // Below `top`: the walk stands here ...
  ChainHash at_key;
  bool descending = true;  // ... before, or after, what hangs below.
  uint32_t restarts = 0;
  bool waits = false;  // What it has begun must end first: give it a few milliseconds.
  bool began = false;  // In this walk, to write blocks.
  uint32_t waited = 0;
  // Answer.
  uint64_t evicted = 0;
  uint64_t moved = 0;    // Of a tier: left it, and are in the other.
  uint64_t kept = 0;     // Leased, pinned, held or in production, or above such a block.
  bool dropped = false;  // Of kPurge: nothing is left, and the namespace has gone.
};

struct DrainProgress {
  uint64_t holds = 0;  // Extents.
  uint64_t moves = 0;  // Reservations, with the copies into them.
};

}  // namespace kvd
