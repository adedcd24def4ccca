#include "daemon/config.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

namespace kvd {
namespace {

std::variant<Config, int> Read(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "kvd");
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  return ReadConfig(static_cast<int>(argv.size()), argv.data());
}

Config MustRead(std::vector<std::string> arguments) {
  const auto config = Read(std::move(arguments));
  EXPECT_TRUE(std::holds_alternative<Config>(config));
  return std::holds_alternative<Config>(config) ? std::get<Config>(config) : Config{};
}

int Refused(std::vector<std::string> arguments) {
  const auto config = Read(std::move(arguments));
  return std::holds_alternative<int>(config) ? std::get<int>(config) : -1;
}

TEST(ConfigTest, WithoutOptionsEverythingHasAValue) {
  setenv("XDG_RUNTIME_DIR", "/run/somebody", 1);
  const Config config = MustRead({});
  EXPECT_EQ(config.listen, "unix:/run/somebody/kvd.sock");
  EXPECT_EQ(config.path(), "/run/somebody/kvd.sock");
  EXPECT_EQ(config.dram_bytes, 1u << 30);
  EXPECT_GE(config.max_blocks, 65536u);
  EXPECT_EQ(config.policy, "lru");
  EXPECT_EQ(config.socket_mode, 0600u);
  EXPECT_GE(config.copiers, 1u);
  unsetenv("XDG_RUNTIME_DIR");
  EXPECT_EQ(MustRead({}).listen.rfind("unix:/tmp/kvd-", 0), 0u);
}

TEST(ConfigTest, SizesHaveUnits) {
  EXPECT_EQ(MustRead({"--dram", "512MiB"}).dram_bytes, 512u << 20);
  EXPECT_EQ(MustRead({"--dram", "2GiB"}).dram_bytes, uint64_t{2} << 30);
  EXPECT_EQ(MustRead({"--dram", "1048576"}).dram_bytes, 1u << 20);
  for (const char* size :
       {"", "x", "-1", "1048575", "1KiB", "128TiB", "1.5.2GiB", "99999999999EiB"}) {
    EXPECT_EQ(Refused({"--dram", size}), 2) << size;
  }
}

TEST(ConfigTest, TheLongestPathThatFitsASocketIsTaken) {
  // 108 bytes of sun_path hold the path, ".session" and the final zero.
  const std::string longest = "unix:/" + std::string(98, 'x');
  EXPECT_EQ(MustRead({"--listen", longest}).listen, longest);
  EXPECT_EQ(Refused({"--listen", longest + "x"}), 2);
  EXPECT_EQ(Refused({"--listen", "unix:x"}), 2);
  EXPECT_EQ(Refused({"--listen", "/x"}), 2);
}

TEST(ConfigTest, ModesAreOctal) {
  EXPECT_EQ(MustRead({"--socket-mode", "0660"}).socket_mode, 0660u);
  EXPECT_EQ(MustRead({"--socket-mode", "666"}).socket_mode, 0666u);
  for (const char* mode : {"", "8", "rw", "01000", "0660 ", "-1"}) {
    EXPECT_EQ(Refused({"--socket-mode", mode}), 2) << mode;
  }
}

TEST(ConfigTest, WhatOthersReachIsOffUnlessAskedFor) {
  const Config off = MustRead({});
  EXPECT_EQ(off.metrics, "");
  EXPECT_EQ(off.tcp, "");
  EXPECT_FALSE(off.metrics_beyond_loopback);
  EXPECT_TRUE(off.op_metrics);
  EXPECT_EQ(off.drain_timeout_ms, 30'000u);
  const Config on =
      MustRead({"--metrics", "127.0.0.1:0", "--no-operation-metrics", "--drain-timeout", "500ms"});
  EXPECT_EQ(on.metrics, "127.0.0.1:0");
  EXPECT_FALSE(on.op_metrics);
  EXPECT_EQ(on.drain_timeout_ms, 500u);
  EXPECT_EQ(Refused({"--drain-timeout", "5 apples"}), 2);
}

TEST(ConfigTest, HelpAndVersionEndWithZeroAndMistakesWithTwo) {
  EXPECT_EQ(Refused({"--help"}), 0);
  EXPECT_EQ(Refused({"--version"}), 0);
  EXPECT_EQ(Refused({"--nonsense"}), 2);
  EXPECT_EQ(Refused({"--blocks", "0"}), 2);
  EXPECT_EQ(Refused({"--blocks", "1000000000"}), 2);
  EXPECT_EQ(Refused({"--copiers", "65"}), 2);
  EXPECT_EQ(Refused({"--policy", "none"}), 2);
  EXPECT_EQ(Refused({"--log-level", "shout"}), 2);
  EXPECT_EQ(Refused({"--socket-group", "nobody-has-this-name"}), 2);
}

}  // namespace
}  // namespace kvd
