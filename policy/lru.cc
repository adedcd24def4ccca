#include "policy/lru.h"

#include <algorithm>

#include "proto/types/check.h"

namespace kvd {

LruPolicy::LruPolicy(uint32_t max_blocks) : entries_(size_t{max_blocks} + 1), heaps_(kMaxPools) {
  for (Heap& heap : heaps_) {
    heap.reserve(size_t{max_blocks} + 1);  // Address space; pages come with use.
    heap.push_back(0);
  }
}

void LruPolicy::Insert(uint32_t block, Pool pool) {
  KVD_CHECK(pool < kMaxPools) << pool;
  entries_[block] = Entry{.pool = pool};
}

void LruPolicy::Use(uint32_t block, uint64_t tick) {
  Entry& entry = entries_[block];
  entry.last_use = tick;
  if (entry.position != 0) SiftDown(heaps_[entry.pool], entry.position);  // Ticks only grow.
}

void LruPolicy::Offer(uint32_t block) {
  Entry& entry = entries_[block];
  KVD_DCHECK(entry.position == 0) << block;
  Heap& heap = heaps_[entry.pool];
  heap.push_back(block);
  SiftUp(heap, static_cast<uint32_t>(heap.size() - 1));
}

void LruPolicy::Withdraw(uint32_t block) {
  Entry& entry = entries_[block];
  KVD_CHECK(entry.position != 0) << block;
  Heap& heap = heaps_[entry.pool];
  const uint32_t hole = entry.position;
  const uint32_t last = heap.back();
  heap.pop_back();
  entry.position = 0;
  if (last == block) return;
  Place(heap, hole, last);
  SiftUp(heap, hole);
  SiftDown(heap, entries_[last].position);
}

void LruPolicy::Erase(uint32_t block, uint32_t parent) {
  Entry& entry = entries_[block];
  KVD_DCHECK(entry.position == 0) << block;
  if (parent == 0) return;
  Entry& above = entries_[parent];
  if (entry.last_use <= above.last_use) return;
  above.last_use = entry.last_use;
  if (above.position != 0) SiftDown(heaps_[above.pool], above.position);
}

std::optional<EvictionPolicy::Victim> LruPolicy::Next(Pool pool) const {
  const Heap& heap = heaps_[pool];
  if (heap.size() == 1) return std::nullopt;
  return Victim{.block = heap[1], .score = entries_[heap[1]].last_use};
}

// Equal times happen only to blocks that were never used; the lower number first, so that the same
// input gives the same run.
bool LruPolicy::Before(uint32_t a, uint32_t b) const {
  const uint64_t use_a = entries_[a].last_use;
  const uint64_t use_b = entries_[b].last_use;
  return use_a != use_b ? use_a < use_b : a < b;
}

void LruPolicy::Place(Heap& heap, uint32_t position, uint32_t block) {
  heap[position] = block;
  entries_[block].position = position;
}

void LruPolicy::SiftUp(Heap& heap, uint32_t position) {
  const uint32_t block = heap[position];
  for (; position > 1 && Before(block, heap[position / 2]); position /= 2) {
    Place(heap, position, heap[position / 2]);
  }
  Place(heap, position, block);
}

void LruPolicy::SiftDown(Heap& heap, uint32_t position) {
  const uint32_t block = heap[position];
  const auto size = static_cast<uint32_t>(heap.size());
  for (uint32_t child; (child = 2 * position) < size; position = child) {
    if (child + 1 < size && Before(heap[child + 1], heap[child])) ++child;
    if (!Before(heap[child], block)) break;
    Place(heap, position, heap[child]);
  }
  Place(heap, position, block);
}

}  // namespace kvd
