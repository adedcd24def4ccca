// What a caller's arguments mean in a namespace: which parts it brings or wants, how many keys
// there are, and which prefix the parts at hand can serve. Pure.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/client.h"
#include "proto/types/block.h"
#include "proto/types/namespace_descriptor.h"

namespace kvd {

// Some parts of a namespace's blocks, in the order in which a caller brings or wants them.
struct Selection {
  std::string packed;                          // For the wire; empty: all.
  std::vector<uint32_t> bytes;                 // Of each part.
  std::vector<const GroupDescriptor*> groups;  // Of each part.

  size_t size() const { return bytes.size(); }
};

// A namespace that was registered once. Immutable, and lives as long as the client.
struct KnownNamespace {
  NamespaceDescriptor descriptor;
  std::string canonical;
  Namespace value;
  Selection all;
};

Selection SelectAll(const KnownNamespace& ns);
// `parts` in their order; all of them when it is empty. kInvalidArgument: one is unknown or twice.
absl::StatusOr<Selection> Select(const KnownNamespace& ns, const std::vector<PartId>& parts);

// How many hashes `keys` are. kInvalidArgument when that is not 1 to `max` whole ones.
absl::StatusOr<uint32_t> CountKeys(const KnownNamespace& ns, std::string_view keys, uint32_t max);
// `parent` must be empty or one hash.
absl::Status CheckParent(const KnownNamespace& ns, std::string_view parent);
// Rounded up. kInvalidArgument names `field` when it is negative or above `max`.
absl::StatusOr<uint32_t> Milliseconds(absl::Duration duration, uint64_t max, const char* field);

// Blocks of what answers or takes extents, with so many parts each.
uint32_t PageBlocks(size_t parts);

// The deepest n, at most `blocks`, that every group can serve from the parts in `usable` (block by
// block). Needed only where the daemon's own answer no longer holds, because a part turned out
// damaged or the prefix was cut.
uint32_t ServableBlocks(const Selection& parts, const std::vector<bool>& usable, uint32_t blocks);

}  // namespace kvd
