#include "daemon/hold_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <vector>

#include "tests/testing/run_size.h"

namespace kvd {
namespace {

using testing::ElementsAre;

std::vector<PartRef> CloseAll(HoldTable& table, HoldId id) {
  std::vector<PartRef> parts;
  table.Close(id);
  table.Drain(UINT32_MAX, [&parts](PartRef part) { parts.push_back(part); });
  return parts;
}

TEST(HoldTableTest, GivesTheirPartsBackInOrder) {
  HoldTable table({.max_holds = 2, .max_extents = 8});
  const HoldId id = table.Open(3);
  EXPECT_TRUE(table.Append(id, 11, 100));
  EXPECT_TRUE(table.Append(id, 0, 0));  // A part that was not there: only counted.
  EXPECT_TRUE(table.Append(id, 12, 200));
  EXPECT_TRUE(table.Has(id, 3));
  EXPECT_FALSE(table.Has(id, 4));
  EXPECT_EQ(table.extents(id), 3u);
  EXPECT_EQ(table.bytes(id), 300u);
  EXPECT_EQ(table.held_bytes(3), 300u);
  EXPECT_EQ(table.At(id, 0), 11u);
  EXPECT_EQ(table.At(id, 1), 0u);
  EXPECT_EQ(table.At(id, 2), 12u);
  EXPECT_EQ(table.At(id, 3), 0u);
  EXPECT_EQ(table.At(id, 1000), 0u);
  EXPECT_THAT(CloseAll(table, id), ElementsAre(11, 12));
  EXPECT_FALSE(table.Has(id, 3));
  EXPECT_EQ(table.held_bytes(3), 0u);
  EXPECT_EQ(table.total_extents(), 0u);
  EXPECT_EQ(table.total_bytes(), 0u);
}

TEST(HoldTableTest, GivesTheirPartsBackALittleAtATime) {
  HoldTable table({.max_holds = 2, .max_extents = 4});
  const HoldId a = table.Open(0);
  const HoldId b = table.Open(0);
  for (const PartRef part : {11, 12, 13}) EXPECT_TRUE(table.Append(a, part, 1));
  EXPECT_TRUE(table.Append(b, 21, 1));
  std::vector<PartRef> parts;
  const auto drain = [&](uint32_t most) {
    table.Drain(most, [&parts](PartRef part) { parts.push_back(part); });
  };
  EXPECT_TRUE(table.drained());
  table.Close(a);
  EXPECT_EQ(table.held_bytes(0), 1u);
  drain(2);
  EXPECT_THAT(parts, ElementsAre(11, 12));
  EXPECT_FALSE(table.drained());
  table.Close(b);
  drain(2);
  EXPECT_THAT(parts, ElementsAre(11, 12, 13, 21));
  EXPECT_TRUE(table.drained());
}

TEST(HoldTableTest, SaysWhenItIsFull) {
  HoldTable table({.max_holds = 1, .max_extents = 2});
  const HoldId id = table.Open(0);
  EXPECT_EQ(table.Open(0), 0u);
  EXPECT_TRUE(table.Append(id, 1, 1));
  EXPECT_TRUE(table.Append(id, 2, 1));
  EXPECT_FALSE(table.Append(id, 3, 1));
  EXPECT_EQ(table.extents(id), 2u);
  CloseAll(table, id);
  const HoldId next = table.Open(0);
  EXPECT_NE(next, id);  // Never the same number twice.
  EXPECT_FALSE(table.Has(id, 0));
  EXPECT_TRUE(table.Append(next, 3, 1));
}

TEST(HoldTableTest, IgnoresNumbersThatItNeverGave) {
  HoldTable table({.max_holds = 2, .max_extents = 2});
  table.Open(0);
  for (const HoldId id :
       {HoldId{0}, HoldId{1}, HoldId{2}, HoldId{9}, uint64_t{1} << 32, ~HoldId{0}}) {
    EXPECT_FALSE(table.Has(id, 0)) << id;
  }
  EXPECT_EQ(table.AnyOf(7), 0u);
  EXPECT_EQ(table.held_bytes(7), 0u);
}

TEST(HoldTableTest, EqualsAMap) {
  struct Model {
    uint32_t session;
    std::vector<PartRef> parts;
  };
  std::mt19937_64 random(NumberFromEnvironment("KVD_SEED", 1));
  HoldTable table({.max_holds = 40, .max_extents = 300});
  std::map<HoldId, Model> model;
  size_t extents = 0;
  for (uint64_t step = 0; step < RoundsForThisBuild(300'000); ++step) {
    const auto some = [&] {
      auto it = model.begin();
      std::advance(it, static_cast<ptrdiff_t>(random() % model.size()));
      return it;
    };
    const uint64_t dice = random() % 10;
    if (dice < 2) {
      const auto session = static_cast<uint32_t>(random() % 5);
      const HoldId id = table.Open(session);
      ASSERT_EQ(id == 0, model.size() == 40);
      if (id != 0) {
        ASSERT_TRUE(model.emplace(id, Model{session, {}}).second);
      }
    } else if (dice < 8 && !model.empty()) {
      const auto it = some();
      const auto part = static_cast<PartRef>(1 + random() % 1000);
      const bool appended = table.Append(it->first, part, part);
      ASSERT_EQ(appended, extents < 300);
      if (appended) {
        it->second.parts.push_back(part);
        ++extents;
      }
    } else if (!model.empty()) {
      const auto it = some();
      ASSERT_TRUE(table.Has(it->first, it->second.session));
      ASSERT_EQ(CloseAll(table, it->first), it->second.parts);
      extents -= it->second.parts.size();
      model.erase(it);
    }
    ASSERT_EQ(table.total_extents(), extents);
    if (step % 64 != 0) continue;
    std::map<uint32_t, uint64_t> bytes;
    for (const auto& [id, hold] : model) {
      for (const PartRef part : hold.parts) bytes[hold.session] += part;
    }
    for (uint32_t session = 0; session < 5; ++session) {
      ASSERT_EQ(table.held_bytes(session), bytes[session]);
      const HoldId any = table.AnyOf(session);
      if (any != 0) {
        ASSERT_EQ(model.at(any).session, session);
      }
    }
  }
}

}  // namespace
}  // namespace kvd
