// That the simulator counts what a plain model of tail-first LRU counts, and what it must keep.
#include "bench/sim.h"

#include <algorithm>
#include <cstdint>
#include <list>
#include <memory>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "bench/sim_tiers.h"
#include "bench/trace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvd {
namespace {

using Chain = std::vector<uint64_t>;

std::unique_ptr<Simulator> MustCreate(uint64_t capacity_blocks) {
  absl::StatusOr<std::unique_ptr<Simulator>> simulator = Simulator::Create("lru", capacity_blocks);
  EXPECT_TRUE(simulator.ok()) << simulator.status();
  return *std::move(simulator);
}

// Plain LRU over blocks that knows no tree: a request touches the stored prefix tail to head and
// inserts the rest below it; its own blocks never leave for it.
class NaiveLru {
 public:
  explicit NaiveLru(size_t capacity) : capacity_(capacity) {}

  uint64_t Request(const Chain& chain) {
    uint64_t hits = 0;
    while (hits < chain.size() && where_.contains(chain[hits])) ++hits;
    // How many of the rest fit beside the hits: everything else may leave.
    const size_t kept = std::min(chain.size(), capacity_);
    for (uint64_t i = 0; i < hits; ++i) Forget(chain[i]);
    while (order_.size() + kept > capacity_) Forget(order_.back());
    for (uint64_t i = kept; i > 0; --i) {
      order_.push_front(chain[i - 1]);
      where_[chain[i - 1]] = order_.begin();
    }
    return hits;
  }

 private:
  void Forget(uint64_t id) {
    order_.erase(where_.at(id));
    where_.erase(id);
  }

  const size_t capacity_;
  std::list<uint64_t> order_;  // The last used first.
  std::unordered_map<uint64_t, std::list<uint64_t>::iterator> where_;
};

// Conversations that grow, branch and come back. Every id has one predecessor.
std::vector<Chain> RandomTrace(uint32_t seed, size_t requests) {
  std::mt19937 random(seed);
  std::vector<Chain> chains = {{}};
  uint64_t next_id = 0;
  for (size_t i = 0; i < requests; ++i) {
    Chain chain = chains[random() % chains.size()];
    if (random() % 3 == 0 && !chain.empty()) chain.resize(random() % chain.size() + 1);
    if (chain.size() > 60) chain.resize(3);
    for (uint32_t n = random() % 8; n > 0; --n) chain.push_back(next_id++);
    chains.push_back(std::move(chain));
  }
  return chains;
}

TEST(SimTest, CountsWhatAPlainLruCounts) {
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    const std::vector<Chain> trace = RandomTrace(seed, 400);
    for (const size_t capacity : {1, 2, 7, 30, 100, 700, 5000}) {
      SCOPED_TRACE(testing::Message() << "seed " << seed << ", capacity " << capacity);
      const std::unique_ptr<Simulator> simulator = MustCreate(capacity);
      NaiveLru model(capacity);
      uint64_t hits = 0;
      for (const Chain& chain : trace) {
        hits += model.Request(chain);
        simulator->Request(chain);
      }
      EXPECT_EQ(simulator->Result().blocks_hit, hits);
      EXPECT_EQ(simulator->Result().stranded_blocks, 0);
    }
  }
}

TEST(SimTest, APrefixIsHitUpToTheFirstMissingBlock) {
  const std::unique_ptr<Simulator> simulator = MustCreate(10);
  simulator->Request({1, 2, 3});
  simulator->Request({1, 2, 4});

  const SimResult result = simulator->Result();

  EXPECT_EQ(result.requests, 2);
  EXPECT_EQ(result.blocks_asked, 6);
  EXPECT_EQ(result.blocks_hit, 2);
  EXPECT_EQ(result.blocks_stored, 4);
  EXPECT_EQ(result.evicted_blocks, 0);
}

TEST(SimTest, TheLeafUsedLongestAgoLeaves) {
  const std::unique_ptr<Simulator> simulator = MustCreate(4);
  simulator->Request({1, 2});
  simulator->Request({3, 4});
  simulator->Request({1, 2});
  simulator->Request({5});  // 4 leaves.
  const uint64_t before = simulator->Result().blocks_hit;

  simulator->Request({3, 4});

  EXPECT_EQ(simulator->Result().blocks_hit - before, 1);
}

TEST(SimTest, AChainLongerThanTheCapacityKeepsItsHead) {
  const std::unique_ptr<Simulator> simulator = MustCreate(4);
  simulator->Request({1, 2});
  Chain chain;
  for (uint64_t id = 10; id < 20; ++id) chain.push_back(id);

  simulator->Request(chain);
  const uint64_t before = simulator->Result().blocks_hit;
  simulator->Request(chain);

  const SimResult result = simulator->Result();
  EXPECT_EQ(result.blocks_hit - before, 4);
  EXPECT_EQ(result.evicted_blocks, 2);
}

TEST(SimTest, ARequestDoesNotEvictThePrefixThatItHit) {
  const std::unique_ptr<Simulator> simulator = MustCreate(4);
  simulator->Request({1, 2, 3});
  simulator->Request({1, 2, 3, 4, 5, 6});

  simulator->Request({1, 2, 3, 4});

  EXPECT_EQ(simulator->Result().blocks_hit, 3 + 4);
}

TEST(SimTest, ABlockWithTwoPredecessorsEndsTheChain) {
  const std::unique_ptr<Simulator> simulator = MustCreate(10);
  simulator->Request({1, 2, 3});
  simulator->Request({4, 2, 5});  // 2 hangs below 1: neither it nor 5 is stored again.

  const SimResult result = simulator->Result();

  EXPECT_EQ(result.blocks_hit, 0);
  EXPECT_EQ(result.blocks_stored, 4);
  EXPECT_EQ(result.stranded_blocks, 0);
}

TEST(SimTest, ARequestWithoutBlocksCountsAsOne) {
  const std::unique_ptr<Simulator> simulator = MustCreate(1);
  simulator->Request({});

  EXPECT_EQ(simulator->Result().requests, 1);
  EXPECT_EQ(simulator->Result().hit_ratio(), 0);
}

TEST(SimTest, AnUnknownPolicyNamesTheKnownOnes) {
  const absl::StatusOr<std::unique_ptr<Simulator>> simulator = Simulator::Create("best", 10);

  EXPECT_EQ(simulator.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(simulator.status().message()), testing::HasSubstr("\"best\""));
  EXPECT_THAT(std::string(simulator.status().message()), testing::HasSubstr("lru"));
}

TEST(SimTest, ACapacityOfNothingIsRefused) {
  EXPECT_EQ(Simulator::Create("lru", 0).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Simulator::Create("lru", uint64_t{1} << 30).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(SimTest, TheRecordedTraceGivesTheKnownHitRatios) {
  const absl::StatusOr<std::vector<SimResult>> results =
      Simulate({.trace = KVD_SOURCE_DIR "/bench/traces/mooncake_conversation.kvtrace",
                .policies = {"lru"},
                .capacities_blocks = {1828, 18279, 182790}});

  ASSERT_TRUE(results.ok()) << results.status();
  ASSERT_EQ(results->size(), 3);
  EXPECT_NEAR((*results)[0].hit_ratio(), 0.0525, 0.0001);
  EXPECT_NEAR((*results)[1].hit_ratio(), 0.2789, 0.0001);
  EXPECT_EQ((*results)[2].blocks_stored, 182790);
  for (const SimResult& result : *results) {
    EXPECT_EQ(result.requests, 12031);
    EXPECT_EQ(result.blocks_asked, 288500);
    EXPECT_EQ(result.stranded_blocks, 0);
  }
}

TEST(SimTest, ALimitTakesTheFirstRequests) {
  const absl::StatusOr<std::vector<SimResult>> results =
      Simulate({.trace = KVD_SOURCE_DIR "/bench/traces/mooncake_conversation.kvtrace",
                .policies = {"lru"},
                .capacities_blocks = {1000, 2000},
                .limit = 17});

  ASSERT_TRUE(results.ok()) << results.status();
  EXPECT_EQ((*results)[0].requests, 17);
  EXPECT_EQ((*results)[1].capacity_blocks, 2000);
}

// --- two tiers -----------------------------------------------------------------------------------

SimResult RunTwoTiers(const std::vector<Chain>& trace, uint64_t capacity, uint64_t nvme,
                      const std::string& admission) {
  auto simulator = TwoTierSimulator::Create("lru", capacity, nvme, admission);
  EXPECT_TRUE(simulator.ok()) << simulator.status();
  for (const Chain& chain : trace) (*simulator)->Request(chain);
  return (*simulator)->Result();
}

uint64_t HitsOfOneTier(const std::vector<Chain>& trace, uint64_t capacity) {
  const std::unique_ptr<Simulator> simulator = MustCreate(capacity);
  for (const Chain& chain : trace) simulator->Request(chain);
  return simulator->Result().blocks_hit;
}

TEST(TwoTierSimTest, NvmeThatTakesAllIsWorthAsMuchDram) {
  for (uint32_t seed = 1; seed <= 10; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    const std::vector<Chain> trace = RandomTrace(seed, 2000);
    const SimResult both = RunTwoTiers(trace, 200, 800, "all");
    const uint64_t small = HitsOfOneTier(trace, 200);
    const uint64_t large = HitsOfOneTier(trace, 1000);
    EXPECT_EQ(both.stranded_blocks, 0u);
    EXPECT_GT(both.nvme_blocks_hit, 0u);
    EXPECT_LE(both.nvme_blocks_hit, both.blocks_hit);
    EXPECT_GT(both.blocks_hit, small);
    // What is in both tiers counts twice, so a little less than one tier of the sum.
    EXPECT_GT(static_cast<double>(both.blocks_hit), 0.9 * static_cast<double>(large));
  }
}

TEST(TwoTierSimTest, AdmissionSaysWhatIsWritten) {
  const std::vector<Chain> trace = RandomTrace(3, 2000);
  const SimResult all = RunTwoTiers(trace, 200, 800, "all");
  const SimResult some = RunTwoTiers(trace, 200, 800, "second-touch");
  const SimResult none = RunTwoTiers(trace, 200, 800, "none");
  EXPECT_GT(some.nvme_blocks_written, 0u);
  EXPECT_LT(some.nvme_blocks_written, all.nvme_blocks_written);
  EXPECT_EQ(none.nvme_blocks_written, 0u);
  EXPECT_EQ(none.nvme_blocks_hit, 0u);
  EXPECT_GT(some.blocks_hit, none.blocks_hit);
}

TEST(TwoTierSimTest, BadArgumentsAreNamed) {
  EXPECT_TRUE(absl::IsInvalidArgument(TwoTierSimulator::Create("lru", 10, 10, "some").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(TwoTierSimulator::Create("mru", 10, 10, "all").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(TwoTierSimulator::Create("lru", 0, 10, "all").status()));
}

}  // namespace
}  // namespace kvd
