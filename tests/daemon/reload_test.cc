#include "daemon/reload.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <map>
#include <string>
#include <thread>
#include <vector>

namespace kvd {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class ReloadTest : public testing::Test {
 protected:
  ReloadTest() { close(mkstemp(path_)); }
  ~ReloadTest() override { unlink(path_); }

  void Write(const std::string& text) { std::ofstream(path_) << text; }
  ConfigReloader Start(const std::map<std::string, std::string>& flags = {}) {
    LoadedConfig loaded = LoadConfig(path_, flags, MemoryLimit{});
    EXPECT_THAT(loaded.problems, IsEmpty());
    return ConfigReloader(std::move(loaded.config),
                          [this](const Config& config) { applied_.push_back(config); });
  }

  char path_[32] = "/tmp/kvd-reload-XXXXXX";
  std::vector<Config> applied_;
};

TEST_F(ReloadTest, WhatIsLiveChangesAndTheRestIsNamed) {
  Write("dram = \"2MiB\"\nlog_level = \"info\"\n");
  ConfigReloader reloader = Start();
  Write(
      "dram = \"4MiB\"\nlog_level = \"warn\"\nunlisted = \"refuse\"\ndrain_timeout = \"5s\"\n"
      "[tiers]\nscrub_bandwidth = \"1MiB\"\n"
      "[[domain]]\nname = \"a\"\nusers = [1]\n");
  const auto outcome = reloader.Reload();
  ASSERT_TRUE(outcome.ok()) << outcome.status();
  EXPECT_THAT(outcome->changed, ElementsAre("log_level", "drain_timeout", "unlisted",
                                            "tiers.scrub_bandwidth", "domain"));
  EXPECT_THAT(outcome->needs_restart, ElementsAre("dram"));
  const Config now = reloader.Current();
  EXPECT_EQ(now.log_level, "warn");
  EXPECT_EQ(now.drain_timeout_ms, 5000u);
  EXPECT_EQ(now.scrub_bandwidth, 1u << 20);
  EXPECT_EQ(now.domains.unlisted, Unlisted::kRefuse);
  EXPECT_EQ(now.domains.domains.size(), 1u);
  EXPECT_EQ(now.dram_bytes, 2u << 20);
  ASSERT_EQ(applied_.size(), 1u);
  EXPECT_EQ(applied_[0].log_level, "warn");
  EXPECT_EQ(applied_[0].domains, now.domains);
}

TEST_F(ReloadTest, WhatFilesHoldIsRenewedBeforeAnythingElseChanges) {
  Write("");
  absl::StatusOr<std::vector<std::string>> renewed = std::vector<std::string>{"tcp.key"};
  LoadedConfig loaded = LoadConfig(path_, {}, MemoryLimit{});
  ConfigReloader reloader(
      std::move(loaded.config), [this](const Config& config) { applied_.push_back(config); },
      [&renewed](const Config&) { return renewed; });
  EXPECT_THAT(reloader.Reload()->changed, ElementsAre("tcp.key"));
  EXPECT_EQ(applied_.size(), 1u);

  Write("log_level = \"warn\"\n");
  renewed = absl::InvalidArgumentError("tcp.key: torn");
  EXPECT_EQ(reloader.Reload().status(), renewed.status());
  EXPECT_EQ(reloader.Current().log_level, "info");
  EXPECT_EQ(applied_.size(), 1u);
}

TEST_F(ReloadTest, WhatWaitsForARestartIsNamedEachTimeAndTheOldValueShown) {
  Write("");
  ConfigReloader reloader = Start();
  Write("copiers = 7\n");
  EXPECT_THAT(reloader.Reload()->needs_restart, ElementsAre("copiers"));
  EXPECT_THAT(reloader.Reload()->needs_restart, ElementsAre("copiers"));
  EXPECT_THAT(applied_, IsEmpty());
  for (const ConfigEntry& entry : reloader.Entries()) {
    if (entry.name != "copiers") continue;
    EXPECT_NE(entry.value, "7");
    EXPECT_EQ(entry.source, "default");
    EXPECT_FALSE(entry.live);
  }
}

TEST_F(ReloadTest, AFileWithMistakesChangesNothingAndNamesThem) {
  Write("log_level = \"info\"\n");
  ConfigReloader reloader = Start();
  Write("log_level = \"warn\"\ndram = 1\ncolour = 2\n");
  const auto outcome = reloader.Reload();
  EXPECT_EQ(outcome.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(outcome.status().message()), HasSubstr(":2:8: dram: "));
  EXPECT_THAT(std::string(outcome.status().message()), HasSubstr(":3:1: colour: unknown key"));
  EXPECT_EQ(reloader.Current().log_level, "info");
  EXPECT_THAT(applied_, IsEmpty());
}

TEST_F(ReloadTest, AFileThatIsGoneChangesNothing) {
  Write("log_level = \"warn\"\n");
  ConfigReloader reloader = Start();
  unlink(path_);
  EXPECT_EQ(reloader.Reload().status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(reloader.Current().log_level, "warn");
}

TEST_F(ReloadTest, FlagsGoOnWinningOverTheFile) {
  Write("");
  ConfigReloader reloader = Start({{"log_level", "error"}});
  Write("log_level = \"debug\"\n");
  EXPECT_THAT(reloader.Reload()->changed, IsEmpty());
  EXPECT_EQ(reloader.Current().log_level, "error");
}

TEST_F(ReloadTest, WhatIsTakenOutOfTheFileIsTheDefaultAgain) {
  Write("log_level = \"warn\"\n[[domain]]\nname = \"a\"\nusers = [1]\n");
  ConfigReloader reloader = Start();
  Write("");
  EXPECT_THAT(reloader.Reload()->changed, ElementsAre("log_level", "domain"));
  EXPECT_EQ(reloader.Current().log_level, "info");
  EXPECT_THAT(reloader.Current().domains.domains, IsEmpty());
  for (const ConfigEntry& entry : reloader.Entries()) {
    if (entry.name == "log_level" || entry.name == "domain") {
      EXPECT_EQ(entry.source, "default");
    }
  }
}

TEST_F(ReloadTest, WithoutAFileThereIsNothingToRead) {
  LoadedConfig loaded = LoadConfig("", {}, MemoryLimit{});
  ConfigReloader reloader(std::move(loaded.config), [](const Config&) { FAIL(); });
  EXPECT_EQ(reloader.Reload().status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(reloader.file(), "");
}

TEST_F(ReloadTest, ReloadsAndReadersMayComeTogether) {
  Write("log_level = \"warn\"\n");
  ConfigReloader reloader = Start();
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&reloader] {
      for (int n = 0; n < 20; ++n) {
        EXPECT_TRUE(reloader.Reload().ok());
        EXPECT_EQ(reloader.Current().log_level, "warn");
        EXPECT_FALSE(reloader.Entries().empty());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace kvd
