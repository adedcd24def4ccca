#include "daemon/lease_table.h"

#include <utility>

#include "proto/types/check.h"

namespace kvd {

LeaseTable::LeaseTable(uint32_t max_leases) : entries_(size_t{max_leases} + 1) {
  heap_.reserve(max_leases);
  for (uint32_t i = max_leases; i > 0; --i) entries_[i].next = std::exchange(free_, i);
}

LeaseId LeaseTable::Add(BlockRef block, uint32_t owner, Nanos expires) {
  if (free_ == 0) return 0;
  const uint32_t index = free_;
  Entry& entry = entries_[index];
  free_ = entry.next;
  entry.lease = {block, owner, expires};
  ++entry.sequence;
  entry.next = entry.prev = 0;
  if (owner != kPinOwner) {
    if (owner >= owned_.size()) owned_.resize(owner + 1);
    Owned& owned = owned_[owner];
    entry.next = owned.first;
    if (owned.first != 0) entries_[owned.first].prev = index;
    owned.first = index;
    ++owned.count;
  }
  heap_.push_back(index);
  Place(static_cast<uint32_t>(heap_.size()), index);
  Sift(static_cast<uint32_t>(heap_.size()));
  return IdOf(index);
}

const LeaseTable::Entry* LeaseTable::EntryOf(LeaseId id) const {
  const auto index = static_cast<uint32_t>(id);
  if (index == 0 || index >= entries_.size()) return nullptr;
  const Entry& entry = entries_[index];
  return entry.position != 0 && entry.sequence == id >> 32 ? &entry : nullptr;
}

const LeaseTable::Lease* LeaseTable::Find(LeaseId id) const {
  const Entry* entry = EntryOf(id);
  return entry == nullptr ? nullptr : &entry->lease;
}

std::optional<LeaseTable::Lease> LeaseTable::Remove(LeaseId id) {
  if (EntryOf(id) == nullptr) return std::nullopt;
  const auto index = static_cast<uint32_t>(id);
  Entry& entry = entries_[index];
  if (entry.lease.owner != kPinOwner) {
    Owned& owned = owned_[entry.lease.owner];
    if (entry.next != 0) entries_[entry.next].prev = entry.prev;
    (entry.prev != 0 ? entries_[entry.prev].next : owned.first) = entry.next;
    --owned.count;
  }
  const uint32_t hole = std::exchange(entry.position, 0);
  const uint32_t last = heap_.back();
  heap_.pop_back();
  if (last != index) {
    Place(hole, last);
    Sift(hole);
  }
  entry.next = std::exchange(free_, index);
  return entry.lease;
}

LeaseId LeaseTable::AnyOf(uint32_t owner) const {
  if (owner >= owned_.size() || owned_[owner].first == 0) return 0;
  return IdOf(owned_[owner].first);
}

uint32_t LeaseTable::CountOf(uint32_t owner) const {
  return owner < owned_.size() ? owned_[owner].count : 0;
}

LeaseId LeaseTable::Expired(Nanos now) const {
  if (heap_.empty() || entries_[heap_[0]].lease.expires > now) return 0;
  return IdOf(heap_[0]);
}

void LeaseTable::Place(uint32_t position, uint32_t index) {
  heap_[position - 1] = index;
  entries_[index].position = position;
}

void LeaseTable::Sift(uint32_t position) {
  const uint32_t index = heap_[position - 1];
  const auto before = [this](uint32_t a, uint32_t b) {
    return entries_[a].lease.expires < entries_[b].lease.expires;
  };
  while (position > 1 && before(index, heap_[position / 2 - 1])) {
    Place(position, heap_[position / 2 - 1]);
    position /= 2;
  }
  for (uint32_t child; (child = 2 * position) <= heap_.size(); position = child) {
    if (child < heap_.size() && before(heap_[child], heap_[child - 1])) ++child;
    if (!before(heap_[child - 1], index)) break;
    Place(position, heap_[child - 1]);
  }
  Place(position, index);
}

}  // namespace kvd
