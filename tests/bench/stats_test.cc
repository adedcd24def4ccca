#include "bench/stats.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"

namespace kvd {
namespace {

TEST(StatsTest, MedianIsTheMiddleWhateverTheOrder) {
  EXPECT_DOUBLE_EQ(Median({3, 1, 2}), 2);
  EXPECT_DOUBLE_EQ(Median({4, 1, 3, 2}), 2.5);
  EXPECT_DOUBLE_EQ(Median({7}), 7);
}

TEST(StatsTest, PercentilesInterpolate) {
  std::vector<double> values;
  for (int i = 100; i >= 0; --i) values.push_back(i);
  EXPECT_DOUBLE_EQ(Percentile(values, 0), 0);
  EXPECT_DOUBLE_EQ(Percentile(values, 50), 50);
  EXPECT_DOUBLE_EQ(Percentile(values, 99), 99);
  EXPECT_DOUBLE_EQ(Percentile(values, 99.5), 99.5);
  EXPECT_DOUBLE_EQ(Percentile(values, 100), 100);
  EXPECT_DOUBLE_EQ(Percentile({10, 20}, 99), 19.9);
}

TEST(StatsTest, MinAndMax) {
  const std::vector<double> values = {2, -1, 5};
  EXPECT_DOUBLE_EQ(Min(values), -1);
  EXPECT_DOUBLE_EQ(Max(values), 5);
}

TEST(StatsTest, OfNothingIsNaN) {
  EXPECT_TRUE(std::isnan(Median({})));
  EXPECT_TRUE(std::isnan(Percentile({}, 99)));
  EXPECT_TRUE(std::isnan(Min({})));
  EXPECT_TRUE(std::isnan(Max({})));
}

}  // namespace
}  // namespace kvd
