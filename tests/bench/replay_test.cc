// kvd-bench and kvd together, as they are built: that a replay counts what the simulator counts,
// and what a person sees when something is wrong.
#include "bench/replay.h"

#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "bench/daemon_process.h"
#include "bench/trace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace kvd {
namespace {

using testing::HasSubstr;

constexpr char kTrace[] = KVD_SOURCE_DIR "/bench/traces/mooncake_conversation.kvtrace";
constexpr uint64_t kLimit = 300;

struct Ended {
  int exit_status = -1;
  std::string output;
};

// Runs kvd-bench by the shell. `redirection` says what becomes of the two outputs.
Ended RunBench(const std::string& arguments, const std::string& redirection) {
  Ended ended;
  const std::string command = absl::StrCat(KVD_BENCH, " ", arguments, " ", redirection);
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return ended;
  std::array<char, 4096> bytes;
  while (const size_t got = fread(bytes.data(), 1, bytes.size(), pipe)) {
    ended.output.append(bytes.data(), got);
  }
  const int status = pclose(pipe);
  if (WIFEXITED(status)) ended.exit_status = WEXITSTATUS(status);
  return ended;
}

// What `arguments` print as JSON, when they succeed.
nlohmann::json MustPrint(const std::string& arguments) {
  const Ended ended = RunBench(arguments + " --json", "");
  EXPECT_EQ(ended.exit_status, 0) << arguments;
  nlohmann::json json = nlohmann::json::parse(ended.output, nullptr, /*allow_exceptions=*/false);
  EXPECT_FALSE(json.is_discarded()) << ended.output;
  return json;
}

std::string ErrorOf(const std::string& arguments) {
  const Ended ended = RunBench(arguments, "2>&1 >/dev/null");
  EXPECT_EQ(ended.exit_status, 1) << arguments;
  return ended.output;
}

std::string Limited(std::string_view subcommand) {
  return absl::StrCat(std::string(subcommand), " --trace ", kTrace, " --limit ", kLimit);
}

void ExpectKeptItsWord(const nlohmann::json& replay) {
  EXPECT_EQ(replay["stranded_blocks"], 0);
  EXPECT_EQ(replay["wrong_blocks"], 0);
  EXPECT_EQ(replay["damaged_parts"], 0);
  EXPECT_EQ(replay["refused_calls"], 0);
  EXPECT_EQ(replay["audit_errors"], 0);
}

// The trace again as JSON lines, with line `bad` cut in half; 0: none.
std::string WriteJsonLines(uint64_t lines, uint64_t bad) {
  const std::string path = absl::StrCat(testing::TempDir(), "/replay_test.", getpid(), ".jsonl");
  std::unique_ptr<TraceReader> reader = *TraceReader::Open(kTrace);
  std::ofstream file(path);
  TraceRequest request;
  for (uint64_t line = 1; line <= lines && *reader->Next(request); ++line) {
    std::string text;
    AppendJsonLine(request, text);
    if (line == bad) text = text.substr(0, text.size() / 2) + "\n";
    file << text;
  }
  return path;
}

class ReplayAtCapacity : public testing::TestWithParam<uint32_t> {};

TEST_P(ReplayAtCapacity, CountsWhatTheSimulatorCounts) {
  const std::string capacity = absl::StrCat(" --capacity-blocks ", GetParam());

  const nlohmann::json replay = MustPrint(Limited("replay") + capacity);
  const nlohmann::json sim = MustPrint(Limited("sim") + capacity + " --policy lru");

  ASSERT_EQ(sim.size(), 1);
  EXPECT_EQ(replay["requests"], kLimit);
  EXPECT_EQ(replay["capacity_blocks"], GetParam());
  for (const char* key : {"policy", "requests", "blocks_asked", "blocks_hit", "hit_ratio",
                          "blocks_stored", "stranded_blocks"}) {
    EXPECT_EQ(replay[key], sim[0][key]) << key;
  }
  ExpectKeptItsWord(replay);
}

// Less than one chain; less than the longest; one that evicts; room for all.
INSTANTIATE_TEST_SUITE_P(Capacities, ReplayAtCapacity, testing::Values(7, 100, 1000, 9000));

TEST(ReplayTest, HeldLeasesKeepEveryDistinctBlockAndItIsStoredOnce) {
  std::set<uint64_t> distinct;
  std::unique_ptr<TraceReader> reader = *TraceReader::Open(kTrace);
  TraceRequest request;
  for (uint64_t i = 0; i < kLimit && *reader->Next(request); ++i) {
    distinct.insert(request.hash_ids.begin(), request.hash_ids.end());
  }

  const nlohmann::json replay = MustPrint(
      absl::StrCat(Limited("replay"), " --hold-leases --capacity-blocks ", distinct.size()));

  EXPECT_EQ(replay["blocks_stored"], distinct.size());
  EXPECT_EQ(replay["leases_held"], kLimit);
  ExpectKeptItsWord(replay);
}

TEST(ReplayTest, HeldLeasesLetNothingLeave) {
  const nlohmann::json replay =
      MustPrint(Limited("replay") + " --hold-leases --capacity-blocks 1000");

  EXPECT_EQ(replay["blocks_stored"], 1000);
  EXPECT_EQ(
      replay["blocks_hit"].get<uint64_t>() + 1000 + replay["blocks_without_room"].get<uint64_t>(),
      replay["blocks_asked"].get<uint64_t>());
  ExpectKeptItsWord(replay);
}

TEST(ReplayTest, TwoClientsShareTheRequestsOfOneTrace) {
  const nlohmann::json replay =
      MustPrint(Limited("replay") + " --clients 2 --capacity-blocks 1000 --block-bytes 32KiB");

  EXPECT_EQ(replay["requests"], kLimit);
  EXPECT_EQ(replay["clients"], 2);
  EXPECT_EQ(replay["block_bytes"], 32768);
  ExpectKeptItsWord(replay);
}

TEST(ReplayTest, TheTraceMayComeByStandardInput) {
  const std::string trace = WriteJsonLines(/*lines=*/20, /*bad=*/0);

  const nlohmann::json replay = MustPrint("replay --trace - <" + trace);

  EXPECT_EQ(replay["requests"], 20);
  EXPECT_GT(replay["lookup_us"]["p50"], 0);
  EXPECT_GT(replay["put_gib_s"], 0);
  EXPECT_GT(replay["floors"]["lookup_us"]["p50"], 0);
  EXPECT_GT(replay["floors"]["copy_gib_s"], 0);
  unlink(trace.c_str());
}

TEST(ReplayTest, ALineThatDoesNotParseIsNamed) {
  const std::string trace = WriteJsonLines(/*lines=*/20, /*bad=*/17);

  EXPECT_THAT(ErrorOf("replay --trace " + trace), HasSubstr("line 17: "));
  EXPECT_THAT(ErrorOf("sim --policy lru --capacity-blocks 10 --trace " + trace),
              HasSubstr("line 17: "));
  unlink(trace.c_str());
}

TEST(ReplayTest, AnUnknownPolicyNamesTheKnownOnes) {
  EXPECT_THAT(ErrorOf(Limited("replay") + " --policy best"), HasSubstr("lru"));
  EXPECT_THAT(ErrorOf(Limited("sim") + " --policy lru,best --capacity-blocks 10"),
              HasSubstr("lru"));
}

TEST(ReplayTest, ADaemonThatIsNotThereIsAnError) {
  EXPECT_THAT(ErrorOf(Limited("replay") + " --daemon unix:/nonexistent/kvd.sock"),
              HasSubstr("/nonexistent/kvd.sock"));
}

TEST(ReplayTest, ARunningDaemonStillHasWhatAnEarlierReplayPut) {
  const absl::StatusOr<std::unique_ptr<DaemonProcess>> daemon = DaemonProcess::Start(
      {.program = KVD_DAEMON, .arguments = {"--dram", "64MiB", "--blocks", "9000"}});
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  const std::string replay = Limited("replay") + " --daemon " + (*daemon)->endpoint();
  const nlohmann::json first = MustPrint(replay);

  const nlohmann::json second = MustPrint(replay);

  EXPECT_EQ(first["capacity_blocks"], 9000);
  EXPECT_EQ(second["blocks_hit"], second["blocks_asked"]);
  EXPECT_EQ(second["prompt_tokens_not_recomputed"], second["prompt_tokens"]);
  EXPECT_EQ(second["blocks_stored"], 0);
  EXPECT_TRUE(second["put_gib_s"].is_null());
  ExpectKeptItsWord(second);
}

TEST(ReplayTest, WithoutTheOperatorsSocketThereIsNoAuditAndTheRestIsTold) {
  const absl::StatusOr<std::unique_ptr<DaemonProcess>> daemon = DaemonProcess::Start(
      {.program = KVD_DAEMON, .arguments = {"--dram", "64MiB", "--blocks", "9000"}});
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  const std::string path = (*daemon)->endpoint().substr(std::string("unix:").size());
  ASSERT_TRUE(std::filesystem::remove(path + ".admin"));

  const std::string replay = Limited("replay") + " --daemon " + (*daemon)->endpoint();
  const nlohmann::json first = MustPrint(replay);
  const nlohmann::json second = MustPrint(replay);

  EXPECT_GT(first["blocks_stored"], 0);
  EXPECT_EQ(second["blocks_hit"], second["blocks_asked"]);
  EXPECT_EQ(second["wrong_blocks"], 0);
  for (const char* unknown : {"policy", "capacity_blocks", "stranded_blocks", "audit_errors"}) {
    EXPECT_TRUE(second[unknown].is_null()) << unknown;
  }
}

TEST(JudgeReplayTest, ADaemonThatKeptItsWordPasses) {
  EXPECT_TRUE(JudgeReplay(ReplayResult{.damaged_parts = 1, .refused_calls = 1}).ok());
}

TEST(JudgeReplayTest, WrongStrandedAndMiscountedBlocksAreDataLoss) {
  for (const ReplayResult& result :
       {ReplayResult{.wrong_blocks = 1}, ReplayResult{.stranded_blocks = 1},
        ReplayResult{.audit_errors = 1}}) {
    EXPECT_EQ(JudgeReplay(result).code(), absl::StatusCode::kDataLoss);
  }
}

}  // namespace
}  // namespace kvd
