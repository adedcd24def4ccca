// Evict whom? The question that every eviction policy answers, over the leaves of the prefix tree.
//
// Leaves only is not the policy's choice: the caller offers a block while it may leave (a leaf that
// nobody leases, holds or produces) and withdraws it when it may not. So whatever the score, no
// policy can strand what hangs below a block.
//
// Blocks are small numbers below Options::max_blocks of the implementation; pools are the groups
// among which room can be exchanged (a domain and its slab classes).
//
// Threads: one. No clock, no randomness, no allocation after construction.

#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace kvd {

class EvictionPolicy {
 public:
  using Pool = uint16_t;
  static constexpr Pool kMaxPools = 64;

  // The block that would leave next. Scores of one policy compare across pools: lower leaves first.
  struct Victim {
    uint32_t block = 0;
    uint64_t score = 0;
  };

  virtual ~EvictionPolicy() = default;
  virtual std::string_view name() const = 0;

  // `block` became findable. Requires: it is not known.
  virtual void Insert(uint32_t block, Pool pool) = 0;

  // The chain that ends at `block` was used at `tick` (a count of requests): so was every ancestor,
  // tail first. Ancestors are not named; Erase() hands the knowledge up.
  virtual void Use(uint32_t block, uint64_t tick) = 0;

  // `block` may leave now, or may not any more. Requires: known; not offered, or offered.
  virtual void Offer(uint32_t block) = 0;
  virtual void Withdraw(uint32_t block) = 0;

  // `block` is gone; `parent` (0: none) outlives it and was used whenever `block` was.
  // Requires: known and not offered.
  virtual void Erase(uint32_t block, uint32_t parent) = 0;

  // The next to leave of one pool, among the blocks that are offered.
  virtual std::optional<Victim> Next(Pool pool) const = 0;
};

}  // namespace kvd
