// A client that is killed, at every step of a put and of a get, against the real daemon: what it
// held goes, nothing half-written is ever seen, and its room is used again. The other way round,
// what a living process reads stays where it is, even after its session socket has closed.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>

#include "absl/strings/str_cat.h"
#include "client/client.h"
#include "tests/e2e/daemon_process.h"

namespace kvd {
namespace {

constexpr uint32_t kPartBytes = 256 << 10;
constexpr int kBlocks = 16;
constexpr int kArenaBlocks = 128;  // 32 MiB.

std::unique_ptr<DaemonProcess> StartDaemon() {
  auto daemon = DaemonProcess::Start({.arguments = {"--dram", "32MiB"}});
  EXPECT_TRUE(daemon.ok()) << daemon.status();
  return daemon.ok() ? *std::move(daemon) : nullptr;
}

std::vector<std::string> Errand(const DaemonProcess& daemon, int first, int count,
                                std::vector<std::string> rest) {
  std::vector<std::string> arguments = {daemon.path(), absl::StrCat(kPartBytes),
                                        absl::StrCat(first), absl::StrCat(count)};
  arguments.insert(arguments.end(), rest.begin(), rest.end());
  return arguments;
}

// Puts `count` blocks from `first` on, a chain of its own; how many were stored.
uint32_t Put(DaemonProcess& daemon, int first, int count) {
  Client client({.endpoint = daemon.endpoint(), .timeout = kPatience});
  const auto ns = client.RegisterNamespace(TestModel(kPartBytes));
  EXPECT_TRUE(ns.ok()) << ns.status();
  std::vector<std::vector<std::byte>> bytes;
  for (int i = 0; i < count; ++i) bytes.push_back(TestBytes(TestKey(first + i), kPartBytes));
  const std::vector<absl::Span<const std::byte>> sources(bytes.begin(), bytes.end());
  return client.Put(*ns, TestKeys(first, count), sources).stored;
}

// How many blocks from `first` on are there; each is checked byte by byte.
uint32_t GetAndCheck(DaemonProcess& daemon, int first, int count) {
  Client client({.endpoint = daemon.endpoint(), .timeout = kPatience});
  const auto ns = client.RegisterNamespace(TestModel(kPartBytes));
  EXPECT_TRUE(ns.ok()) << ns.status();
  std::vector<std::vector<std::byte>> bytes(count, std::vector<std::byte>(kPartBytes));
  std::vector<absl::Span<std::byte>> targets;
  for (auto& block : bytes) targets.push_back(absl::MakeSpan(block));
  const GetResult got = client.Get(*ns, TestKeys(first, count), targets);
  EXPECT_EQ(got.damaged, 0u);
  for (uint32_t i = 0; i < got.blocks; ++i) {
    EXPECT_EQ(bytes[i], TestBytes(TestKey(first + static_cast<int>(i)), kPartBytes)) << i;
  }
  return got.blocks;
}

struct Step {
  const char* name;
  int visible;  // Blocks, after the death there; -1: what the daemon had done by then.
};

void PrintTo(const Step& step, std::ostream* out) { *out << step.name; }

class KillTest : public testing::TestWithParam<Step> {};

TEST_P(KillTest, LeavesNothingBehindButWhatItCommitted) {
  const auto daemon = StartDaemon();
  ASSERT_NE(daemon, nullptr);
  ChildProcess peer(KVD_PEER_PROGRAM, Errand(*daemon, 0, kBlocks, {"walk", GetParam().name}));
  ASSERT_EQ(peer.ReadLine(), absl::StrCat("at ", GetParam().name)) << peer.Errors();
  peer.Signal(SIGKILL);
  ASSERT_EQ(peer.Wait(), 128 + SIGKILL);

  EXPECT_TRUE(daemon->WaitFor([](const v1::StatusReply& status) {
    return status.sessions() == 0 && status.leases() == 0 && status.reservations() == 0 &&
           status.holds() == 0 && status.held_bytes() == 0;
  })) << daemon->Status().DebugString();

  const uint64_t visible = daemon->Status().blocks();
  if (GetParam().visible >= 0) {
    EXPECT_EQ(visible, static_cast<uint64_t>(GetParam().visible));
  }
  EXPECT_EQ(GetAndCheck(*daemon, 0, kBlocks), visible);
  EXPECT_EQ(daemon->Tiers().tiers(0).reserved_bytes(), visible * kPartBytes);

  // All room can be used, by what is new and then by what the dead one wanted to store.
  EXPECT_EQ(Put(*daemon, 1000, kArenaBlocks), static_cast<uint32_t>(kArenaBlocks));
  EXPECT_EQ(Put(*daemon, 0, kBlocks), static_cast<uint32_t>(kBlocks));
  EXPECT_EQ(GetAndCheck(*daemon, 0, kBlocks), static_cast<uint32_t>(kBlocks));
  const v1::AuditReply audit = daemon->Audit();
  EXPECT_EQ(audit.errors(), 0u) << audit.first_error();
  EXPECT_EQ(audit.stranded_blocks(), 0u);
  EXPECT_EQ(daemon->Stop(), 0) << daemon->child().Errors();
}

INSTANTIATE_TEST_SUITE_P(Steps, KillTest,
                         testing::Values(Step{"hello", 0}, Step{"registered", 0},
                                         Step{"staging", 0}, Step{"inline-put", -1},
                                         Step{"reserved", 0}, Step{"another-waits", 0},
                                         Step{"half-the-fills-sent", 0}, Step{"half-filled", 0},
                                         Step{"all-fills-sent", 0}, Step{"filled", 0},
                                         Step{"half-committed", kBlocks / 2},
                                         Step{"committed", kBlocks}, Step{"leased", kBlocks},
                                         Step{"loaded", kBlocks}, Step{"read", kBlocks},
                                         Step{"released", kBlocks}, Step{"hung-up", kBlocks}),
                         [](const auto& info) {
                           std::string name = info.param.name;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(HoldTest, RoomUnderAHoldIsNotReusedWhileTheProcessLives) {
  const auto daemon = StartDaemon();
  ASSERT_NE(daemon, nullptr);
  ASSERT_EQ(Put(*daemon, 0, 4), 4u);
  ChildProcess reader(KVD_PEER_PROGRAM, Errand(*daemon, 0, 4, {"hold"}));
  ASSERT_EQ(reader.ReadLine(), "held 4") << reader.Errors();
  ASSERT_TRUE(daemon->WaitFor([](const auto& status) { return status.sessions() == 0; }));
  EXPECT_EQ(daemon->Status().holds(), 4u);

  // More than there is room for, twice: everything that may leave does.
  for (const int first : {1000, 2000}) {
    EXPECT_EQ(Put(*daemon, first, kArenaBlocks - 4), static_cast<uint32_t>(kArenaBlocks - 4));
  }
  EXPECT_EQ(GetAndCheck(*daemon, 0, 4), 4u);
  reader.WriteLine("check");
  EXPECT_EQ(reader.ReadLine(), "intact");
  EXPECT_EQ(daemon->Status().holds(), 4u);

  reader.Signal(SIGKILL);
  reader.Wait();
  EXPECT_TRUE(daemon->WaitFor([](const auto& status) { return status.holds() == 0; }));
  EXPECT_EQ(Put(*daemon, 3000, kArenaBlocks), static_cast<uint32_t>(kArenaBlocks));
  EXPECT_EQ(GetAndCheck(*daemon, 0, 4), 0u);
}

TEST(HoldTest, BytesUnderAHoldOutliveTheDaemon) {
  const auto daemon = StartDaemon();
  ASSERT_NE(daemon, nullptr);
  ASSERT_EQ(Put(*daemon, 0, 4), 4u);
  ChildProcess reader(KVD_PEER_PROGRAM, Errand(*daemon, 0, 4, {"hold"}));
  ASSERT_EQ(reader.ReadLine(), "held 4") << reader.Errors();
  daemon->Kill();
  reader.WriteLine("check");
  EXPECT_EQ(reader.ReadLine(), "intact");
}

TEST(HoldTest, AReaderIsKilledAndAnotherReadsOn) {
  const auto daemon = StartDaemon();
  ASSERT_NE(daemon, nullptr);
  ASSERT_EQ(Put(*daemon, 0, kBlocks), static_cast<uint32_t>(kBlocks));
  ChildProcess reader(KVD_PEER_PROGRAM, Errand(*daemon, 0, kBlocks, {"hold"}));
  ChildProcess other(KVD_PEER_PROGRAM, Errand(*daemon, 0, kBlocks, {"hold"}));
  ASSERT_EQ(other.ReadLine(), absl::StrCat("held ", kBlocks)) << other.Errors();
  ASSERT_EQ(reader.ReadLine(), absl::StrCat("held ", kBlocks)) << reader.Errors();
  EXPECT_TRUE(daemon->WaitFor([](const auto& s) { return s.holds() == 2 * kBlocks; }));
  reader.Signal(SIGKILL);
  EXPECT_TRUE(daemon->WaitFor([](const auto& s) { return s.holds() == kBlocks; }));
  other.WriteLine("check");
  EXPECT_EQ(other.ReadLine(), "intact");
}

}  // namespace
}  // namespace kvd
