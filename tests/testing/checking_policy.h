// An eviction policy that checks what its caller owes it: the order of Insert, Offer, Withdraw and
// Erase of policy/eviction.h. It decides as the policy that it wraps.

#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "policy/eviction.h"
#include "proto/types/check.h"

namespace kvd {

class CheckingPolicy final : public EvictionPolicy {
 public:
  CheckingPolicy(EvictionPolicy& wrapped, uint32_t max_blocks)
      : wrapped_(wrapped), entries_(size_t{max_blocks} + 1) {}

  std::string_view name() const override { return wrapped_.name(); }
  void Insert(uint32_t block, Pool pool) override {
    KVD_CHECK(!entries_[block].known) << block;
    entries_[block] = {.known = true, .pool = pool};
    wrapped_.Insert(block, pool);
  }
  void Use(uint32_t block, uint64_t tick) override {
    KVD_CHECK(entries_[block].known && tick >= last_tick_) << block << " " << tick;
    last_tick_ = tick;
    wrapped_.Use(block, tick);
  }
  void Offer(uint32_t block) override {
    KVD_CHECK(entries_[block].known && !entries_[block].offered) << block;
    entries_[block].offered = true;
    ++offered_;
    wrapped_.Offer(block);
  }
  void Withdraw(uint32_t block) override {
    KVD_CHECK(entries_[block].known && entries_[block].offered) << block;
    entries_[block].offered = false;
    --offered_;
    wrapped_.Withdraw(block);
  }
  void Erase(uint32_t block, uint32_t parent) override {
    KVD_CHECK(entries_[block].known && !entries_[block].offered) << block;
    KVD_CHECK(parent == 0 || entries_[parent].known) << block << " below " << parent;
    entries_[block] = {};
    wrapped_.Erase(block, parent);
  }
  std::optional<Victim> Next(Pool pool) const override {
    const std::optional<Victim> victim = wrapped_.Next(pool);
    if (victim.has_value()) {
      KVD_CHECK(entries_[victim->block].offered) << victim->block;
      KVD_CHECK(entries_[victim->block].pool == pool) << victim->block;
    }
    return victim;
  }

  bool offered(uint32_t block) const { return entries_[block].offered; }
  uint32_t offered() const { return offered_; }

 private:
  struct Entry {
    bool known = false;
    bool offered = false;
    Pool pool = 0;
  };
  EvictionPolicy& wrapped_;
  std::vector<Entry> entries_;
  uint32_t offered_ = 0;
  uint64_t last_tick_ = 0;
};

}  // namespace kvd
