#include "proto/types/nearest.h"

#include <string_view>

#include "gtest/gtest.h"

namespace kvd {
namespace {

TEST(NearestTest, TheNearestNameIsNearOrNone) {
  const std::string_view known[] = {"dram", "drain_timeout", "blocks"};
  EXPECT_EQ(Nearest("dramm", known), "dram");
  EXPECT_EQ(Nearest("darm", known), "dram");
  EXPECT_EQ(Nearest("drain-time-out", known), "drain_timeout");
  EXPECT_EQ(Nearest("block", known), "blocks");
  EXPECT_EQ(Nearest("colour", known), "");
  EXPECT_EQ(Nearest("", known), "");
}

}  // namespace
}  // namespace kvd
