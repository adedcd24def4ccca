#include "daemon/hold_table.h"

#include <utility>

namespace kvd {

HoldTable::HoldTable(const Options& options)
    : holds_(size_t{options.max_holds} + 1), nodes_(size_t{options.max_extents} + 1) {
  for (uint32_t i = options.max_holds; i > 0; --i) holds_[i].next = std::exchange(free_hold_, i);
  for (uint32_t i = options.max_extents; i > 0; --i) nodes_[i].next = std::exchange(free_node_, i);
}

HoldId HoldTable::Open(uint32_t session) {
  if (free_hold_ == 0) return 0;
  const uint32_t index = free_hold_;
  Hold& hold = holds_[index];
  free_hold_ = hold.next;
  const uint32_t sequence = hold.sequence + 1;
  hold = Hold{.sequence = sequence, .session = session, .open = true};
  if (session >= owned_.size()) owned_.resize(session + 1);
  hold.next = owned_[session].first;
  if (hold.next != 0) holds_[hold.next].prev = index;
  owned_[session].first = index;
  return uint64_t{sequence} << 32 | index;
}

bool HoldTable::Append(HoldId id, PartRef part, uint32_t bytes) {
  if (free_node_ == 0) return false;
  Hold& hold = holds_[Index(id)];
  const uint32_t node = free_node_;
  free_node_ = nodes_[node].next;
  nodes_[node] = {part, 0};
  (hold.last != 0 ? nodes_[hold.last].next : hold.first) = node;
  hold.last = node;
  ++hold.extents;
  hold.bytes += bytes;
  owned_[hold.session].bytes += bytes;
  ++owned_[hold.session].extents;
  ++total_extents_;
  total_bytes_ += bytes;
  return true;
}

bool HoldTable::Has(HoldId id, uint32_t session) const {
  const uint32_t index = Index(id);
  if (index == 0 || index >= holds_.size()) return false;
  const Hold& hold = holds_[index];
  return hold.open && hold.sequence == id >> 32 && hold.session == session;
}

PartRef HoldTable::At(HoldId id, uint32_t position) const {
  uint32_t node = holds_[Index(id)].first;
  for (; node != 0 && position > 0; --position) node = nodes_[node].next;
  return nodes_[node].part;
}

HoldId HoldTable::AnyOf(uint32_t session) const {
  if (session >= owned_.size() || owned_[session].first == 0) return 0;
  const uint32_t index = owned_[session].first;
  return uint64_t{holds_[index].sequence} << 32 | index;
}

void HoldTable::Close(HoldId id) {
  const uint32_t index = Index(id);
  Hold& hold = holds_[index];
  if (hold.first != 0) {
    (drain_first_ != 0 ? nodes_[drain_last_].next : drain_first_) = hold.first;
    drain_last_ = hold.last;
  }
  Owned& owned = owned_[hold.session];
  owned.bytes -= hold.bytes;
  owned.extents -= hold.extents;
  total_bytes_ -= hold.bytes;
  total_extents_ -= hold.extents;
  if (hold.next != 0) holds_[hold.next].prev = hold.prev;
  (hold.prev != 0 ? holds_[hold.prev].next : owned.first) = hold.next;
  const uint32_t sequence = hold.sequence;
  hold = Hold{.sequence = sequence, .next = std::exchange(free_hold_, index)};
}

}  // namespace kvd
