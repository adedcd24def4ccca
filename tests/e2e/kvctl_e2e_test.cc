// kvctl and kvd as real processes: what needs a terminal, or a daemon that comes and goes.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "tests/e2e/daemon_process.h"

namespace kvd {
namespace {

using testing::HasSubstr;

// kvctl with a terminal of its own; killed when this object goes.
class OnTerminal {
 public:
  explicit OnTerminal(std::vector<std::string> arguments) {
    winsize size{.ws_row = 40, .ws_col = 100};
    std::vector<char*> argv = {const_cast<char*>(KVDCTL_PROGRAM)};
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    int fd = -1;
    pid_ = forkpty(&fd, nullptr, nullptr, &size);
    if (pid_ == 0) {
      execv(argv[0], argv.data());
      _exit(127);
    }
    terminal_ = UniqueFd(fd);
  }
  ~OnTerminal() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  OnTerminal(const OnTerminal&) = delete;

  // Reads what is drawn from here on until `text` is in it.
  bool See(const std::string& text) {
    const absl::Time deadline = absl::Now() + kPatience;
    while (seen_.find(text) == std::string::npos) {
      char bytes[4096];
      if (!PollUntil(terminal_.get(), POLLIN, deadline).ok()) return false;
      const ssize_t got = read(terminal_.get(), bytes, sizeof bytes);
      if (got <= 0) return false;
      seen_.append(bytes, static_cast<size_t>(got));
    }
    seen_.erase(0, seen_.find(text) + text.size());
    return true;
  }
  void Type(const std::string& keys) {
    ASSERT_EQ(write(terminal_.get(), keys.data(), keys.size()), static_cast<ssize_t>(keys.size()));
  }
  void Resize(unsigned short rows, unsigned short columns) {
    const winsize size{.ws_row = rows, .ws_col = columns};
    ASSERT_EQ(ioctl(terminal_.get(), TIOCSWINSZ, &size), 0);
  }
  void Signal(int signal) { kill(pid_, signal); }
  // The exit status; what it still draws is read meanwhile.
  int Wait() {
    See("\x1b[?1049l");  // A terminal nobody reads would hold it up.
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  pid_t pid_ = -1;
  UniqueFd terminal_;
  std::string seen_;
};

std::unique_ptr<DaemonProcess> StartAt(const std::string& path) {
  auto daemon = DaemonProcess::Start({.path = path});
  EXPECT_TRUE(daemon.ok()) << daemon.status();
  return *std::move(daemon);
}

TEST(KvctlTopTest, LivesThroughTheEndAndTheReturnOfTheDaemon) {
  TestFolder folder;
  const std::string path = folder.path() + "/kvd.sock";
  std::unique_ptr<DaemonProcess> daemon = StartAt(path);
  OnTerminal top({"top", "--interval", "200ms", "--endpoint", "unix:" + path});
  EXPECT_TRUE(top.See("\x1b[?1049h"));  // The alternate screen.
  EXPECT_TRUE(top.See("HEALTHY"));
  daemon->Kill();
  EXPECT_TRUE(top.See("UNREACHABLE since"));
  daemon = StartAt(path);
  EXPECT_TRUE(top.See("HEALTHY"));
  EXPECT_TRUE(top.See("restarts seen 1"));
  top.Type("q");
  EXPECT_EQ(top.Wait(), 0);
}

TEST(KvctlTopTest, ObeysKeysAndFollowsTheSizeOfTheScreen) {
  const auto daemon = *DaemonProcess::Start();
  OnTerminal top({"top", "--interval", "200ms", "--endpoint", daemon->endpoint()});
  EXPECT_TRUE(top.See("s sort by lookups"));
  top.Type("s");
  EXPECT_TRUE(top.See("s sort by hit"));
  top.Type("+");
  EXPECT_TRUE(top.See("every 400ms"));
  top.Type("p");
  EXPECT_TRUE(top.See("PAUSED"));
  top.Resize(10, 30);
  EXPECT_TRUE(top.See("q quit  p go on  s sort by hit\x1b"));  // Cut at column 30.
  top.Signal(SIGTERM);
  EXPECT_EQ(top.Wait(), 0);  // And the terminal was given back.
}

TEST(KvctlTopTest, StartsBeforeTheDaemon) {
  TestFolder folder;
  const std::string path = folder.path() + "/kvd.sock";
  OnTerminal top({"top", "--interval", "200ms", "--endpoint", "unix:" + path});
  EXPECT_TRUE(top.See("UNREACHABLE since"));
  const auto daemon = StartAt(path);
  EXPECT_TRUE(top.See("HEALTHY"));
  top.Type("\x03");  // ^C
  EXPECT_EQ(top.Wait(), 0);
}

TEST(KvctlE2eTest, DoctorFindsADaemonWhoseAdminSocketIsOpenToAll) {
  const auto daemon = *DaemonProcess::Start();
  ASSERT_EQ(chmod((daemon->path() + ".admin").c_str(), 0666), 0);
  ChildProcess doctor(KVDCTL_PROGRAM, {"doctor", "-o", "json", "--endpoint", daemon->endpoint()});
  const auto page = nlohmann::json::parse(doctor.ReadToEnd(), nullptr, false);
  EXPECT_EQ(doctor.Wait(), 3) << doctor.Errors();
  ASSERT_TRUE(page.is_object());
  bool found = false;
  for (const auto& finding : page["findings"]) {
    found = found || (finding["check"] == "sockets" && finding["level"] == "fail");
  }
  EXPECT_TRUE(found) << page.dump(2);
}

TEST(KvctlE2eTest, AnotherUserIsToldThatTheSocketIsNotTheirs) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root to be somebody else";
  const auto daemon = *DaemonProcess::Start();
  ChildProcess status(KVDCTL_PROGRAM, {"status", "--endpoint", daemon->endpoint()}, 65534);
  status.ReadToEnd();
  EXPECT_EQ(status.Wait(), 4);
  EXPECT_THAT(status.Errors(), HasSubstr("not open to this user"));
}

// One daemon with a chain of eight blocks, operated by kvctl alone.
class KvctlOperatesTest : public testing::Test {
 protected:
  static constexpr int kBlocks = 8;

  KvctlOperatesTest() : daemon_(*DaemonProcess::Start()) {
    ChildProcess peer(KVD_PEER_PROGRAM,
                      {daemon_->path(), "4096", "0", std::to_string(kBlocks), "put"});
    EXPECT_EQ(peer.ReadToEnd(), "stored 8 present 0\n");
    EXPECT_EQ(peer.Wait(), 0) << peer.Errors();
  }

  // What the verb answers in JSON.
  nlohmann::json Ask(std::vector<std::string> arguments, int status = 0) {
    arguments.insert(arguments.end(), {"-o", "json", "--endpoint", daemon_->endpoint()});
    ChildProcess kvctl(KVDCTL_PROGRAM, arguments);
    const std::string said = kvctl.ReadToEnd();
    EXPECT_EQ(kvctl.Wait(), status) << testing::PrintToString(arguments) << kvctl.Errors();
    return nlohmann::json::parse(said, nullptr, false);
  }

  std::unique_ptr<DaemonProcess> daemon_;
};

TEST_F(KvctlOperatesTest, FindsBlocksByTheStartOfTheirKey) {
  const auto all = Ask({"ls"});
  ASSERT_EQ(all["blocks"].size(), kBlocks) << all;
  const std::string key = all["blocks"][0]["key"];
  EXPECT_EQ(Ask({"inspect", key.substr(0, 15)})["blocks"].size(), kBlocks);  // They all begin so.
  const auto one = Ask({"inspect", key});
  ASSERT_EQ(one["blocks"].size(), 1) << one;
  EXPECT_EQ(one["blocks"][0]["key"], key);
  EXPECT_EQ(one["blocks"][0]["parts"][0]["tier"], "dram");
  EXPECT_EQ(Ask({"namespaces"})["namespaces"][0]["blocks"], kBlocks);
  Ask({"inspect", "00000000000000000000"}, /*status=*/5);
}

TEST_F(KvctlOperatesTest, APinKeepsAChainUntilItIsTakenBack) {
  std::string deepest;
  const auto all = Ask({"ls"});
  for (const auto& block : all["blocks"]) {
    if (block["depth"] == kBlocks) deepest = block["key"];
  }
  const auto pin = Ask({"pin", deepest, "--owner", "test", "--ttl", "10m"});
  EXPECT_EQ(pin["blocks"], kBlocks);
  const auto leases = Ask({"leases", "--kind", "pin"});
  ASSERT_EQ(leases["leases"].size(), 1) << leases;
  EXPECT_EQ(leases["leases"][0]["owner"], "test");
  EXPECT_EQ(Ask({"flush", "dram", "--yes"})["evicted_blocks"], 0);
  const std::string id = pin["pin_id"];
  Ask({"unpin", id});
  Ask({"unpin", id}, /*status=*/5);
  EXPECT_EQ(Ask({"flush", "dram", "--yes"})["evicted_blocks"], kBlocks);
  EXPECT_EQ(Ask({"ls"})["blocks"].size(), 0);
}

TEST_F(KvctlOperatesTest, EvictTakesWhatHangsBelow) {
  std::string third;
  const auto all = Ask({"ls"});
  for (const auto& block : all["blocks"]) {
    if (block["depth"] == 3) third = block["key"];
  }
  EXPECT_EQ(Ask({"evict", third, "--yes"})["evicted_blocks"], kBlocks - 2);
  EXPECT_EQ(Ask({"namespaces", "drop", "1", "--yes"})["evicted_blocks"], 2);
}

TEST_F(KvctlOperatesTest, DrainEndsTheDaemonAndStayDoesNot) {
  Ask({"drain", "--stay", "--yes"});
  EXPECT_EQ(Ask({"status"}, daemon_->Status().problems().empty() ? 0 : 3)["draining"], true);
  Ask({"undrain"});
  EXPECT_EQ(Ask({"status"})["draining"], false);
  EXPECT_EQ(Ask({"drain", "--yes", "--drain-timeout", "10s"})["ended"], true);
  EXPECT_EQ(daemon_->child().Wait(), 0);
}

}  // namespace
}  // namespace kvd
