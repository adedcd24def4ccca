// What routers are told of a real index: which announced block is in which tier, and that whoever
// missed something gets it again.

#include "daemon/event_streams.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "proto/types/announcement.h"
#include "tests/testing/control_harness.h"
#include "tests/testing/router.h"

namespace kvd {
namespace {

using testing::IsEmpty;
using testing::Pair;
using testing::UnorderedElementsAre;

constexpr uint32_t kPart = 4096;
constexpr uint64_t kSlots = 64;  // Of the arena; four are kept free.
constexpr TierSet kBoth = kDramTier | kNvmeTier;

ControlHarness::Options HarnessOptions() {
  ControlHarness::Options options;
  options.arena_bytes = kSlots * kPart;
  options.region_bytes = 16 * kPart;
  options.nvme_bytes = 1000 * NvmeTier::RoomOf(kPart);
  options.control.session_hold_bytes = 1u << 30;
  return options;
}

// A block is announced by its number.
std::string Announce(uint64_t key, const uint64_t* parent) {
  const std::vector<uint64_t> hashes = {key};
  std::vector<uint32_t> tokens(16);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<uint32_t>(key * 16 + i);
  return WriteAnnouncement(
      {.hashes = hashes, .parent = parent, .tokens = tokens, .block_tokens = 16});
}

class EventStreamsTest : public testing::Test {
 protected:
  explicit EventStreamsTest(const ControlHarness::Options& options = HarnessOptions())
      : h_(options) {
    session_ = h_.Open(1);
    ns_ = h_.Register(session_, ControlHarness::Descriptor());
    streams_ = Make({});
  }

  std::unique_ptr<EventStreams> Make(EventStreams::Options options) {
    options.backend_id = "kvd@test";
    options.domain_name = [](DomainId domain) { return "uid:" + std::to_string(domain); };
    options.model_name = [this](NamespaceId ns) { return h_.control.descriptor(ns).model; };
    return std::make_unique<EventStreams>(metrics_, options);
  }

  // Reserve with announcements, fill, commit.
  void PutIn(NamespaceId ns, const Keys& keys, const Keys& parent = {}) {
    std::vector<std::string> announced;
    for (size_t i = 0; i < keys.size(); ++i) {
      const uint64_t* above = i > 0 ? &keys[i - 1] : parent.empty() ? nullptr : parent.data();
      announced.push_back(Announce(keys[i], above));
    }
    auto reserve = ControlHarness::Make<ReserveCall>(session_, ns, keys, parent);
    reserve->call.announce.assign(announced.begin(), announced.end());
    h_.Run(*reserve);
    ASSERT_TRUE(reserve->done()) << reserve->step.status();
    if (reserve->call.reservation_id == 0) return;
    h_.FillGranted(session_, reserve->call, keys);
    h_.Commit(session_, reserve->call.reservation_id);
    (void)h_.control.Abort(session_.token, reserve->call.reservation_id);
  }
  void Put(const Keys& keys, const Keys& parent = {}) { PutIn(ns_, keys, parent); }
  void Settle() {
    h_.control.Poll();
    while (h_.nvme.EndAll() > 0 || h_.control.movement()->moves() > 0) h_.control.Poll();
    h_.control.Poll();
  }
  void PutChain(const Keys& keys) {
    for (size_t i = 0; i < keys.size(); i += 4) {
      const Keys page(keys.begin() + static_cast<ptrdiff_t>(i),
                      keys.begin() + static_cast<ptrdiff_t>(std::min(keys.size(), i + 4)));
      Put(page, i == 0 ? Keys{} : Keys{keys[i - 1]});
      Settle();
    }
  }
  // Waits for what has to come from NVMe, as long as a client does.
  ControlHarness::CallPtr<LoadCall> Load(const Keys& keys) {
    auto load = ControlHarness::Make<LoadCall>(session_, ns_, keys);
    load->call.remaining_ms = 1000;
    h_.Run(*load);
    while (load->waits()) {
      h_.nvme.EndAll();
      h_.clock.Advance(10 * kMillisecond);
      h_.PollAndResume(*load);
    }
    EXPECT_TRUE(load->done()) << load->step.status();
    return load;
  }
  // Pushes everything else out of DRAM.
  void Crowd() { PutChain(KeysFrom(1'000'000 + 100 * crowds_++, kSlots)); }
  // A chain of four that is on NVMe alone. Routers hear of it that it was stored, then that it
  // moved.
  Keys PutOnNvme() {
    const Keys chain = KeysFrom(1, 4);
    PutChain(chain);
    Crowd();
    return chain;
  }

  // What has happened since the last call, as messages.
  std::vector<EventMessagePtr> Tell() {
    while (true) {
      const Control::FollowedBatch batch = h_.control.FollowEvents(next_, 512);
      if (batch.first > next_) streams_->Lost();
      for (const auto& event : batch.events) streams_->Apply(event);
      next_ = batch.first + batch.events.size();
      if (batch.events.empty()) return streams_->Take();
    }
  }
  void Hear(Router& router) {
    for (const EventMessagePtr& message : Tell()) {
      ASSERT_EQ(router.Hear(message->sequence, message->payload), Router::Heard::kApplied);
    }
    ASSERT_EQ(router.mistakes(), 0u);
  }
  // Of `keys` what the router knows.
  static std::map<uint64_t, TierSet> Known(const Router& router, const Keys& keys) {
    std::map<uint64_t, TierSet> known;
    for (const uint64_t key : keys) {
      const auto it = router.blocks().find(key);
      if (it != router.blocks().end()) known[key] = it->second;
    }
    return known;
  }
  // What the index has, by the number of each block. All of them are announced.
  std::map<uint64_t, TierSet> Truth() const {
    std::map<uint64_t, TierSet> truth;
    const Residency& index = h_.store.residency();
    for (BlockRef ref = 1; ref <= index.max_blocks(); ++ref) {
      if (index.tiers(ref) == 0) continue;
      uint64_t key = 0;
      std::memcpy(&key, index.block(ref).key.bytes.data(), sizeof key);
      truth[key] = index.tiers(ref);
    }
    return truth;
  }
  // The first event of `kind` from number `from` on.
  std::optional<Event> FindEvent(EventKind kind, uint64_t from) const {
    for (const auto& followed : h_.control.FollowEvents(from, 4096).events) {
      if (followed.event.kind == kind) return followed.event;
    }
    return std::nullopt;
  }
  static void ExpectTruth(const Router& router, const std::map<uint64_t, TierSet>& truth) {
    const std::map<uint64_t, TierSet> known(router.blocks().begin(), router.blocks().end());
    EXPECT_EQ(known, truth);
    EXPECT_EQ(router.mistakes(), 0u);
  }

  ControlHarness h_;
  ControlHarness::Session session_;
  NamespaceId ns_ = 0;
  EventMetrics metrics_;
  std::unique_ptr<EventStreams> streams_;
  uint64_t next_ = 1;
  uint64_t crowds_ = 0;
};

TEST_F(EventStreamsTest, AStreamBeginsClearedAndHasWhatIsPut) {
  Router router;
  Put({1, 2, 3});
  Hear(router);
  EXPECT_EQ(router.clears(), 1u);
  EXPECT_THAT(router.blocks(),
              UnorderedElementsAre(Pair(1, kDramTier), Pair(2, kDramTier), Pair(3, kDramTier)));
  EXPECT_EQ(metrics_.stored, 3u);
  EXPECT_EQ(streams_->blocks(), 3u);
}

TEST_F(EventStreamsTest, ABlockThatMovesIsNeverNowhere) {
  Router router;
  const Keys chain = PutOnNvme();
  Hear(router);
  EXPECT_EQ(Known(router, chain),
            (std::map<uint64_t, TierSet>{
                {1, kNvmeTier}, {2, kNvmeTier}, {3, kNvmeTier}, {4, kNvmeTier}}));

  Load(chain);
  Hear(router);
  EXPECT_EQ(Known(router, chain),
            (std::map<uint64_t, TierSet>{{1, kBoth}, {2, kBoth}, {3, kBoth}, {4, kBoth}}));
  ExpectTruth(router, Truth());
}

TEST_F(EventStreamsTest, DamageIsToldOfTheTierWhereItIs) {
  Router router;
  const Keys chain = PutOnNvme();
  const auto load = Load(chain);
  ASSERT_EQ(load->call.cursor.next, 4u);
  const uint64_t before = h_.control.events().next();
  h_.Damage(UnpackAt<PackedExtent>(load->call.extents, 3));
  h_.ReportDamage(session_, load->call.cursor.hold, {3});
  h_.mover.CompleteAll();
  h_.control.Poll();
  Hear(router);
  EXPECT_EQ(Known(router, {3, 4}), (std::map<uint64_t, TierSet>{{3, kBoth}, {4, kNvmeTier}}));

  const std::optional<Event> moved = FindEvent(EventKind::kMoved, before);
  ASSERT_TRUE(moved.has_value());
  EXPECT_EQ(moved->where, kDramTier);
  EXPECT_EQ(moved->tiers, kNvmeTier);
  ExpectTruth(router, Truth());
}

TEST_F(EventStreamsTest, ARecordThatIsDamagedOnNvmeIsToldOfNvme) {
  Router router;
  const Keys chain = PutOnNvme();
  const uint64_t before = h_.control.events().next();
  const auto load = h_.Load(session_, ns_, chain);
  ASSERT_TRUE(load->waits());
  h_.nvme.End(3, NvmeOutcome::kCorrupt);
  h_.nvme.EndAll();
  h_.PollAndResume(*load);
  Hear(router);
  EXPECT_EQ(Known(router, chain),
            (std::map<uint64_t, TierSet>{{1, kBoth}, {2, kBoth}, {3, kBoth}}));
  const std::optional<Event> damaged = FindEvent(EventKind::kDamaged, before);
  ASSERT_TRUE(damaged.has_value());
  EXPECT_EQ(damaged->where, kNvmeTier);
  EXPECT_EQ(damaged->tiers, 0);
}

TEST_F(EventStreamsTest, ANamespaceThatIsDroppedIsCleared) {
  Router router;
  Put({1, 2});
  Hear(router);
  auto sweep = h_.control.BeginDrop(ns_);
  ASSERT_TRUE(sweep.ok());
  while (!h_.control.Continue(*sweep)) {
  }
  ASSERT_TRUE(sweep->dropped);
  Hear(router);
  EXPECT_THAT(router.blocks(), IsEmpty());
  EXPECT_EQ(router.clears(), 2u);
  EXPECT_EQ(metrics_.removed, 2u);
}

TEST_F(EventStreamsTest, WhatNobodyAnnouncedIsNotToldUntilSomebodyDoes) {
  Router router;
  h_.Put(session_, ns_, {1, 2});
  Hear(router);
  EXPECT_THAT(router.blocks(), IsEmpty());
  EXPECT_EQ(metrics_.unannounced, 2u);
  Put({1, 2});  // Both are there.
  Hear(router);
  EXPECT_THAT(router.blocks(), UnorderedElementsAre(Pair(1, kDramTier), Pair(2, kDramTier)));
}

TEST_F(EventStreamsTest, EachModelHasItsStreamWhereTheTopicNamesIt) {
  streams_ = Make({.topic = "kv@pod-7@{model}"});
  const NamespaceId other = h_.Register(session_, ControlHarness::Descriptor("other/model"));
  Put({1, 2});
  PutIn(other, {3});
  std::map<std::string, Router> routers;
  for (const EventMessagePtr& message : Tell()) {
    ASSERT_EQ(routers[message->topic].Hear(message->sequence, message->payload),
              Router::Heard::kApplied);
  }
  ASSERT_EQ(routers.size(), 2u);
  EXPECT_THAT(routers["kv@pod-7@model"].blocks(),
              UnorderedElementsAre(Pair(1, kDramTier), Pair(2, kDramTier)));
  EXPECT_THAT(routers["kv@pod-7@other/model"].blocks(), UnorderedElementsAre(Pair(3, kDramTier)));

  EventStreams::Replay replay{.topic = "kv@pod-7@other/model"};
  EventMessagePtr again = streams_->Next(replay);
  ASSERT_NE(again, nullptr);
  EXPECT_EQ(again->topic, "kv@pod-7@other/model");
  EXPECT_EQ(streams_->Next(replay), nullptr);
  EventStreams::Snapshot snapshot = streams_->TakeSnapshot("", /*any_topic=*/true);
  EXPECT_EQ(snapshot.streams.size(), 2u);
}

TEST_F(EventStreamsTest, OldMessagesAreKeptWithinBothBounds) {
  streams_ = Make({.replay_messages = 3, .replay_bytes = 1u << 20});
  for (uint64_t i = 0; i < 5; ++i) {
    Put({i * 10});
    ASSERT_EQ(Tell().size(), 1u);
  }
  const auto kept = [&](uint64_t from) {
    std::vector<uint64_t> sequences;
    EventStreams::Replay replay{.any_topic = true, .from = from};
    while (const EventMessagePtr message = streams_->Next(replay)) {
      sequences.push_back(message->sequence);
    }
    return sequences;
  };
  EXPECT_THAT(kept(0), testing::ElementsAre(2, 3, 4));
  EXPECT_THAT(kept(3), testing::ElementsAre(3, 4));
  EXPECT_THAT(kept(5), IsEmpty());

  streams_ = Make({.replay_messages = 100, .replay_bytes = 1});
  next_ = 1;
  Tell();
  EXPECT_THAT(kept(0), IsEmpty());
}

TEST_F(EventStreamsTest, AReplayGoesOnWhereTheWindowHasMovedTo) {
  streams_ = Make({.replay_messages = 2});
  Put({10});
  Tell();
  EventStreams::Replay replay{.any_topic = true};
  ASSERT_NE(streams_->Next(replay), nullptr);
  for (uint64_t i = 2; i < 6; ++i) {
    Put({i * 10});
    Tell();
  }
  const EventMessagePtr next = streams_->Next(replay);
  ASSERT_NE(next, nullptr);
  EXPECT_EQ(next->sequence, 3u) << "the reader sees the gap by itself";
}

TEST_F(EventStreamsTest, AMessageEndsAtItsBounds) {
  streams_ = Make({.message_events = 2});
  Put(KeysFrom(1, 5));
  EXPECT_EQ(Tell().size(), 3u);  // With AllBlocksCleared six events.
}

TEST_F(EventStreamsTest, ASnapshotIsWholeAndItsParentsComeFirst) {
  streams_ = Make({.message_events = 8});
  Put(KeysFrom(1, 16));
  Put(KeysFrom(17, 14), {16});
  const auto messages = Tell();
  Router router;
  std::vector<uint64_t> order;
  EventStreams::Snapshot snapshot = streams_->TakeSnapshot("", false);
  uint64_t count = 0;
  while (const EventMessagePtr message = streams_->Next(snapshot)) {
    EXPECT_EQ(message->sequence, messages.back()->sequence);
    const size_t before = router.blocks().size();
    router.HearSnapshot(message->sequence, message->payload);
    for (uint64_t key = before + 1; key <= router.blocks().size(); ++key) {
      EXPECT_TRUE(router.blocks().contains(key)) << "a child came before its parent";
    }
    ++count;
  }
  EXPECT_EQ(count, 4u);
  ExpectTruth(router, Truth());
  EXPECT_EQ(streams_->TakeSnapshot("no such topic", false).streams.size(), 0u);
}

class SmallRingTest : public EventStreamsTest {
 protected:
  static ControlHarness::Options Options() {
    ControlHarness::Options options = HarnessOptions();
    options.control.events = 8;
    return options;
  }
  SmallRingTest() : EventStreamsTest(Options()) {}
};

TEST_F(SmallRingTest, AfterALossANumberIsMissingAndAllIsToldAnew) {
  Router router;
  Put({1, 2});
  Hear(router);
  const uint64_t wanted = router.next();
  Put(KeysFrom(10, 12));
  // As the follower does it: everything that is there, then the events since.
  streams_->Lost();
  std::vector<Control::FollowedEvent> there;
  for (uint32_t from = 1; from != 0;) from = h_.control.FollowBlocks(from, there);
  for (const auto& block : there) streams_->Apply(block);
  const auto messages = streams_->Take();
  ASSERT_EQ(messages.size(), 1u);
  EXPECT_EQ(messages[0]->sequence, wanted + 1);
  EXPECT_EQ(router.Hear(messages[0]->sequence, messages[0]->payload), Router::Heard::kGap);
  router.HearSnapshot(messages[0]->sequence, messages[0]->payload);
  ExpectTruth(router, Truth());
  EXPECT_EQ(metrics_.losses, 1u);
}

class AnnounceBoundTest : public EventStreamsTest {
 protected:
  static ControlHarness::Options Options() {
    ControlHarness::Options options = HarnessOptions();
    options.control.announce_bytes = 2 * 3 * (Announcements::kOverheadBytes + 250);
    return options;
  }
  AnnounceBoundTest() : EventStreamsTest(Options()) {}
};

TEST_F(AnnounceBoundTest, OneDomainHasHalfAndTheRestIsStoredUntold) {
  Router router;
  Put(KeysFrom(100, 8));
  Hear(router);
  EXPECT_EQ(h_.Hits(session_, ns_, KeysFrom(100, 8)), 8u);
  const size_t told = router.blocks().size();
  EXPECT_GE(told, 3u);
  EXPECT_LT(told, 8u);
  EXPECT_EQ(h_.control.announcements().refused(), 8 - told);
  EXPECT_LE(h_.control.announcements().bytes(), 3u * (Announcements::kOverheadBytes + 250));

  // What has gone gives its room back once routers have heard of it.
  Sweep sweep = *h_.control.BeginEvict(ns_, PackKeys({100}));
  while (!h_.control.Continue(sweep)) {
  }
  Hear(router);
  EXPECT_EQ(h_.control.announcements().bytes(), 0u);
  Put({1, 2});
  Hear(router);
  EXPECT_THAT(router.blocks(), UnorderedElementsAre(Pair(1, kDramTier), Pair(2, kDramTier)));
}

TEST_F(EventStreamsTest, AnAnnouncementThatIsNotOneABlockIsRefused) {
  auto reserve = ControlHarness::Make<ReserveCall>(session_, ns_, {1, 2});
  const std::string one = Announce(1, nullptr);
  reserve->call.announce = {one};
  h_.Run(*reserve);
  EXPECT_EQ(reserve->step.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(reserve->step.status().message(), "announce: must be none, or one for each of 2 keys");
}

// Chains that are put, loaded, damaged and dropped at random, over a stream that loses one of each
// fifty messages: the router asks for those again, and for everything where they are not kept.
TEST_F(EventStreamsTest, ARouterThatMissesMessagesEndsWithTheTruth) {
  streams_ = Make({.replay_messages = 40, .message_events = 4});
  std::mt19937_64 random(20261122);
  Router router;
  uint64_t sent = 0;
  uint64_t next_lost = 0;
  uint64_t lost = 0;
  uint64_t replays = 0;
  uint64_t snapshots = 0;
  const auto catch_up = [&] {
    EventStreams::Replay replay{.any_topic = true, .from = router.next()};
    const EventMessagePtr first = streams_->Next(replay);
    if (first != nullptr && first->sequence == router.next()) {
      ++replays;
      for (EventMessagePtr m = first; m != nullptr; m = streams_->Next(replay)) {
        ASSERT_EQ(router.Hear(m->sequence, m->payload), Router::Heard::kApplied);
      }
      return;
    }
    ++snapshots;
    EventStreams::Snapshot snapshot = streams_->TakeSnapshot("", true);
    while (const EventMessagePtr m = streams_->Next(snapshot)) {
      router.HearSnapshot(m->sequence, m->payload);
    }
  };
  for (int round = 0; round < 3000; ++round) {
    const uint64_t chain = random() % 30;
    const Keys keys = KeysFrom(chain * 100, 4 + random() % 8);
    if (random() % 3 != 0) {
      PutChain(keys);
    } else {
      if (random() % 4 == 0) h_.nvme.Damage(random());
      const auto load = Load(keys);
      if (load->call.cursor.next > 0 && random() % 4 == 0) {
        h_.Damage(UnpackAt<PackedExtent>(load->call.extents, 0));
        h_.ReportDamage(session_, load->call.cursor.hold, {0});
        h_.mover.CompleteAll();
      }
      if (load->call.cursor.hold != 0) h_.ReleaseHold(session_, load->call.cursor.hold);
      Settle();
    }
    bool gap = false;
    for (const EventMessagePtr& message : Tell()) {
      if (sent % 50 == 0) next_lost = sent + random() % 50;
      if (sent++ == next_lost) {
        ++lost;
        continue;
      }
      gap |= router.Hear(message->sequence, message->payload) == Router::Heard::kGap;
    }
    if (gap) catch_up();
  }
  catch_up();
  ExpectTruth(router, Truth());
  h_.Audit();
  EXPECT_GT(lost, 10u);
  EXPECT_GT(replays, 5u);
  EXPECT_GT(metrics_.removed, 500u);
  RecordProperty("snapshots", static_cast<int>(snapshots));
}

}  // namespace
}  // namespace kvd
