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

// Kills a daemon with an NVMe tier of so many bytes, again and again, and returns what the program
// printed of it, in which no promise is broken.
nlohmann::json CrashBreaksNothing(uint64_t default_cycles, uint64_t nvme_bytes) {
  const uint64_t cycles = NumberFromEnvironment("KVD_CRASH_CYCLES", default_cycles);
  const uint64_t seed = NumberFromEnvironment("KVD_SEED", 1);
  int exit_status = -1;
  const std::string output = OutputOf(absl::StrCat("crash --cycles ", cycles, " --seed ", seed,
                                                   " --nvme-bytes ", nvme_bytes, " --json"),
                                      &exit_status);
  nlohmann::json json = nlohmann::json::parse(output, nullptr, /*allow_exceptions=*/false);
  EXPECT_FALSE(json.is_discarded()) << output;
  if (json.is_discarded()) return nlohmann::json::object();
  SCOPED_TRACE(json.dump(2));
  EXPECT_EQ(exit_status, 0);
  EXPECT_EQ(json["cycles"], cycles);
  EXPECT_EQ(json["wrong_blocks"], 0);
  EXPECT_EQ(json["failed_starts"], 0);
  EXPECT_GT(json["blocks_verified"], 10 * cycles);
  EXPECT_GT(json["kills_by_point"]["random"], cycles / 4);
  EXPECT_GE(json["hits_after_restart_ratio"]["dram"], 0.99);
  return json;
}

TEST(CrashTest, NoKillBreaksAPromiseOfMemory) {
  const nlohmann::json json = CrashBreaksNothing(100, 0);
  EXPECT_TRUE(json["hits_after_restart_ratio"]["nvme"].is_null()) << "nothing was on NVMe";
}

TEST(CrashTest, NoKillBreaksAPromiseOfBothTiers) {
  const nlohmann::json json = CrashBreaksNothing(300, CrashOptions().nvme_bytes);
  EXPECT_GE(json["hits_after_restart_ratio"]["nvme"], 0.999);
  EXPECT_GE(json["kills_by_point"].size(), 41u) << "with the random ones";
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
