// Holds: promises to a session that the room of the extents of one answer is neither moved nor
// reused. A hold names a list of parts, in the order in which their extents were answered, so that
// a client can give all of them back, or call one of them damaged, by a number and a position.
//
// Threads: one, the control thread. All memory is set aside by the constructor.

#pragma once

#include <cstdint>
#include <vector>

#include "daemon/residency.h"
#include "proto/types/shared_count.h"

namespace kvd {

using HoldId = uint64_t;  // Never the same twice in one run; 0: none.

class HoldTable {
 public:
  struct Options {
    uint32_t max_holds = 1u << 16;
    uint32_t max_extents = 1u << 20;  // Of all holds together.
  };
  explicit HoldTable(const Options& options);

  // An empty hold of `session`; 0 when the table is full.
  HoldId Open(uint32_t session);
  // Adds a part (0: an extent that is not there, only counted). False when the table is full.
  // Requires: Has() would say so.
  bool Append(HoldId id, PartRef part, uint32_t bytes);

  // Whether `session` has this hold.
  bool Has(HoldId id, uint32_t session) const;
  uint64_t bytes(HoldId id) const { return holds_[Index(id)].bytes; }
  uint32_t extents(HoldId id) const { return holds_[Index(id)].extents; }
  // The part at `position`; 0: none there. O(position).
  PartRef At(HoldId id, uint32_t position) const;

  // Calls `each(PartRef)` for the parts at `positions`, which ascend; positions beyond the last and
  // extents that are not there are left out. One walk, however many there are.
  template <typename Positions, typename Each>
  void ForEachAt(HoldId id, const Positions& positions, Each each) const {
    uint32_t node = holds_[Index(id)].first;
    uint32_t at = 0;
    for (const uint32_t position : positions) {
      for (; node != 0 && at < position; ++at) node = nodes_[node].next;
      if (node == 0) return;
      if (nodes_[node].part != 0) each(nodes_[node].part);
    }
  }

  // Ends the hold, at once however long it is; Drain() then gives its parts back.
  // Requires: Has() said so.
  void Close(HoldId id);

  // Calls `each(PartRef)` for the parts of ended holds, oldest first: at most `most` extents.
  template <typename Each>
  void Drain(uint32_t most, Each each) {
    for (; most > 0 && drain_first_ != 0; --most) {
      const uint32_t node = drain_first_;
      drain_first_ = nodes_[node].next;
      const PartRef part = nodes_[node].part;
      nodes_[node].next = free_node_;
      free_node_ = node;
      if (part != 0) each(part);
    }
  }
  bool drained() const { return drain_first_ == 0; }

  // Any hold of the session; 0: none.
  HoldId AnyOf(uint32_t session) const;
  uint64_t held_bytes(uint32_t session) const {
    return session < owned_.size() ? owned_[session].bytes : 0;
  }
  uint32_t held_extents(uint32_t session) const {
    return session < owned_.size() ? owned_[session].extents : 0;
  }
  uint64_t total_extents() const { return total_extents_; }  // Any thread.
  uint64_t total_bytes() const { return total_bytes_; }      // Any thread.

 private:
  struct Hold {
    uint64_t bytes = 0;
    uint32_t sequence = 0;
    uint32_t session = 0;
    uint32_t first = 0;  // Node.
    uint32_t last = 0;
    uint32_t extents = 0;
    uint32_t next = 0;  // Of the same session, or of the free ones.
    uint32_t prev = 0;
    bool open = false;
  };
  struct Node {
    PartRef part = 0;
    uint32_t next = 0;
  };
  struct Owned {
    uint32_t first = 0;
    uint32_t extents = 0;
    uint64_t bytes = 0;
  };

  static uint32_t Index(HoldId id) { return static_cast<uint32_t>(id); }
  std::vector<Hold> holds_;   // [0] is unused.
  std::vector<Node> nodes_;   // [0] is unused.
  std::vector<Owned> owned_;  // By session.
  uint32_t free_hold_ = 0;
  uint32_t free_node_ = 0;
  uint32_t drain_first_ = 0;  // Nodes of ended holds, chained by next.
  uint32_t drain_last_ = 0;   // Requires: drain_first_ is not 0.
  SharedCount total_extents_;
  SharedCount total_bytes_;
};

}  // namespace kvd
