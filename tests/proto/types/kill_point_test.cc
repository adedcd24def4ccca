// A kill point kills where it says, when it says, and never unasked; each is somewhere.

#include "proto/types/kill_point.h"

#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>

#include "gtest/gtest.h"

namespace kvd {
namespace {

TEST(KillPointTest, NothingHappensUnarmed) { KVD_KILL_POINT("commit.part_visible"); }

TEST(KillPointTest, KillsAtTheNthPassing) {
  const auto pass = [](const char* order, int times) {
    if (!ArmKillPoint(order).ok()) _exit(2);
    for (int i = 0; i < times; ++i) {
      KVD_KILL_POINT("commit.part_visible");
      KVD_KILL_POINT("commit.before_part");
    }
    _exit(0);
  };
  EXPECT_EXIT(pass("commit.part_visible", 1), testing::KilledBySignal(SIGKILL), "");
  EXPECT_EXIT(pass("commit.part_visible:3", 3), testing::KilledBySignal(SIGKILL), "");
  EXPECT_EXIT(pass("commit.part_visible:3", 2), testing::ExitedWithCode(0), "");
  EXPECT_EXIT(pass("load.held", 9), testing::ExitedWithCode(0), "");
}

TEST(KillPointTest, WhatIsWrongWithAnOrderIsSaid) {
  EXPECT_EQ(ArmKillPoint("no.such").message(), "no kill point no.such");
  for (const char* order : {"load.held:", "load.held:0", "load.held:-1", "load.held:x", ""}) {
    EXPECT_FALSE(ArmKillPoint(order).ok()) << order;
  }
}

// A name that no code passes would be a point that is never tried.
TEST(KillPointTest, EachIsPassedInOnePlace) {
  std::map<std::string, int> places;
  const std::regex use("KVD_KILL_POINT\\(\"([^\"]*)\"\\)");
  for (const char* folder : {"daemon", "tiers", "cuda", "policy"}) {
    const std::filesystem::path path = std::filesystem::path(KVD_SOURCE_DIR) / folder;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(path)) {
      if (!entry.is_regular_file()) continue;
      std::stringstream text;
      text << std::ifstream(entry.path()).rdbuf();
      const std::string source = text.str();
      for (auto it = std::sregex_iterator(source.begin(), source.end(), use);
           it != std::sregex_iterator(); ++it) {
        ++places[(*it)[1]];
      }
    }
  }
  for (const std::string_view point : kKillPoints) {
    EXPECT_EQ(places[std::string(point)], 1) << point;
  }
  EXPECT_EQ(places.size(), kKillPointCount);
  EXPECT_EQ(std::set<std::string_view>(std::begin(kKillPoints), std::end(kKillPoints)).size(),
            kKillPointCount);
}

}  // namespace
}  // namespace kvd
