#include "daemon/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "daemon/option_docs.h"
#include "daemon/options.h"

namespace kvd {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

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

// A file that goes with its owner.
class ConfigFileText {
 public:
  explicit ConfigFileText(const std::string& text) {
    const int fd = mkstemp(path_);
    EXPECT_EQ(write(fd, text.data(), text.size()), static_cast<ssize_t>(text.size()));
    close(fd);
  }
  ~ConfigFileText() { unlink(path_); }
  ConfigFileText(const ConfigFileText&) = delete;
  std::string path() const { return path_; }

 private:
  char path_[32] = "/tmp/kvd-config-XXXXXX";
};

using Flags = std::map<std::string, std::string>;
const MemoryLimit kMemory{.bytes = uint64_t{16} << 30, .of = "the cgroup /test"};

// What is wrong with a file, with FILE for its path.
std::vector<std::string> Problems(const std::string& text, const Flags& flags = {}) {
  const ConfigFileText file(text);
  std::vector<std::string> problems = LoadConfig(file.path(), flags, kMemory).problems;
  for (std::string& problem : problems) {
    problem = absl::StrReplaceAll(problem, {{file.path(), "FILE"}});
  }
  return problems;
}

Config MustLoad(const std::string& text, const Flags& flags = {}) {
  const ConfigFileText file(text);
  LoadedConfig loaded = LoadConfig(file.path(), flags, kMemory);
  EXPECT_THAT(loaded.problems, IsEmpty());
  return std::move(loaded.config);
}

std::map<std::string, std::string> SourcesOf(const Config& config) {
  std::map<std::string, std::string> sources;
  for (const ConfigEntry& entry : ConfigEntries(config)) sources[entry.name] = entry.source;
  return sources;
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
  EXPECT_EQ(off.drain_timeout_ms, 15'000u);
  const Config on =
      MustRead({"--metrics", "127.0.0.1:0", "--no-operation-metrics", "--drain-timeout", "500ms"});
  EXPECT_EQ(on.metrics, "127.0.0.1:0");
  EXPECT_FALSE(on.op_metrics);
  EXPECT_EQ(on.drain_timeout_ms, 500u);
  EXPECT_EQ(Refused({"--drain-timeout", "5 apples"}), 2);
}

TEST(ConfigTest, EventsAreOffAndStayOnThisMachineUnlessAskedFor) {
  const Config off = MustRead({});
  EXPECT_EQ(off.events, "");
  EXPECT_EQ(off.announce_bytes, uint64_t{64} << 20);
  const Config on =
      MustRead({"--events", "tcp://127.0.0.1:0", "--events-replay", "tcp://127.0.0.1:0",
                "--events-topic", "kv@pod@{model}", "--announce-memory", "1GiB"});
  EXPECT_EQ(on.events, "tcp://127.0.0.1:0");
  EXPECT_EQ(on.events_replay, "tcp://127.0.0.1:0");
  EXPECT_EQ(on.events_topic, "kv@pod@{model}");
  EXPECT_EQ(on.announce_bytes, uint64_t{1} << 30);
  EXPECT_EQ(MustRead({"--events", "ipc:///run/kvd/events"}).events, "ipc:///run/kvd/events");
  EXPECT_EQ(MustRead({"--events", "tcp://0.0.0.0:5557", "--events-beyond-loopback"}).events,
            "tcp://0.0.0.0:5557");
  for (const char* wrong :
       {"127.0.0.1:5557", "tcp://*:5557", "tcp://host:5557", "ipc://relative", "ipc:///",
        "inproc://x", "tcp://127.0.0.1:70000", "tcp://0.0.0.0:5557"}) {
    EXPECT_EQ(Refused({"--events", wrong}), 2) << wrong;
  }
  EXPECT_EQ(Refused({"--events-replay", "tcp://127.0.0.1:5558"}), 2);
  EXPECT_EQ(
      Refused({"--events", "tcp://127.0.0.1:5557", "--events-replay", "tcp://127.0.0.1:5557"}), 2);
  EXPECT_EQ(Refused({"--events", "ipc:///" + std::string(200, 'x')}), 2);
  EXPECT_EQ(Refused({"--events-topic", std::string(257, 'x')}), 2);
  EXPECT_EQ(Refused({"--announce-memory", "65GiB"}), 2);
  EXPECT_EQ(Refused({"--announce-memory", "much"}), 2);
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

// ---- the file -----------------------------------------------------------------------------------

TEST(ConfigTest, AFileSaysEverythingThatFlagsDo) {
  const Config config = MustLoad(R"(
listen = "unix:/run/kvd/kvd.sock"
dram = "2 GiB"
blocks = 100_000
policy = "lru"
copiers = 3
copy_loop = "plain"
log_level = "warn"
drain_timeout = "2min"
unlisted = "refuse"
[socket]
mode = "0660"
group = "root"
[metrics]
listen = "0.0.0.0:9400"
beyond_loopback = true
operations = false
[[domain]]
name = "chat"
users = ["root", 1001]
groups = ["root", 2000]
identities = ["spiffe://x/chat"]
[[domain]]
name = "batch"
users = [1002]
)");
  EXPECT_EQ(config.listen, "unix:/run/kvd/kvd.sock");
  EXPECT_EQ(config.dram_bytes, uint64_t{2} << 30);
  EXPECT_EQ(config.max_blocks, 100'000u);
  EXPECT_EQ(config.copiers, 3u);
  EXPECT_EQ(config.copy_loop, "plain");
  EXPECT_EQ(config.log_level, "warn");
  EXPECT_EQ(config.drain_timeout_ms, 120'000u);
  EXPECT_EQ(config.socket_mode, 0660u);
  EXPECT_EQ(config.socket_group, "root");
  EXPECT_EQ(config.metrics, "0.0.0.0:9400");
  EXPECT_TRUE(config.metrics_beyond_loopback);
  EXPECT_FALSE(config.op_metrics);
  const DomainRules rules{.domains = {{.name = "chat",
                                       .users = {0, 1001},
                                       .groups = {0, 2000},
                                       .identities = {"spiffe://x/chat"}},
                                      {.name = "batch", .users = {1002}}},
                          .unlisted = Unlisted::kRefuse};
  EXPECT_EQ(config.domains, rules);
}

TEST(ConfigTest, FlagsWinOverTheFileAndEachValueKnowsItsSource) {
  setenv("KVD_ENDPOINT", "unix:/from/environment", 1);
  const Config config =
      MustLoad("dram = \"2GiB\"\nlog_level = \"warn\"\n", {{"log_level", "error"}});
  unsetenv("KVD_ENDPOINT");
  EXPECT_EQ(config.log_level, "error");
  EXPECT_EQ(config.dram_bytes, uint64_t{2} << 30);
  EXPECT_EQ(config.listen, "unix:/from/environment");
  auto sources = SourcesOf(config);
  EXPECT_EQ(sources["log_level"], "flag");
  EXPECT_EQ(sources["dram"], "file");
  EXPECT_EQ(sources["listen"], "environment");
  EXPECT_EQ(sources["policy"], "default");
  EXPECT_EQ(sources["domain"], "default");
}

TEST(ConfigTest, AMistakeInTheEnvironmentIsNamed) {
  setenv("KVD_ENDPOINT", "tcp:1.2.3.4", 1);
  EXPECT_THAT(Problems(""),
              ElementsAre("KVD_ENDPOINT: \"tcp:1.2.3.4\" must be unix: and an absolute path"));
  unsetenv("KVD_ENDPOINT");
}

// The order of the file, whatever finds the mistake: the parser, the option, or what options say
// together.
TEST(ConfigTest, AllMistakesAreNamedWithLineColumnAndField) {
  EXPECT_THAT(
      Problems(R"(no_such_key = 1
dramm = "1GiB"
dram = "3 apples"
blocks = "many"
copiers = 65
certificate = "x"
[metrics]
listen = "0.0.0.0:9400"
operations = "yes"
[socket]
modes = "0600"
)"),
      ElementsAre(
          "FILE:1:1: no_such_key: unknown key; known here: listen dram blocks data "
          "arena_directory policy copiers "
          "copy_loop log_level drain_timeout unlisted socket metrics events tcp tiers domain",
          "FILE:2:1: dramm: unknown key; the nearest known one is dram",
          "FILE:3:8: dram: no unit \"apples\"; write bytes, \"512MiB\", \"64GiB\", or \"80%\" of "
          "the memory",
          "FILE:4:10: blocks: must be an integer, not a text in quotes",
          "FILE:5:11: copiers: 65 must be a whole number from 1 to 64",
          "FILE:6:1: certificate: unknown key; the nearest known one is tcp.certificate",
          "FILE:8:10: metrics.listen: others can reach 0.0.0.0:9400, and it has no password; set "
          "metrics.beyond_loopback if that is meant, or listen at 127.0.0.1",
          "FILE:9:14: metrics.operations: must be true or false, not a text in quotes",
          "FILE:11:1: socket.modes: unknown key; the nearest known one is socket.mode"));
}

TEST(ConfigTest, EachMistakeInTheFileHasItsMessage) {
  const struct {
    std::string text;
    std::string message;
  } cases[] = {
      {"dram = true",
       "FILE:1:8: dram: must be a size such as \"64GiB\", or an integer of bytes, "
       "not true or false"},
      {"[events]\nlisten = \"tcp://0.0.0.0:1\"",
       "FILE:2:10: events.listen: others can reach tcp://0.0.0.0:1, and it has no password; set "
       "events.beyond_loopback if that is meant, or listen at tcp://127.0.0.1"},
      {"[events]\nreplay = \"tcp://127.0.0.1:1\"",
       "FILE:2:10: events.replay: is of no use without events.listen"},
      {"[events]\nlisten = \"ipc:///e\"\nreplay = \"ipc:///e\"",
       "FILE:3:10: events.replay: must not be the same as events.listen"},
      {"[events]\nlisten = \"tcp://router:1\"",
       "FILE:2:10: events.listen: \"tcp://router:1\" must be tcp://ADDRESS:PORT, such as "},
      {"[events]\nannounce_memory = \"65GiB\"",
       "FILE:2:19: events.announce_memory: 65GiB must be at most 64GiB"},
      {"dram = -1", "FILE:1:8: dram: \"-1\" is not a whole number with a unit; write bytes, "},
      {"dram = 5", "FILE:1:8: dram: 5 must be from 1MiB to 64TiB"},
      {"dram = \"17GiB\"",
       "FILE:1:8: dram: 17GiB is more than the 16.0 GiB that the cgroup /test "
       "has; \"80%\" takes a share"},
      {"dram = \"96%\"", "FILE:1:8: dram: \"96%\" must be from 1% to 95%"},
      {"dram = \"0%\"", "must be from 1% to 95%"},
      {"drain_timeout = 30", "FILE:1:17: drain_timeout: must be a time such as \"30s\", not an "},
      {"drain_timeout = \"30\"", "FILE:1:17: drain_timeout: \"30\" has no unit; write \"500ms\""},
      {"drain_timeout = \"2h\"", "FILE:1:17: drain_timeout: \"2h\" must be at most 3600s"},
      {"policy = 1.5", "FILE:1:10: policy: must be a text in quotes, not a number with a point"},
      {"policy = \"belady\"", "FILE:1:10: policy: no policy \"belady\"; known: lru"},
      {"log_level = \"shout\"", "FILE:1:13: log_level: \"shout\" must be debug, info, warn or er"},
      {"unlisted = \"maybe\"", "FILE:1:12: unlisted: \"maybe\" must be own or refuse"},
      {"listen = \"tcp:x\"", "FILE:1:10: listen: \"tcp:x\" must be unix: and an absolute path"},
      {"listen = \"unix:/" + std::string(99, 'x') + "\"",
       "FILE:1:10: listen: the path has 100 bytes, and 99 are the most that a Unix socket takes"},
      {"socket = 3", "FILE:1:10: socket: must be a table, [socket], not an integer"},
      {"[socket]\nmode = 660", "FILE:2:8: socket.mode: must be a text in quotes, not an integer"},
      {"[socket]\nmode = \"8\"", "FILE:2:8: socket.mode: \"8\" must be octal and at most 0777"},
      {"socket.group = \"nobody-has-this\"", "socket.group: this system has no group \"nobody-ha"},
      {"metrics.listen = \"9400\"", "FILE:1:18: metrics.listen: \"9400\" must be ADDRESS:PORT"},
      {"metrics.listen = \"example:1\"", "names are not looked up"},
      {"metrics.listen = \"127.0.0.1:65536\"", "must be ADDRESS:PORT"},
      {"metrics.listen = \"[::]:1\"", "others can reach [::]:1"},
      {"tcp.listen = \"127.0.0.1:1\"",
       "FILE:1:14: tcp.listen: refused without TLS on both sides: "
       "tcp.certificate, tcp.key, tcp.client_ca must be set too"},
      {"tcp.key = \"/dev/null\"", "FILE:1:11: tcp.key: is of no use without tcp.certificate"},
      {"tcp.client_ca = \"/no/such.pem\"",
       "FILE:1:17: tcp.client_ca: cannot read /no/such.pem: No such file or directory"},
      {"domain = 1", "FILE:1:10: domain: must be tables in double brackets, [[domain]]"},
      {"[[domain]]\nusers = [1]", "FILE:1:1: domain.name: is missing"},
      {"[[domain]]\nname = \"a b\"\nusers = [1]", "FILE:2:8: domain.name: must be 1 to 64 letters"},
      {"[[domain]]\nname = \"a\"",
       "FILE:1:1: domain.users: the domain \"a\" has neither users nor"},
      {"[[domain]]\nname = \"a\"\nusers = [1]\ncolour = 1",
       "FILE:4:1: domain.colour: unknown key; known here: name users groups identities"},
      {"[[domain]]\nname = \"a\"\nuser = [1]\ngroups = [1]",
       "FILE:3:1: domain.user: unknown key; the nearest known one is domain.users"},
      {"[[domain]]\nname = \"a\"\nusers = [1]\n[[domain]]\nname = \"a\"\nusers = [2]",
       "FILE:5:8: domain.name: there is a domain \"a\" already, in line 2"},
      {"[[domain]]\nname = \"a\"\nusers = [0]\n[[domain]]\nname = \"b\"\nusers = [5, \"root\"]",
       "FILE:6:13: domain.users: the user 0 is in the domain \"a\" already, in line 3"},
      {"[[domain]]\nname = \"a\"\ngroups = [7]\n[[domain]]\nname = \"b\"\ngroups = [7]",
       "FILE:6:11: domain.groups: the group 7 is in the domain \"a\" already, in line 3"},
      {"[[domain]]\nname = \"a\"\nidentities = [\"x\", \"x\"]",
       "FILE:3:20: domain.identities: the identity \"x\" is in the domain \"a\" already, in line "
       "3"},
      {"[[domain]]\nname = \"a\"\nidentities = [\"\"]", "an identity has 1 to 256 bytes"},
      {"[[domain]]\nname = \"a\"\nidentities = [1]", "must be texts in quotes, not an integer"},
      {"[[domain]]\nname = \"a\"\nusers = 1", "FILE:3:9: domain.users: must be an array, not an i"},
      {"[[domain]]\nname = \"a\"\nusers = [true]", "must be names in quotes or numbers, not true"},
      {"[[domain]]\nname = \"a\"\nusers = [-1]", "FILE:3:10: domain.users: -1 is not a user id"},
      {"[[domain]]\nname = \"a\"\nusers = [4294967295]", "4294967295 is not a user id"},
      {"[[domain]]\nname = \"a\"\ngroups = [\"nobody-has-this\"]",
       "FILE:3:11: domain.groups: this system has no group \"nobody-has-this\""},
      {"data = \"kvd\"", "FILE:1:8: data: \"kvd\" must be an absolute path"},
      {"data = 1", "FILE:1:8: data: must be a text in quotes, not an integer"},
      {"data = \"/d\"\narena_directory = \"shm\"",
       "FILE:2:19: arena_directory: \"shm\" must be an"},
      {"[tiers]\nadmission = \"some\"",
       "FILE:2:13: tiers.admission: no admission policy \"some\"; known: all, none, "
       "second-touch, "},
      {"[tiers]\ndurability = \"always\"", "tiers.durability: \"always\" must be async or sync"},
      {"[tiers]\nwrite_budget = \"5 apples\"", "FILE:2:16: tiers.write_budget: no unit \"apples\""},
      {"[tiers]\nscrub_bandwidth = \"9 lives\"",
       "FILE:2:19: tiers.scrub_bandwidth: no unit \"lives\""},
      {"[tiers]\nscrub_bandwidth = \"5GiB\"", "tiers.scrub_bandwidth: 5GiB must be at most 4GiB"},
      {"[tiers]\nadmision = \"all\"",
       "FILE:2:1: tiers.admision: unknown key; the nearest known one is tiers.admission"},
      {"data = \"/d\"\n[tiers]\nnvme = \"/x:1GiB\"",
       "FILE:3:8: tiers.nvme: must be tables in double brackets, [[tiers.nvme]]"},
      {"[[tiers.nvme]]\npath = \"/x\"\ncapacity = \"1GiB\"",
       "FILE:1:1: tiers.nvme: data must be set too: its index lies there"},
      {"data = \"/d\"\n[[tiers.nvme]]\npath = \"/x\"", "FILE:2:1: tiers.nvme.capacity: is missing"},
      {"data = \"/d\"\n[[tiers.nvme]]\ncapacity = \"1GiB\"", "FILE:2:1: tiers.nvme.path: is missi"},
      {"data = \"/d\"\n[[tiers.nvme]]\npath = \"x\"\ncapacity = \"1GiB\"",
       "FILE:3:8: tiers.nvme.path: \"x\" must be an absolute path"},
      {"data = \"/d\"\n[[tiers.nvme]]\npath = \"/a,b\"\ncapacity = \"1GiB\"",
       "must not have a com"},
      {"data = \"/d\"\n[[tiers.nvme]]\npath = \"/x\"\ncapacity = \"80%\"",
       "FILE:4:12: tiers.nvme.capacity: no unit \"%\"; write bytes, "},
      {"data = \"/d\"\n[[tiers.nvme]]\npath = \"/x\"\ncapacity = 1048576",
       "FILE:4:12: tiers.nvme.capacity: 1MiB must be from 64MiB to 64TiB"},
      {"data = \"/d\"\n[[tiers.nvme]]\npath = \"/x\"\ncapacity = true",
       "FILE:4:12: tiers.nvme.capacity: must be a size such as \"64GiB\", or an integer of bytes"},
      {"data = \"/d\"\n[[tiers.nvme]]\npath = \"/x\"\ncapacity = \"1GiB\"\npaht = 1",
       "FILE:5:1: tiers.nvme.paht: unknown key; the nearest known one is tiers.nvme.path"},
      {"data = \"/d\"\n[[tiers.nvme]]\npath = \"/x\"\ncapacity = \"1GiB\"\n"
       "[[tiers.nvme]]\npath = \"/x\"\ncapacity = \"2GiB\"",
       "FILE:2:1: tiers.nvme: /x is there twice"},
      {"dram = \"1GiB", "FILE:1:13: Error while parsing"},
      {"dram = 1048576\ndram = 1048576", "FILE:2:8: Error while parsing key-value pair: cannot re"},
  };
  for (const auto& c : cases) {
    EXPECT_THAT(Problems(c.text), ElementsAre(HasSubstr(c.message))) << c.text;
  }
}

TEST(ConfigTest, DevicesComeFromTablesOrFlagsAndFlagsWin) {
  const char* file = R"(
data = "/var/lib/kvd"
[tiers]
admission = "all"
write_budget = "2 TiB"
durability = "sync"
[[tiers.nvme]]
path = "/dev/disk:0"
capacity = "1TiB"
[[tiers.nvme]]
capacity = 1073741824
path = "/x"
)";
  const Config config = MustLoad(file);
  EXPECT_THAT(config.nvme, ElementsAre(NvmeConfig{"/dev/disk:0", uint64_t{1} << 40},
                                       NvmeConfig{"/x", 1u << 30}));
  EXPECT_EQ(config.admission, "all");
  EXPECT_EQ(config.nvme_write_budget, uint64_t{2} << 40);
  EXPECT_TRUE(config.durable_sync);
  EXPECT_EQ(MustLoad(PrintConfig(config)).nvme, config.nvme);
  EXPECT_THAT(MustLoad(file, {{"tiers.nvme", "/y:1GiB"}}).nvme,
              ElementsAre(NvmeConfig{"/y", 1u << 30}));
  EXPECT_THAT(MustRead({"--data", "/d", "--nvme", "/a:1GiB", "--nvme", "/b:64MiB"}).nvme,
              ElementsAre(NvmeConfig{"/a", 1u << 30}, NvmeConfig{"/b", 64u << 20}));
  const Config none = MustRead({});
  EXPECT_THAT(none.nvme, IsEmpty());
  EXPECT_EQ(none.data, "");
  EXPECT_EQ(none.admission, "second-touch");
  EXPECT_FALSE(none.durable_sync);
  EXPECT_EQ(none.scrub_bandwidth, 32u << 20);
  EXPECT_EQ(MustRead({"--scrub-bandwidth", "0"}).scrub_bandwidth, 0u);
  EXPECT_EQ(MustLoad("[tiers]\nscrub_bandwidth = \"1GiB\"").scrub_bandwidth, 1u << 30);
}

TEST(ConfigTest, MistakesOfDevicesOnTheCommandLineNameTheFlag) {
  EXPECT_THAT(Problems("", {{"tiers.nvme", "/x"}}),
              ElementsAre("--nvme: \"/x\" must be PATH:SIZE, such as /var/lib/kvd/nvme0:100GiB"));
  EXPECT_THAT(Problems("", {{"tiers.nvme", "/x:1GiB"}}),
              ElementsAre("--nvme: data must be set too: its index lies there"));
  EXPECT_THAT(Problems("", {{"data", "/d"}, {"tiers.nvme", "/x:1"}}),
              ElementsAre("--nvme: /x: 1 must be from 64MiB to 64TiB"));
  EXPECT_EQ(Refused({"--nvme", "/x:1GiB"}), 2);
}

TEST(ConfigTest, FilesOfTlsAreTriedBeforeTheyAreUsed) {
  EXPECT_THAT(Problems("tcp.certificate = \"/dev/null\"\n"),
              ElementsAre("FILE:1:19: tcp.certificate: is of no use without tcp.key",
                          "FILE:1:19: tcp.certificate: /dev/null holds no certificate in PEM"));
  EXPECT_THAT(Problems("[tcp]\nlisten = \"0.0.0.0:1\"\ncertificate = \"/no/c.pem\"\n"
                       "key = \"/no/k.pem\"\nclient_ca = \"/no/ca.pem\"\n"),
              ElementsAre("FILE:3:15: tcp.certificate: cannot read /no/c.pem: No such file or "
                          "directory",
                          "FILE:4:7: tcp.key: cannot read /no/k.pem: No such file or directory",
                          "FILE:5:13: tcp.client_ca: cannot read /no/ca.pem: No such file or "
                          "directory"));
}

TEST(ConfigTest, AFileThatCannotBeReadIsNamed) {
  EXPECT_THAT(LoadConfig("/no/such/kvd.toml", {}, kMemory).problems,
              ElementsAre("/no/such/kvd.toml: cannot be read: No such file or directory"));
  EXPECT_THAT(LoadConfig("/tmp", {}, kMemory).problems,
              ElementsAre("/tmp: cannot be read: Is a directory"));
  EXPECT_THAT(Problems(std::string((4u << 20) + 1, '\n')),
              ElementsAre("FILE: is larger than 4 MiB, so it is no configuration"));
}

TEST(ConfigTest, MistakesOfFlagsNameTheFlag) {
  EXPECT_THAT(Problems("", {{"tcp.listen", "0.0.0.0:1"}, {"dram", "17GiB"}}),
              ElementsAre(HasSubstr("--dram: 17GiB is more than"),
                          HasSubstr("--tcp: refused without TLS on both sides")));
}

TEST(ConfigTest, AShareOfTheMemoryIsWholeHugePages) {
  EXPECT_EQ(MustLoad("dram = \"50%\"").dram_bytes, (uint64_t{8} << 30) - (2u << 20));
  EXPECT_EQ(MustLoad("", {{"dram", "80%"}}).dram_bytes % (2u << 20), 0u);
  EXPECT_THAT(LoadConfig("", {{"dram", "80%"}}, MemoryLimit{}).problems,
              ElementsAre(HasSubstr("--dram: a share cannot be taken")));
}

TEST(ConfigTest, LoopbackIsMeantByAddress) {
  for (const char* loopback : {"127.0.0.1:0", "127.9.9.9:1", "localhost:65535", "[::1]:9400"}) {
    EXPECT_TRUE(ParseHostPort(loopback).ok && ParseHostPort(loopback).loopback) << loopback;
  }
  for (const char* beyond : {"0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[::ffff:10.0.0.1]:1"}) {
    EXPECT_TRUE(ParseHostPort(beyond).ok && !ParseHostPort(beyond).loopback) << beyond;
  }
  for (const char* wrong : {"", ":1", "1", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "::1:80",
                            "[::1]", "127.1:80", "127.0.0.1:-1", "kvd:1", "[127.0.0.1]:1"}) {
    EXPECT_FALSE(ParseHostPort(wrong).ok) << wrong;
  }
}

// ---- what is printed ----------------------------------------------------------------------------

TEST(ConfigTest, WhatIsPrintedReadsAsTheSame) {
  const Config config = MustLoad(R"(
listen = "unix:/run/a \"b\" \\ c"
dram = "50%"
drain_timeout = "1500ms"
socket.mode = "0640"
metrics.listen = "[::1]:0"
[[domain]]
name = "chat"
users = [7, 8]
identities = ["a\"b\\c\t"]
)",
                                 {{"log_level", "debug"}});
  const Config again = MustLoad(PrintConfig(config));
  const std::vector<ConfigEntry> before = ConfigEntries(config);
  const std::vector<ConfigEntry> after = ConfigEntries(again);
  ASSERT_EQ(before.size(), after.size());
  for (size_t i = 0; i < before.size(); ++i) {
    EXPECT_EQ(before[i].value, after[i].value) << before[i].name;
  }
  EXPECT_EQ(again.domains, config.domains);
  EXPECT_THAT(PrintConfig(config), HasSubstr("# From: flag.\nlog_level = \"debug\"\n"));
}

// The words of the sample are the table's own; here its form is tried: each line that is commented
// out is one that a file may have.
TEST(ConfigTest, TheSampleIsAFileWithOrWithoutItsComments) {
  EXPECT_THAT(Problems(SampleConfig()), IsEmpty());
  std::string all;
  for (const absl::string_view line : absl::StrSplit(SampleConfig(), '\n')) {
    const bool assigns = absl::StartsWith(line, "# ") && absl::StrContains(line, " = ") &&
                         !absl::StrContains(line.substr(2, line.find('=') - 3), ' ');
    absl::StrAppend(&all, assigns || absl::StartsWith(line, "# [[") ? line.substr(2) : line, "\n");
  }
  for (const Option& option : Options()) {
    if (option.kind == OptionKind::kDevices) continue;  // Its tables have keys of their own.
    const std::string key(option.name.substr(option.name.rfind('.') + 1));
    EXPECT_THAT(all, HasSubstr("\n" + key + " = ")) << option.name;
  }
  // Nobody has the groups, users and certificates of the examples; all else is fine.
  for (const std::string& problem : Problems(all)) {
    EXPECT_THAT(problem,
                testing::AnyOf(HasSubstr("this system has no "), HasSubstr("cannot read ")));
  }
}

TEST(ConfigTest, TheTreeSaysWhatTheTableSays) {
  const auto read = [](const std::string& name) {
    std::stringstream text;
    text << std::ifstream(KVD_SOURCE_DIR "/" + name).rdbuf();
    return text.str();
  };
  EXPECT_EQ(read("deploy/kvd.toml"), SampleConfig()) << "run ./dev docs";
  const std::string all = read("deploy/README.md");
  EXPECT_EQ(all, ReplaceBetweenMarks(all, "options", OptionTable())) << "run ./dev docs";
  const std::string some = read("README.md");
  EXPECT_EQ(some, ReplaceBetweenMarks(some, "options", ShortOptionTable())) << "run ./dev docs";
  const std::string manual = read("deploy/man/kvd.8");
  EXPECT_EQ(manual, ReplaceBetweenMarks(manual, "options", OptionManual())) << "run ./dev docs";
}

TEST(ConfigTest, ATextWithoutMarksIsLeftAlone) {
  EXPECT_EQ(ReplaceBetweenMarks("a\n<!-- begin x -->\nb\n<!-- end x -->\nc", "x", "B\n"),
            "a\n<!-- begin x -->\nB\n<!-- end x -->\nc");
  EXPECT_EQ(ReplaceBetweenMarks("# <!-- begin x -->\nb\n# <!-- end x -->\n", "x", "B\n"),
            "# <!-- begin x -->\nB\n# <!-- end x -->\n");
  EXPECT_EQ(ReplaceBetweenMarks("a\n<!-- begin x -->\nb", "x", "B\n"), "");
  EXPECT_EQ(ReplaceBetweenMarks("nothing", "x", "B\n"), "");
}

// ---- the command line ---------------------------------------------------------------------------

TEST(ConfigTest, CheckAndPrintEndAtOnce) {
  const ConfigFileText good("dram = \"2MiB\"\n");
  const ConfigFileText bad("dram = 1\n");
  EXPECT_EQ(Refused({"--check-config", good.path()}), 0);
  EXPECT_EQ(Refused({"--check-config", bad.path()}), 2);
  EXPECT_EQ(Refused({"--check-config", "/no/such/file"}), 2);
  EXPECT_EQ(Refused({"--config", bad.path()}), 2);
  EXPECT_EQ(Refused({"--config", good.path(), "--print-config"}), 0);
  EXPECT_EQ(MustRead({"--config", good.path()}).dram_bytes, 2u << 20);
  EXPECT_EQ(MustRead({"--config", good.path(), "--dram", "4MiB"}).dram_bytes, 4u << 20);
}

TEST(ConfigTest, KillPointsAreListedAndAMistakeInOneIsNamed) {
  testing::internal::CaptureStdout();
  EXPECT_EQ(Refused({"--kill-points"}), 0);
  EXPECT_THAT(testing::internal::GetCapturedStdout(), HasSubstr("commit.part_visible\n"));
  testing::internal::CaptureStderr();
  EXPECT_EQ(Refused({"--kill-at", "nowhere"}), 2);
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "--kill-at: no kill point nowhere\n");
  testing::internal::CaptureStdout();
  EXPECT_EQ(Refused({"--help"}), 0);
  EXPECT_THAT(testing::internal::GetCapturedStdout(), testing::Not(HasSubstr("kill")));
}

TEST(ConfigTest, AnUnknownFlagIsAnsweredWithTheNearest) {
  testing::internal::CaptureStderr();
  EXPECT_EQ(Refused({"--dramm=3", "--metrix", "x", "--frobnicate"}), 2);
  EXPECT_EQ(testing::internal::GetCapturedStderr(),
            "--dramm=3: no such option; the nearest is --dram\n"
            "--metrix: no such option; the nearest is --metrics\n"
            "x: not expected here; all arguments are options\n"
            "--frobnicate: no such option; see kvd --help\n");
}

}  // namespace
}  // namespace kvd
