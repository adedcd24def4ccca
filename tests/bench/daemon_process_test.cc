#include "bench/daemon_process.h"

#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvd {
namespace {

using testing::HasSubstr;

DaemonProcess::Options SmallDaemon() {
  return {.program = KVD_DAEMON, .arguments = {"--dram", "16MiB", "--blocks", "100"}};
}

std::filesystem::path SocketOf(const DaemonProcess& daemon) {
  return daemon.endpoint().substr(std::string("unix:").size());
}

TEST(DaemonProcessTest, AReadyDaemonHasItsSocketsInAFolderOfItsOwn) {
  const absl::StatusOr<std::unique_ptr<DaemonProcess>> first = DaemonProcess::Start(SmallDaemon());
  const absl::StatusOr<std::unique_ptr<DaemonProcess>> second = DaemonProcess::Start(SmallDaemon());

  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_TRUE(std::filesystem::is_socket(SocketOf(**first)));
  EXPECT_NE((*first)->endpoint(), (*second)->endpoint());
}

TEST(DaemonProcessTest, AfterStopNothingIsLeft) {
  absl::StatusOr<std::unique_ptr<DaemonProcess>> daemon = DaemonProcess::Start(SmallDaemon());
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  const pid_t pid = (*daemon)->pid();
  const std::filesystem::path folder = SocketOf(**daemon).parent_path();

  const absl::Status stopped = (*daemon)->Stop();

  EXPECT_TRUE(stopped.ok()) << stopped;
  EXPECT_EQ(kill(pid, 0), -1);
  EXPECT_EQ(errno, ESRCH);
  EXPECT_FALSE(std::filesystem::exists(folder));
}

TEST(DaemonProcessTest, ADaemonThatWasKilledIsAnErrorOfStop) {
  absl::StatusOr<std::unique_ptr<DaemonProcess>> daemon = DaemonProcess::Start(SmallDaemon());
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  kill((*daemon)->pid(), SIGKILL);

  const absl::Status stopped = (*daemon)->Stop();

  EXPECT_EQ(stopped.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(stopped.message()), HasSubstr("signal 9"));
}

TEST(DaemonProcessTest, AFolderThatWasGivenOutlivesAKill) {
  const std::string folder = testing::TempDir() + "/kvd." + std::to_string(getpid());
  std::filesystem::create_directory(folder);
  DaemonProcess::Options options = SmallDaemon();
  options.folder = folder;
  for (int life = 0; life < 2; ++life) {
    absl::StatusOr<std::unique_ptr<DaemonProcess>> daemon = DaemonProcess::Start(options);
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    EXPECT_EQ((*daemon)->endpoint(), "unix:" + folder + "/kvd.sock");
    EXPECT_FALSE((*daemon)->WaitForExit(absl::ZeroDuration()));
    EXPECT_FALSE((*daemon)->was_killed());

    (*daemon)->Kill();

    EXPECT_TRUE((*daemon)->WaitForExit(absl::ZeroDuration()));
    EXPECT_TRUE((*daemon)->was_killed());
    EXPECT_TRUE((*daemon)->Stop().ok());
  }
  EXPECT_TRUE(std::filesystem::exists(folder + "/kvd.log"));
  std::filesystem::remove_all(folder);
}

TEST(DaemonProcessTest, ADaemonThatKillsItselfAtTheStartIsAborted) {
  const absl::StatusOr<std::unique_ptr<DaemonProcess>> daemon = DaemonProcess::Start(
      {.program = KVD_DAEMON, .arguments = {"--dram", "16MiB", "--kill-at", "start.arena_opened"}});

  EXPECT_EQ(daemon.status().code(), absl::StatusCode::kAborted);
}

TEST(DaemonProcessTest, ADaemonThatDoesNotStartTellsWhatItLogged) {
  const absl::StatusOr<std::unique_ptr<DaemonProcess>> daemon =
      DaemonProcess::Start({.program = KVD_DAEMON, .arguments = {"--no-such-flag"}});

  EXPECT_EQ(daemon.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(daemon.status().message()), HasSubstr("no-such-flag"));
}

TEST(DaemonProcessTest, ADaemonThatSaysNothingAndIgnoresSigtermIsKilled) {
  const std::string script = testing::TempDir() + "/silent." + std::to_string(getpid());
  std::ofstream(script) << "#!/bin/sh\ntrap '' TERM\nexec sleep 600\n";
  std::filesystem::permissions(script, std::filesystem::perms::owner_all);

  const absl::StatusOr<std::unique_ptr<DaemonProcess>> daemon =
      DaemonProcess::Start({.program = script,
                            .start_timeout = absl::Milliseconds(50),
                            .stop_timeout = absl::Milliseconds(50)});

  EXPECT_EQ(daemon.status().code(), absl::StatusCode::kDeadlineExceeded);
  std::filesystem::remove(script);
}

TEST(DaemonProcessTest, AProgramThatIsNotThereIsAnError) {
  EXPECT_EQ(DaemonProcess::Start({.program = "/nonexistent/kvd"}).status().code(),
            absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace kvd
