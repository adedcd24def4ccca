// kvd-bench hostile and kvd together, as they are built: nothing wrong and nothing left over. Times
// are for a quiet machine to judge, not for a test.
#include "bench/hostile.h"

#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace kvd {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

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

TEST(HostileTest, WellBehavedClientsGetTheirBytesAndNothingIsLeftOver) {
  int exit_status = -1;
  const std::string output = OutputOf("hostile --seconds 6 --json 2>/dev/null", &exit_status);
  const nlohmann::json json = nlohmann::json::parse(output, nullptr, /*allow_exceptions=*/false);
  ASSERT_FALSE(json.is_discarded()) << output << exit_status;

  EXPECT_EQ(json["wrong_blocks"], 0);
  EXPECT_GT(json["blocks_checked"], 0);
  EXPECT_EQ(json["newcomer"], "");
  for (const char* what : {"sessions", "holds", "leases", "reservations"}) {
    EXPECT_EQ(json["left_over"][what], 0) << what;
  }
  for (const auto& [attack, times] : json["attacks"].items()) EXPECT_GT(times, 0) << attack;
  EXPECT_GT(json["memory"]["before"], 0);
  ASSERT_EQ(json["phases"].size(), 8u);
  for (const auto& phase : json["phases"]) EXPECT_GT(phase["samples"], 0) << phase;
}

TEST(HostileTest, ADaemonThatIsNotThereIsAnError) {
  int exit_status = -1;
  const std::string output = OutputOf("hostile --daemon nowhere 2>&1", &exit_status);

  EXPECT_EQ(exit_status, 1);
  EXPECT_THAT(output, HasSubstr("--daemon: not unix:PATH: nowhere"));
}

HostileResult Good() {
  HostileResult result;
  result.phases = {
      {.name = "quiet", .p50_us = 50, .p99_us = 100, .ratio_p99 = 1},
      {.name = "all", .p50_us = 60, .p99_us = 9'000, .ratio_p99 = 90, .oversized = true}};
  result.blocks_checked = 1;
  result.memory_before = 100;
  result.memory_after = 105;
  return result;
}

TEST(HostileTest, EachBarThatIsMissedIsASentence) {
  EXPECT_THAT(MissedHostileBars(Good()), IsEmpty());

  HostileResult slow = Good();
  slow.phases[1].oversized = false;
  EXPECT_THAT(MissedHostileBars(slow), ElementsAre(HasSubstr("all: lookup p99 9000 us")));
  HostileResult slower = Good();
  slower.phases[1].p99_us = 10'001;
  EXPECT_THAT(MissedHostileBars(slower), ElementsAre(HasSubstr("all: lookup p99")));
  HostileResult wrong = Good();
  wrong.wrong_blocks = 1;
  EXPECT_THAT(MissedHostileBars(wrong), ElementsAre(HasSubstr("wrong bytes")));
  HostileResult large = Good();
  large.memory_after = 106;
  EXPECT_THAT(MissedHostileBars(large), ElementsAre(HasSubstr("memory is 1.060")));
  HostileResult left = Good();
  left.left_leases = 2;
  EXPECT_THAT(MissedHostileBars(left), ElementsAre("2 leases are left over"));
  HostileResult shut = Good();
  shut.newcomer = "no";
  EXPECT_THAT(MissedHostileBars(shut), ElementsAre(HasSubstr("afterwards was not served: no")));
}

}  // namespace
}  // namespace kvd
