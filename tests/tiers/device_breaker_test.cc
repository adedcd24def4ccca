#include "tiers/device_breaker.h"

#include <gtest/gtest.h>

namespace kvd {
namespace {

TEST(DeviceBreakerTest, TenFailuresOfAThousandTakeItOut) {
  DeviceBreaker breaker({});
  for (int i = 0; i < 2000; ++i) breaker.Ended(true, i);
  for (int i = 0; i < 9; ++i) breaker.Ended(false, i);
  EXPECT_FALSE(breaker.out());
  breaker.Ended(false, 0);
  EXPECT_TRUE(breaker.out());
  EXPECT_EQ(breaker.changes(), 1u);
}

TEST(DeviceBreakerTest, FailuresAreForgottenAfterAThousandJobs) {
  DeviceBreaker breaker({});
  for (int round = 0; round < 5; ++round) {
    for (int i = 0; i < 9; ++i) breaker.Ended(false, 0);
    for (int i = 0; i < 991; ++i) breaker.Ended(true, 0);
  }
  EXPECT_FALSE(breaker.out());
}

TEST(DeviceBreakerTest, NoProgressForTwoSecondsTakesItOut) {
  DeviceBreaker breaker({});
  breaker.Began(1, 10 * kSecond);
  breaker.Began(2, 11 * kSecond);
  EXPECT_EQ(breaker.CheckAt(), 12 * kSecond);
  breaker.Check(2, 12 * kSecond - 1);
  EXPECT_FALSE(breaker.out());
  breaker.Check(2, 12 * kSecond);
  EXPECT_TRUE(breaker.out());
}

TEST(DeviceBreakerTest, SlowProgressIsProgress) {
  DeviceBreaker breaker({});
  breaker.Began(1, 0);
  for (Nanos now = kSecond; now < 100 * kSecond; now += kSecond) {
    breaker.Ended(true, now);
    breaker.Check(5, now + kSecond - 1);
  }
  EXPECT_FALSE(breaker.out());
  breaker.Check(0, 1000 * kSecond);  // Nothing is asked of it.
  EXPECT_FALSE(breaker.out());
}

TEST(DeviceBreakerTest, AProbeBringsItBack) {
  DeviceBreaker breaker({});
  breaker.Began(1, 0);
  breaker.Check(1, 2 * kSecond);
  ASSERT_TRUE(breaker.out());
  EXPECT_EQ(breaker.ProbeAt(), 7 * kSecond);
  breaker.ProbeBegan(7 * kSecond);
  breaker.ProbeEnded(false, 8 * kSecond);
  EXPECT_TRUE(breaker.out());
  EXPECT_EQ(breaker.ProbeAt(), 12 * kSecond);
  breaker.ProbeEnded(true, 13 * kSecond);
  EXPECT_FALSE(breaker.out());
  EXPECT_EQ(breaker.changes(), 2u);
  for (int i = 0; i < 9; ++i) breaker.Ended(false, 0);  // It begins anew.
  EXPECT_FALSE(breaker.out());
}

}  // namespace
}  // namespace kvd
