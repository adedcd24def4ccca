// What the client owes its caller, against a daemon that keeps or breaks the contract of the wire:
// right bytes or a miss, by the deadline, and everything given back.

#include "client/client.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/own_memory.h"
#include "client/release_queue.h"
#include "client/staging.h"
#include "proto/types/limits.h"
#include "tests/client/fake_daemon.h"

namespace kvd {
namespace {

using testing::AllOf;
using testing::Each;
using testing::ElementsAre;
using testing::SizeIs;

using Bytes = std::vector<std::byte>;
constexpr uint32_t kHashBytes = 16;
constexpr uint32_t kSmall = 4096;
constexpr uint32_t kLarge = 512 * 1024;

NamespaceDescriptor Model(uint32_t part_bytes, std::vector<GroupDescriptor> more = {}) {
  NamespaceDescriptor descriptor;
  descriptor.model = "test/model";
  descriptor.hash_bytes = kHashBytes;
  descriptor.groups = {{.block_tokens = 16, .part_bytes = part_bytes}};
  descriptor.groups.insert(descriptor.groups.end(), more.begin(), more.end());
  return descriptor;
}

std::string Key(int i) {
  std::string key = absl::StrCat("key-", i);
  key.resize(kHashBytes, '.');
  return key;
}

std::string Keys(int count, int first = 0) {
  std::string keys;
  for (int i = 0; i < count; ++i) keys += Key(first + i);
  return keys;
}

// Memory for the parts of some blocks, filled by seed, or with zeros.
class Buffers {
 public:
  Buffers(int blocks, const std::vector<uint32_t>& part_bytes, std::optional<int> seed) {
    for (int block = 0; block < blocks; ++block) {
      for (uint32_t size : part_bytes) {
        Bytes& bytes = all_.emplace_back(size);
        uint32_t state = static_cast<uint32_t>(seed.value_or(0) * 7919 + all_.size());
        for (size_t i = 0; seed.has_value() && i < size; ++i) {
          state = state * 1664525 + 1013904223;
          bytes[i] = static_cast<std::byte>(state >> 24);
        }
      }
    }
    for (Bytes& bytes : all_) {
      writable_.push_back(absl::MakeSpan(bytes));
      readable_.push_back(bytes);
    }
  }

  absl::Span<const absl::Span<std::byte>> targets() const { return writable_; }
  absl::Span<const absl::Span<const std::byte>> sources() const { return readable_; }
  const Bytes& operator[](size_t i) const { return all_[i]; }
  bool operator==(const Buffers& other) const { return all_ == other.all_; }

 private:
  std::vector<Bytes> all_;
  std::vector<absl::Span<std::byte>> writable_;
  std::vector<absl::Span<const std::byte>> readable_;
};

class ClientTest : public testing::Test {
 protected:
  ClientTest() : path_(folder_.path() + "/kvd"), daemon_(std::in_place, path_) {
    options_.endpoint = "unix:" + path_;
    options_.timeout = absl::Seconds(20);  // Long, so that a slow machine fails no test.
    options_.reconnect_interval = absl::ZeroDuration();
  }

  Client& client() {
    if (!client_.has_value()) client_.emplace(options_);
    return *client_;
  }
  Namespace MustRegister(const NamespaceDescriptor& descriptor) {
    absl::StatusOr<Namespace> ns = client().RegisterNamespace(descriptor);
    EXPECT_TRUE(ns.ok()) << ns.status();
    return ns.ok() ? *ns : Namespace{};
  }
  // Puts `blocks` blocks with bytes by seed 1, and returns those.
  Buffers MustPut(const Namespace& ns, int blocks) {
    Buffers source(blocks, ns.part_bytes, 1);
    const PutResult put = client().Put(ns, Keys(blocks), source.sources());
    EXPECT_TRUE(put.status.ok()) << put.status;
    EXPECT_EQ(put.stored, static_cast<uint32_t>(blocks));
    return source;
  }

  TemporaryFolder folder_;
  const std::string path_;
  std::optional<FakeDaemon> daemon_;
  ClientOptions options_;
  std::optional<Client> client_;
};

// ---- the happy path -----------------------------------------------------------------------------

class PutGetTest : public ClientTest, public testing::WithParamInterface<uint32_t> {};

TEST_P(PutGetTest, WhatWasPutIsGot) {
  const Namespace ns = MustRegister(Model(GetParam()));
  const Buffers source(5, ns.part_bytes, 3);
  Buffers target(5, ns.part_bytes, std::nullopt);

  const PutResult put = client().Put(ns, Keys(5), source.sources());
  const GetResult got = client().Get(ns, Keys(5), target.targets());

  ASSERT_TRUE(put.status.ok()) << put.status;
  EXPECT_THAT(put.results, AllOf(SizeIs(5), Each(CommitResult::kCommitted)));
  EXPECT_EQ(put.stored, 5);
  ASSERT_TRUE(got.status.ok()) << got.status;
  EXPECT_EQ(got.hit_blocks, 5);
  EXPECT_EQ(got.blocks, 5);
  EXPECT_EQ(source, target);
}

INSTANTIATE_TEST_SUITE_P(PartBytes, PutGetTest,
                         testing::Values(1, 100, kSmall, 256 * 1024 / 5, 256 * 1024 / 5 + 1, kLarge,
                                         8u << 20));

TEST_F(ClientTest, SmallPutIsOneCallAndLargePutAsksFirst) {
  const Namespace small = MustRegister(Model(kSmall));
  MustPut(small, 2);
  EXPECT_EQ(daemon_->seen().calls["Reserve"], 0);
  EXPECT_EQ(daemon_->seen().calls["Commit"], 1);

  const Namespace large = MustRegister(Model(kLarge));
  const Buffers source(4, large.part_bytes, 1);
  EXPECT_EQ(client().Put(large, Keys(4, 100), source.sources()).stored, 4);
  EXPECT_EQ(daemon_->seen().calls["Reserve"], 1);
  EXPECT_EQ(daemon_->seen().calls["Commit"], 2);
}

TEST_F(ClientTest, MorePartsThanStagingHoldsAreFilledRoundTheRing) {
  const Namespace ns = MustRegister(Model(3 * kLarge + 4097));
  const Buffers source = MustPut(ns, 20);  // About 30 MiB through 16.
  Buffers target(20, ns.part_bytes, std::nullopt);

  EXPECT_EQ(client().Get(ns, Keys(20), target.targets()).blocks, 20);
  EXPECT_EQ(source, target);
}

TEST_F(ClientTest, ManySmallPartsTravelInFewMessages) {
  const Namespace ns = MustRegister(Model(kSmall));
  const Buffers source = MustPut(ns, 1000);
  Buffers target(1000, ns.part_bytes, std::nullopt);

  EXPECT_EQ(client().Get(ns, Keys(1000), target.targets()).blocks, 1000);
  EXPECT_EQ(source, target);
  EXPECT_LE(daemon_->seen().fill_messages, 1000 / static_cast<int>(kMaxFillsPerMessage) + 1);
}

TEST_F(ClientTest, PresentBlocksAreNotSent) {
  const Namespace ns = MustRegister(Model(kLarge));
  MustPut(ns, 4);
  const int messages = daemon_->seen().fill_messages;
  const Buffers source(4, ns.part_bytes, 1);

  const PutResult again = client().Put(ns, Keys(4), source.sources());

  EXPECT_TRUE(again.status.ok());
  EXPECT_EQ(again.stored, 0);
  EXPECT_EQ(again.present, 4);
  EXPECT_THAT(again.results, AllOf(SizeIs(4), Each(CommitResult::kPresent)));
  EXPECT_EQ(daemon_->seen().fill_messages, messages);
}

TEST_F(ClientTest, OnlyMissingBlocksOfAPutAreSent) {
  const Namespace ns = MustRegister(Model(kLarge));
  MustPut(ns, 2);
  const Buffers source(4, ns.part_bytes, 1);

  const PutResult put = client().Put(ns, Keys(4), source.sources());

  EXPECT_EQ(put.stored, 2);
  EXPECT_EQ(put.present, 2);
  EXPECT_THAT(put.results, ElementsAre(CommitResult::kPresent, CommitResult::kPresent,
                                       CommitResult::kCommitted, CommitResult::kCommitted));
}

TEST_F(ClientTest, GetIsOneCall) {
  const Namespace ns = MustRegister(Model(kSmall));
  MustPut(ns, 3);
  std::map<std::string, int> expected = daemon_->seen().calls;
  ++expected["Lookup"];
  Buffers target(3, ns.part_bytes, std::nullopt);

  client().Get(ns, Keys(3), target.targets());

  std::map<std::string, int> calls = daemon_->seen().calls;
  calls.erase("Release");  // The thread in the background gives the hold back when it likes.
  EXPECT_EQ(calls, expected);
}

TEST_F(ClientTest, LookupFindsThePrefixAndLeasesIt) {
  const Namespace ns = MustRegister(Model(kSmall));
  MustPut(ns, 3);

  const LookupResult hit = client().Lookup(ns, Keys(5), {.lease = absl::Seconds(1)});
  const LookupResult unleased = client().Lookup(ns, Keys(5));

  EXPECT_EQ(hit.hit_blocks, 3);
  EXPECT_NE(hit.lease_id, 0);
  EXPECT_EQ(unleased.lease_id, 0);
}

TEST_F(ClientTest, PartsAreChosenByGroupAndShard) {
  const Namespace ns = MustRegister(Model(
      kSmall, {{.kind = GroupKind::kFull, .shards = 2, .block_tokens = 16, .part_bytes = 64}}));
  const Buffers source = MustPut(ns, 2);
  Buffers target(2, {64, kSmall}, std::nullopt);

  const GetResult got = client().Get(ns, Keys(2), target.targets(), {.parts = {{1, 1}, {0, 0}}});

  EXPECT_EQ(got.blocks, 2);
  EXPECT_EQ(target[0], source[2]);
  EXPECT_EQ(target[1], source[0]);
  EXPECT_EQ(target[3], source[3]);
}

TEST_F(ClientTest, ChainIsReadInPlaceAndCopied) {
  const Namespace ns = MustRegister(Model(kSmall));
  const Buffers source = MustPut(ns, 2);

  LoadResult load = client().Load(ns, Keys(3));

  ASSERT_TRUE(load.status.ok()) << load.status;
  ASSERT_EQ(load.chain.blocks(), 2);
  EXPECT_TRUE(load.chain.Verify(1, 0));
  EXPECT_EQ(Bytes(load.chain.part(1, 0).begin(), load.chain.part(1, 0).end()), source[1]);
  Bytes copy(kSmall);
  EXPECT_TRUE(load.chain.CopyTo(0, 0, absl::MakeSpan(copy)));
  EXPECT_EQ(copy, source[0]);
  EXPECT_TRUE(load.chain.part(2, 0).empty());
  EXPECT_FALSE(load.chain.Verify(0, 1));
  EXPECT_FALSE(load.chain.CopyTo(0, 0, absl::MakeSpan(copy).first(10)));
}

TEST_F(ClientTest, PinNamesAChainAndUnpinEndsIt) {
  const Namespace ns = MustRegister(Model(kSmall));
  MustPut(ns, 1);

  const absl::StatusOr<PinResult> pin = client().Pin(ns, Key(0), {.owner = "test"});

  ASSERT_TRUE(pin.ok()) << pin.status();
  EXPECT_EQ(pin->blocks, 1);
  EXPECT_TRUE(client().Unpin(pin->pin_id).ok());
  EXPECT_TRUE(absl::IsNotFound(client().Pin(ns, Key(9), {.owner = "test"}).status()));
}

// ---- damage -------------------------------------------------------------------------------------

TEST_F(ClientTest, DamagedBlockEndsThePrefixAndIsReported) {
  const Namespace ns = MustRegister(Model(kSmall));
  MustPut(ns, 4);
  daemon_->Damage(Key(2), 0);
  Buffers target(4, ns.part_bytes, std::nullopt);

  const GetResult got = client().Get(ns, Keys(4), target.targets());

  EXPECT_TRUE(got.status.ok());
  EXPECT_EQ(got.hit_blocks, 4);
  EXPECT_EQ(got.blocks, 2);
  EXPECT_EQ(got.damaged, 1);
  EXPECT_EQ(client().stats().damaged_parts, 1);
  EXPECT_TRUE(client().Flush().ok());
  const auto damaged = daemon_->seen().damaged;
  ASSERT_THAT(damaged, SizeIs(1));
  EXPECT_THAT(damaged.begin()->second, ElementsAre(2));
}

TEST_F(ClientTest, DamagedPartOfAChainIsReportedWithItsRelease) {
  const Namespace ns = MustRegister(Model(kSmall));
  MustPut(ns, 2);
  daemon_->Damage(Key(1), 0);
  Bytes copy(kSmall);

  {
    LoadResult load = client().Load(ns, Keys(2));
    EXPECT_TRUE(load.chain.Verify(0, 0));
    EXPECT_FALSE(load.chain.Verify(1, 0));
    EXPECT_FALSE(load.chain.CopyTo(1, 0, absl::MakeSpan(copy)));
  }

  EXPECT_TRUE(client().Flush().ok());
  const auto damaged = daemon_->seen().damaged;
  ASSERT_THAT(damaged, SizeIs(1));
  EXPECT_THAT(damaged.begin()->second, ElementsAre(1));
  EXPECT_EQ(daemon_->holds(), 0);
}

TEST_F(ClientTest, DamagedStateOnlyShortensThePrefixThatNeedsIt) {
  const Namespace ns = MustRegister(
      Model(kSmall, {{.kind = GroupKind::kState, .block_tokens = 16, .part_bytes = 64}}));
  const Buffers source = MustPut(ns, 4);
  Buffers target(4, ns.part_bytes, std::nullopt);

  daemon_->Damage(Key(3), 1);  // The state at the very end: the one before it serves three blocks.
  EXPECT_EQ(client().Get(ns, Keys(4), target.targets()).blocks, 3);
  daemon_->Damage(Key(1), 1);
  EXPECT_EQ(client().Get(ns, Keys(4), target.targets()).blocks, 3);
  daemon_->Damage(Key(2), 0);  // A full part ends it at two, and the state there is damaged.
  EXPECT_EQ(client().Get(ns, Keys(4), target.targets()).blocks, 1);
  EXPECT_EQ(target[0], source[0]);
}

TEST_F(ClientTest, DamagedWindowPartMattersOnlyInsideTheWindow) {
  const Namespace ns = MustRegister(Model(
      kSmall,
      {{.kind = GroupKind::kWindow, .window_tokens = 32, .block_tokens = 16, .part_bytes = 64}}));
  MustPut(ns, 5);
  Buffers target(5, ns.part_bytes, std::nullopt);

  daemon_->Damage(Key(1), 1);
  EXPECT_EQ(client().Get(ns, Keys(5), target.targets()).blocks, 5);
  EXPECT_EQ(client().Get(ns, Keys(3), target.targets()).blocks, 1);
}

TEST_F(ClientTest, ExtentOutsideItsRegionIsAMiss) {
  const Namespace ns = MustRegister(Model(kSmall));
  MustPut(ns, 2);
  daemon_->faults().extents_out_of_bounds = true;
  Buffers target(2, ns.part_bytes, std::nullopt);

  const GetResult got = client().Get(ns, Keys(2), target.targets());
  const LoadResult load = client().Load(ns, Keys(2));

  EXPECT_EQ(got.blocks, 0);
  EXPECT_EQ(got.damaged, 0);
  EXPECT_EQ(load.chain.blocks(), 0);
  EXPECT_EQ(client().stats().bad_extents, 2);
}

TEST_F(ClientTest, RegionShorterThanAnnouncedIsNeverMapped) {
  const Namespace ns = MustRegister(Model(kSmall));
  MustPut(ns, 2);
  daemon_->faults().short_regions = true;
  Buffers target(2, ns.part_bytes, std::nullopt);

  const GetResult got = client().Get(ns, Keys(2), target.targets());

  EXPECT_EQ(got.blocks, 0);
  EXPECT_TRUE(absl::IsDataLoss(got.status)) << got.status;
}

TEST_F(ClientTest, FewerExtentsThanAnnouncedIsAMiss) {
  const Namespace ns = MustRegister(Model(kSmall));
  MustPut(ns, 2);
  daemon_->faults().half_the_extents = true;
  Buffers target(2, ns.part_bytes, std::nullopt);

  EXPECT_EQ(client().Get(ns, Keys(2), target.targets()).blocks, 0);
  EXPECT_EQ(client().Load(ns, Keys(2)).chain.blocks(), 0);
  EXPECT_TRUE(client().Flush().ok());
  EXPECT_EQ(daemon_->holds(), 0);
}

TEST_F(ClientTest, PartThatChangedInStagingIsNotCommitted) {
  const Namespace ns = MustRegister(Model(kLarge));
  daemon_->faults().wrong_sums = true;
  const Buffers source(2, ns.part_bytes, 1);

  const PutResult put = client().Put(ns, Keys(2), source.sources());

  EXPECT_TRUE(absl::IsDataLoss(put.status)) << put.status;
  EXPECT_EQ(client().Lookup(ns, Keys(2)).hit_blocks, 0);
  EXPECT_TRUE(daemon_->WaitUntilSeen([](auto& seen) { return seen.aborted.size() == 1; }));
}

// ---- trouble ------------------------------------------------------------------------------------

TEST_F(ClientTest, WithoutADaemonEveryCallIsAPromptMiss) {
  const Namespace ns = MustRegister(Model(kSmall));
  daemon_.reset();
  options_.reconnect_interval = absl::Hours(1);
  Buffers buffers(2, ns.part_bytes, 1);
  const absl::Time start = absl::Now();

  EXPECT_FALSE(client().Lookup(ns, Keys(2)).status.ok());
  EXPECT_EQ(client().Get(ns, Keys(2), buffers.targets()).blocks, 0);
  EXPECT_EQ(client().Load(ns, Keys(2)).chain.blocks(), 0);
  EXPECT_TRUE(absl::IsUnavailable(client().Put(ns, Keys(2), buffers.sources()).status));
  EXPECT_FALSE(client().Pin(ns, Key(0), {.owner = "test"}).ok());
  EXPECT_LT(absl::Now() - start, options_.timeout / 4);
}

TEST_F(ClientTest, DaemonThatWasNeverThereIsUnavailable) {
  Client lonely({.endpoint = "unix:" + folder_.path() + "/nobody"});
  EXPECT_TRUE(absl::IsUnavailable(lonely.RegisterNamespace(Model(kSmall)).status()));
  Client wrong({.endpoint = "tcp:1"});
  EXPECT_TRUE(absl::IsInvalidArgument(wrong.RegisterNamespace(Model(kSmall)).status()));
}

TEST_F(ClientTest, CallEndsByItsDeadlineWhenTheDaemonNeverAnswers) {
  const Namespace ns = MustRegister(Model(kSmall));
  daemon_->faults().never_answers = true;
  const absl::Time start = absl::Now();

  const LookupResult hit = client().Lookup(ns, Keys(2), {.timeout = absl::Milliseconds(50)});

  EXPECT_TRUE(absl::IsDeadlineExceeded(hit.status)) << hit.status;
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(49));
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
}

TEST_F(ClientTest, CallEndsByItsDeadlineWhenTheSessionSocketIsSilent) {
  daemon_->faults().silent_socket = true;
  const absl::Time start = absl::Now();

  const auto ns = client().RegisterNamespace(Model(kSmall), absl::Milliseconds(50));

  EXPECT_TRUE(absl::IsDeadlineExceeded(ns.status())) << ns.status();
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
}

TEST_F(ClientTest, PutEndsByItsDeadlineWhenTheCopierIsSilent) {
  const Namespace ns = MustRegister(Model(kLarge));
  daemon_->faults().silent_copier = true;
  const Buffers source(40, ns.part_bytes, 1);  // More than staging holds.

  const PutResult put =
      client().Put(ns, Keys(40), source.sources(), {.timeout = absl::Milliseconds(50)});

  EXPECT_TRUE(absl::IsDeadlineExceeded(put.status)) << put.status;
  EXPECT_TRUE(daemon_->WaitUntilSeen([](auto& seen) { return seen.aborted.size() == 1; }));
}

TEST_F(ClientTest, UnansweredPutInOneCallNeverSharesItsStagingWithTheNext) {
  const Namespace ns = MustRegister(Model(kSmall));
  MustPut(ns, 1);
  const Buffers first(1, ns.part_bytes, 5);
  const Buffers second(1, ns.part_bytes, 6);

  daemon_->Pause();  // The daemon reads staging long after the client gave up.
  const PutResult late =
      client().Put(ns, Keys(1, 10), first.sources(), {.timeout = absl::Milliseconds(20)});
  daemon_->Resume();
  EXPECT_FALSE(late.status.ok());
  EXPECT_EQ(client().Put(ns, Keys(1, 20), second.sources()).stored, 1);

  Buffers target(1, ns.part_bytes, std::nullopt);
  if (client().Get(ns, Keys(1, 10), target.targets()).blocks == 1) {
    EXPECT_EQ(target, first);
  }
  EXPECT_EQ(client().Get(ns, Keys(1, 20), target.targets()).blocks, 1);
  EXPECT_EQ(target, second);
  EXPECT_EQ(client().stats().reconnects, 1);
}

TEST_F(ClientTest, RefusedFillsAbortThePut) {
  const Namespace ns = MustRegister(Model(kLarge));
  daemon_->faults().refuses_fills = true;
  const Buffers source(30, ns.part_bytes, 1);

  const PutResult put = client().Put(ns, Keys(30), source.sources());

  EXPECT_TRUE(absl::IsAborted(put.status)) << put.status;
  EXPECT_TRUE(daemon_->WaitUntilSeen([](auto& seen) { return seen.aborted.size() == 1; }));
  daemon_->faults().refuses_fills = false;
  EXPECT_EQ(client().Put(ns, Keys(30), source.sources()).stored, 30);  // The ring is whole again.
}

TEST_F(ClientTest, VersionNotInCommonIsRefused) {
  daemon_->faults().welcome_version = kProtocolVersion + 1;
  EXPECT_TRUE(absl::IsFailedPrecondition(client().RegisterNamespace(Model(kSmall)).status()));
}

// ---- reconnecting -------------------------------------------------------------------------------

TEST_F(ClientTest, NextDaemonIsFoundAndTheNamespaceRegisteredAnew) {
  const Namespace ns = MustRegister(Model(kSmall));
  MustPut(ns, 2);
  daemon_.reset();
  EXPECT_FALSE(client().Lookup(ns, Keys(2)).status.ok());
  daemon_.emplace(path_);

  const LookupResult miss = client().Lookup(ns, Keys(2));

  EXPECT_TRUE(miss.status.ok()) << miss.status;
  EXPECT_EQ(miss.hit_blocks, 0);
  EXPECT_EQ(daemon_->seen().registered, 1);
  EXPECT_EQ(client().stats().reconnects, 1);
  MustPut(ns, 2);
}

TEST_F(ClientTest, UnknownSessionIsAMissAndTheNextCallOpensAnother) {
  const Namespace ns = MustRegister(Model(kSmall));
  MustPut(ns, 2);
  daemon_->ForgetSessions();

  EXPECT_TRUE(absl::IsUnauthenticated(client().Lookup(ns, Keys(2)).status));
  EXPECT_EQ(client().Lookup(ns, Keys(2)).hit_blocks, 2);
  EXPECT_EQ(daemon_->seen().sessions, 2);
}

TEST_F(ClientTest, HangUpIsNoticedBeforeACallIsLost) {
  const Namespace ns = MustRegister(Model(kSmall));
  MustPut(ns, 2);
  daemon_->HangUp();

  EXPECT_EQ(client().Lookup(ns, Keys(2)).hit_blocks, 2);
  EXPECT_EQ(client().stats().failed_calls, 0);
}

TEST_F(ClientTest, ReconnectsAtMostOnceInTheInterval) {
  options_.reconnect_interval = absl::Hours(1);
  const Namespace ns = MustRegister(Model(kSmall));
  daemon_->HangUp();

  for (int i = 0; i < 10; ++i) EXPECT_FALSE(client().Lookup(ns, Keys(2)).status.ok());
  EXPECT_EQ(daemon_->seen().sessions, 1);
}

TEST_F(ClientTest, FinishedSessionIsToldOnlyWhenNoChainReadsIt) {
  const Namespace ns = MustRegister(Model(kSmall));
  MustPut(ns, 2);
  {
    LoadResult load = client().Load(ns, Keys(2));
    daemon_->HangUp();
    EXPECT_EQ(client().Lookup(ns, Keys(2)).hit_blocks, 2);
    EXPECT_THAT(daemon_->seen().finished_sessions, SizeIs(0));
  }
  daemon_->HangUp();
  EXPECT_EQ(client().Lookup(ns, Keys(2)).hit_blocks, 2);
  EXPECT_THAT(daemon_->seen().finished_sessions, SizeIs(2));  // And the one after it.
}

// Else a daemon that kept what the client read would wait for the end of this process.
TEST_F(ClientTest, WhatAClientReadWhoseDaemonWasAwayIsToldByTheNextClient) {
  const Namespace ns = MustRegister(Model(kSmall));
  MustPut(ns, 2);
  daemon_.reset();
  client_.reset();

  daemon_.emplace(path_);
  daemon_->faults().silent_socket = true;  // It may have heard, and it may not.
  options_.timeout = absl::Milliseconds(100);
  EXPECT_FALSE(client().RegisterNamespace(Model(kSmall)).ok());
  daemon_.reset();

  daemon_.emplace(path_);
  options_.timeout = absl::Seconds(20);
  client_.reset();
  MustRegister(Model(kSmall));
  EXPECT_THAT(daemon_->seen().finished_sessions, SizeIs(1));
}

TEST_F(ClientTest, ChainOutlivesItsSessionItsDaemonAndItsClient) {
  const Namespace ns = MustRegister(Model(kSmall));
  const Buffers source = MustPut(ns, 2);
  LoadResult load = client().Load(ns, Keys(2));

  daemon_.reset();
  EXPECT_TRUE(load.chain.Verify(0, 0));
  client_.reset();

  EXPECT_TRUE(load.chain.Verify(1, 0));
  EXPECT_EQ(Bytes(load.chain.part(1, 0).begin(), load.chain.part(1, 0).end()), source[1]);
}

// ---- what is owed -------------------------------------------------------------------------------

TEST_F(ClientTest, ReleasesRideOnTheNextCall) {
  const Namespace ns = MustRegister(Model(kSmall));
  MustPut(ns, 2);
  Buffers target(2, ns.part_bytes, std::nullopt);

  for (int i = 0; i < 50; ++i) client().Get(ns, Keys(2), target.targets());

  EXPECT_LE(daemon_->holds(), 1);
  EXPECT_LT(daemon_->seen().calls["Release"], 25);
}

TEST_F(ClientTest, ReleasesAreSentWhenNoCallComes) {
  const Namespace ns = MustRegister(Model(kSmall));
  MustPut(ns, 2);
  const LookupResult hit = client().Lookup(ns, Keys(2), {.lease = absl::Seconds(60)});
  { LoadResult load = client().Load(ns, Keys(2)); }
  client().ReleaseLease(hit.lease_id);

  EXPECT_TRUE(daemon_->WaitUntilSeen([&](auto& seen) {
    return seen.released_holds.size() == 1 && seen.released_leases.count(hit.lease_id) == 1;
  }));
  EXPECT_EQ(daemon_->holds(), 0);
}

TEST_F(ClientTest, ReleasesOfACallThatFailedAreSentAgain) {
  const Namespace ns = MustRegister(Model(kSmall));
  MustPut(ns, 2);
  Buffers target(2, ns.part_bytes, std::nullopt);
  client().Get(ns, Keys(2), target.targets());
  daemon_->Pause();
  client().Lookup(ns, Keys(2), {.timeout = absl::Milliseconds(20)});
  daemon_->Resume();

  EXPECT_TRUE(daemon_->WaitUntilSeen([](auto& seen) { return seen.released_holds.size() == 1; }));
}

TEST_F(ClientTest, WhatALateAnswerGaveIsGivenBack) {
  const Namespace ns = MustRegister(Model(kSmall));
  MustPut(ns, 2);
  Buffers target(2, ns.part_bytes, std::nullopt);
  daemon_->Pause();
  const GetOptions soon{.timeout = absl::Milliseconds(20), .lease = absl::Seconds(10)};
  const GetResult got = client().Get(ns, Keys(2), target.targets(), soon);
  EXPECT_TRUE(absl::IsDeadlineExceeded(got.status)) << got.status;
  const LoadResult load = client().Load(ns, Keys(2), {.timeout = absl::Milliseconds(20)});
  EXPECT_TRUE(absl::IsDeadlineExceeded(load.status)) << load.status;

  daemon_->Resume();

  EXPECT_TRUE(daemon_->WaitUntilSeen([](auto& seen) {
    return seen.released_holds.size() == 2 && seen.released_leases.size() == 1;
  }));
  EXPECT_EQ(daemon_->holds(), 0);
  EXPECT_EQ(daemon_->seen().sessions, 1);
}

TEST_F(ClientTest, ReservationOfALateAnswerIsGivenUp) {
  const Namespace ns = MustRegister(Model(kLarge));
  const Buffers source(2, ns.part_bytes, 1);
  // Opens staging.
  EXPECT_EQ(client().Put(ns, Keys(1, 50), source.sources().first(1)).stored, 1);
  daemon_->Pause();
  const PutResult put =
      client().Put(ns, Keys(2), source.sources(), {.timeout = absl::Milliseconds(20)});
  EXPECT_TRUE(absl::IsDeadlineExceeded(put.status)) << put.status;

  daemon_->Resume();

  EXPECT_TRUE(daemon_->WaitUntilSeen([](auto& seen) { return seen.aborted.size() == 1; }));
}

TEST_F(ClientTest, DestructorGivesBackWhatIsOwed) {
  const Namespace ns = MustRegister(Model(kSmall));
  MustPut(ns, 2);
  { LoadResult load = client().Load(ns, Keys(2)); }

  client_.reset();

  EXPECT_EQ(daemon_->holds(), 0);
}

TEST_F(ClientTest, DestructorDoesNotWaitForADaemonThatIsStuck) {
  const Namespace ns = MustRegister(Model(kSmall));
  MustPut(ns, 2);
  { LoadResult load = client().Load(ns, Keys(2)); }
  daemon_->faults().never_answers = true;
  const absl::Time start = absl::Now();

  client_.reset();

  EXPECT_LT(absl::Now() - start, absl::Seconds(10));
}

// ---- bounds -------------------------------------------------------------------------------------

TEST_F(ClientTest, LookupTakesAsManyKeysAsTheWireAllows) {
  const Namespace ns = MustRegister(Model(kSmall));
  const std::string most = Keys(kMaxLookupBlocks);

  EXPECT_TRUE(client().Lookup(ns, most.substr(kHashBytes)).status.ok());
  EXPECT_TRUE(client().Lookup(ns, most).status.ok());
  EXPECT_TRUE(absl::IsInvalidArgument(client().Lookup(ns, most + Key(1)).status));
  EXPECT_TRUE(absl::IsInvalidArgument(client().Lookup(ns, "").status));
  EXPECT_TRUE(absl::IsInvalidArgument(client().Lookup(ns, "short").status));
}

TEST_F(ClientTest, PageBoundsHoldForLoadAndPut) {
  const Namespace ns = MustRegister(Model(1));
  const Buffers source(kMaxPageBlocks + 1, ns.part_bytes, 1);
  const std::string keys = Keys(kMaxPageBlocks + 1);
  const std::string_view page(keys.data(), kMaxPageBlocks * kHashBytes);

  EXPECT_TRUE(absl::IsInvalidArgument(client().Load(ns, keys).status));
  EXPECT_TRUE(absl::IsInvalidArgument(client().Put(ns, keys, source.sources()).status));
  const PutResult put = client().Put(ns, page, source.sources().first(kMaxPageBlocks));
  EXPECT_EQ(put.stored, kMaxPageBlocks) << put.status;
  EXPECT_EQ(client().Load(ns, page).chain.blocks(), kMaxPageBlocks);
  Buffers target(kMaxPageBlocks, ns.part_bytes, std::nullopt);
  EXPECT_EQ(client().Get(ns, keys, target.targets()).blocks, kMaxPageBlocks);
}

TEST_F(ClientTest, ArgumentsThatDoNotFitAreRefusedByName) {
  const Namespace ns = MustRegister(Model(kSmall));
  const Buffers right(2, ns.part_bytes, 1);
  const Buffers wrong(2, {kSmall - 1}, 1);
  const std::string long_announce(kMaxAnnounceBytes + 1, 'x');
  const auto refused = [](const absl::Status& status, const std::string& field) {
    return absl::IsInvalidArgument(status) &&
           std::string(status.message()).find(field) != std::string::npos;
  };

  EXPECT_TRUE(refused(client().Put(ns, Keys(2), wrong.sources()).status, "sources[0]"));
  EXPECT_TRUE(refused(client().Put(ns, Keys(3), right.sources()).status, "sources"));
  EXPECT_TRUE(refused(client().Get(ns, Keys(2), wrong.targets()).status, "targets[0]"));
  EXPECT_TRUE(refused(client().Get(ns, Keys(3), right.targets()).status, "targets"));
  EXPECT_TRUE(refused(client().Lookup(ns, Keys(2), {.parent = "x"}).status, "parent"));
  EXPECT_TRUE(refused(client().Lookup(ns, Keys(2), {.lease = absl::Hours(1)}).status, "lease"));
  EXPECT_TRUE(refused(client().Load(ns, Keys(2), {.parts = {{3, 0}}}).status, "parts"));
  EXPECT_TRUE(refused(client().Load(ns, Keys(2), {.parts = {{0, 0}, {0, 0}}}).status, "parts"));
  const std::vector<std::string> announce = {"", long_announce};
  EXPECT_TRUE(refused(client().Put(ns, Keys(2), right.sources(), {.announce = announce}).status,
                      "announce"));
  EXPECT_TRUE(refused(client().Pin(ns, Key(0), {.owner = ""}).status(), "owner"));
  EXPECT_TRUE(refused(client().Lookup(Namespace{.index = 9}, Keys(1)).status, "namespace"));
  EXPECT_TRUE(refused(client().RegisterNamespace(NamespaceDescriptor{}).status(), "model"));
}

TEST_F(ClientTest, PartLargerThanStagingGoesThroughInPieces) {
  options_.staging_bytes = 1 << 20;
  const Namespace large = MustRegister(Model((3 << 20) + 1));
  const Buffers source = MustPut(large, 2);
  Buffers target(2, large.part_bytes, std::nullopt);

  EXPECT_EQ(client().Get(large, Keys(2), target.targets()).blocks, 2);
  EXPECT_EQ(source, target);
}

// ---- threads ------------------------------------------------------------------------------------

TEST_F(ClientTest, EightThreadsPutAndGetThroughHangUps) {
  const Namespace small = MustRegister(Model(kSmall));
  const Namespace large = MustRegister(Model(kLarge));
  std::atomic<int> wrong{0};
  std::atomic<int> right{0};
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 8; ++thread) {
    threads.emplace_back([&, thread] {
      const Namespace& ns = thread % 2 == 0 ? small : large;
      for (int round = 0; round < 10; ++round) {
        const int first = 1000 * thread + 10 * round;
        const Buffers source(2, ns.part_bytes, first);
        client().Put(ns, Keys(2, first), source.sources());
        if (thread == 0 && round % 4 == 3) daemon_->HangUp();
        Buffers target(2, ns.part_bytes, std::nullopt);
        const GetResult got = client().Get(ns, Keys(2, first), target.targets());
        for (uint32_t i = 0; i < got.blocks; ++i) (target[i] == source[i] ? right : wrong)++;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(right, 50);
}

// ---- own memory ---------------------------------------------------------------------------------

// A memfd, mapped.
class SharedBytes {
 public:
  explicit SharedBytes(size_t size, int seals = F_SEAL_SHRINK)
      : fd_(memfd_create("own", MFD_CLOEXEC | MFD_ALLOW_SEALING)) {
    EXPECT_EQ(ftruncate(fd_.get(), static_cast<off_t>(size)), 0);
    EXPECT_EQ(fcntl(fd_.get(), F_ADD_SEALS, seals), 0);
    mapping_ = *Mapping::Map(fd_.get(), size, Mapping::Access::kReadWrite);
  }
  int fd() const { return fd_.get(); }
  absl::Span<std::byte> all() const { return {mapping_.data(), mapping_.size()}; }
  // Copies `from` to here, back to back from `offset` on, and says where each of them lies.
  std::vector<absl::Span<const std::byte>> Take(const Buffers& from, size_t offset) const {
    std::vector<absl::Span<const std::byte>> places;
    for (const absl::Span<const std::byte> bytes : from.sources()) {
      std::copy(bytes.begin(), bytes.end(), mapping_.data() + offset);
      places.emplace_back(mapping_.data() + offset, bytes.size());
      offset += bytes.size();
    }
    return places;
  }

 private:
  UniqueFd fd_;
  Mapping mapping_;
};

TEST_F(ClientTest, PutFromAdoptedMemoryIsNotCopied) {
  const Namespace ns = MustRegister(Model(kLarge));
  const SharedBytes memory(3 * kLarge);
  ASSERT_TRUE(client().AdoptMemory(memory.fd(), memory.all()).ok());
  const Buffers source(3, ns.part_bytes, 5);
  Buffers target(3, ns.part_bytes, std::nullopt);

  // From the first byte to the last.
  const PutResult put = client().Put(ns, Keys(3), memory.Take(source, 0));
  const GetResult got = client().Get(ns, Keys(3), target.targets());

  ASSERT_TRUE(put.status.ok()) << put.status;
  EXPECT_THAT(put.results, AllOf(SizeIs(3), Each(CommitResult::kCommitted)));
  EXPECT_EQ(got.blocks, 3);
  EXPECT_EQ(source, target);
  EXPECT_EQ(daemon_->seen().fills_of_own, 3);
  EXPECT_EQ(client().stats().own_bytes, 3 * kLarge);
}

TEST_F(ClientTest, OnlyMissingBlocksOfAnAdoptedPutAreRead) {
  const Namespace ns = MustRegister(Model(kLarge));
  const SharedBytes memory(4 * kLarge);
  ASSERT_TRUE(client().AdoptMemory(memory.fd(), memory.all()).ok());
  MustPut(ns, 2);
  const Buffers source(4, ns.part_bytes, 1);
  const auto places = memory.Take(source, 0);

  const PutResult put = client().Put(ns, Keys(4), places);
  const PutResult again = client().Put(ns, Keys(4), places);

  ASSERT_TRUE(put.status.ok()) << put.status;
  EXPECT_THAT(put.results, ElementsAre(CommitResult::kPresent, CommitResult::kPresent,
                                       CommitResult::kCommitted, CommitResult::kCommitted));
  ASSERT_TRUE(again.status.ok()) << again.status;
  EXPECT_THAT(again.results, AllOf(SizeIs(4), Each(CommitResult::kPresent)));
  EXPECT_EQ(client().stats().own_bytes, 2 * kLarge);
}

TEST_F(ClientTest, SourcesThatDoNotAllLieInAdoptedMemoryAreCopied) {
  const Namespace ns = MustRegister(Model(kLarge));
  const SharedBytes memory(4 * kLarge);
  const auto adopted = memory.all().first(3 * kLarge - 1);
  ASSERT_TRUE(client().AdoptMemory(memory.fd(), adopted).ok());
  const Buffers source(2, ns.part_bytes, 6);
  const auto places = memory.Take(source, kLarge);  // One byte of the last one is outside.
  Buffers target(2, ns.part_bytes, std::nullopt);

  const PutResult put = client().Put(ns, Keys(2), places);
  const GetResult got = client().Get(ns, Keys(2), target.targets());

  ASSERT_TRUE(put.status.ok()) << put.status;
  EXPECT_EQ(got.blocks, 2);
  EXPECT_EQ(source, target);
  EXPECT_EQ(daemon_->seen().fills_of_own, 0);
  EXPECT_EQ(client().stats().own_bytes, 0);
}

TEST_F(ClientTest, SmallPutFromAdoptedMemoryIsStillOneCall) {
  const Namespace ns = MustRegister(Model(kSmall));
  const SharedBytes memory(4 * kSmall);
  ASSERT_TRUE(client().AdoptMemory(memory.fd(), memory.all()).ok());
  const Buffers source(4, ns.part_bytes, 7);
  Buffers target(4, ns.part_bytes, std::nullopt);
  const PutResult put = client().Put(ns, Keys(4), memory.Take(source, 0));
  ASSERT_TRUE(put.status.ok()) << put.status;
  EXPECT_EQ(client().Get(ns, Keys(4), target.targets()).blocks, 4);
  EXPECT_EQ(source, target);
  EXPECT_EQ(daemon_->seen().calls["Reserve"], 0);
}

TEST_F(ClientTest, LongPartInAdoptedMemoryTravelsInPieces) {
  constexpr uint32_t kLong = 2 * OwnFills::kPieceBytes + 100;
  const Namespace ns = MustRegister(Model(kLong));
  const SharedBytes memory(2 * kLong);
  ASSERT_TRUE(client().AdoptMemory(memory.fd(), memory.all()).ok());
  const Buffers source(2, ns.part_bytes, 8);
  Buffers target(2, ns.part_bytes, std::nullopt);
  const PutResult put = client().Put(ns, Keys(2), memory.Take(source, 0));
  ASSERT_TRUE(put.status.ok()) << put.status;
  EXPECT_EQ(client().Get(ns, Keys(2), target.targets()).blocks, 2);
  EXPECT_EQ(source, target);
  EXPECT_EQ(daemon_->seen().fills_of_own, 6);
  EXPECT_EQ(daemon_->seen().longest_fill, OwnFills::kPieceBytes);
}

TEST_F(ClientTest, MemoryThatWillNotDoIsRefusedByName) {
  const SharedBytes good(8 * kSmall);
  const SharedBytes unsealed(8 * kSmall, 0);
  const SharedBytes other(8 * kSmall);
  void* copied = mmap(nullptr, 8 * kSmall, PROT_READ | PROT_WRITE, MAP_PRIVATE, good.fd(), 0);
  ASSERT_NE(copied, MAP_FAILED);
  const absl::Span<const std::byte> mapped_private(static_cast<std::byte*>(copied), 8 * kSmall);
  const SharedBytes shorter(4 * kSmall);
  void* longer = mmap(nullptr, 8 * kSmall, PROT_READ, MAP_SHARED, shorter.fd(), 0);
  ASSERT_NE(longer, MAP_FAILED);
  const absl::Span<const std::byte> too_long(static_cast<std::byte*>(longer), 8 * kSmall);
  const Bytes heap(8 * kSmall);
  struct Case {
    int fd;
    absl::Span<const std::byte> memory;
    const char* says;
  };
  for (const Case& c : {Case{good.fd(), {}, "memory: must be 1 byte to 1 TiB, got 0"},
                        Case{-1, good.all(), "fd: -1 is no memfd"},
                        Case{STDIN_FILENO, good.all(), "is no memfd that can be sealed"},
                        Case{unsealed.fd(), unsealed.all(), "F_SEAL_SHRINK"},
                        Case{shorter.fd(), too_long, "32768 bytes, and the memfd has 16384"},
                        Case{good.fd(), other.all(), "are not where the first bytes"},
                        Case{good.fd(), heap, "are not where the first bytes"},
                        Case{good.fd(), mapped_private, "mapped with MAP_SHARED"},
                        Case{good.fd(), good.all().subspan(kSmall), "(from byte 0 on)"}}) {
    const absl::Status status = client().AdoptMemory(c.fd, c.memory);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status << c.says;
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr(c.says));
  }
  EXPECT_EQ(daemon_->seen().own_memories, 0);
  EXPECT_TRUE(client().AdoptMemory(good.fd(), good.all()).ok());
  const absl::Status twice = client().AdoptMemory(other.fd(), other.all());
  EXPECT_EQ(twice.code(), absl::StatusCode::kFailedPrecondition) << twice;
  EXPECT_THAT(std::string(twice.message()), testing::HasSubstr("adopted some already"));
  munmap(copied, 8 * kSmall);
  munmap(longer, 8 * kSmall);
}

TEST_F(ClientTest, AdoptedMemoryIsHandedOverAgainAfterAReconnect) {
  const Namespace ns = MustRegister(Model(kLarge));
  const Buffers source(2, ns.part_bytes, 9);
  const SharedBytes memory(2 * kLarge);
  ASSERT_TRUE(client().AdoptMemory(memory.fd(), memory.all()).ok());
  daemon_->HangUp();
  const PutResult put = client().Put(ns, Keys(2), memory.Take(source, 0));
  ASSERT_TRUE(put.status.ok()) << put.status;
  EXPECT_EQ(daemon_->seen().own_memories, 2);
  EXPECT_EQ(client().stats().own_bytes, 2 * kLarge);
}

TEST_F(ClientTest, DaemonThatDoesNotTakeMemoryGetsCopies) {
  const Namespace ns = MustRegister(Model(kLarge));
  const SharedBytes memory(2 * kLarge);
  const auto places = memory.Take(Buffers(2, ns.part_bytes, 9), 0);
  daemon_->faults().refuses_own_memory = true;
  const absl::Status refused = client().AdoptMemory(memory.fd(), memory.all());
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition) << refused;
  EXPECT_THAT(std::string(refused.message()), testing::HasSubstr("does not take it"));
  EXPECT_EQ(client().Put(ns, Keys(1, 0), {places[0]}).stored, 1);

  daemon_->faults().refuses_own_memory = false;
  EXPECT_TRUE(client().AdoptMemory(memory.fd(), memory.all()).ok());  // It may try again.
  daemon_->faults().refuses_own_memory = true;
  daemon_->HangUp();
  EXPECT_EQ(client().Put(ns, Keys(1, 1), {places[1]}).stored, 1);
  EXPECT_EQ(client().stats().own_bytes, 0);
}

// The caller uses its memory again once Put() returned, and the copier may read it even later.
TEST_F(ClientTest, AdoptedPutThatTimesOutIsNeverCommitted) {
  const Namespace ns = MustRegister(Model(kLarge));
  const SharedBytes memory(2 * kLarge);
  ASSERT_TRUE(client().AdoptMemory(memory.fd(), memory.all()).ok());
  daemon_->faults().silent_copier = true;
  const PutResult put = client().Put(ns, Keys(2), memory.Take(Buffers(2, ns.part_bytes, 9), 0),
                                     {.timeout = absl::Milliseconds(300)});
  EXPECT_TRUE(absl::IsDeadlineExceeded(put.status)) << put.status;
  EXPECT_TRUE(daemon_->WaitUntilSeen([](const auto& seen) { return !seen.aborted.empty(); }));
  EXPECT_EQ(daemon_->seen().calls["Commit"], 0);
  EXPECT_EQ(client().Lookup(ns, Keys(2)).hit_blocks, 0);
}

TEST_F(ClientTest, RefusedFillsAbortAnAdoptedPut) {
  const Namespace ns = MustRegister(Model(kLarge));
  const SharedBytes memory(2 * kLarge);
  ASSERT_TRUE(client().AdoptMemory(memory.fd(), memory.all()).ok());
  const auto places = memory.Take(Buffers(2, ns.part_bytes, 9), 0);
  daemon_->faults().refuses_fills = true;
  EXPECT_TRUE(absl::IsAborted(client().Put(ns, Keys(2), places).status));
  EXPECT_TRUE(daemon_->WaitUntilSeen([](const auto& seen) { return !seen.aborted.empty(); }));
  daemon_->faults().refuses_fills = false;
  EXPECT_EQ(client().Put(ns, Keys(2, 5), places).stored, 2);  // What was left behind is skipped.
}

// ---- pieces -------------------------------------------------------------------------------------

TEST(StagingRingTest, SlotsNeverOverlapAndAllRoomComesBack) {
  StagingRing ring(1000, 600);
  struct Used {
    StagingSlot slot;
    uint64_t length;
  };
  std::vector<Used> used;
  uint32_t state = 1;
  for (int step = 0; step < 100'000; ++step) {
    state = state * 1664525 + 1013904223;
    const uint64_t length = 1 + (state >> 16) % 400;
    if ((state >> 8) % 2 == 0) {
      if (auto slot = ring.Allocate(length)) {
        ASSERT_LE(slot->offset + length, 1000);
        for (const Used& other : used) {
          ASSERT_TRUE(slot->offset + length <= other.slot.offset ||
                      other.slot.offset + other.length <= slot->offset);
        }
        used.push_back({*slot, length});
      }
    } else if (!used.empty()) {
      const size_t i = (state >> 4) % used.size();
      ring.Free(used[i].slot.number);
      used.erase(used.begin() + i);
    }
  }
  for (const Used& left : used) ring.Free(left.slot.number);
  EXPECT_TRUE(ring.empty());
  EXPECT_TRUE(ring.Allocate(1000).has_value());
}

TEST(ReleaseQueueTest, ACallTakesNoMoreThanTheWireAllows) {
  ReleaseQueue queue;
  queue.StartSession(1);
  for (uint32_t i = 1; i <= kMaxReleasesPerCall; ++i) queue.AddHold(1, i, {});
  for (uint32_t i = 1; i <= 10; ++i) queue.AddLease(i);

  const Owed first = queue.Take(1);
  const Owed second = queue.Take(1);

  EXPECT_THAT(first.hold_ids, SizeIs(kMaxReleasesPerCall));
  EXPECT_THAT(first.lease_ids, SizeIs(0));
  EXPECT_THAT(second.lease_ids, SizeIs(10));
  EXPECT_TRUE(queue.empty());
}

TEST(ReleaseQueueTest, DamageIsTakenNoLaterThanItsHold) {
  ReleaseQueue queue;
  queue.StartSession(1);
  for (uint32_t i = 1; i <= 20; ++i) queue.AddHold(1, i, std::vector<uint32_t>(100, i));
  std::set<uint64_t> reported;
  while (!queue.empty()) {
    const Owed owed = queue.Take(1);
    for (const DamagedExtents& damaged : owed.damaged) reported.insert(damaged.hold_id);
    for (uint64_t hold_id : owed.hold_ids) EXPECT_EQ(reported.count(hold_id), 1);
  }
  EXPECT_THAT(reported, SizeIs(20));
}

TEST(ReleaseQueueTest, QueueIsBoundedAndOldSessionsAreForgotten) {
  ReleaseQueue queue;
  queue.StartSession(1);
  for (uint32_t i = 1; i <= ReleaseQueue::kMaxQueued + 5; ++i) queue.AddLease(i);
  EXPECT_EQ(queue.dropped(), 5);
  queue.StartSession(2);
  EXPECT_TRUE(queue.empty());
  queue.AddHold(1, 7, {});
  EXPECT_TRUE(queue.empty());
}

}  // namespace
}  // namespace kvd
