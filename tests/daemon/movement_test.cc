// Blocks that move between DRAM and NVMe, through the calls of clients, over a tier that ends its
// jobs when a test says so.

#include "daemon/movement.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tests/testing/control_harness.h"

namespace kvd {
namespace {

constexpr uint32_t kPart = 4096;
constexpr uint64_t kSlots = 64;  // Of the arena; four are kept free.

ControlHarness::Options OptionsOf(uint64_t nvme_blocks, std::string admission = "all") {
  ControlHarness::Options options;
  options.arena_bytes = kSlots * kPart;
  options.region_bytes = 16 * kPart;
  options.nvme_bytes = nvme_blocks * NvmeTier::RoomOf(kPart);
  options.admission = std::move(admission);
  options.control.session_hold_bytes = 1u << 30;
  return options;
}

class MovementTest : public testing::Test {
 protected:
  explicit MovementTest(const ControlHarness::Options& options) : h_(options) {
    session_ = h_.Open(1);
    ns_ = h_.Register(session_, ControlHarness::Descriptor());
  }
  MovementTest() : MovementTest(OptionsOf(1000)) {}

  // Lets jobs end as they come until nothing moves any more.
  void Settle() {
    h_.control.Poll();
    while (h_.nvme.EndAll() > 0 || h_.control.movement()->moves() > 0) h_.control.Poll();
    h_.control.Poll();
    h_.Audit();
  }
  void PutChain(const Keys& keys) {
    for (size_t i = 0; i < keys.size(); i += 4) {
      const Keys page(keys.begin() + static_cast<ptrdiff_t>(i),
                      keys.begin() + static_cast<ptrdiff_t>(std::min(keys.size(), i + 4)));
      h_.Put(session_, ns_, page, i == 0 ? Keys{} : Keys{keys[i - 1]});
      Settle();
    }
  }
  // A chain of eight blocks that has left DRAM and is on NVMe.
  Keys ColdChain(uint64_t first = 100) {
    const Keys keys = KeysFrom(first, 8);
    PutChain(keys);
    PutChain(KeysFrom(10'000 + first * 100, kSlots));
    EXPECT_FALSE(InDram(keys[0]));
    EXPECT_TRUE(OnNvme(keys.back()));
    return keys;
  }
  // An operator drops the chain that begins with `key`.
  void EvictAll(uint64_t key) {
    absl::StatusOr<Sweep> sweep = h_.control.BeginEvict(ns_, PackKeys({key}));
    ASSERT_TRUE(sweep.ok()) << sweep.status();
    while (!h_.control.Continue(*sweep)) {
    }
    ASSERT_EQ(Ref(key), 0u);
  }
  std::vector<Event> EventsOf(uint64_t key) const {
    const std::string packed = PackKeys({key});
    const ChainHash hash = KeyList(packed, kTestHashBytes)[0];
    std::vector<Event> all(EventRing::kDefaultCapacity);
    all.resize(h_.control.events().Read(1, absl::MakeSpan(all)).size);
    std::erase_if(all, [&hash](const Event& event) { return event.key != hash; });
    return all;
  }
  BlockRef Ref(uint64_t key) const {
    const std::string packed = PackKeys({key});
    return h_.store.residency().Find(ns_, KeyList(packed, kTestHashBytes)[0]);
  }
  bool InDram(uint64_t key) const { return Ref(key) != 0 && h_.store.residency().InDram(Ref(key)); }
  bool OnNvme(uint64_t key) const { return Ref(key) != 0 && h_.store.residency().OnNvme(Ref(key)); }
  uint64_t FreeSlots() const {
    return (h_.arena->capacity_bytes() - h_.arena->reserved_bytes()) / kPart;
  }
  const MovementCounters& moved() const { return h_.control.metrics().movement; }

  void ExpectLoaded(const ControlHarness::Held<LoadCall>& load, const Keys& keys, size_t blocks) {
    ASSERT_TRUE(load.done()) << load.step.status();
    ASSERT_EQ(load.call.cursor.next, blocks);
    for (size_t i = 0; i < blocks; ++i) {
      EXPECT_TRUE(h_.IsPayload(UnpackAt<PackedExtent>(load.call.extents, i), ns_, keys[i])) << i;
    }
  }

  ControlHarness h_;
  ControlHarness::Session session_;
  NamespaceId ns_ = 0;
};

// --- demotion ------------------------------------------------------------------------------------

TEST_F(MovementTest, ALittleRoomIsKeptFreeAndNothingIsLost) {
  for (uint64_t chain = 0; chain < 40; ++chain) PutChain(KeysFrom(chain * 100, 8));
  EXPECT_GE(FreeSlots(), 4u);
  EXPECT_EQ(moved().lost_blocks, 0u);
  for (uint64_t chain = 0; chain < 40; ++chain) {
    EXPECT_EQ(h_.Hits(session_, ns_, KeysFrom(chain * 100, 8)), 8u) << chain;
  }
  EXPECT_GT(moved().demoted_blocks + moved().clean_blocks, 200u);
}

TEST_F(MovementTest, AnAdmittedBlockTakesItsAncestorsAlongRootFirstEachOnce) {
  PutChain(KeysFrom(0, 20));
  PutChain(KeysFrom(100, 40));
  ASSERT_EQ(h_.nvme.appends(), 0u);
  h_.Put(session_, ns_, KeysFrom(200, 2));
  // The leaf of the oldest chain is the victim: with it goes all that is above it.
  for (uint32_t depth = 0; depth < 20; ++depth) {
    h_.control.Poll();
    EXPECT_TRUE(InDram(19)) << "a block left before its record was there";
    ASSERT_GT(h_.nvme.jobs(), 0u);
    EXPECT_EQ(h_.nvme.info(0).depth, depth);
    h_.nvme.End(0);
  }
  Settle();
  EXPECT_FALSE(InDram(19));
  EXPECT_TRUE(InDram(0));
  EXPECT_TRUE(OnNvme(0));
  PutChain(KeysFrom(300, 30));  // The rest of the chain leaves: it is there already.
  EXPECT_FALSE(InDram(0));
  EXPECT_EQ(h_.Hits(session_, ns_, KeysFrom(0, 20)), 20u);
  EXPECT_EQ(moved().written_blocks, h_.nvme.appends()) << "a record was written twice";
  EXPECT_GT(moved().clean_blocks, 10u);
}

class NoAdmissionTest : public MovementTest {
 protected:
  NoAdmissionTest() : MovementTest(OptionsOf(1000, "none")) {}
};

TEST_F(NoAdmissionTest, WhatIsDeclinedLeavesAltogether) {
  for (uint64_t chain = 0; chain < 20; ++chain) PutChain(KeysFrom(chain * 100, 8));
  EXPECT_EQ(h_.nvme.appends(), 0u);
  EXPECT_EQ(h_.Hits(session_, ns_, KeysFrom(0, 8)), 0u);
  EXPECT_GT(moved().declined_blocks, 90u);
  EXPECT_EQ(moved().lost_blocks, 0u);
}

TEST_F(MovementTest, APutDoesNotWaitForTheDisk) {
  PutChain(KeysFrom(0, 60));
  // No job ends: reservations evict what is not there yet, and that is counted.
  for (uint64_t chain = 1; chain < 10; ++chain) {
    EXPECT_EQ(h_.Put(session_, ns_, KeysFrom(chain * 1000, 8)).size(), 8u);
    h_.control.Poll();
  }
  EXPECT_GT(moved().lost_blocks, 0u);
  Settle();
}

TEST_F(MovementTest, ATierThatTakesNoWritesLeavesDramAsItWasWithout) {
  h_.nvme.set_writable(false);
  for (uint64_t chain = 0; chain < 20; ++chain) PutChain(KeysFrom(chain * 100, 8));
  EXPECT_EQ(h_.nvme.appends(), 0u);
  EXPECT_EQ(h_.arena->reserved_bytes(), h_.arena->capacity_bytes()) << "all of DRAM is used";
  EXPECT_EQ(h_.Hits(session_, ns_, KeysFrom(1900, 8)), 8u);
}

TEST_F(MovementTest, AChainThatTheTierDoesNotTakeIsGivenUpInTime) {
  PutChain(KeysFrom(0, 60));
  h_.nvme.takes_writes = false;
  h_.Put(session_, ns_, KeysFrom(1000, 2));
  h_.control.Poll();
  EXPECT_GT(h_.control.movement()->moves(), 0u);
  EXPECT_TRUE(InDram(59));
  h_.clock.Advance(6 * kSecond);
  h_.control.Poll();
  EXPECT_FALSE(InDram(59)) << "its room is wanted, and nobody takes it";
  EXPECT_GT(moved().failed_blocks, 0u);
  h_.Audit();
}

TEST_F(MovementTest, AFailedWriteLosesTheVictimOnly) {
  PutChain(KeysFrom(0, 60));
  h_.Put(session_, ns_, KeysFrom(1000, 1));
  h_.control.Poll();
  ASSERT_GE(h_.nvme.jobs(), 6u);
  h_.nvme.End(5, NvmeOutcome::kError);
  h_.nvme.EndAll();
  h_.control.Poll();
  EXPECT_EQ(moved().failed_writes, 1u);
  EXPECT_EQ(moved().failed_blocks, 1u);
  EXPECT_EQ(h_.Hits(session_, ns_, KeysFrom(0, 60)), 59u);
  Settle();
}

// Others have left meanwhile: then it stays, and is tried again when its room is wanted.
TEST_F(MovementTest, AFailedWriteKeepsAVictimWhoseRoomNobodyWants) {
  PutChain(KeysFrom(0, 52));
  PutChain(KeysFrom(500, 8));
  h_.Put(session_, ns_, KeysFrom(1000, 1));
  h_.control.Poll();
  ASSERT_EQ(h_.control.movement()->moves(), 1u);
  ASSERT_EQ(h_.nvme.info(0).depth, 0u);
  EvictAll(500);
  while (h_.nvme.jobs() > 0) {
    h_.nvme.End(0, NvmeOutcome::kError);
    h_.control.Poll();
  }
  EXPECT_EQ(moved().failed_blocks, 1u);
  EXPECT_EQ(moved().lost_blocks, 0u);
  EXPECT_TRUE(InDram(51));
  PutChain(KeysFrom(2000, 8));
  EXPECT_TRUE(OnNvme(51)) << "it was not tried again";
  EXPECT_EQ(h_.Hits(session_, ns_, KeysFrom(0, 52)), 52u);
}

// A full disk, or a file system that has become read-only: memory serves as if there were none.
TEST_F(MovementTest, AWriteThatFailsForWantOfRoomKeepsTheVictim) {
  PutChain(KeysFrom(0, 60));
  h_.Put(session_, ns_, KeysFrom(1000, 1));
  h_.control.Poll();
  ASSERT_GT(h_.nvme.jobs(), 0u);
  h_.nvme.End(0, NvmeOutcome::kError);
  h_.nvme.set_writable(false);
  h_.nvme.EndAll();
  h_.control.Poll();
  EXPECT_EQ(moved().failed_blocks, 1u);
  EXPECT_EQ(h_.Hits(session_, ns_, KeysFrom(0, 60)), 60u);
  h_.Audit();
}

class SmallNvmeTest : public MovementTest {
 protected:
  SmallNvmeTest() : MovementTest(OptionsOf(100)) {}
};

TEST_F(SmallNvmeTest, TheOldestLeaveNvmeToMakeRoom) {
  for (uint64_t chain = 0; chain < 40; ++chain) PutChain(KeysFrom(chain * 100, 8));
  EXPECT_LE(h_.nvme.live_bytes(), h_.nvme.live_capacity_bytes());
  EXPECT_GT(moved().nvme_evicted_blocks, 100u);
  EXPECT_EQ(h_.Hits(session_, ns_, KeysFrom(0, 8)), 0u);
  EXPECT_EQ(h_.Hits(session_, ns_, KeysFrom(3000, 8)), 8u);
}

TEST_F(MovementTest, ANamespaceThatIsDroppedIsDeadOnMediaToo) {
  ColdChain();
  absl::StatusOr<Sweep> sweep = h_.control.BeginDrop(ns_);
  ASSERT_TRUE(sweep.ok());
  const ScopeNumber scope = h_.control.movement()->scope(ns_);
  while (!h_.control.Continue(*sweep)) {
  }
  EXPECT_TRUE(sweep->dropped);
  EXPECT_TRUE(h_.nvme.purged(scope));
  EXPECT_EQ(h_.nvme.records(), 0u);
}

// --- lookup --------------------------------------------------------------------------------------

TEST_F(MovementTest, ALookupSplitsThePrefixByTier) {
  const Keys keys = ColdChain();
  h_.nvme.queue_us = 100;
  const auto lookup = h_.Lookup(session_, ns_, keys);
  EXPECT_EQ(lookup->call.hit_blocks, 8u);
  EXPECT_EQ(lookup->call.nvme_blocks, 8u);
  EXPECT_GE(lookup->call.load_time_us, 100u + 8 * kPart / 1000);
  EXPECT_EQ(h_.nvme.reads(), 0u) << "nobody said that it will be loaded";
}

TEST_F(MovementTest, ALookupThatWillBeLoadedFetchesAhead) {
  const Keys keys = ColdChain();
  const auto lookup = h_.Lookup(session_, ns_, keys, /*lease_ms=*/1000, /*extent_blocks=*/8);
  EXPECT_EQ(lookup->call.cursor.next, 0u) << "an extent of a block that is not in DRAM";
  EXPECT_EQ(h_.nvme.reads(), 8u);
  Settle();
  EXPECT_EQ(moved().prefetched_blocks, 8u);
  const auto again = h_.Lookup(session_, ns_, keys, 0, 8);
  EXPECT_EQ(again->call.nvme_blocks, 0u);
  EXPECT_EQ(again->call.cursor.next, 8u);
}

TEST_F(MovementTest, AHitThatIsSlowerThanComputingIsNotOffered) {
  const Keys keys = ColdChain();
  h_.nvme.queue_us = 1'000'000;
  auto lookup = ControlHarness::Make<LookupCall>(session_, ns_, keys);
  lookup->call.prefill_us_per_token = 100;  // 12.8 ms for all of it.
  h_.Run(*lookup);
  EXPECT_EQ(lookup->call.hit_blocks, 0u);
  EXPECT_EQ(moved().declined_hit_blocks, 8u);
  h_.nvme.queue_us = 1000;
  auto faster = ControlHarness::Make<LookupCall>(session_, ns_, keys);
  faster->call.prefill_us_per_token = 100;
  h_.Run(*faster);
  EXPECT_EQ(faster->call.hit_blocks, 8u);
}

TEST_F(MovementTest, WhatATierThatIsOutHasIsNotOffered) {
  const Keys keys = ColdChain();
  h_.nvme.set_readable(false);
  EXPECT_EQ(h_.Hits(session_, ns_, keys), 0u);
  const auto load = h_.Load(session_, ns_, keys);
  ExpectLoaded(*load, keys, 0);
  h_.nvme.set_readable(true);
  EXPECT_EQ(h_.Hits(session_, ns_, keys), 8u);
}

// --- promotion -----------------------------------------------------------------------------------

TEST_F(MovementTest, ALoadWaitsForNvmeAndAnswersTheBytes) {
  const Keys keys = ColdChain();
  const auto load = h_.Load(session_, ns_, keys);
  ASSERT_TRUE(load->waits());
  EXPECT_EQ(h_.nvme.reads(), 8u) << "what follows is read as well";
  while (load->waits()) {
    ASSERT_GT(h_.nvme.jobs(), 0u);
    h_.nvme.End(0);
    h_.PollAndResume(*load);
  }
  ExpectLoaded(*load, keys, 8);
  EXPECT_EQ(load->call.cursor.outcome, LoadOutcome::kComplete);
  EXPECT_TRUE(OnNvme(keys[0])) << "the record stays";
  EXPECT_TRUE(h_.ReleaseHold(session_, load->call.cursor.hold));
  Settle();
}

TEST_F(MovementTest, ABlockIsReadOnceForAllWhoWait) {
  const Keys keys = ColdChain();
  const auto one = h_.Load(session_, ns_, keys);
  const auto two = h_.Load(session_, ns_, keys);
  EXPECT_EQ(h_.nvme.reads(), 8u);
  EXPECT_EQ(moved().joined_waits, 1u);
  h_.nvme.EndAll();
  h_.PollAndResume(*one);
  h_.PollAndResume(*two);
  ExpectLoaded(*one, keys, 8);
  ExpectLoaded(*two, keys, 8);
  EXPECT_EQ(h_.nvme.reads(), 8u);
}

TEST_F(MovementTest, NotMoreThanSoManyWaitForOneBlock) {
  const Keys keys = ColdChain();
  std::vector<ControlHarness::CallPtr<LoadCall>> loads;
  for (int i = 0; i < 65; ++i) loads.push_back(h_.Load(session_, ns_, keys));
  for (int i = 0; i < 64; ++i) EXPECT_TRUE(loads[static_cast<size_t>(i)]->waits()) << i;
  ExpectLoaded(*loads[64], keys, 0);
  EXPECT_EQ(moved().load_waits_refused, 1u);
  h_.nvme.EndAll();
  for (int i = 0; i < 64; ++i) {
    h_.PollAndResume(*loads[static_cast<size_t>(i)]);
    ExpectLoaded(*loads[static_cast<size_t>(i)], keys, 8);
  }
}

TEST_F(MovementTest, ALoadAnswersWhatItHasBeforeItsDeadline) {
  const Keys keys = ColdChain();
  auto load = ControlHarness::Make<LoadCall>(session_, ns_, keys);
  load->call.remaining_ms = 105;
  h_.Run(*load);
  ASSERT_TRUE(load->waits());
  h_.nvme.End(0);
  h_.PollAndResume(*load);
  ASSERT_TRUE(load->waits());
  EXPECT_LE(h_.control.NextDeadline(), h_.clock.Now() + 100 * kMillisecond);
  h_.clock.Advance(100 * kMillisecond);
  h_.PollAndResume(*load);
  ExpectLoaded(*load, keys, 1);
  EXPECT_EQ(load->call.cursor.outcome, LoadOutcome::kMiss);
  Settle();
}

TEST_F(MovementTest, ADrainEndsTheWaits) {
  const Keys keys = ColdChain();
  const auto load = h_.Load(session_, ns_, keys);
  ASSERT_TRUE(load->waits());
  h_.control.EndWaits();
  h_.PollAndResume(*load);
  ExpectLoaded(*load, keys, 0);
  Settle();
}

TEST_F(MovementTest, ADamagedRecordIsAMissThatIsStoredAnew) {
  const Keys keys = ColdChain();
  const auto load = h_.Load(session_, ns_, keys);
  ASSERT_TRUE(load->waits());
  h_.nvme.End(3, NvmeOutcome::kCorrupt);
  h_.nvme.EndAll();
  h_.PollAndResume(*load);
  ExpectLoaded(*load, keys, 3);
  EXPECT_EQ(moved().damaged_records, 1u);
  EXPECT_EQ(h_.Hits(session_, ns_, keys), 3u);
  EXPECT_EQ(h_.counts().stubs, 1u);
  // Stored again, all that hangs below is found again.
  EXPECT_EQ(h_.Put(session_, ns_, {keys[3]}, {keys[2]}), Results({CommitResult::kCommitted}));
  EXPECT_EQ(h_.Hits(session_, ns_, keys), 8u);
  Settle();
}

TEST_F(MovementTest, ARecordThatCannotBeReadIsAMissThatIsStoredAnew) {
  const Keys keys = ColdChain();
  const auto load = h_.Load(session_, ns_, keys);
  h_.nvme.End(2, NvmeOutcome::kError);
  h_.nvme.EndAll();
  h_.PollAndResume(*load);
  ExpectLoaded(*load, keys, 2);
  EXPECT_EQ(h_.Hits(session_, ns_, keys), 2u);
  ASSERT_EQ(h_.control.quarantine().total(), 1u);
  EXPECT_EQ(h_.control.quarantine().entries()[0].depth, 3u);
  h_.Put(session_, ns_, {keys[2]}, {keys[1]});
  EXPECT_EQ(h_.Hits(session_, ns_, keys), 8u);
}

// What was stored anew above what NVMe has could leave nowhere: it would fill memory for good.
TEST_F(MovementTest, WhatIsStoredAnewAboveOthersOnNvmeIsWrittenThere) {
  const Keys keys = ColdChain();
  const auto load = h_.Load(session_, ns_, keys);
  h_.nvme.End(2, NvmeOutcome::kCorrupt);
  h_.nvme.EndAll();
  h_.PollAndResume(*load);
  ExpectLoaded(*load, keys, 2);
  EXPECT_TRUE(h_.ReleaseHold(session_, load->call.cursor.hold));
  h_.Put(session_, ns_, {keys[2]}, {keys[1]});
  Settle();
  EXPECT_TRUE(OnNvme(keys[2]));
  for (uint64_t chain = 0; chain < 10; ++chain) PutChain(KeysFrom(70'000 + chain * 100, 8));
  EXPECT_FALSE(InDram(keys[2]));
  EXPECT_EQ(h_.Hits(session_, ns_, keys), 8u);
}

TEST_F(MovementTest, AboveOthersOnNvmeAFailedWriteIsTriedAgainWhenNothingElseMayLeave) {
  const Keys keys = ColdChain();
  auto load = h_.Load(session_, ns_, keys);
  h_.nvme.End(2, NvmeOutcome::kCorrupt);
  h_.nvme.EndAll();
  h_.PollAndResume(*load);
  EXPECT_TRUE(h_.ReleaseHold(session_, load->call.cursor.hold));
  h_.Put(session_, ns_, {keys[2]}, {keys[1]});
  h_.control.Poll();
  ASSERT_EQ(h_.nvme.jobs(), 1u);
  h_.nvme.End(0, NvmeOutcome::kError);
  Settle();
  EXPECT_FALSE(OnNvme(keys[2]));
  // All else is held.
  std::vector<ControlHarness::CallPtr<LoadCall>> held;
  for (uint64_t chain = 0; chain < 20; ++chain) {
    const Keys more = KeysFrom(50'000 + chain * 100, 8);
    h_.Put(session_, ns_, more);
    held.push_back(h_.Load(session_, ns_, more));
    Settle();
  }
  for (int turn = 0; turn < 100 && !OnNvme(keys[2]); ++turn) {
    h_.clock.Advance(std::clamp<Nanos>(h_.control.NextDeadline() - h_.clock.Now(), 0, kSecond));
    h_.nvme.EndAll();
    h_.control.Poll();
  }
  EXPECT_TRUE(OnNvme(keys[2]));
  EXPECT_EQ(h_.Hits(session_, ns_, keys), 8u);
}

TEST_F(MovementTest, AReadThatFailsOfADeviceThatIsOutLeavesTheBlockWhereItIs) {
  const Keys keys = ColdChain();
  const auto load = h_.Load(session_, ns_, keys);
  while (h_.nvme.jobs() > 0) h_.nvme.End(0, NvmeOutcome::kError);
  h_.nvme.set_readable(false);
  h_.PollAndResume(*load);
  ExpectLoaded(*load, keys, 0);
  h_.nvme.set_readable(true);
  EXPECT_EQ(h_.control.quarantine().total(), 0u);
  EXPECT_EQ(h_.Hits(session_, ns_, keys), 8u);
  const auto again = h_.Load(session_, ns_, keys);
  h_.nvme.EndAll();
  h_.PollAndResume(*again);
  ExpectLoaded(*again, keys, 8);
}

TEST_F(MovementTest, DamagedDramFallsBackToNvme) {
  const Keys keys = ColdChain();
  const auto load = h_.Load(session_, ns_, keys);
  h_.nvme.EndAll();
  h_.PollAndResume(*load);
  ExpectLoaded(*load, keys, 8);
  h_.Damage(UnpackAt<PackedExtent>(load->call.extents, 5));
  h_.ReportDamage(session_, load->call.cursor.hold, {5});
  h_.mover.CompleteAll();
  h_.control.Poll();
  EXPECT_EQ(h_.control.counters().damage_confirmed, 1u);
  EXPECT_EQ(h_.Hits(session_, ns_, keys), 8u);
  EXPECT_TRUE(h_.ReleaseHold(session_, load->call.cursor.hold));
  const auto again = h_.Load(session_, ns_, keys);
  ASSERT_TRUE(again->waits());
  h_.nvme.EndAll();
  h_.PollAndResume(*again);
  ExpectLoaded(*again, keys, 8);
}

TEST_F(MovementTest, WhatIsOnNvmeIsPresentForReserve) {
  const Keys keys = ColdChain();
  const auto reserve = h_.Reserve(session_, ns_, keys);
  EXPECT_EQ(reserve->call.granted, 0u);
  EXPECT_EQ(reserve->call.states, std::string(8, static_cast<char>(ReserveState::kPresent)));
  EXPECT_EQ(h_.Put(session_, ns_, {5000}, {keys.back()}), Results({CommitResult::kCommitted}));
  Keys longer = keys;
  longer.push_back(5000);
  EXPECT_EQ(h_.Hits(session_, ns_, longer), 9u);
  Settle();
}

TEST_F(MovementTest, WithoutRoomInDramALoadAnswersWhatIsThere) {
  const Keys keys = ColdChain();
  // All of DRAM is held by somebody, and nothing leaves it for NVMe.
  h_.nvme.set_writable(false);
  Keys held_keys;
  std::vector<ControlHarness::CallPtr<LoadCall>> held;
  for (uint64_t chain = 0; chain < 20; ++chain) {
    const Keys more = KeysFrom(50'000 + chain * 100, 8);
    h_.Put(session_, ns_, more);
    held.push_back(h_.Load(session_, ns_, more));
    h_.control.Poll();
  }
  const auto load = h_.Load(session_, ns_, keys);
  EXPECT_TRUE(load->done());
  EXPECT_LT(load->call.cursor.next, 8u);
  EXPECT_GT(moved().promotions_without_room, 0u);
  Settle();
}

// What lies in DRAM alone is written first: a load does not cost others what they have stored.
TEST_F(MovementTest, ALoadPushesOutCopiesOnly) {
  const Keys keys = ColdChain();
  const Keys fresh = KeysFrom(50'000, 8);
  h_.nvme.takes_writes = false;
  h_.Put(session_, ns_, fresh);
  const uint64_t lost = moved().lost_blocks;
  const auto load = h_.Load(session_, ns_, keys);
  h_.nvme.takes_writes = true;
  for (int turn = 0; turn < 1000 && !load->done(); ++turn) {
    h_.nvme.EndAll();
    h_.PollAndResume(*load);
  }
  ExpectLoaded(*load, keys, 8);
  EXPECT_EQ(moved().lost_blocks, lost);
  EXPECT_EQ(h_.Hits(session_, ns_, fresh), 8u);
  Settle();
}

// However little room is left: what has landed stays until who waited for it has taken it.
TEST_F(MovementTest, WhatLandedIsReadOnce) {
  const Keys keys = ColdChain();
  std::vector<ControlHarness::CallPtr<LoadCall>> held;
  for (uint64_t chain = 0; chain < kSlots / 8 - 1; ++chain) {
    const Keys more = KeysFrom(50'000 + chain * 100, 8);
    PutChain(more);
    held.push_back(h_.Load(session_, ns_, more));
  }
  const uint64_t before = moved().promoted_blocks;
  const auto load = h_.Load(session_, ns_, keys);
  for (int turn = 0; turn < 100 && !load->done(); ++turn) {
    h_.nvme.EndAll();
    h_.PollAndResume(*load);
  }
  EXPECT_TRUE(load->done());
  EXPECT_LE(moved().promoted_blocks - before, 16u);  // Or it would go on and on.
  Settle();
}

// The disk tells what it has read between two looks at who waits, and memory has no room to spare:
// the oldest copies there are those that have just landed.
TEST_F(MovementTest, WhatLandedStaysUntilWhoWaitsIsAsked) {
  const Keys keys = ColdChain();
  for (uint64_t chain = 0; chain < kSlots / 8 + 4; ++chain) {
    PutChain(KeysFrom(50'000 + chain * 100, 8));
    h_.Hits(session_, ns_, KeysFrom(50'000 + chain * 100, 8));
  }
  h_.nvme.takes_writes = false;  // What is in memory alone stays there.
  const uint64_t before = moved().promoted_blocks;
  const auto load = h_.Load(session_, ns_, keys);
  for (int turn = 0; turn < 100 && !load->done(); ++turn) {
    if (h_.nvme.jobs() > 0) h_.nvme.End(0);
    h_.control.Poll();
    h_.PollAndResume(*load);
  }
  h_.nvme.takes_writes = true;
  ExpectLoaded(*load, keys, 8);
  EXPECT_LE(moved().promoted_blocks - before, 16u);
  Settle();
}

TEST_F(MovementTest, ReclaimMovesAndLosesRecords) {
  const Keys keys = ColdChain();
  for (uint64_t i = 0; i < 40; ++i) {
    h_.nvme.Reclaim(i);
    h_.control.Poll();
  }
  const auto load = h_.Load(session_, ns_, keys);
  h_.nvme.EndAll();
  h_.PollAndResume(*load);
  ExpectLoaded(*load, keys, 8);
  h_.nvme.Reclaim(0, NvmeOutcome::kCorrupt);
  h_.control.Poll();
  EXPECT_EQ(moved().damaged_records, 1u);
  h_.Audit();
}

TEST_F(MovementTest, WhatReclaimHasNoRoomForIsEvictedAndNotDamaged) {
  const Keys keys = ColdChain();
  h_.nvme.GiveUp(h_.store.residency().block(Ref(keys[3])).key);
  h_.control.Poll();
  EXPECT_EQ(h_.Hits(session_, ns_, keys), 3u);
  EXPECT_EQ(moved().damaged_records, 0u);
  EXPECT_EQ(h_.control.quarantine().total(), 0u);
  const Residency::Counts::Evicted& evicted = h_.counts().evicted_from[1];
  EXPECT_EQ(evicted.blocks[static_cast<size_t>(EvictReason::kReclaim)], 1u);
  EXPECT_EQ(evicted.bytes[static_cast<size_t>(EvictReason::kReclaim)], kPart);
  EXPECT_EQ(evicted.blocks[static_cast<size_t>(EvictReason::kCorrupt)], 0u);
  const std::vector<Event> events = EventsOf(keys[3]);
  ASSERT_FALSE(events.empty());
  EXPECT_EQ(events.back().kind, EventKind::kEvicted);
  EXPECT_EQ(events.back().reason, EventReason::kReclaim);
  EXPECT_EQ(events.back().tiers, 0u);
  // It is a stub: what lies below is found again with it.
  h_.Put(session_, ns_, {keys[3]}, {keys[2]});
  EXPECT_EQ(h_.Hits(session_, ns_, keys), 8u);
  h_.Audit();
}

TEST_F(MovementTest, WhatReclaimHasNoRoomForStaysWhereMemoryHasIt) {
  const Keys keys = ColdChain();
  const auto load = h_.Load(session_, ns_, keys);
  h_.nvme.EndAll();
  h_.PollAndResume(*load);
  ExpectLoaded(*load, keys, 8);
  h_.nvme.GiveUp(h_.store.residency().block(Ref(keys[3])).key);
  h_.control.Poll();
  EXPECT_EQ(h_.Hits(session_, ns_, keys), 8u);
  EXPECT_FALSE(OnNvme(keys[3]));
  EXPECT_EQ(EventsOf(keys[3]).back().kind, EventKind::kMoved);
  h_.Audit();
}

// --- checking ------------------------------------------------------------------------------------

class ScrubTest : public MovementTest {
 protected:
  using MovementTest::MovementTest;

  Scrubber::Progress RunToEnd(Scrubber::RunId run) {
    Scrubber::Progress progress;
    for (int turn = 0; turn < 1000 && !progress.done; ++turn) {
      h_.mover.CompleteAll();
      h_.nvme.EndAll();
      h_.control.Poll();
      progress = *h_.control.ContinueVerify(run);
    }
    EXPECT_TRUE(progress.done);
    EXPECT_TRUE(absl::IsNotFound(h_.control.ContinueVerify(run).status()));
    return progress;
  }
  Scrubber::Progress Verify(NamespaceId ns, std::string_view key = {}) {
    const auto run = h_.control.BeginVerify(ns, key);
    EXPECT_TRUE(run.ok()) << run.status();
    return RunToEnd(*run);
  }
};

TEST_F(ScrubTest, AWalkChecksBothTiers) {
  ColdChain();
  const Residency::Counts& counts = h_.counts();
  const uint64_t parts = counts.parts + counts.cold_parts;
  const Scrubber::Progress all = Verify(0);
  EXPECT_EQ(all.blocks, counts.visible);
  EXPECT_EQ(all.parts, parts);
  EXPECT_EQ(all.bytes, parts * kPart);
  EXPECT_EQ(all.damaged, 0u);
  EXPECT_EQ(all.skipped, 0u);
  h_.Audit();
}

TEST_F(ScrubTest, AChainIsCheckedFromItsDeepestBlock) {
  const Keys keys = ColdChain();
  EXPECT_EQ(Verify(ns_, PackKeys({keys[4]})).blocks, 5u);
  EXPECT_TRUE(absl::IsNotFound(h_.control.BeginVerify(ns_, PackKeys({424242})).status()));
  EXPECT_TRUE(absl::IsNotFound(h_.control.BeginVerify(77, {}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(h_.control.BeginVerify(0, PackKeys({1})).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(h_.control.BeginVerify(ns_, "short").status()));
}

TEST_F(ScrubTest, DamageIsFoundOnceAndListed) {
  const Keys keys = ColdChain();
  const auto load = h_.Load(session_, ns_, keys);
  h_.nvme.EndAll();
  h_.PollAndResume(*load);
  ASSERT_EQ(load->call.cursor.next, 8u);
  h_.Damage(UnpackAt<PackedExtent>(load->call.extents, 2));
  ASSERT_TRUE(h_.nvme.Damage(0));
  EXPECT_EQ(Verify(0).damaged, 2u);
  EXPECT_EQ(Verify(0).damaged, 0u);
  const auto& entries = h_.control.quarantine().entries();
  ASSERT_EQ(entries.size(), 2u);
  EXPECT_EQ(entries[0].on_nvme + entries[1].on_nvme, 1);
  for (const Quarantined& entry : entries) {
    EXPECT_EQ(entry.found_by, FoundBy::kScrubber);
    EXPECT_EQ(entry.length, kPart);
    EXPECT_EQ(entry.ns, ns_);
  }
  h_.Audit();
}

TEST_F(ScrubTest, WhatCannotBeReadIsDamageUnlessTheDeviceIsOut) {
  const Keys keys = ColdChain();
  const auto run = h_.control.BeginVerify(0, {});
  (void)h_.control.ContinueVerify(*run);
  ASSERT_GT(h_.nvme.jobs(), 1u);
  h_.nvme.End(0, NvmeOutcome::kError);
  h_.control.Poll();
  EXPECT_EQ(h_.control.quarantine().total(), 1u);
  h_.nvme.End(0, NvmeOutcome::kError);
  h_.nvme.set_readable(false);
  h_.control.Poll();
  h_.nvme.set_readable(true);
  EXPECT_EQ(h_.control.quarantine().total(), 1u);
  const Scrubber::Progress all = RunToEnd(*run);
  EXPECT_EQ(all.damaged, 1u);
  EXPECT_EQ(all.skipped, 1u);
}

TEST_F(ScrubTest, NotMoreThanFourWalksAtATime) {
  std::vector<Scrubber::RunId> runs;
  for (int i = 0; i < 4; ++i) runs.push_back(*h_.control.BeginVerify(0, {}));
  EXPECT_TRUE(absl::IsResourceExhausted(h_.control.BeginVerify(0, {}).status()));
  RunToEnd(runs[0]);
  EXPECT_TRUE(h_.control.BeginVerify(0, {}).ok());
  // Those whose operator has gone make way.
  EXPECT_TRUE(absl::IsResourceExhausted(h_.control.BeginVerify(0, {}).status()));
  h_.clock.Advance(61 * kSecond);
  EXPECT_TRUE(h_.control.BeginVerify(0, {}).ok());
}

class BackgroundScrubTest : public ScrubTest {
 protected:
  static constexpr uint64_t kTenParts = 10 * (64u << 10);  // As they count.

  BackgroundScrubTest() : ScrubTest(WithScrubber()) {}
  static ControlHarness::Options WithScrubber() {
    ControlHarness::Options options = OptionsOf(1000);
    options.control.scrubber.bytes_per_second = kTenParts;
    return options;
  }
};

TEST_F(BackgroundScrubTest, AllIsLookedAtWithinTheBudget) {
  h_.Put(session_, ns_, KeysFrom(0, 30));
  const auto load = h_.Load(session_, ns_, KeysFrom(0, 30));
  h_.Damage(UnpackAt<PackedExtent>(load->call.extents, 20));
  const uint64_t passes = h_.control.scrubber().passes();
  int64_t seconds = 0;
  // The pass under way began before there was anything.
  while (h_.control.scrubber().passes() < passes + 2 && seconds < 100) {
    h_.clock.Advance(kSecond / 20);
    h_.control.Poll();
    h_.mover.CompleteAll();
    h_.control.Poll();
    seconds = (h_.clock.Now() - kSecond) / kSecond;
  }
  EXPECT_GE(seconds, 2);
  EXPECT_LE(seconds, 10);
  EXPECT_EQ(h_.control.scrubber().background().parts, 30u);
  EXPECT_EQ(h_.control.scrubber().background().damaged, 1u);
  EXPECT_EQ(h_.Hits(session_, ns_, KeysFrom(0, 30)), 20u);
}

TEST_F(BackgroundScrubTest, AnEmptyIndexCostsNothing) {
  h_.control.Poll();
  EXPECT_GT(h_.control.NextDeadline(), h_.clock.Now());
}

TEST_F(BackgroundScrubTest, TheBandwidthCanBeChangedWhileItRuns) {
  h_.Put(session_, ns_, KeysFrom(0, 4));
  const auto checks = [this](uint64_t bytes_per_second) {
    h_.control.SetScrubBandwidth(bytes_per_second);
    for (int turn = 0; turn < 10; ++turn) {  // Some to come to the blocks.
      h_.clock.Advance(kSecond);
      h_.control.Poll();
    }
    return h_.mover.verifies();
  };
  EXPECT_EQ(checks(0), 0u);
  EXPECT_EQ(checks(kTenParts), 1u) << "one at a time";
}

TEST_F(ScrubTest, WhatWasReadAndWhoFoundWhatIsCounted) {
  const Keys keys = ColdChain();
  const auto load = h_.Load(session_, ns_, keys);
  h_.nvme.EndAll();
  h_.PollAndResume(*load);
  h_.Damage(UnpackAt<PackedExtent>(load->call.extents, 2));
  ASSERT_TRUE(h_.nvme.Damage(0));
  const Scrubber::Progress all = Verify(0);
  const ControlMetrics& metrics = h_.control.metrics();
  EXPECT_EQ(metrics.scrub.tiers[0].parts + metrics.scrub.tiers[1].parts, all.parts);
  EXPECT_EQ(metrics.scrub.tiers[0].bytes + metrics.scrub.tiers[1].bytes, all.bytes);
  EXPECT_GT(metrics.scrub.tiers[0].parts, 0u);
  EXPECT_GT(metrics.scrub.tiers[1].parts, 0u);
  for (const auto& tier : metrics.damage) {
    EXPECT_EQ(tier[static_cast<size_t>(FoundBy::kScrubber)], 1u);
    EXPECT_EQ(tier[static_cast<size_t>(FoundBy::kClient)], 0u);
    EXPECT_EQ(tier[static_cast<size_t>(FoundBy::kRead)], 0u);
  }
}

// --- emptying a tier -----------------------------------------------------------------------------

class FlushTest : public MovementTest {
 protected:
  using MovementTest::MovementTest;

  Sweep Flush(TierIndex tier) {
    Sweep sweep = *h_.control.BeginFlush(tier);
    for (int turn = 0; turn < 1000; ++turn) {
      if (h_.control.Continue(sweep)) {
        Settle();
        return sweep;
      }
      h_.nvme.EndAll();
      h_.control.Poll();
    }
    ADD_FAILURE() << "it does not end";
    return sweep;
  }
};

TEST_F(FlushTest, MemoryIsEmptiedToNvme) {
  for (uint64_t chain = 0; chain < 5; ++chain) PutChain(KeysFrom(chain * 100, 10));
  ASSERT_EQ(h_.nvme.records(), 0u);
  const Sweep sweep = Flush(TierIndex::kDram);
  EXPECT_EQ(sweep.moved, 50u);
  EXPECT_EQ(sweep.evicted, 0u);
  EXPECT_EQ(sweep.kept, 0u);
  EXPECT_EQ(h_.arena->reserved_bytes(), 0u);
  for (uint64_t chain = 0; chain < 5; ++chain) {
    EXPECT_EQ(h_.Hits(session_, ns_, KeysFrom(chain * 100, 10)), 10u) << chain;
  }
  const Sweep again = Flush(TierIndex::kDram);
  EXPECT_EQ(again.moved + again.evicted + again.kept, 0u);
}

TEST_F(FlushTest, WhatIsHeldStaysInMemoryWithWhatIsAboveIt) {
  PutChain(KeysFrom(0, 10));
  const auto load = h_.Load(session_, ns_, KeysFrom(0, 4));
  const Sweep sweep = Flush(TierIndex::kDram);
  EXPECT_EQ(sweep.moved, 6u);
  EXPECT_EQ(sweep.kept, 4u);
  EXPECT_TRUE(InDram(3));
  EXPECT_FALSE(InDram(4));
  EXPECT_EQ(h_.Hits(session_, ns_, KeysFrom(0, 10)), 10u);
}

TEST_F(FlushTest, OfNvmeWhatMemoryHasStaysThere) {
  const Keys first = KeysFrom(0, 8);
  PutChain(first);
  for (uint64_t chain = 1; chain < 10; ++chain) PutChain(KeysFrom(chain * 100, 8));
  const auto load = h_.Load(session_, ns_, first);  // In both from now on.
  h_.nvme.EndAll();
  h_.PollAndResume(*load);
  ASSERT_EQ(load->call.cursor.next, 8u);
  Settle();
  const uint64_t before = h_.counts().visible;
  const Sweep sweep = Flush(TierIndex::kNvme);
  EXPECT_EQ(h_.nvme.records(), 0u);
  EXPECT_EQ(sweep.kept, 0u);
  EXPECT_GE(sweep.moved, 8u);
  EXPECT_GT(sweep.evicted, 0u);
  EXPECT_EQ(h_.counts().visible, before - sweep.evicted);
  EXPECT_EQ(h_.Hits(session_, ns_, first), 8u);
}

TEST_F(FlushTest, OfNvmeWhatStandsAboveWhatIsInMemoryAloneStays) {
  const Keys keys = ColdChain();
  h_.Put(session_, ns_, {5000}, {keys.back()});
  Settle();
  Flush(TierIndex::kNvme);
  Keys longer = keys;
  longer.push_back(5000);
  EXPECT_EQ(h_.Hits(session_, ns_, longer), 9u);
}

class FlushDeclinedTest : public FlushTest {
 protected:
  FlushDeclinedTest() : FlushTest(OptionsOf(1000, "none")) {}
};

TEST_F(FlushDeclinedTest, WhatAdmissionDeclinesIsGone) {
  PutChain(KeysFrom(0, 10));
  const Sweep sweep = Flush(TierIndex::kDram);
  EXPECT_EQ(sweep.evicted, 10u);
  EXPECT_EQ(sweep.moved, 0u);
  EXPECT_EQ(h_.Hits(session_, ns_, KeysFrom(0, 10)), 0u);
}

TEST_F(FlushTest, ATierThatTakesNoWritesKeepsNothing) {
  PutChain(KeysFrom(0, 10));
  h_.nvme.set_writable(false);
  EXPECT_EQ(Flush(TierIndex::kDram).evicted, 10u);
  EXPECT_EQ(h_.arena->reserved_bytes(), 0u);
  EXPECT_EQ(moved().lost_blocks, 0u) << "an operator wanted it";
}

// --- several layouts -----------------------------------------------------------------------------

// The large blocks have one region of four slots, the small ones the rest.
class TwoLayoutsTest : public MovementTest {
 protected:
  static constexpr uint32_t kLarge = 16384;

  TwoLayoutsTest() {
    large_ = h_.Register(session_, ControlHarness::Descriptor(
                                       "large", {{.block_tokens = 16, .part_bytes = kLarge}}));
    for (uint64_t key = 1; key <= 4; ++key) PutLarge(key);
  }
  void PutLarge(uint64_t key) {
    const auto reserve = h_.Reserve(session_, large_, {key});
    h_.FillGranted(session_, reserve->call, {key}, kLarge);
    h_.Commit(session_, reserve->call.reservation_id);
    Settle();
  }
  void PutSmall() {
    for (uint64_t chain = 0; chain < 6; ++chain) PutChain(KeysFrom(1000 + chain * 100, 8));
  }
  void ExpectLarge(uint64_t last) {
    for (uint64_t key = 1; key <= last; ++key) {
      EXPECT_EQ(h_.Hits(session_, large_, {key}), 1u) << key;
    }
    EXPECT_EQ(moved().lost_blocks, 0u);
  }

  NamespaceId large_ = 0;
};

TEST_F(TwoLayoutsTest, EachPoolHasSomeRoomAhead) {
  PutSmall();
  for (uint64_t key = 5; key <= 30; ++key) PutLarge(key);
  ExpectLarge(30);
}

// What is pinned for reads and writes follows.
TEST_F(MovementTest, TheTierIsToldWhenARegionGetsNewMemory) {
  for (uint64_t chain = 0; chain < kSlots / 4; ++chain) PutChain(KeysFrom(1 + chain * 100, 8));
  const auto other = h_.Open(2);
  const NamespaceId ns = h_.Register(other, ControlHarness::Descriptor());
  for (int i = 0; i < 100 && h_.nvme.replaced_memory == 0; ++i) {
    h_.Reserve(other, ns, {9000});
    h_.mover.CompleteAll();
    Settle();
  }
  EXPECT_EQ(h_.nvme.replaced_memory, 1u);
}

TEST_F(TwoLayoutsTest, RoomIsMadeAheadOnceWhatWasHeldMayLeave) {
  std::vector<uint64_t> holds;
  for (uint64_t key = 1; key <= 4; ++key) {
    holds.push_back(h_.Load(session_, large_, {key})->call.cursor.hold);
  }
  PutSmall();
  for (const uint64_t hold : holds) h_.ReleaseHold(session_, hold);
  Settle();
  for (uint64_t key = 5; key <= 8; ++key) PutLarge(key);
  ExpectLarge(8);
}

}  // namespace
}  // namespace kvd
