// What operators ask of the control thread: that lists say what is there, that blocks leave only if
// they may, and that a drain refuses what is new and ends when it should.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "tests/testing/control_harness.h"

namespace kvd {
namespace {

using testing::HasSubstr;
using testing::UnorderedElementsAre;

class OperatorTest : public testing::Test {
 protected:
  static std::string Key(uint64_t key) { return PackKeys({key}); }

  std::vector<BlockRow> Blocks(BlockFilter filter = {}) {
    std::vector<BlockRow> rows;
    uint32_t next = 1;
    do {
      next = h_.control.ListBlocks(filter, next, SIZE_MAX, rows);
    } while (next != 0);
    return rows;
  }
  Sweep Run(const absl::StatusOr<Sweep>& begun) {
    EXPECT_TRUE(begun.ok()) << begun.status();
    if (!begun.ok()) return {};
    Sweep sweep = *begun;
    while (!h_.control.Continue(sweep)) {
    }
    h_.Audit();
    return sweep;
  }
  Sweep Evict(uint64_t key) { return Run(h_.control.BeginEvict(ns_, Key(key))); }
  Sweep Flush() { return Run(h_.control.BeginFlush(TierIndex::kDram)); }
  Sweep Drop() { return Run(h_.control.BeginDrop(ns_)); }
  LeaseId Lease(const Keys& keys, uint32_t ms = 60'000) {
    return h_.Lookup(session_, ns_, keys, ms)->call.lease_id;
  }
  std::vector<Event> Events() {
    h_.control.Poll();
    std::vector<Event> events(EventRing::kDefaultCapacity);
    events.resize(h_.control.events().Read(0, absl::MakeSpan(events)).size);
    return events;
  }
  size_t Count(EventKind kind) {
    const auto events = Events();
    return static_cast<size_t>(std::count_if(events.begin(), events.end(),
                                             [&](const Event& e) { return e.kind == kind; }));
  }

  ControlHarness h_;
  const ControlHarness::Session session_ = h_.Open(1);
  const NamespaceId ns_ = h_.Register(session_, ControlHarness::Descriptor());
};

// ---- lists --------------------------------------------------------------------------------------

TEST_F(OperatorTest, SessionsAreListedWithWhatTheyHave) {
  const auto other = h_.Open(2);
  h_.Put(session_, ns_, KeysFrom(100, 3));
  Lease(KeysFrom(100, 3));
  const HoldId hold = h_.Load(session_, ns_, KeysFrom(100, 3))->call.cursor.hold;
  const auto reserve = h_.Reserve(session_, ns_, {500});
  h_.clock.Advance(2 * kSecond);

  std::vector<SessionRow> rows;
  EXPECT_EQ(h_.control.ListSessions(1, rows), 0u);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].serial, session_.serial);
  EXPECT_EQ(rows[0].domain, 1u);
  EXPECT_EQ(rows[0].pid, session_.pid);
  EXPECT_EQ(rows[0].age, 2 * kSecond);
  EXPECT_EQ(rows[0].leases, 1u);
  EXPECT_EQ(rows[0].extents, 3u);
  EXPECT_EQ(rows[0].held_bytes, 3 * 4096u);
  EXPECT_EQ(rows[0].reservations, 1u);
  EXPECT_EQ(rows[0].staging_bytes, session_.staging->bytes().size());
  EXPECT_FALSE(rows[0].ended);
  EXPECT_EQ(rows[1].serial, other.serial);
  EXPECT_EQ(rows[1].extents, 0u);

  // It has ended and holds on; then it holds no more.
  h_.End(session_);
  rows.clear();
  h_.control.ListSessions(1, rows);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_TRUE(rows[0].ended);
  EXPECT_EQ(rows[0].leases, 0u);
  h_.Exit(session_);
  rows.clear();
  h_.control.ListSessions(1, rows);
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0].serial, other.serial);
  (void)hold;
}

TEST_F(OperatorTest, ManySessionsAreListedInTurns) {
  for (int i = 0; i < 300; ++i) h_.Open(2);
  std::vector<SessionRow> rows;
  int turns = 0;
  uint32_t next = 1;
  do {
    const size_t before = rows.size();
    next = h_.control.ListSessions(next, rows);
    EXPECT_LE(rows.size() - before, 128u);
    ++turns;
  } while (next != 0);
  EXPECT_GT(turns, 1);
  std::set<uint32_t> serials;
  for (const SessionRow& row : rows) serials.insert(row.serial);
  EXPECT_EQ(serials.size(), 301u);
}

TEST_F(OperatorTest, LeasesAndPinsAreListedInPages) {
  h_.Put(session_, ns_, KeysFrom(100, 5));
  std::set<LeaseId> granted;
  for (uint32_t n = 1; n <= 5; ++n) granted.insert(Lease(KeysFrom(100, n), 10'000));
  OperatorPin pin{.ns = ns_, .key = {}, .owner = "ops", .budget_bytes = 0, .ttl_ms = 5000};
  const std::string key = Key(104);
  pin.key = key;
  ASSERT_TRUE(h_.control.PinChain(pin).ok());

  std::vector<LeaseRow> rows;
  uint32_t next = 1;
  do {
    const size_t before = rows.size();
    next = h_.control.ListLeases(next, 2, rows);
    EXPECT_LE(rows.size() - before, 2u);
  } while (next != 0);
  ASSERT_EQ(rows.size(), 6u);
  for (const LeaseRow& row : rows) {
    EXPECT_EQ(row.domain, 1u);
    EXPECT_EQ(row.ns, ns_);
    EXPECT_EQ(row.key, Key(100 + row.depth - 1));
    if (row.pin) {
      EXPECT_EQ(row.id, pin.pin_id);
      EXPECT_EQ(row.owner, "ops");
      EXPECT_EQ(row.session, 0u);
      EXPECT_EQ(row.left, 5 * kSecond);
      EXPECT_EQ(row.bytes, 5 * 4096u);
    } else {
      EXPECT_EQ(granted.erase(row.id), 1u);
      EXPECT_EQ(row.session, session_.serial);
      EXPECT_EQ(row.left, 10 * kSecond);
    }
  }
  EXPECT_TRUE(granted.empty());
}

TEST_F(OperatorTest, NamespacesAreListedWithWhatLiesInThem) {
  const auto other = h_.Open(2);
  h_.Register(other, ControlHarness::Descriptor("other"));
  h_.Put(session_, ns_, KeysFrom(100, 3));
  std::vector<NamespaceRow> rows;
  EXPECT_EQ(h_.control.ListNamespaces(1, rows), 0u);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].id, ns_);
  EXPECT_EQ(rows[0].domain, 1u);
  EXPECT_EQ(rows[0].descriptor, ControlHarness::Descriptor());
  EXPECT_EQ(rows[0].blocks, 3u);
  EXPECT_EQ(rows[0].bytes, 3 * 4096u);
  EXPECT_EQ(rows[1].descriptor.model, "other");
  EXPECT_EQ(rows[1].blocks, 0u);
}

TEST_F(OperatorTest, BlocksAreListedInPagesByNamespaceAndPrefix) {
  const NamespaceId other = h_.Register(session_, ControlHarness::Descriptor("other"));
  h_.Put(session_, ns_, KeysFrom(0x100, 4));
  h_.Put(session_, other, KeysFrom(0x100, 2));
  const auto producing = h_.Reserve(session_, ns_, {0x900});

  EXPECT_EQ(Blocks().size(), 7u);
  EXPECT_EQ(Blocks({.ns = other}).size(), 2u);
  EXPECT_EQ(Blocks({.key_prefix = std::string("\x02\x01", 2)}).size(), 1u);  // Little-endian.
  std::vector<BlockRow> rows;
  uint32_t next = h_.control.ListBlocks({.ns = ns_}, 1, 3, rows);
  ASSERT_NE(next, 0u);
  EXPECT_EQ(rows.size(), 3u);
  while (next != 0) next = h_.control.ListBlocks({.ns = ns_}, next, 3, rows);
  ASSERT_EQ(rows.size(), 5u);
  std::map<std::string, BlockRow> by_key;
  for (BlockRow& row : rows) by_key[row.key] = row;
  const BlockRow& second = by_key[Key(0x101)];
  EXPECT_EQ(second.parent, Key(0x100));
  EXPECT_EQ(second.depth, 2u);
  EXPECT_EQ(second.state, BlockState::kVisible);
  EXPECT_EQ(second.bytes, 4096u);
  EXPECT_EQ(second.children, 1u);
  EXPECT_EQ(second.domain, 1u);
  EXPECT_TRUE(second.parts.empty());
  EXPECT_EQ(by_key[Key(0x100)].parent, "");
  EXPECT_EQ(by_key[Key(0x900)].state, BlockState::kProducing);
  EXPECT_EQ(by_key[Key(0x900)].bytes, 0u);
}

TEST_F(OperatorTest, AWalkOverManySlotsTakesManyTurns) {
  h_.Put(session_, ns_, {1});
  std::vector<BlockRow> rows;
  int turns = 0;
  for (uint32_t next = 1; next != 0; ++turns) next = h_.control.ListBlocks({}, next, 100, rows);
  EXPECT_GE(turns, 4);  // 4,096 slots.
  EXPECT_EQ(rows.size(), 1u);
}

TEST_F(OperatorTest, ABlockIsFoundByItsWholeKeyInEachNamespaceWithItsParts) {
  const NamespaceId other = h_.Register(session_, ControlHarness::Descriptor("other"));
  h_.Put(session_, ns_, {7});
  h_.Put(session_, other, {7});
  const auto load = h_.Load(session_, ns_, {7});
  const auto extent = UnpackAt<PackedExtent>(load->call.extents, 0);

  std::vector<BlockRow> rows;
  EXPECT_EQ(h_.control.FindBlocks({.key_prefix = Key(7), .with_parts = true}, 1, 16, rows), 0u);
  ASSERT_EQ(rows.size(), 2u);
  ASSERT_EQ(rows[0].parts.size(), 1u);
  EXPECT_EQ(rows[0].parts[0].region, extent.region);
  EXPECT_EQ(rows[0].parts[0].offset, extent.offset);
  EXPECT_EQ(rows[0].parts[0].length, extent.length);
  EXPECT_EQ(rows[0].parts[0].sum, extent.sum);
  EXPECT_EQ(rows[0].parts[0].generation, extent.generation);
  EXPECT_EQ(rows[0].parts[0].holds, 1u);
  EXPECT_TRUE(rows[0].parts[0].committed);
  EXPECT_EQ(rows[1].ns, other);
  EXPECT_EQ(rows[1].parts[0].holds, 0u);
}

// ---- pins ---------------------------------------------------------------------------------------

TEST_F(OperatorTest, AnOperatorPinsAndUnpinsChainsOfAnyDomain) {
  h_.Put(session_, ns_, KeysFrom(100, 3));
  const std::string key = Key(102);
  OperatorPin pin{.ns = ns_, .key = key, .owner = "ops", .budget_bytes = 0, .ttl_ms = 60'000};
  ASSERT_TRUE(h_.control.PinChain(pin).ok());
  EXPECT_EQ(pin.blocks, 3u);
  EXPECT_EQ(pin.bytes, 3 * 4096u);
  EXPECT_EQ(h_.control.pins(), 1u);
  EXPECT_EQ(Flush().evicted, 0u);

  EXPECT_TRUE(h_.control.UnpinChain(pin.pin_id).ok());
  EXPECT_EQ(h_.control.UnpinChain(pin.pin_id).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Flush().evicted, 3u);
  EXPECT_EQ(Count(EventKind::kPinGranted), 1u);
  EXPECT_EQ(Count(EventKind::kPinEnded), 1u);
}

TEST_F(OperatorTest, APinThatCannotBeIsRefusedByName) {
  h_.Put(session_, ns_, KeysFrom(100, 3));
  const std::string key = Key(102);
  const auto refusal = [&](OperatorPin pin) { return h_.control.PinChain(pin); };
  EXPECT_THAT(refusal({.ns = 99, .key = key, .owner = "o", .ttl_ms = 1}).message(),
              HasSubstr("namespace_id"));
  EXPECT_THAT(refusal({.ns = ns_, .key = "short", .owner = "o", .ttl_ms = 1}).message(),
              HasSubstr("key"));
  EXPECT_THAT(refusal({.ns = ns_, .key = key, .owner = "", .ttl_ms = 1}).message(),
              HasSubstr("owner"));
  EXPECT_THAT(refusal({.ns = ns_, .key = key, .owner = "o", .ttl_ms = 0}).message(),
              HasSubstr("ttl_ms"));
  EXPECT_EQ(refusal({.ns = ns_, .key = key, .owner = "o", .budget_bytes = 1, .ttl_ms = 1}).code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(h_.control.pins(), 0u);
}

// ---- evict --------------------------------------------------------------------------------------

// 100 - 101 - 102, with 200 - 201 and 300 below 101.
class EvictTest : public OperatorTest {
 protected:
  EvictTest() {
    h_.Put(session_, ns_, KeysFrom(100, 3));
    h_.Put(session_, ns_, KeysFrom(200, 2), {101});
    h_.Put(session_, ns_, {300}, {101});
  }
  std::set<uint64_t> Left() const {
    std::set<uint64_t> left;
    for (const uint64_t key : {100, 101, 102, 200, 201, 300}) {
      if (h_.FindBlock(ns_, key) != nullptr) left.insert(key);
    }
    return left;
  }
};

TEST_F(EvictTest, ABlockLeavesWithWhatHangsBelowIt) {
  const Sweep sweep = Evict(101);
  EXPECT_EQ(sweep.evicted, 5u);
  EXPECT_EQ(sweep.kept, 0u);
  EXPECT_THAT(Left(), UnorderedElementsAre(100));
  EXPECT_EQ(h_.arena->reserved_bytes(), 4096u);
}

TEST_F(EvictTest, WhatIsLeasedStaysWithWhatIsAboveIt) {
  const LeaseId lease = h_.Lookup(session_, ns_, {200}, 60'000, 0, {101})->call.lease_id;
  ASSERT_NE(lease, 0u);
  Sweep sweep = Evict(101);
  EXPECT_EQ(sweep.evicted, 3u);
  EXPECT_EQ(sweep.kept, 2u);
  EXPECT_THAT(Left(), UnorderedElementsAre(100, 101, 200));
  EXPECT_TRUE(h_.ReleaseLease(session_, lease));
  sweep = Evict(100);
  EXPECT_EQ(sweep.evicted, 3u);
  EXPECT_EQ(sweep.kept, 0u);
}

TEST_F(EvictTest, WhatIsHeldOrInProductionStays) {
  const auto load = h_.Load(session_, ns_, {300}, {101});
  const auto reserve = h_.Reserve(session_, ns_, {103}, {102});
  ASSERT_EQ(reserve->call.granted, 1u);
  const Sweep sweep = Evict(100);
  EXPECT_EQ(sweep.evicted, 2u);
  EXPECT_EQ(sweep.kept, 5u);
  EXPECT_THAT(Left(), UnorderedElementsAre(100, 101, 102, 300));
}

TEST_F(EvictTest, AStubGoesWithTheLastThatItWasKeptFor) {
  const auto load = h_.Load(session_, ns_, {100, 101});
  h_.Damage(UnpackAt<PackedExtent>(load->call.extents, 1));
  h_.ReportDamage(session_, load->call.cursor.hold, {1});
  h_.mover.CompleteVerify();
  h_.control.Poll();
  h_.ReleaseHold(session_, load->call.cursor.hold);
  ASSERT_EQ(h_.counts().stubs, 1u);

  const Sweep sweep = Evict(100);
  EXPECT_EQ(sweep.evicted, 5u);
  EXPECT_EQ(sweep.kept, 0u);
  EXPECT_TRUE(Left().empty());
  EXPECT_EQ(h_.counts().used, 0u);
  EXPECT_EQ(h_.arena->reserved_bytes(), 0u);
}

TEST_F(EvictTest, AnUnknownBlockIsNotFound) {
  EXPECT_EQ(h_.control.BeginEvict(ns_, Key(999)).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(h_.control.BeginEvict(99, Key(100)).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(h_.control.BeginEvict(ns_, "x").status().message(), HasSubstr("key"));
}

TEST_F(EvictTest, AnotherTakesThePlaceWhereTheWalkStands) {
  ControlHarness::Options options;
  options.arena_bytes = 4u << 20;
  ControlHarness h(options);
  const auto session = h.Open(1);
  const NamespaceId ns = h.Register(session, ControlHarness::Descriptor());
  h.Put(session, ns, KeysFrom(1000, 600));
  absl::StatusOr<Sweep> sweep = h.control.BeginEvict(ns, Key(1000));
  ASSERT_TRUE(sweep.ok());
  ASSERT_FALSE(h.control.Continue(*sweep));
  // Somebody leases the leaf of now, and the walk goes on; it must neither stop nor touch that.
  const uint32_t left = h.Hits(session, ns, KeysFrom(1000, 600));
  ASSERT_LT(left, 600u);
  ASSERT_GT(left, 0u);
  const auto lease = h.Lookup(session, ns, KeysFrom(1000, left), 60'000);
  while (!h.control.Continue(*sweep)) {
  }
  EXPECT_EQ(h.Hits(session, ns, KeysFrom(1000, left)), left);
  EXPECT_EQ(sweep->evicted, 600u - left);
  h.Audit();
}

// ---- flush --------------------------------------------------------------------------------------

TEST_F(OperatorTest, AFlushEmptiesTheTierButForWhatMustStay) {
  h_.Put(session_, ns_, KeysFrom(100, 10));
  h_.Put(session_, ns_, KeysFrom(200, 10));
  Lease(KeysFrom(100, 4));
  const Sweep sweep = Flush();
  EXPECT_EQ(sweep.evicted, 16u);
  EXPECT_EQ(sweep.kept, 4u);
  EXPECT_EQ(h_.Hits(session_, ns_, KeysFrom(100, 10)), 4u);
  EXPECT_EQ(h_.Hits(session_, ns_, KeysFrom(200, 10)), 0u);
  EXPECT_EQ(h_.arena->reserved_bytes(), 4 * 4096u);
}

TEST_F(OperatorTest, AFlushOfALongChainTakesTurnsAndFreesEveryRegion) {
  ControlHarness::Options options;
  options.arena_bytes = 4u << 20;
  ControlHarness h(options);
  const auto session = h.Open(1);
  const NamespaceId ns = h.Register(session, ControlHarness::Descriptor());
  h.Put(session, ns, KeysFrom(1000, 800));
  Sweep sweep = *h.control.BeginFlush(TierIndex::kDram);
  int turns = 1;
  while (!h.control.Continue(sweep)) ++turns;
  EXPECT_GE(turns, 800 / 64);
  EXPECT_EQ(sweep.evicted, 800u);
  EXPECT_EQ(sweep.kept, 0u);
  EXPECT_EQ(h.arena->free_regions(), h.arena->regions());
  h.Audit();
}

TEST_F(OperatorTest, ATierThatIsNotThereCannotBeFlushed) {
  EXPECT_TRUE(absl::IsNotFound(h_.control.BeginFlush(TierIndex::kNvme).status()));
}

// ---- drop ---------------------------------------------------------------------------------------

TEST_F(OperatorTest, ADroppedNamespaceIsGoneAndMayBeRegisteredAnew) {
  h_.Put(session_, ns_, KeysFrom(100, 5));
  const Sweep sweep = Drop();
  EXPECT_EQ(sweep.evicted, 5u);
  EXPECT_EQ(sweep.kept, 0u);
  EXPECT_TRUE(sweep.dropped);
  EXPECT_EQ(h_.control.namespaces(), 0u);
  EXPECT_TRUE(absl::IsNotFound(h_.Lookup(session_, ns_, {100})->step.status()));
  EXPECT_TRUE(absl::IsNotFound(h_.Reserve(session_, ns_, {100})->step.status()));
  EXPECT_TRUE(absl::IsNotFound(h_.control.BeginDrop(ns_).status()));

  const NamespaceId again = h_.Register(session_, ControlHarness::Descriptor());
  EXPECT_NE(again, ns_);
  h_.Put(session_, again, KeysFrom(100, 5));
  EXPECT_EQ(h_.Hits(session_, again, KeysFrom(100, 5)), 5u);
  EXPECT_TRUE(absl::IsNotFound(h_.Lookup(session_, ns_, {100})->step.status()));
}

TEST_F(OperatorTest, ANamespaceWithALeasedBlockStays) {
  const NamespaceId other = h_.Register(session_, ControlHarness::Descriptor("other"));
  h_.Put(session_, ns_, KeysFrom(100, 5));
  h_.Put(session_, other, KeysFrom(100, 5));
  const LeaseId lease = Lease(KeysFrom(100, 2));
  Sweep sweep = Drop();
  EXPECT_EQ(sweep.evicted, 3u);
  EXPECT_EQ(sweep.kept, 2u);
  EXPECT_FALSE(sweep.dropped);
  EXPECT_EQ(h_.Hits(session_, ns_, KeysFrom(100, 5)), 2u);
  EXPECT_EQ(h_.Hits(session_, other, KeysFrom(100, 5)), 5u);

  EXPECT_TRUE(h_.ReleaseLease(session_, lease));
  sweep = Drop();
  EXPECT_EQ(sweep.evicted, 2u);
  EXPECT_TRUE(sweep.dropped);
  EXPECT_EQ(h_.Hits(session_, other, KeysFrom(100, 5)), 5u);
}

TEST_F(OperatorTest, ANamespaceUnderAReservationStays) {
  const auto reserve = h_.Reserve(session_, ns_, {100});
  ASSERT_EQ(reserve->call.granted, 1u);
  Sweep sweep = Drop();
  EXPECT_EQ(sweep.kept, 1u);
  EXPECT_FALSE(sweep.dropped);
  EXPECT_TRUE(h_.control.Abort(session_.token, reserve->call.reservation_id).ok());
  EXPECT_TRUE(Drop().dropped);
}

TEST_F(OperatorTest, DroppedNamespacesDoNotUseUpWhatTheirDomainMayHave) {
  for (int i = 0; i < 3 * EvictionPolicy::kMaxPools; ++i) {
    const auto part_bytes = static_cast<uint32_t>(512 * (1 + i % 8));  // Layouts of their own.
    const NamespaceId ns = h_.Register(
        session_, ControlHarness::Descriptor("model" + std::to_string(i),
                                             {{.block_tokens = 16, .part_bytes = part_bytes}}));
    const auto reserve = h_.Reserve(session_, ns, {100});
    h_.FillGranted(session_, reserve->call, {100}, part_bytes);
    h_.Commit(session_, reserve->call.reservation_id);
    ASSERT_EQ(h_.Hits(session_, ns, {100}), 1u);
    ASSERT_TRUE(Run(h_.control.BeginDrop(ns)).dropped);
  }
  EXPECT_EQ(h_.control.namespaces(), 1u);
  EXPECT_EQ(h_.arena->reserved_bytes(), 0u);
}

// ---- drain --------------------------------------------------------------------------------------

class DrainTest : public OperatorTest {
 protected:
  static ControlHarness::Options Options(int* drained) {
    ControlHarness::Options options;
    options.control.drained = [drained] { ++*drained; };
    return options;
  }
  static bool Refused(const absl::Status& status) {
    return absl::IsUnavailable(status) && status.message().find("draining") != std::string::npos;
  }
  bool Ended() {
    d_.control.Poll();
    return drained_ > 0;
  }

  int drained_ = 0;
  ControlHarness d_{Options(&drained_)};
  const ControlHarness::Session engine_ = d_.Open(1);
  const NamespaceId model_ = d_.Register(engine_, ControlHarness::Descriptor());
};

TEST_F(DrainTest, WhatIsNewIsRefusedAndALookupIsAnswered) {
  d_.Put(engine_, model_, KeysFrom(100, 3));
  d_.control.Drain(Control::DrainEnd::kStay, 0);
  EXPECT_TRUE(d_.control.draining());
  EXPECT_TRUE(Refused(d_.Lookup(engine_, model_, {100}, 1000)->step.status()));
  EXPECT_TRUE(Refused(d_.Lookup(engine_, model_, {100}, 0, 1)->step.status()));
  EXPECT_TRUE(Refused(d_.Load(engine_, model_, {100})->step.status()));
  EXPECT_TRUE(Refused(d_.Reserve(engine_, model_, {200})->step.status()));
  auto put = ControlHarness::Make<CommitCall>(engine_, model_, {200});
  put->staged.resize(sizeof(PackedStaged));
  PackAt(put->staged, 0, PackedStaged{.offset = 0, .length = 4096});
  put->call.staged = put->staged;
  d_.Run(*put);
  EXPECT_TRUE(Refused(put->step.status())) << put->step.status();
  const std::string key = PackKeys({100});
  PinCall pin{.key = key, .owner = "o", .budget_bytes = 1u << 20, .ttl_ms = 1000};
  pin.header.session = engine_.token;
  pin.header.ns = model_;
  EXPECT_TRUE(Refused(d_.control.Pin(pin)));
  EXPECT_EQ(d_.control.counters().drain_refusals, 6u);

  EXPECT_EQ(d_.Hits(engine_, model_, KeysFrom(100, 3)), 3u);
  EXPECT_EQ(d_.control.leases() + d_.control.holds().total_extents(), 0u);
  EXPECT_FALSE(Ended());  // Nobody said that it should.

  ASSERT_TRUE(d_.control.Undrain().ok());
  EXPECT_EQ(d_.Lookup(engine_, model_, {100}, 1000)->call.lease, LeaseOutcome::kGranted);
  EXPECT_EQ(d_.Load(engine_, model_, {100})->call.cursor.next, 1u);
  EXPECT_EQ(d_.Reserve(engine_, model_, {200})->call.granted, 1u);
}

TEST_F(DrainTest, WhatIsUnderWayMayFinish) {
  const auto reserve = d_.Reserve(engine_, model_, {100});
  const DrainProgress progress = d_.control.Drain(Control::DrainEnd::kExit, kSecond);
  EXPECT_EQ(progress.moves, 1u);
  EXPECT_FALSE(Ended());
  d_.FillGranted(engine_, reserve->call, {100});
  EXPECT_EQ(d_.Commit(engine_, reserve->call.reservation_id)->call.results,
            Results({CommitResult::kCommitted}));
  EXPECT_TRUE(Ended());
  EXPECT_EQ(d_.Hits(engine_, model_, {100}), 1u);
}

TEST_F(DrainTest, ItEndsWithTheLastHoldAndWaitsForNoLease) {
  d_.Put(engine_, model_, KeysFrom(100, 3));
  d_.Lookup(engine_, model_, {100}, 600'000);
  const HoldId hold = d_.Load(engine_, model_, KeysFrom(100, 3))->call.cursor.hold;
  EXPECT_EQ(d_.control.Drain(Control::DrainEnd::kExit, kSecond).holds, 3u);
  EXPECT_FALSE(Ended());
  EXPECT_TRUE(d_.ReleaseHold(engine_, hold));
  EXPECT_TRUE(Ended());
  EXPECT_EQ(d_.control.leases(), 1u);
  d_.control.Poll();
  EXPECT_EQ(drained_, 1);
}

TEST_F(DrainTest, AReleaseThatRidesOnARefusedCallCounts) {
  d_.Put(engine_, model_, KeysFrom(100, 3));
  const HoldId holds[] = {d_.Load(engine_, model_, {100})->call.cursor.hold,
                          d_.Load(engine_, model_, {101}, {100})->call.cursor.hold,
                          d_.Load(engine_, model_, {102}, {101})->call.cursor.hold};
  d_.control.Drain(Control::DrainEnd::kExit, kSecond);
  auto lookup = ControlHarness::Make<LookupCall>(engine_, model_, {100});
  lookup->call.lease_ms = 1000;
  lookup->call.header.releases.holds = {&holds[0], 1};
  d_.Run(*lookup);
  EXPECT_TRUE(Refused(lookup->step.status()));
  auto load = ControlHarness::Make<LoadCall>(engine_, model_, {100});
  load->call.header.releases.holds = {&holds[1], 1};
  d_.Run(*load);
  auto reserve = ControlHarness::Make<ReserveCall>(engine_, model_, {100});
  reserve->call.header.releases.holds = {&holds[2], 1};
  EXPECT_FALSE(Ended());
  d_.Run(*reserve);
  EXPECT_TRUE(Ended());
}

TEST_F(DrainTest, ItEndsWhenItsTimeIsOver) {
  d_.Put(engine_, model_, {100});
  d_.Load(engine_, model_, {100});
  d_.control.Drain(Control::DrainEnd::kExit, kSecond);
  EXPECT_FALSE(Ended());
  EXPECT_LE(d_.control.NextDeadline(), d_.clock.Now() + kSecond);
  d_.clock.Advance(kSecond);
  EXPECT_TRUE(Ended());
  EXPECT_TRUE(absl::IsFailedPrecondition(d_.control.Undrain()));
}

TEST_F(DrainTest, APromptOneWaitsForCopiesAndNotForIdleReservations) {
  const auto reserve = d_.Reserve(engine_, model_, {100});
  const FakeMover::Copy copy = d_.mover.BeginCopy(
      engine_.serial, *engine_.staging,
      {.reservation_id = reserve->call.reservation_id, .index = 0, .length = 4096});
  ASSERT_EQ(copy.status, FillStatus::kOk);
  d_.control.Drain(Control::DrainEnd::kExitPromptly, 10 * kSecond);
  EXPECT_FALSE(Ended());
  EXPECT_LT(d_.control.NextDeadline(), d_.clock.Now() + kSecond);  // Nobody tells it of copies.
  d_.mover.EndCopy(copy);
  EXPECT_TRUE(Ended());
  EXPECT_EQ(d_.control.reservations(), 1u);
}

TEST_F(DrainTest, TakenBackItEndsNothing) {
  d_.Put(engine_, model_, {100});
  const HoldId hold = d_.Load(engine_, model_, {100})->call.cursor.hold;
  d_.control.Drain(Control::DrainEnd::kExit, kSecond);
  ASSERT_TRUE(d_.control.Undrain().ok());
  EXPECT_TRUE(d_.ReleaseHold(engine_, hold));
  d_.clock.Advance(kSecond);
  EXPECT_FALSE(Ended());
  // And calls wait again for what others produce.
  d_.Reserve(engine_, model_, {200});
  const auto waiting = d_.Reserve(d_.Open(1), model_, {200}, {}, 1000);
  EXPECT_TRUE(waiting->waits());
}

// ---- events -------------------------------------------------------------------------------------

// What can be found, as events tell it.
std::set<std::string> FindableBy(const std::vector<Event>& events) {
  std::set<std::string> found;
  for (const Event& event : events) {
    const std::string key(reinterpret_cast<const char*>(event.key.bytes.data()), kTestHashBytes);
    if (event.kind == EventKind::kStored) {
      EXPECT_TRUE(found.insert(key).second);
    }
    if (event.kind == EventKind::kEvicted || event.kind == EventKind::kDamaged) {
      EXPECT_EQ(found.erase(key), 1u);
    }
  }
  return found;
}

TEST_F(OperatorTest, EventsNameEveryBlockThatCanBeFoundAndNoOther) {
  const auto expect_agreement = [this] {
    std::set<std::string> there;
    for (const BlockRow& row : Blocks()) {
      if (row.state == BlockState::kVisible) there.insert(row.key);
    }
    EXPECT_EQ(FindableBy(Events()), there);
  };
  h_.Put(session_, ns_, KeysFrom(100, 10));
  expect_agreement();
  // Parked below a block in production, then shown with it.
  const auto above = h_.Reserve(session_, ns_, {200});
  const auto other = h_.Open(1);
  const auto below = h_.Reserve(other, ns_, {201}, {200});
  h_.FillGranted(other, below->call, {201});
  h_.Commit(other, below->call.reservation_id);
  expect_agreement();
  h_.FillGranted(session_, above->call, {200});
  h_.Commit(session_, above->call.reservation_id);
  expect_agreement();
  h_.Put(session_, ns_, KeysFrom(1000, 100));  // More than there is room for.
  expect_agreement();
  // A stub in mid-chain, and its new bytes.
  Flush();
  h_.Put(session_, ns_, KeysFrom(300, 3));
  const auto load = h_.Load(session_, ns_, KeysFrom(300, 2));
  h_.Damage(UnpackAt<PackedExtent>(load->call.extents, 1));
  h_.ReportDamage(session_, load->call.cursor.hold, {1});
  h_.mover.CompleteVerify();
  h_.control.Poll();
  expect_agreement();
  EXPECT_EQ(Count(EventKind::kDamaged), 1u);
  h_.ReleaseHold(session_, load->call.cursor.hold);
  h_.Put(session_, ns_, {301}, {300});
  expect_agreement();
  Drop();
  expect_agreement();
  EXPECT_TRUE(FindableBy(Events()).empty());
}

TEST_F(OperatorTest, ABlockEventSaysWhereAndWhy) {
  h_.Put(session_, ns_, {100, 101});
  Evict(101);
  Drop();
  std::vector<Event> blocks;
  for (const Event& event : Events()) {
    if (event.kind == EventKind::kStored || event.kind == EventKind::kEvicted) {
      blocks.push_back(event);
    }
  }
  ASSERT_EQ(blocks.size(), 4u);
  EXPECT_FALSE(blocks[0].has_parent);
  EXPECT_EQ(blocks[0].number, 1u);
  EXPECT_TRUE(blocks[1].has_parent);
  EXPECT_EQ(blocks[1].parent, blocks[0].key);
  EXPECT_EQ(blocks[1].number, 2u);
  EXPECT_EQ(blocks[1].ns, ns_);
  EXPECT_EQ(blocks[1].domain, 1u);
  EXPECT_EQ(blocks[2].key, blocks[1].key);
  EXPECT_EQ(blocks[2].reason, EventReason::kAdmin);
  EXPECT_EQ(blocks[3].reason, EventReason::kPurge);
}

TEST_F(OperatorTest, LifeIsTold) {
  h_.Put(session_, ns_, {100});
  Lease({100}, 1000);
  h_.Reserve(session_, ns_, {200});
  h_.clock.Advance(60 * kSecond);
  h_.control.Poll();
  h_.End(session_);
  h_.control.Drain(Control::DrainEnd::kStay, 0);
  EXPECT_TRUE(h_.control.Undrain().ok());
  Drop();
  std::vector<EventKind> kinds;
  for (const Event& event : Events()) kinds.push_back(event.kind);
  EXPECT_THAT(kinds,
              testing::ElementsAre(EventKind::kSessionOpened, EventKind::kNamespaceRegistered,
                                   EventKind::kStored, EventKind::kLeaseExpired,
                                   EventKind::kReservationExpired, EventKind::kSessionEnded,
                                   EventKind::kDrainBegan, EventKind::kDrainEnded,
                                   EventKind::kEvicted, EventKind::kNamespaceDropped));
}

}  // namespace
}  // namespace kvd
