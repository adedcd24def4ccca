// Leaf-first least recently used.
//
// The order is that of plain LRU in which a request touches its blocks tail to head. Only the
// deepest block of a chain is told of a use; when it leaves, its parent inherits the time. So a
// lookup of 32,768 blocks costs one update, and the victims are the same (policies.md of the
// reference set and tests/policy/lru_test.cc compare the two).

#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "policy/eviction.h"

namespace kvd {

class LruPolicy final : public EvictionPolicy {
 public:
  explicit LruPolicy(uint32_t max_blocks);

  std::string_view name() const override { return "lru"; }
  void Insert(uint32_t block, Pool pool) override;
  void Use(uint32_t block, uint64_t tick) override;
  void Offer(uint32_t block) override;
  void Withdraw(uint32_t block) override;
  void Erase(uint32_t block, uint32_t parent) override;
  std::optional<Victim> Next(Pool pool) const override;

 private:
  struct Entry {
    uint64_t last_use = 0;
    uint32_t position = 0;  // In the heap of its pool, from 1; 0: not offered.
    Pool pool = 0;
  };
  using Heap = std::vector<uint32_t>;  // Binary, least recently used first; [0] is unused.

  bool Before(uint32_t a, uint32_t b) const;
  void Place(Heap& heap, uint32_t position, uint32_t block);
  void SiftUp(Heap& heap, uint32_t position);
  void SiftDown(Heap& heap, uint32_t position);

  std::vector<Entry> entries_;  // By block.
  std::vector<Heap> heaps_;     // By pool.
};

}  // namespace kvd
