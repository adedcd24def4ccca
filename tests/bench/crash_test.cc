// kvd-bench crash and kvd together, as they are built: KVD_CRASH_CYCLES kills, of which every kill
// point has its share.
#include "bench/crash.h"

#include <sys/wait.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/testing/run_size.h"

namespace kvd {
namespace {

std::string OutputOf(const std::string& arguments, int* exit_status) {
  std::string output;
  FILE* pipe = popen(absl::StrCat(KVD_BENCH, " ", arguments).c_str(), "r");
  if (pipe == nullptr) return output;
  std::array<char, 4096> bytes;
  while (const size_t got = fread(bytes.data(), 1, bytes.size(), pipe)) {
    output.append(bytes.data(), got);
  }
  const int status = pclose(pipe);
  *exit_status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return output;
}

// Kills a daemon `cycles` times and returns what the program printed.
nlohmann::json Crash(const std::string& arguments, uint64_t cycles) {
  const uint64_t seed = NumberFromEnvironment("KVD_SEED", 1);
  int exit_status = -1;
  const std::string output =
      OutputOf(absl::StrCat("crash --cycles ", cycles, " --seed ", seed, " --json ", arguments),
               &exit_status);
  return nlohmann::json::parse(output, nullptr, /*allow_exceptions=*/false);
}

TEST(CrashTest, NoKillBreaksAPromiseOfMemory) {
  const uint64_t cycles = NumberFromEnvironment("KVD_CRASH_CYCLES", 60);
  const nlohmann::json json = Crash("--nvme-bytes 0", cycles);
  ASSERT_FALSE(json.is_discarded());
  SCOPED_TRACE(json.dump(2));
  EXPECT_EQ(json["cycles"], cycles);
  EXPECT_EQ(json["wrong_blocks"], 0);
  EXPECT_EQ(json["failed_starts"], 0);
  EXPECT_GT(json["blocks_verified"], 10 * cycles);
  // The promise is 0.99 of many; in so few cycles, one restart that finds memory full and evicts is
  // more than a hundredth of all.
  EXPECT_GE(json["hits_after_restart_ratio"]["dram"], 0.95);
}

// Of blocks that were in memory alone some leave for puts that do not wait for the disk, where a
// restart finds memory full: that ratio is told, not judged.
TEST(CrashTest, NoKillBreaksAPromiseOfBothTiers) {
  const uint64_t cycles = NumberFromEnvironment("KVD_CRASH_CYCLES", 300);
  const nlohmann::json json = Crash("", cycles);
  ASSERT_FALSE(json.is_discarded());
  SCOPED_TRACE(json.dump(2));
  EXPECT_EQ(json["cycles"], cycles);
  EXPECT_EQ(json["wrong_blocks"], 0);
  EXPECT_EQ(json["failed_starts"], 0);
  EXPECT_GT(json["blocks_verified"], 10 * cycles);
  EXPECT_GE(json["hits_after_restart_ratio"]["nvme"], 0.999);
  EXPECT_GE(json["kills_by_point"].size(), 41u) << "with the random ones";
  EXPECT_GT(json["kills_by_point"]["random"], cycles / 4);
}

TEST(CrashTest, ADaemonThatDoesNotStartIsAnError) {
  int exit_status = -1;
  OutputOf("crash --cycles 1 --daemon /bin/false --json > /dev/null 2>&1", &exit_status);
  EXPECT_EQ(exit_status, 1);
}

TEST(CrashTest, WhatIsBrokenIsSaid) {
  CrashResult fine;
  EXPECT_TRUE(JudgeCrash(fine).ok());
  EXPECT_TRUE(std::isnan(fine.dram.ratio()));

  CrashResult wrong = fine;
  wrong.wrong_blocks = 1;
  EXPECT_EQ(JudgeCrash(wrong).message(), "1 wrong blocks");
  CrashResult failed = fine;
  failed.failed_starts = 1;
  failed.first_failure = "cycle 3: no";
  EXPECT_EQ(JudgeCrash(failed).message(), "1 failed starts; cycle 3: no");
  CrashResult lost = fine;
  lost.dram = {.expected = 1000, .found = 989};
  EXPECT_FALSE(JudgeCrash(lost).ok());
  lost.dram.found = 990;
  EXPECT_TRUE(JudgeCrash(lost).ok());
  lost.nvme = {.expected = 10'000, .found = 9989};
  EXPECT_FALSE(JudgeCrash(lost).ok());
  CrashResult unvisited = fine;
  unvisited.cycles = 100'000;
  unvisited.kills_by_point["load.held"] = 0;
  EXPECT_EQ(JudgeCrash(unvisited).message(), "nothing passed the kill point load.held");
}

}  // namespace
}  // namespace kvd
