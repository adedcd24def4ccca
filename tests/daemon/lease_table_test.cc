#include "daemon/lease_table.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <vector>

#include "tests/testing/run_size.h"

namespace kvd {
namespace {

TEST(LeaseTableTest, RemembersWhatALeaseIs) {
  LeaseTable table(4);
  const LeaseId id = table.Add(/*block=*/7, /*owner=*/2, /*expires=*/100);
  ASSERT_NE(id, 0u);
  ASSERT_NE(table.Find(id), nullptr);
  EXPECT_EQ(table.Find(id)->block, 7u);
  EXPECT_EQ(table.Find(id)->owner, 2u);
  EXPECT_EQ(table.CountOf(2), 1u);
  EXPECT_EQ(table.AnyOf(2), id);
  EXPECT_EQ(table.AnyOf(3), 0u);
  EXPECT_EQ(table.Remove(id)->block, 7u);
  EXPECT_FALSE(table.Remove(id).has_value());
  EXPECT_EQ(table.Find(id), nullptr);
  EXPECT_EQ(table.size(), 0u);
}

TEST(LeaseTableTest, SaysWhenItIsFull) {
  LeaseTable table(2);
  const LeaseId first = table.Add(1, 0, 10);
  EXPECT_NE(table.Add(2, 0, 10), 0u);
  EXPECT_EQ(table.Add(3, 0, 10), 0u);
  table.Remove(first);
  EXPECT_NE(table.Add(3, 0, 10), 0u);
}

TEST(LeaseTableTest, NeverGivesANumberTwice) {
  LeaseTable table(1);
  const LeaseId first = table.Add(1, 0, 10);
  table.Remove(first);
  const LeaseId second = table.Add(1, 0, 10);
  EXPECT_NE(first, second);
  EXPECT_EQ(table.Find(first), nullptr);
  EXPECT_FALSE(table.Remove(first).has_value());
}

TEST(LeaseTableTest, IgnoresNumbersThatItNeverGave) {
  LeaseTable table(2);
  table.Add(1, 0, 10);
  for (const LeaseId id : {LeaseId{0}, LeaseId{1}, LeaseId{3}, uint64_t{1} << 32, ~LeaseId{0}}) {
    EXPECT_EQ(table.Find(id), nullptr) << id;
    EXPECT_FALSE(table.Remove(id).has_value()) << id;
  }
}

TEST(LeaseTableTest, ExpiresAtTheTimeAndNotBefore) {
  LeaseTable table(2);
  const LeaseId id = table.Add(1, 0, 100);
  EXPECT_EQ(table.Expired(99), 0u);
  EXPECT_EQ(table.Expired(100), id);
}

TEST(LeaseTableTest, PinsBelongToNoSession) {
  LeaseTable table(2);
  const LeaseId pin = table.Add(1, LeaseTable::kPinOwner, 100);
  EXPECT_EQ(table.AnyOf(0), 0u);
  EXPECT_EQ(table.Remove(pin)->owner, LeaseTable::kPinOwner);
}

TEST(LeaseTableTest, EqualsAMap) {
  std::mt19937_64 random(NumberFromEnvironment("KVD_SEED", 1));
  LeaseTable table(200);
  std::map<LeaseId, LeaseTable::Lease> model;
  for (uint64_t step = 0; step < RoundsForThisBuild(400'000); ++step) {
    const auto some = [&] {
      auto it = model.begin();
      std::advance(it, static_cast<ptrdiff_t>(random() % model.size()));
      return it;
    };
    if (random() % 2 == 0) {
      const LeaseTable::Lease lease{static_cast<BlockRef>(random() % 1000),
                                    static_cast<uint32_t>(random() % 8),
                                    static_cast<Nanos>(random() % 1000)};
      const LeaseId id = table.Add(lease.block, lease.owner, lease.expires);
      ASSERT_EQ(id == 0, model.size() == 200);
      if (id != 0) {
        ASSERT_TRUE(model.emplace(id, lease).second);
      }
    } else if (!model.empty()) {
      const auto it = random() % 64 == 0 ? model.begin() : some();
      ASSERT_EQ(table.Remove(it->first)->block, it->second.block);
      model.erase(it);
    }
    ASSERT_EQ(table.size(), model.size());
    if (step % 64 != 0) continue;
    Nanos soonest = INT64_MAX;
    uint32_t counts[8] = {};
    for (const auto& [id, lease] : model) {
      soonest = std::min(soonest, lease.expires);
      ++counts[lease.owner];
    }
    for (uint32_t owner = 0; owner < 8; ++owner) {
      ASSERT_EQ(table.CountOf(owner), counts[owner]);
      const LeaseId any = table.AnyOf(owner);
      ASSERT_EQ(any == 0, counts[owner] == 0);
      if (any != 0) {
        ASSERT_EQ(model.at(any).owner, owner);
      }
    }
    if (model.empty()) continue;
    ASSERT_EQ(table.Expired(soonest - 1), 0u);
    ASSERT_EQ(model.at(table.Expired(soonest)).expires, soonest);
  }
}

}  // namespace
}  // namespace kvd
