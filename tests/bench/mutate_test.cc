// kvd-bench mutate and kvd together, as they are built: what is damaged is never served, and each
// damaged copy is met and counted. KVD_MUTATIONS and KVD_SEED say how many mutations, and which.
#include "bench/mutate.h"

#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/testing/run_size.h"

namespace kvd {
namespace {

TEST(MutateTest, WhatIsDamagedIsNotServed) {
  const uint64_t seed = NumberFromEnvironment("KVD_SEED", 1);
  const uint64_t mutations = NumberFromEnvironment("KVD_MUTATIONS", 10'000);
  const std::string command =
      absl::StrCat(KVD_BENCH, " mutate --mutations ", mutations, " --seed ", seed, " --json");
  FILE* pipe = popen(command.c_str(), "r");
  ASSERT_NE(pipe, nullptr);
  std::string output;
  std::array<char, 4096> bytes;
  while (const size_t got = fread(bytes.data(), 1, bytes.size(), pipe)) {
    output.append(bytes.data(), got);
  }
  const int status = pclose(pipe);
  const nlohmann::json json = nlohmann::json::parse(output, nullptr, /*allow_exceptions=*/false);
  ASSERT_FALSE(json.is_discarded()) << output << status;
  SCOPED_TRACE(output);

  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_EQ(json["mutations"], mutations);
  EXPECT_GT(json["damaging"], mutations / 2);
  EXPECT_EQ(json["detected"], json["damaging"])
      << "kvd-bench mutate --mutations " << mutations << " --seed " << seed;
  EXPECT_EQ(json["wrong_blocks"], 0);
  EXPECT_EQ(json["crashes"], 0);
}

TEST(MutateTest, WhatWasNotNoticedIsSaid) {
  MutateResult result{.mutations = 10, .damaging = 5, .detected = 5};
  EXPECT_TRUE(JudgeMutate(result).ok());
  result.detected = 4;
  EXPECT_FALSE(JudgeMutate(result).ok());
  result.detected = 5;
  result.crashes = 1;
  EXPECT_FALSE(JudgeMutate(result).ok());
  result.crashes = 0;
  result.wrong_blocks = 1;
  EXPECT_FALSE(JudgeMutate(result).ok());
  result.wrong_blocks = 0;
  result.first_failure = "something could not be looked at";
  EXPECT_FALSE(JudgeMutate(result).ok());
}

}  // namespace
}  // namespace kvd
