// Leaf-first LRU, told of one block a request, against plain LRU in which a request touches every
// block of its chain from the tail to the head.

#include "policy/lru.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "daemon/residency.h"
#include "tests/testing/checking_policy.h"
#include "tests/testing/run_size.h"

namespace kvd {
namespace {

class NoRoom final : public RoomOwner {
 public:
  void FreeRoom(const Part&) override {}
};

ChainHash HashOf(uint64_t key) {
  ChainHash hash;
  std::memcpy(hash.bytes.data(), &key, sizeof key);
  return hash;
}

// Plain LRU: a list of keys, most recent last.
class PlainLru {
 public:
  explicit PlainLru(size_t capacity) : capacity_(capacity) {}

  // Touches the chain, tail first, then drops what was touched longest ago. Returns what left.
  std::vector<uint64_t> Request(const std::vector<uint64_t>& chain) {
    for (auto key = chain.rbegin(); key != chain.rend(); ++key) {
      if (const auto known = when_.find(*key); known != when_.end()) by_time_.erase(known->second);
      by_time_[++now_] = *key;
      when_[*key] = now_;
    }
    std::vector<uint64_t> left;
    while (when_.size() > capacity_) {
      left.push_back(by_time_.begin()->second);
      when_.erase(left.back());
      by_time_.erase(by_time_.begin());
    }
    return left;
  }
  bool Has(uint64_t key) const { return when_.contains(key); }
  size_t size() const { return when_.size(); }

 private:
  size_t capacity_;
  uint64_t now_ = 0;
  std::map<uint64_t, uint64_t> by_time_;
  std::map<uint64_t, uint64_t> when_;
};

// The index as the daemon uses it: look up, lease what is there, add the rest, one use a request.
class IndexedLru {
 public:
  explicit IndexedLru(uint32_t capacity)
      : lru_(capacity),
        policy_(lru_, capacity),
        index_(policy_, room_, {.max_blocks = capacity, .max_parts = capacity, .secret = 3}) {
    index_.AddNamespace({});
  }

  std::vector<uint64_t> Request(const std::vector<uint64_t>& chain) {
    ++tick_;
    std::vector<uint64_t> left;
    BlockRef above = 0;
    size_t at = 0;
    for (; at < chain.size(); ++at) {
      const BlockRef block = index_.Find(1, HashOf(chain[at]));
      if (block == 0) break;
      above = block;
    }
    if (above != 0) {
      index_.Use(above, tick_);
      index_.Lease(above);
    }
    for (; at < chain.size(); ++at) {
      if (index_.full()) {
        const std::optional<EvictionPolicy::Victim> victim = index_.NextVictim();
        if (!victim.has_value()) break;  // All of it is this chain: it keeps its head.
        uint64_t key = 0;
        std::memcpy(&key, index_.block(victim->block).key.bytes.data(), sizeof key);
        left.push_back(key);
        index_.EvictNext();
      }
      const BlockRef block = index_.Add(1, HashOf(chain[at]), above, tick_);
      index_.CommitPart(index_.AddPart(block, {}, 0, 0, 1, 1), 0, tick_);
      index_.Lease(block);
      if (above != 0) index_.Unlease(above);
      above = block;
    }
    if (above != 0) index_.Unlease(above);
    return left;
  }
  bool Has(uint64_t key) const { return index_.Find(1, HashOf(key)) != 0; }
  size_t size() const { return index_.counts().used; }

 private:
  NoRoom room_;
  LruPolicy lru_;
  CheckingPolicy policy_;
  Residency index_;
  uint64_t tick_ = 0;
};

// Conversations: a chain grows, branches off an older one, or is asked again.
class Requests {
 public:
  explicit Requests(uint64_t seed) : random_(seed) {}

  std::vector<uint64_t> Next(size_t longest) {
    std::vector<uint64_t> chain;
    if (!chains_.empty() && random_() % 8 != 0) {
      // The recent ones are asked more often.
      const size_t back = std::min(random_() % chains_.size(), random_() % chains_.size());
      chain = chains_[chains_.size() - 1 - back];
      if (random_() % 3 == 0) chain.resize(1 + random_() % chain.size());
    }
    for (size_t more = chain.empty() ? 1 + random_() % 10 : random_() % 10; more > 0; --more) {
      if (chain.size() < longest) chain.push_back(++next_key_);
    }
    chains_.push_back(chain);
    return chain;
  }

 private:
  std::mt19937_64 random_;
  std::vector<std::vector<uint64_t>> chains_;
  uint64_t next_key_ = 0;
};

TEST(LruPolicyTest, SameVictimsInTheSameOrderAsPlainLru) {
  const uint64_t first = NumberFromEnvironment("KVD_SEED", 1);
  const uint64_t seeds = RoundsForThisBuild(300);
  for (uint64_t seed = first; seed < first + seeds; ++seed) {
    SCOPED_TRACE(testing::Message() << "KVD_SEED=" << seed);
    const uint32_t capacity = 5 + static_cast<uint32_t>(seed * 7 % 120);
    PlainLru plain(capacity);
    IndexedLru indexed(capacity);
    Requests requests(seed);
    std::set<uint64_t> keys;
    for (int request = 0; request < 300; ++request) {
      const std::vector<uint64_t> chain = requests.Next(/*longest=*/capacity);
      keys.insert(chain.begin(), chain.end());
      ASSERT_EQ(indexed.Request(chain), plain.Request(chain)) << "request " << request;
      ASSERT_EQ(indexed.size(), plain.size());
      for (const uint64_t key : keys) ASSERT_EQ(indexed.Has(key), plain.Has(key)) << key;
    }
  }
}

// Plain LRU throws such a chain's own tail out again; the index does not let it in. The same stays.
TEST(LruPolicyTest, AChainLongerThanTheCapacityKeepsItsHead) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    PlainLru plain(20);
    IndexedLru indexed(20);
    Requests requests(seed);
    std::set<uint64_t> keys;
    for (int request = 0; request < 100; ++request) {
      const std::vector<uint64_t> chain = requests.Next(/*longest=*/60);
      keys.insert(chain.begin(), chain.end());
      indexed.Request(chain);
      plain.Request(chain);
      for (const uint64_t key : keys) ASSERT_EQ(indexed.Has(key), plain.Has(key)) << key;
    }
  }
}

TEST(LruPolicyTest, PoolsAreSeparateAndScoresCompareAcrossThem) {
  LruPolicy policy(4);
  policy.Insert(1, 0);
  policy.Insert(2, 1);
  policy.Use(1, 20);
  policy.Use(2, 10);
  EXPECT_FALSE(policy.Next(0).has_value());
  policy.Offer(1);
  policy.Offer(2);
  EXPECT_EQ(policy.Next(0)->block, 1u);
  EXPECT_EQ(policy.Next(1)->block, 2u);
  EXPECT_LT(policy.Next(1)->score, policy.Next(0)->score);
  policy.Withdraw(1);
  EXPECT_FALSE(policy.Next(0).has_value());
}

TEST(LruPolicyTest, AParentInheritsTheUseOfAChildThatLeaves) {
  LruPolicy policy(4);
  for (const uint32_t block : {1, 2, 3}) policy.Insert(block, 0);
  policy.Use(1, 1);
  policy.Use(2, 5);  // Below 1.
  policy.Use(3, 3);
  policy.Offer(3);
  policy.Erase(2, 1);
  policy.Offer(1);
  EXPECT_EQ(policy.Next(0)->block, 3u);
  EXPECT_EQ(policy.Next(0)->score, 3u);
  policy.Withdraw(3);
  EXPECT_EQ(policy.Next(0)->score, 5u);
}

TEST(LruPolicyTest, EqualUsesLeaveInTheOrderOfTheirNumbers) {
  LruPolicy policy(8);
  for (const uint32_t block : {5, 2, 7, 3}) {
    policy.Insert(block, 0);
    policy.Offer(block);
  }
  for (const uint32_t block : {2, 3, 5, 7}) {
    EXPECT_EQ(policy.Next(0)->block, block);
    policy.Withdraw(block);
  }
}

}  // namespace
}  // namespace kvd
