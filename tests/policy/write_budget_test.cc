#include "policy/write_budget.h"

#include <gtest/gtest.h>

#include <random>

namespace kvd {
namespace {

constexpr uint64_t kGib = uint64_t{1} << 30;
constexpr Nanos kDay = 86'400 * kSecond;

TEST(WriteBudgetTest, WithoutALimitEverythingMay) {
  WriteBudget budget(0, 0);
  EXPECT_TRUE(budget.Take(UINT64_C(1) << 50, 0));
  EXPECT_TRUE(budget.Take(UINT64_C(1) << 50, 0));
  EXPECT_EQ(budget.taken_bytes(), UINT64_C(1) << 51);
  EXPECT_EQ(budget.available(0), INT64_MAX);
}

TEST(WriteBudgetTest, ADayOfTooMuchWritesTheBudgetAndItsBurst) {
  WriteBudget budget(1000 * kGib, 0);
  std::mt19937_64 random(7);
  for (Nanos now = 0; now < kDay; now += kSecond) budget.Take(random() % (100u << 20), now);
  EXPECT_GE(budget.taken_bytes(), 1000 * kGib);
  EXPECT_LE(budget.taken_bytes(), 1000 * kGib + budget.burst_bytes() + (100u << 20));
  EXPECT_GT(budget.refused_bytes(), 1000 * kGib);
}

TEST(WriteBudgetTest, AnIdleHourSavesUpOneMinute) {
  WriteBudget budget(1440 * kGib, 0);
  EXPECT_EQ(budget.burst_bytes(), kGib);
  EXPECT_EQ(budget.available(3600 * kSecond), static_cast<int64_t>(kGib));
  EXPECT_TRUE(budget.Take(kGib, 3600 * kSecond));
  EXPECT_FALSE(budget.Take(1, 3600 * kSecond));
}

TEST(WriteBudgetTest, ADebtIsPaidBeforeTheNext) {
  WriteBudget budget(1440 * kGib, 0);  // 1 GiB a minute.
  EXPECT_TRUE(budget.Take(3 * kGib, 0));
  EXPECT_FALSE(budget.Take(1, 119 * kSecond));
  EXPECT_TRUE(budget.Take(1, 121 * kSecond));
}

TEST(WriteBudgetTest, SmallStepsEarnWhatOneLargeOneDoes) {
  WriteBudget steps(1000, 0);  // A byte in 86 seconds.
  WriteBudget leap(1000, 0);
  ASSERT_TRUE(steps.Take(WriteBudget::kLeastBurst + 100, 0));
  ASSERT_TRUE(leap.Take(WriteBudget::kLeastBurst + 100, 0));
  for (Nanos now = 0; now <= kDay / 20; now += kSecond) steps.available(now);
  EXPECT_EQ(steps.available(kDay / 20), leap.available(kDay / 20));
  EXPECT_EQ(leap.available(kDay / 20), -50);
}

TEST(WriteBudgetTest, TimeThatStandsStillOrGoesBackEarnsNothing) {
  WriteBudget budget(1440 * kGib, kDay);
  EXPECT_TRUE(budget.Take(2 * kGib, kDay));
  EXPECT_EQ(budget.available(0), -static_cast<int64_t>(kGib));
  EXPECT_EQ(budget.available(kDay), -static_cast<int64_t>(kGib));
}

}  // namespace
}  // namespace kvd
