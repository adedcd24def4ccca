// A real daemon that is about to go: what its clients see while it drains, what it waits for, and
// that it ends with 0.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <memory>
#include <vector>

#include "absl/time/clock.h"
#include "client/client.h"
#include "proto/types/check.h"
#include "tests/e2e/daemon_process.h"

namespace kvd {
namespace {

using testing::HasSubstr;

constexpr uint32_t kPartBytes = 64 << 10;

class DrainTest : public testing::Test {
 protected:
  static constexpr int kBlocks = 4;

  DrainTest() {
    auto daemon = DaemonProcess::Start();
    KVD_CHECK(daemon.ok()) << daemon.status();
    daemon_ = *std::move(daemon);
    client_.emplace(ClientOptions{.endpoint = daemon_->endpoint(), .timeout = kPatience});
    const auto ns = client_->RegisterNamespace(TestModel(kPartBytes));
    KVD_CHECK(ns.ok()) << ns.status();
    ns_ = *ns;
    for (int i = 0; i < kBlocks; ++i) {
      memory_.push_back(TestBytes(TestKey(i), kPartBytes));
      sources_.push_back(memory_.back());
    }
    KVD_CHECK(client_->Put(ns_, TestKeys(0, kBlocks), sources_).stored == kBlocks);
  }

  grpc::Status Drain(bool exit, absl::Duration patience = absl::ZeroDuration()) {
    v1::DrainRequest request;
    request.set_exit(exit);
    request.set_timeout_ms(static_cast<uint64_t>(absl::ToInt64Milliseconds(patience)));
    v1::DrainReply reply;
    grpc::ClientContext context;
    return daemon_->admin().Drain(&context, request, &reply);
  }
  GetResult Get() {
    std::vector<std::vector<std::byte>> memory(kBlocks, std::vector<std::byte>(kPartBytes));
    std::vector<absl::Span<std::byte>> targets;
    for (auto& part : memory) targets.push_back(absl::MakeSpan(part));
    return client_->Get(ns_, TestKeys(0, kBlocks), targets);
  }

  std::unique_ptr<DaemonProcess> daemon_;
  std::optional<Client> client_;
  Namespace ns_;
  std::vector<std::vector<std::byte>> memory_;
  std::vector<absl::Span<const std::byte>> sources_;
};

TEST_F(DrainTest, AClientTakesARefusalForAPromptMissAndGoesOnInItsSession) {
  ASSERT_TRUE(Drain(/*exit=*/false).ok());
  const absl::Time start = absl::Now();
  for (int i = 0; i < 3; ++i) {
    const GetResult got = Get();
    EXPECT_EQ(got.blocks, 0u);
    EXPECT_TRUE(absl::IsUnavailable(got.status)) << got.status;
    EXPECT_THAT(std::string(got.status.message()), HasSubstr("draining"));
    const LoadResult load = client_->Load(ns_, TestKeys(0, kBlocks));
    EXPECT_EQ(load.chain.blocks(), 0u);
    EXPECT_TRUE(absl::IsUnavailable(load.status)) << load.status;
    const PutResult put = client_->Put(ns_, TestKeys(100, kBlocks), sources_);
    EXPECT_EQ(put.stored, 0u);
    EXPECT_TRUE(absl::IsUnavailable(put.status)) << put.status;
    // Without a lease a lookup is answered.
    EXPECT_EQ(client_->Lookup(ns_, TestKeys(0, kBlocks)).hit_blocks, kBlocks);
  }
  EXPECT_LT(absl::Now() - start, kPatience / 2);
  EXPECT_EQ(client_->stats().reconnects, 0u);

  v1::UndrainReply reply;
  grpc::ClientContext context;
  ASSERT_TRUE(daemon_->admin().Undrain(&context, {}, &reply).ok());
  EXPECT_EQ(Get().blocks, kBlocks);
  EXPECT_EQ(client_->Put(ns_, TestKeys(100, kBlocks), sources_).stored, kBlocks);
}

TEST_F(DrainTest, ItEndsWhenTheLastHoldIsGivenBack) {
  LoadResult load = client_->Load(ns_, TestKeys(0, kBlocks));
  ASSERT_EQ(load.chain.blocks(), kBlocks);
  const LookupResult leased =
      client_->Lookup(ns_, TestKeys(0, kBlocks), {.lease = absl::Minutes(10)});
  ASSERT_NE(leased.lease_id, 0u);
  ASSERT_TRUE(Drain(/*exit=*/true, absl::Minutes(10)).ok());
  EXPECT_EQ(Get().blocks, 0u);
  const v1::StatusReply status = daemon_->Status();  // Still there.
  EXPECT_TRUE(status.draining());
  EXPECT_EQ(status.holds(), kBlocks);

  const absl::Time start = absl::Now();
  load = {};
  EXPECT_EQ(daemon_->child().Wait(), 0) << daemon_->child().Errors();
  EXPECT_LT(absl::Now() - start, kPatience / 2);
}

TEST_F(DrainTest, ItEndsWhenItsTimeIsOverThoughSomebodyHolds) {
  const LoadResult load = client_->Load(ns_, TestKeys(0, kBlocks));
  ASSERT_EQ(load.chain.blocks(), kBlocks);
  ASSERT_TRUE(Drain(/*exit=*/true, absl::Milliseconds(300)).ok());
  EXPECT_EQ(daemon_->child().Wait(), 0) << daemon_->child().Errors();
}

TEST_F(DrainTest, ASignalEndsItAtOnceWhenNothingIsHeld) {
  const absl::Time start = absl::Now();
  EXPECT_EQ(daemon_->Stop(), 0) << daemon_->child().Errors();
  EXPECT_LT(absl::Now() - start, kPatience / 2);
}

TEST_F(DrainTest, ASignalWaitsForHoldsAndASecondOneDoesNot) {
  const LoadResult load = client_->Load(ns_, TestKeys(0, kBlocks));
  ASSERT_EQ(load.chain.blocks(), kBlocks);
  daemon_->child().Signal(SIGTERM);
  EXPECT_TRUE(daemon_->WaitFor([](const auto& status) { return status.draining(); }));
  EXPECT_EQ(daemon_->Status().holds(), kBlocks);
  const absl::Time start = absl::Now();
  EXPECT_EQ(daemon_->Stop(), 0) << daemon_->child().Errors();
  EXPECT_LT(absl::Now() - start, kPatience / 2);
}

TEST(ShortDrainTest, ASignalEndsItByItsTimeThoughSomebodyHolds) {
  const auto daemon = DaemonProcess::Start({.arguments = {"--drain-timeout", "300ms"}});
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  Client client({.endpoint = (*daemon)->endpoint(), .timeout = kPatience});
  const auto ns = client.RegisterNamespace(TestModel(kPartBytes));
  ASSERT_TRUE(ns.ok()) << ns.status();
  const std::vector<std::byte> bytes = TestBytes(TestKey(0), kPartBytes);
  const std::vector<absl::Span<const std::byte>> sources = {bytes};
  ASSERT_EQ(client.Put(*ns, TestKeys(0, 1), sources).stored, 1u);
  const LoadResult load = client.Load(*ns, TestKeys(0, 1));
  ASSERT_EQ(load.chain.blocks(), 1u);

  const absl::Time start = absl::Now();
  EXPECT_EQ((*daemon)->Stop(), 0) << (*daemon)->child().Errors();
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(300));
  EXPECT_LT(absl::Now() - start, kPatience / 2);
}

TEST_F(DrainTest, WhoFollowsEventsSeesItBegin) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoSeconds(kPatience));
  v1::EventsRequest request;
  request.set_follow(true);
  const auto reader = daemon_->admin().Events(&context, request);
  v1::Event event;
  int stored = 0;
  while (stored < kBlocks && reader->Read(&event)) stored += event.kind() == "stored";
  EXPECT_EQ(stored, kBlocks);
  ASSERT_TRUE(Drain(/*exit=*/false).ok());
  while (event.kind() != "drain-began" && reader->Read(&event)) {
  }
  EXPECT_EQ(event.kind(), "drain-began");
  EXPECT_EQ(daemon_->Stop(), 0) << daemon_->child().Errors();  // Under a reader.
}

}  // namespace
}  // namespace kvd
