// Who of before lives: told by number and start time together, and by the end of the process.

#include "daemon/former_readers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <utility>

#include "absl/synchronization/notification.h"
#include "daemon/process_identity.h"

namespace kvd {
namespace {

using testing::IsEmpty;
using testing::SizeIs;

// A process that waits to be killed.
class Sleeper {
 public:
  Sleeper() : pid_(fork()) {
    if (pid_ != 0) return;
    while (true) pause();
  }
  ~Sleeper() { End(); }
  void End() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    ended_ = std::exchange(pid_, -1);
  }
  pid_t pid() const { return pid_ > 0 ? pid_ : ended_; }

 private:
  pid_t pid_;
  pid_t ended_ = -1;
};

ReaderRow RowOf(pid_t pid) { return {.pid = pid, .started = ProcessStart(pid).value_or(1)}; }

TEST(ProcessIdentityTest, AProcessHasAStartAndNobodyHasNone) {
  Sleeper sleeper;
  ASSERT_TRUE(ProcessStart(sleeper.pid()).has_value());
  EXPECT_EQ(ProcessStart(sleeper.pid()), ProcessStart(sleeper.pid()));
  EXPECT_NE(*ProcessStart(sleeper.pid()), 0u);
  sleeper.End();
  EXPECT_FALSE(ProcessStart(sleeper.pid()).has_value());
  EXPECT_FALSE(ProcessStart(0).has_value());
  EXPECT_FALSE(ProcessStart(-1).has_value());
}

TEST(ProcessIdentityTest, TheMachineStaysTheSameWhileItRuns) {
  EXPECT_EQ(MachineIdentity(), MachineIdentity());
  EXPECT_NE(MachineIdentity(), (std::array<uint8_t, 32>{}));
}

TEST(FormerReadersTest, FindsThoseThatLiveAndAreTheSame) {
  Sleeper lives;
  Sleeper dead;
  const ReaderRow of_dead = RowOf(dead.pid());
  dead.End();
  ReaderRow reused = RowOf(lives.pid());
  ++reused.started;  // Its number has another owner now.
  auto found = FormerReaders::Find({{1, RowOf(lives.pid())}, {2, of_dead}, {3, reused}});
  ASSERT_TRUE(found.ok()) << found.status();
  ASSERT_THAT(*found, SizeIs(1));
  EXPECT_EQ((*found)[0].number, 1u);
  const FormerReaders closes(*std::move(found), [](uint32_t) {});
}

TEST(FormerReadersTest, OneThatCannotBeToldIsAnError) {
  Sleeper lives;
  const auto found =
      FormerReaders::Find({{1, RowOf(lives.pid())}, {2, {.pid = 0, .started = kUnknownStart}}});
  EXPECT_EQ(found.status().code(), absl::StatusCode::kUnavailable);
}

TEST(FormerReadersTest, TellsOfEachEnd) {
  Sleeper first;
  Sleeper second;
  absl::Notification ended[3];
  FormerReaders readers(*FormerReaders::Find({{1, RowOf(first.pid())}, {2, RowOf(second.pid())}}),
                        [&ended](uint32_t number) { ended[number].Notify(); });
  second.End();
  ended[2].WaitForNotification();
  EXPECT_FALSE(ended[1].HasBeenNotified());
  first.End();
  ended[1].WaitForNotification();
}

TEST(FormerReadersTest, EndsWhileSomebodyLives) {
  Sleeper lives;
  const FormerReaders readers(*FormerReaders::Find({{1, RowOf(lives.pid())}}), [](uint32_t) {});
}

TEST(FormerReadersTest, NobodyIsNobody) {
  const auto found = FormerReaders::Find({});
  ASSERT_TRUE(found.ok());
  EXPECT_THAT(*found, IsEmpty());
}

}  // namespace
}  // namespace kvd
