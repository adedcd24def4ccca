// What every call means, without a wire: the words of kvd.proto and daemon/control.h, under a
// manual clock and copiers that wait for the test.

#include "daemon/control.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "proto/types/checksum.h"
#include "tests/testing/control_harness.h"

namespace kvd {
namespace {

using testing::HasSubstr;
using enum ReserveState;

constexpr uint32_t kPartBytes = 4096;

class ControlTest : public testing::Test {
 protected:
  ControlTest() : ControlTest(ControlHarness::Options{}) {}
  explicit ControlTest(const ControlHarness::Options& options) : h_(options) {}

  void TearDown() override { h_.Audit(); }

  ControlHarness h_;
  ControlHarness::Session a_ = h_.Open(/*domain=*/1);
  ControlHarness::Session b_ = h_.Open(/*domain=*/1);
  ControlHarness::Session stranger_ = h_.Open(/*domain=*/2);
  NamespaceId ns_ = h_.Register(a_, ControlHarness::Descriptor());
};

std::string Repeat(size_t n, ReserveState state) {
  return std::string(n, static_cast<char>(state));
}
std::string Repeat(size_t n, CommitResult result) {
  return std::string(n, static_cast<char>(result));
}

// --- the round trip ------------------------------------------------------------------------------

TEST_F(ControlTest, APutIsFoundLoadedAndReadBack) {
  const Keys keys = KeysFrom(100, 5);
  EXPECT_EQ(h_.Hits(a_, ns_, keys), 0u);

  EXPECT_EQ(h_.Put(a_, ns_, keys), Repeat(5, CommitResult::kCommitted));

  const auto lookup = h_.Lookup(b_, ns_, keys, /*lease_ms=*/1000);
  EXPECT_EQ(lookup->call.hit_blocks, 5u);
  EXPECT_EQ(lookup->call.lease, LeaseOutcome::kGranted);
  EXPECT_GT(lookup->call.load_time_us, 0u);
  const auto load = h_.Load(b_, ns_, keys);
  ASSERT_TRUE(load->done());
  EXPECT_EQ(load->call.cursor.outcome, LoadOutcome::kComplete);
  ASSERT_EQ(load->call.extents.size(), 5 * sizeof(PackedExtent));
  for (uint32_t i = 0; i < 5; ++i) {
    const auto extent = UnpackAt<PackedExtent>(load->call.extents, i);
    EXPECT_EQ(extent.stored_length, kPartBytes);
    EXPECT_EQ(extent.length, kPartBytes);
    EXPECT_EQ(extent.sum_algorithm, kSumCrc32c);
    EXPECT_TRUE(h_.IsPayload(extent, ns_, keys[i])) << i;
  }
  EXPECT_EQ(h_.control.holds().total_extents(), 5u);
  EXPECT_TRUE(h_.ReleaseHold(b_, load->call.cursor.hold));
  EXPECT_FALSE(h_.ReleaseHold(b_, load->call.cursor.hold));
  EXPECT_EQ(h_.control.holds().total_extents(), 0u);
}

TEST_F(ControlTest, ALookupAnswersTheHeldExtentsOfItsHead) {
  const Keys keys = KeysFrom(100, 5);
  h_.Put(a_, ns_, keys);

  const auto lookup = h_.Lookup(a_, ns_, keys, 0, /*extent_blocks=*/3);

  EXPECT_EQ(lookup->call.hit_blocks, 5u);
  EXPECT_EQ(lookup->call.extents.size(), 3 * sizeof(PackedExtent));
  EXPECT_TRUE(h_.IsPayload(UnpackAt<PackedExtent>(lookup->call.extents, 2), ns_, keys[2]));
  EXPECT_EQ(h_.control.holds().held_bytes(0), 3 * kPartBytes);
}

TEST_F(ControlTest, NothingIsVisibleBeforeItsCommit) {
  const Keys keys = KeysFrom(100, 3);
  const auto reserve = h_.Reserve(a_, ns_, keys);
  EXPECT_EQ(reserve->call.states, Repeat(3, kGranted));
  EXPECT_EQ(h_.Hits(a_, ns_, keys), 0u);
  h_.FillGranted(a_, reserve->call, keys);
  EXPECT_EQ(h_.Hits(a_, ns_, keys), 0u);
  EXPECT_EQ(h_.Load(a_, ns_, keys)->call.cursor.outcome, LoadOutcome::kMiss);

  EXPECT_EQ(h_.Commit(a_, reserve->call.reservation_id, 0, 2)->call.stored, 2u);
  EXPECT_EQ(h_.Hits(a_, ns_, keys), 2u);
  EXPECT_EQ(h_.Commit(a_, reserve->call.reservation_id, 2, 1)->call.stored, 1u);
  EXPECT_EQ(h_.Hits(a_, ns_, keys), 3u);
  EXPECT_EQ(h_.control.reservations(), 0u);  // All committed: it ended by itself.
}

TEST_F(ControlTest, WhatWasNotFilledStaysReserved) {
  const Keys keys = KeysFrom(100, 3);
  const auto reserve = h_.Reserve(a_, ns_, keys);
  const uint64_t id = reserve->call.reservation_id;
  EXPECT_EQ(h_.Fill(a_, id, 0, ns_, keys[0], {}, kPartBytes), FillStatus::kOk);
  EXPECT_EQ(h_.Fill(a_, id, 2, ns_, keys[2], {}, kPartBytes), FillStatus::kOk);

  EXPECT_EQ(h_.Commit(a_, id)->call.results,
            Results({CommitResult::kCommitted, CommitResult::kNotFilled, CommitResult::kParked}));
  EXPECT_EQ(h_.Hits(a_, ns_, keys), 1u);

  EXPECT_EQ(h_.Fill(a_, id, 1, ns_, keys[1], {}, kPartBytes), FillStatus::kOk);
  const auto commit = h_.Commit(a_, id);
  EXPECT_EQ(commit->call.stored, 2u);  // And what was parked below it.
  EXPECT_EQ(h_.Hits(a_, ns_, keys), 3u);
}

// --- a commit that overtakes the fills -----------------------------------------------------------

class EarlyCommitTest : public ControlTest {
 protected:
  EarlyCommitTest() { id_ = reserve_->call.reservation_id; }

  ControlHarness::CallPtr<CommitCall> Commit(uint32_t fills, const std::string& sums = {},
                                             uint32_t remaining_ms = 1000) {
    auto held = ControlHarness::Make<CommitCall>(a_, 0, {});
    held->call.reservation_id = id_;
    held->call.fills = fills;
    held->staged = sums;
    held->call.sums = held->staged;
    held->call.remaining_ms = remaining_ms;
    h_.Run(*held);
    return held;
  }
  FillStatus Fill(uint32_t i) { return h_.Fill(a_, id_, i, ns_, keys_[i], {}, kPartBytes); }
  // CRC32C of the parts, packed.
  std::string Sums() const {
    std::string sums(keys_.size() * sizeof(uint32_t), '\0');
    for (size_t i = 0; i < keys_.size(); ++i) {
      std::vector<std::byte> bytes(kPartBytes);
      ControlHarness::WritePayload(absl::MakeSpan(bytes), ns_, keys_[i], {});
      PackAt(sums, i, Crc32c(bytes));
    }
    return sums;
  }

  const Keys keys_ = KeysFrom(100, 3);
  const ControlHarness::CallPtr<ReserveCall> reserve_ = h_.Reserve(a_, ns_, keys_);
  uint64_t id_ = 0;
};

TEST_F(EarlyCommitTest, WaitsForTheFillsThatItNames) {
  EXPECT_EQ(Fill(0), FillStatus::kOk);
  const auto commit = Commit(3, Sums());
  ASSERT_TRUE(commit->waits()) << commit->step.status();
  EXPECT_EQ(Fill(1), FillStatus::kOk);
  h_.PollAndResume(*commit);
  EXPECT_TRUE(commit->waits());
  EXPECT_EQ(h_.Hits(a_, ns_, keys_), 0u);  // Not even what is full.

  EXPECT_EQ(Fill(2), FillStatus::kOk);
  h_.PollAndResume(*commit);

  ASSERT_TRUE(commit->done()) << commit->step.status();
  EXPECT_EQ(commit->call.results, Repeat(3, CommitResult::kCommitted));
  EXPECT_EQ(h_.Hits(a_, ns_, keys_), 3u);
  EXPECT_EQ(h_.control.reservations(), 0u);
  EXPECT_EQ(h_.control.counters().commit_waits, 1u);
}

TEST_F(EarlyCommitTest, DoesNotWaitForWhatIsThere) {
  for (uint32_t i : {0, 1, 2}) EXPECT_EQ(Fill(i), FillStatus::kOk);
  EXPECT_EQ(Commit(3)->call.stored, 3u);
  EXPECT_EQ(h_.control.counters().commit_waits, 0u);
}

TEST_F(EarlyCommitTest, WaitsForTheLastPieceOfAPart) {
  for (uint32_t i : {0, 1}) EXPECT_EQ(Fill(i), FillStatus::kOk);
  ControlHarness::WritePayload(a_.staging->writable().first(kPartBytes), ns_, keys_[2], {});
  const auto piece = [&](uint32_t offset, uint32_t length) {
    return h_.mover.CopyNow(a_.serial, *a_.staging,
                            {.reservation_id = id_,
                             .staging_offset = offset,
                             .index = 2,
                             .length = length,
                             .part_offset = offset});
  };
  EXPECT_EQ(piece(0, 100), FillStatus::kOk);
  const auto commit = Commit(3, Sums());
  h_.PollAndResume(*commit);
  EXPECT_TRUE(commit->waits());

  EXPECT_EQ(piece(100, kPartBytes - 100), FillStatus::kOk);
  h_.PollAndResume(*commit);

  ASSERT_TRUE(commit->done());
  EXPECT_EQ(commit->call.stored, 3u);
  const auto load = h_.Load(b_, ns_, keys_);
  EXPECT_TRUE(h_.IsPayload(UnpackAt<PackedExtent>(load->call.extents, 2), ns_, keys_[2]));
}

TEST_F(EarlyCommitTest, WhatNeverComesIsNotFilledAtTheCallersDeadline) {
  EXPECT_EQ(Fill(0), FillStatus::kOk);
  const auto commit = Commit(3, {}, /*remaining_ms=*/1000);
  ASSERT_TRUE(commit->waits());
  h_.clock.Advance(1000 * kMillisecond);
  h_.PollAndResume(*commit);
  ASSERT_TRUE(commit->done());
  EXPECT_EQ(commit->call.results, Results({CommitResult::kCommitted, CommitResult::kNotFilled,
                                           CommitResult::kNotFilled}));
  EXPECT_EQ(h_.Hits(a_, ns_, keys_), 1u);
}

TEST_F(EarlyCommitTest, EndsWithItsReservation) {
  const auto commit = Commit(3);
  ASSERT_TRUE(h_.control.Abort(a_.token, id_).ok());
  h_.PollAndResume(*commit);
  EXPECT_EQ(commit->step.status().code(), absl::StatusCode::kNotFound);
}

TEST_F(EarlyCommitTest, EndsWithItsSession) {
  const auto commit = Commit(3);
  h_.End(a_);
  h_.PollAndResume(*commit);
  EXPECT_EQ(commit->step.status().code(), absl::StatusCode::kUnauthenticated);
}

TEST_F(EarlyCommitTest, DoesNotWaitForADaemonThatDrains) {
  EXPECT_EQ(Fill(0), FillStatus::kOk);
  const auto commit = Commit(3);
  h_.control.EndWaits();
  h_.PollAndResume(*commit);
  ASSERT_TRUE(commit->done());
  EXPECT_EQ(commit->call.stored, 1u);
  EXPECT_TRUE(Commit(3)->done());
}

TEST_F(EarlyCommitTest, CannotNameMoreFillsThanWereGranted) {
  const auto commit = Commit(4);
  EXPECT_EQ(commit->step.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(commit->step.status().message().find("fills"), absl::string_view::npos);
}

TEST_F(EarlyCommitTest, OnlyOneOfAReservationWaits) {
  const auto first = Commit(3);
  EXPECT_EQ(Commit(3)->step.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(first->waits());
}

TEST_F(EarlyCommitTest, SumsMustBeOnePartEach) {
  EXPECT_EQ(Commit(0, Sums().substr(4))->step.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Commit(0, Sums() + "abcd")->step.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(EarlyCommitTest, APartWithAnotherSumIsNotStoredNorWhatIsBelow) {
  for (uint32_t i : {0, 1, 2}) EXPECT_EQ(Fill(i), FillStatus::kOk);
  std::string sums = Sums();
  sums[4] = static_cast<char>(sums[4] ^ 1);

  EXPECT_EQ(Commit(3, sums)->call.results,
            Results({CommitResult::kCommitted, CommitResult::kFailed, CommitResult::kFailed}));

  EXPECT_EQ(h_.Hits(a_, ns_, keys_), 1u);
  EXPECT_EQ(h_.control.counters().put_sums_differ, 1u);
}

// Sums of staging that a reservation has no staging for: they would be read from nowhere.
TEST_F(EarlyCommitTest, StagedIsOfAPutWithoutAReservation) {
  for (uint32_t i : {0, 1, 2}) EXPECT_EQ(Fill(i), FillStatus::kOk);
  auto held = ControlHarness::Make<CommitCall>(a_, 0, {});
  held->call.reservation_id = id_;
  held->call.staged_sums = true;
  h_.Run(*held);
  EXPECT_EQ(held->step.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(held->step.status().message().find("staged"), absl::string_view::npos);
  EXPECT_EQ(Commit(0)->call.stored, 3u);
}

TEST_F(EarlyCommitTest, SumsBelongToTheRangeThatIsCommitted) {
  for (uint32_t i : {0, 1, 2}) EXPECT_EQ(Fill(i), FillStatus::kOk);
  EXPECT_EQ(h_.Commit(a_, id_, 0, 1)->call.stored, 1u);
  auto held = ControlHarness::Make<CommitCall>(a_, 0, {});
  held->call.reservation_id = id_;
  held->call.first_block = 1;
  held->staged = Sums().substr(4);
  held->call.sums = held->staged;
  h_.Run(*held);
  EXPECT_EQ(held->call.stored, 2u);
}

TEST_F(ControlTest, AChainMayStartBelowTheRoot) {
  const Keys head = KeysFrom(100, 2);
  const Keys tail = KeysFrom(102, 2);
  h_.Put(a_, ns_, head);
  EXPECT_EQ(h_.Put(a_, ns_, tail, {101}), Repeat(2, CommitResult::kCommitted));
  EXPECT_EQ(h_.Hits(a_, ns_, KeysFrom(100, 4)), 4u);
  EXPECT_EQ(h_.Lookup(a_, ns_, tail, 0, 0, {101})->call.hit_blocks, 2u);
  EXPECT_EQ(h_.Lookup(a_, ns_, tail, 0, 0, {100})->call.hit_blocks, 0u);
  EXPECT_EQ(h_.Reserve(a_, ns_, {300}, {299})->call.states, States({kNoParent}));
  EXPECT_EQ(h_.Reserve(a_, ns_, {102})->call.states, States({kNoParent}));  // It is no root.
}

// --- dedup and waiting ---------------------------------------------------------------------------

TEST_F(ControlTest, ReserveSaysWhatIsThereAndWhatOthersProduce) {
  h_.Put(a_, ns_, KeysFrom(100, 2));
  const auto first = h_.Reserve(a_, ns_, KeysFrom(100, 3));
  EXPECT_EQ(first->call.states, States({kPresent, kPresent, kGranted}));
  const auto second = h_.Reserve(b_, ns_, KeysFrom(100, 4));
  EXPECT_EQ(second->call.states, States({kPresent, kPresent, kInProduction, kGranted}));
  const auto third = h_.Reserve(b_, ns_, KeysFrom(100, 3));
  EXPECT_EQ(third->call.states, States({kPresent, kPresent, kInProduction}));
  EXPECT_EQ(third->call.reservation_id, 0u);  // Nothing granted, nothing open.
  EXPECT_EQ(h_.control.reservations(), 2u);
}

TEST_F(ControlTest, AWaiterIsAnsweredWhenTheProducerCommits) {
  const Keys keys = KeysFrom(100, 2);
  const auto producer = h_.Reserve(a_, ns_, keys);
  const auto waiter = h_.Reserve(b_, ns_, keys, {}, /*wait_ms=*/1000);
  ASSERT_TRUE(waiter->waits());

  h_.FillGranted(a_, producer->call, keys);
  h_.Commit(a_, producer->call.reservation_id);
  h_.PollAndResume(*waiter);

  ASSERT_TRUE(waiter->done());
  EXPECT_EQ(waiter->call.states, Repeat(2, kPresent));
  EXPECT_EQ(h_.control.reservations(), 0u);
}

TEST_F(ControlTest, AWaiterIsAnsweredAtItsDeadline) {
  const Keys keys = KeysFrom(100, 2);
  const auto producer = h_.Reserve(a_, ns_, keys);
  const auto waiter = h_.Reserve(b_, ns_, keys, {}, /*wait_ms=*/1000);
  EXPECT_EQ(h_.control.NextDeadline(), h_.clock.Now() + 1000 * kMillisecond);

  h_.clock.Advance(999 * kMillisecond);
  h_.PollAndResume(*waiter);
  EXPECT_TRUE(waiter->waits());
  h_.clock.Advance(kMillisecond);
  h_.PollAndResume(*waiter);

  ASSERT_TRUE(waiter->done());
  EXPECT_EQ(waiter->call.states, Repeat(2, kInProduction));
}

TEST_F(ControlTest, TheNextWaiterIsAskedWhenTheProducerAborts) {
  const Keys keys = KeysFrom(100, 2);
  const auto producer = h_.Reserve(a_, ns_, keys);
  const auto waiter = h_.Reserve(b_, ns_, keys, {}, /*wait_ms=*/1000);

  ASSERT_TRUE(h_.control.Abort(a_.token, producer->call.reservation_id).ok());
  h_.PollAndResume(*waiter);

  ASSERT_TRUE(waiter->done());
  EXPECT_EQ(waiter->call.states, Repeat(2, kGranted));
  h_.FillGranted(b_, waiter->call, keys);
  EXPECT_EQ(h_.Commit(b_, waiter->call.reservation_id)->call.stored, 2u);
}

TEST_F(ControlTest, TheNextWaiterIsAskedWhenTheProducersSessionEnds) {
  const Keys keys = KeysFrom(100, 2);
  const auto producer = h_.Reserve(a_, ns_, keys);
  h_.FillGranted(a_, producer->call, keys);
  const auto waiter = h_.Reserve(b_, ns_, keys, {}, /*wait_ms=*/1000);
  h_.End(a_);
  h_.PollAndResume(*waiter);
  ASSERT_TRUE(waiter->done());
  EXPECT_EQ(waiter->call.states, Repeat(2, kGranted));
}

TEST_F(ControlTest, WhatNoWaiterTakesIsAbandoned) {
  const auto producer = h_.Reserve(a_, ns_, KeysFrom(100, 4));
  const auto waiter = h_.Reserve(b_, ns_, KeysFrom(100, 2), {}, /*wait_ms=*/1000);
  ASSERT_TRUE(h_.control.Abort(a_.token, producer->call.reservation_id).ok());
  EXPECT_EQ(h_.control.NextDeadline(), 0);  // There is something to do at once.
  h_.PollAndResume(*waiter);
  EXPECT_EQ(waiter->call.states, Repeat(2, kGranted));
  h_.control.Poll();
  EXPECT_EQ(h_.counts().used, 2u);
}

TEST_F(ControlTest, EndWaitsAnswersThoseWhoWait) {
  const Keys keys = KeysFrom(100, 2);
  const auto producer = h_.Reserve(a_, ns_, keys);
  const auto waiter = h_.Reserve(b_, ns_, keys, {}, /*wait_ms=*/1000);
  h_.control.EndWaits();
  h_.PollAndResume(*waiter);
  ASSERT_TRUE(waiter->done());
  EXPECT_EQ(waiter->call.states, Repeat(2, kInProduction));
}

TEST_F(ControlTest, WaitersBeyondTheBoundAreAnsweredAtOnce) {
  ControlHarness::Options options;
  options.control.max_waiters = 1;
  ControlHarness h(options);
  const auto session = h.Open(1);
  const NamespaceId ns = h.Register(session, ControlHarness::Descriptor());
  const auto producer = h.Reserve(session, ns, {100});
  const auto one = h.Reserve(session, ns, {100}, {}, 1000);
  const auto two = h.Reserve(session, ns, {100}, {}, 1000);
  EXPECT_TRUE(one->waits());
  ASSERT_TRUE(two->done());
  EXPECT_EQ(two->call.states, States({kInProduction}));
}

// --- parked commits ------------------------------------------------------------------------------

TEST_F(ControlTest, AParkedCommitBecomesVisibleWithItsParent) {
  const auto upper = h_.Reserve(a_, ns_, {100});
  const auto lower = h_.Reserve(b_, ns_, {100, 101});
  EXPECT_EQ(lower->call.states, States({kInProduction, kGranted}));
  h_.FillGranted(b_, lower->call, {100, 101});
  EXPECT_EQ(h_.Commit(b_, lower->call.reservation_id)->call.results,
            Results({CommitResult::kPresent, CommitResult::kParked}));
  EXPECT_EQ(h_.Hits(a_, ns_, {100, 101}), 0u);

  h_.FillGranted(a_, upper->call, {100});
  EXPECT_EQ(h_.Commit(a_, upper->call.reservation_id)->call.stored, 2u);

  EXPECT_EQ(h_.Hits(a_, ns_, {100, 101}), 2u);
}

TEST_F(ControlTest, AParkedCommitIsDroppedWhenTheProducerAboveGivesUp) {
  const auto upper = h_.Reserve(a_, ns_, {100});
  const auto lower = h_.Reserve(b_, ns_, {100, 101});
  h_.FillGranted(b_, lower->call, {100, 101});
  h_.Commit(b_, lower->call.reservation_id);

  ASSERT_TRUE(h_.control.Abort(a_.token, upper->call.reservation_id).ok());

  EXPECT_EQ(h_.counts().parked_dropped, 1u);
  EXPECT_EQ(h_.counts().used, 0u);
  EXPECT_EQ(h_.arena->reserved_bytes(), 0u);
}

TEST_F(ControlTest, ACommitBelowAParentThatWasGivenUpFindsNoParent) {
  const auto upper = h_.Reserve(a_, ns_, {100});
  const auto lower = h_.Reserve(b_, ns_, {100, 101});
  h_.FillGranted(b_, lower->call, {100, 101});
  ASSERT_TRUE(h_.control.Abort(a_.token, upper->call.reservation_id).ok());
  EXPECT_EQ(h_.Commit(b_, lower->call.reservation_id)->call.results,
            Results({CommitResult::kPresent, CommitResult::kNoParent}));
  EXPECT_EQ(h_.counts().used, 0u);
}

TEST_F(ControlTest, AParkedCommitSurvivesWhenAWaiterTakesTheParent) {
  const auto upper = h_.Reserve(a_, ns_, {100});
  const auto lower = h_.Reserve(b_, ns_, {100, 101});
  h_.FillGranted(b_, lower->call, {100, 101});
  h_.Commit(b_, lower->call.reservation_id);
  const auto waiter = h_.Reserve(b_, ns_, {100}, {}, 1000);
  h_.End(a_);
  h_.PollAndResume(*waiter);
  ASSERT_EQ(waiter->call.states, States({kGranted}));
  h_.FillGranted(b_, waiter->call, {100});
  EXPECT_EQ(h_.Commit(b_, waiter->call.reservation_id)->call.stored, 2u);
}

// --- time ----------------------------------------------------------------------------------------

TEST_F(ControlTest, AReservationExpires) {
  const Keys keys = KeysFrom(100, 3);
  const auto reserve = h_.Reserve(a_, ns_, keys);
  EXPECT_EQ(reserve->call.expires_ms, 30'000u);
  EXPECT_EQ(h_.control.NextDeadline(), h_.clock.Now() + 30 * kSecond);
  h_.clock.Advance(30 * kSecond - 1);
  h_.control.Poll();
  EXPECT_EQ(h_.control.reservations(), 1u);
  h_.clock.Advance(1);
  h_.control.Poll();
  EXPECT_EQ(h_.control.reservations(), 0u);
  EXPECT_EQ(h_.control.counters().reservations_expired, 1u);
  EXPECT_EQ(h_.counts().used, 0u);
  EXPECT_EQ(h_.arena->reserved_bytes(), 0u);
  EXPECT_EQ(h_.Commit(a_, reserve->call.reservation_id)->step.status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(ControlTest, ALeaseExpires) {
  h_.Put(a_, ns_, {100});
  h_.Lookup(a_, ns_, {100}, /*lease_ms=*/50);
  EXPECT_EQ(h_.FindBlock(ns_, 100)->leases, 1u);
  h_.clock.Advance(50 * kMillisecond - 1);
  h_.control.Poll();
  EXPECT_EQ(h_.control.leases(), 1u);
  h_.clock.Advance(1);
  h_.control.Poll();
  EXPECT_EQ(h_.control.leases(), 0u);
  EXPECT_EQ(h_.FindBlock(ns_, 100)->leases, 0u);
  EXPECT_EQ(h_.control.counters().leases_expired, 1u);
}

// --- sessions ------------------------------------------------------------------------------------

TEST_F(ControlTest, LeasesAndReservationsEndWithTheSessionHoldsWithTheProcess) {
  h_.Put(a_, ns_, {100});
  h_.Lookup(a_, ns_, {100}, 1000);
  h_.Load(a_, ns_, {100});
  h_.Reserve(a_, ns_, {100, 101});

  h_.End(a_);
  EXPECT_EQ(h_.control.leases(), 0u);
  EXPECT_EQ(h_.control.reservations(), 0u);
  EXPECT_EQ(h_.control.holds().total_extents(), 1u);
  EXPECT_EQ(h_.FindBlock(ns_, 100)->holds, 1u);
  EXPECT_EQ(h_.Lookup(a_, ns_, {100})->step.status().code(), absl::StatusCode::kUnauthenticated);

  h_.Exit(a_);
  EXPECT_EQ(h_.control.holds().total_extents(), 0u);
  EXPECT_EQ(h_.FindBlock(ns_, 100)->holds, 0u);
  EXPECT_EQ(h_.Hits(b_, ns_, {100}), 1u);  // What was committed stays.
}

TEST_F(ControlTest, AProcessMaySayThatItReadsNoMoreUnderItsLastSession) {
  h_.Put(a_, ns_, {100});
  h_.Load(a_, ns_, {100});
  h_.End(a_);
  h_.Open(1, a_.pid + 1, 4096, a_.bytes);  // Another process cannot say so.
  EXPECT_EQ(h_.control.holds().total_extents(), 1u);
  h_.Open(1, a_.pid, 4096, a_.bytes);
  EXPECT_EQ(h_.control.holds().total_extents(), 0u);
}

// The events of a dying process come in any order, with calls between them that were under way.
TEST_F(ControlTest, HoldsTakenAfterTheProcessWasSeenToExitEndWithTheSession) {
  h_.Put(a_, ns_, {100});
  h_.Exit(a_);
  h_.Load(a_, ns_, {100});
  h_.End(a_);
  EXPECT_EQ(h_.control.holds().total_extents(), 0u);
}

TEST_F(ControlTest, AStagingThatWasReplacedIsTheOneThatCounts) {
  auto call = ControlHarness::Make<CommitCall>(a_, ns_, {100});
  const PackedStaged staged{.offset = 60u << 10, .length = kPartBytes};
  call->staged.assign(reinterpret_cast<const char*>(&staged), sizeof staged);
  call->call.staged = call->staged;
  h_.inbox.Post(
      StagingOpened{.serial = a_.serial, .staging = std::make_shared<MemoryStaging>(8192)});
  h_.control.Poll();
  h_.Run(*call);
  EXPECT_EQ(call->step.status().code(), absl::StatusCode::kInvalidArgument);
}

// --- leases, holds, pins -------------------------------------------------------------------------

TEST_F(ControlTest, ALeaseIsUsedAndReleasedByAnySessionOfItsDomain) {
  h_.Put(a_, ns_, {100});
  const LeaseId lease = h_.Lookup(a_, ns_, {100}, 1000)->call.lease_id;
  EXPECT_FALSE(h_.ReleaseLease(stranger_, lease));
  EXPECT_EQ(h_.control.leases(), 1u);
  EXPECT_TRUE(h_.ReleaseLease(b_, lease));
  EXPECT_EQ(h_.control.leases(), 0u);
  EXPECT_FALSE(h_.ReleaseLease(a_, lease));
}

TEST_F(ControlTest, AHoldIsReleasedByItsSessionAlone) {
  h_.Put(a_, ns_, {100});
  const HoldId hold = h_.Load(a_, ns_, {100})->call.cursor.hold;
  EXPECT_FALSE(h_.ReleaseHold(b_, hold));
  EXPECT_TRUE(h_.ReleaseHold(a_, hold));
}

TEST_F(ControlTest, ReleasesRideOnOtherCalls) {
  h_.Put(a_, ns_, {100});
  const auto lookup = h_.Lookup(a_, ns_, {100}, 1000, 1);
  auto next = ControlHarness::Make<LookupCall>(a_, ns_, {100});
  const uint64_t holds[] = {lookup->call.cursor.hold};
  const uint64_t leases[] = {lookup->call.lease_id};
  next->call.header.releases.holds = holds;
  next->call.header.releases.leases = leases;
  h_.Run(*next);
  EXPECT_EQ(h_.control.leases(), 0u);
  EXPECT_EQ(h_.control.holds().total_extents(), 0u);
}

TEST_F(ControlTest, ANamespaceOfAnotherDomainIsNotFound) {
  h_.Put(a_, ns_, {100});
  for (const auto& [session, ns] : {std::pair{stranger_, ns_}, {a_, 0u}, {a_, ns_ + 1}}) {
    EXPECT_EQ(h_.Lookup(session, ns, {100})->step.status().code(), absl::StatusCode::kNotFound);
    EXPECT_EQ(h_.Load(session, ns, {100})->step.status().code(), absl::StatusCode::kNotFound);
    EXPECT_EQ(h_.Reserve(session, ns, {100})->step.status().code(), absl::StatusCode::kNotFound);
  }
  // The same descriptor is another namespace there, and what is stored here a miss.
  const NamespaceId theirs = h_.Register(stranger_, ControlHarness::Descriptor());
  EXPECT_NE(theirs, ns_);
  EXPECT_EQ(h_.Hits(stranger_, theirs, {100}), 0u);
}

TEST_F(ControlTest, ANamespaceIsRegisteredOnce) {
  const auto again = h_.control.RegisterNamespace(b_.token, ControlHarness::Descriptor());
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->id, ns_);
  EXPECT_FALSE(again->created);
  const auto other = h_.control.RegisterNamespace(b_.token, ControlHarness::Descriptor("other"));
  EXPECT_NE(other->id, ns_);
  EXPECT_NE(other->fingerprint, again->fingerprint);
  EXPECT_TRUE(other->created);
}

TEST_F(ControlTest, APartLargerThanARegionIsRefused) {
  const auto registered = h_.control.RegisterNamespace(
      a_.token,
      ControlHarness::Descriptor("m", {{.block_tokens = 16, .part_bytes = (64u << 10) + 1}}));
  EXPECT_EQ(registered.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(registered.status().message()), HasSubstr("groups[0].part_bytes"));
}

TEST_F(ControlTest, HeldBytesOfASessionAreBounded) {
  ControlHarness::Options options;
  options.control.session_hold_bytes = 3 * kPartBytes;
  ControlHarness h(options);
  const auto session = h.Open(1);
  const auto other = h.Open(1);
  const NamespaceId ns = h.Register(session, ControlHarness::Descriptor());
  h.Put(session, ns, KeysFrom(100, 5));

  const auto load = h.Load(session, ns, KeysFrom(100, 5));
  EXPECT_EQ(load->call.cursor.outcome, LoadOutcome::kHoldBudget);
  EXPECT_EQ(load->call.cursor.next, 3u);  // A shorter prefix.
  EXPECT_EQ(load->call.extents.size(), 3 * sizeof(PackedExtent));
  EXPECT_EQ(h.Load(session, ns, {100})->call.cursor.next, 0u);
  EXPECT_EQ(h.Load(other, ns, {100})->call.cursor.next, 1u);
  EXPECT_TRUE(h.ReleaseHold(session, load->call.cursor.hold));
  EXPECT_EQ(h.Load(session, ns, {100})->call.cursor.next, 1u);
  EXPECT_EQ(h.control.counters().hold_budget_refusals, 2u);
}

TEST_F(ControlTest, AFullHoldTableLeavesNoHoldBehind) {
  ControlHarness::Options options;
  options.control.holds = {.max_holds = 4, .max_extents = 3};
  ControlHarness h(options);
  const auto session = h.Open(1);
  const NamespaceId ns = h.Register(session, ControlHarness::Descriptor());
  h.Put(session, ns, KeysFrom(100, 5));

  const auto load = h.Load(session, ns, KeysFrom(100, 5));
  EXPECT_EQ(load->call.cursor.outcome, LoadOutcome::kHoldBudget);
  EXPECT_EQ(load->call.cursor.next, 3u);
  EXPECT_TRUE(h.ReleaseHold(session, load->call.cursor.hold));
  for (uint64_t key = 100; key < 105; ++key) EXPECT_EQ(h.FindBlock(ns, key)->holds, 0u) << key;
}

// However much one call gives back, the next caller waits for a part of it only.
TEST_F(ControlTest, ManyExtentsAreGivenBackInTurns) {
  ControlHarness::Options options{.arena_bytes = 2u << 20};
  options.control.session_hold_bytes = 4u << 20;
  ControlHarness h(options);
  const auto session = h.Open(1);
  const NamespaceId ns = h.Register(
      session, ControlHarness::Descriptor("m", {{.block_tokens = 16, .part_bytes = 512}}));
  const Keys keys = KeysFrom(100, 1500);
  const auto reserve = h.Reserve(session, ns, keys);
  h.FillGranted(session, reserve->call, keys, 512);
  h.Commit(session, reserve->call.reservation_id);
  std::vector<uint64_t> holds;
  for (const auto& [first, blocks] : {std::pair{0u, 500u}, {500u, 500u}}) {
    for (int i = 0; i < 5; ++i) {
      const auto load = h.Load(session, ns, KeysFrom(100 + first, blocks));
      EXPECT_EQ(load->call.cursor.next, blocks);
      holds.push_back(load->call.cursor.hold);
      if (load->call.cursor.outcome != LoadOutcome::kComplete) break;
    }
  }
  ASSERT_EQ(h.control.holds().total_extents(), 5000u);
  EXPECT_GT(h.control.NextDeadline(), 0);

  const auto released = h.control.Release(session.token, {.holds = holds});
  ASSERT_TRUE(released.ok());
  EXPECT_EQ(*released, 10u);
  EXPECT_EQ(h.control.holds().held_bytes(0), 0u);  // The budget is back at once ...
  EXPECT_GT(h.FindBlock(ns, 1099)->holds, 0u);     // ... the room a little later.
  EXPECT_EQ(h.control.NextDeadline(), 0);
  h.control.Poll();
  EXPECT_EQ(h.FindBlock(ns, 1099)->holds, 0u);
  EXPECT_GT(h.control.NextDeadline(), 0);
  h.Audit();
}

TEST_F(ControlTest, ASliceOfManyPartsHasFewBlocks) {
  ControlHarness::Options options;
  options.control.slice_extents = 128;
  ControlHarness h(options);
  const auto session = h.Open(1);
  const NamespaceId ns = h.Register(
      session,
      ControlHarness::Descriptor("m", {{.shards = 64, .block_tokens = 16, .part_bytes = 512}}));
  auto reserve = ControlHarness::Make<ReserveCall>(session, ns, KeysFrom(100, 5));
  reserve->step = h.Dispatch(reserve->call);
  ASSERT_TRUE(reserve->step.ok());
  EXPECT_EQ(*reserve->step, Step::kMore);
  EXPECT_EQ(reserve->call.next, 2u);
}

TEST_F(ControlTest, AHoldReleasedWhileItsLoadIsUnderWayEndsTheLoad) {
  ControlHarness::Options options;
  options.control.slice_blocks = 2;
  ControlHarness h(options);
  const auto session = h.Open(1);
  const NamespaceId ns = h.Register(session, ControlHarness::Descriptor());
  h.Put(session, ns, KeysFrom(100, 6));
  auto load = ControlHarness::Make<LoadCall>(session, ns, KeysFrom(100, 6));
  ASSERT_EQ(*h.control.Load(load->call), Step::kMore);

  EXPECT_TRUE(h.ReleaseHold(session, load->call.cursor.hold));  // A guess: it was not told yet.
  h.Run(*load);

  ASSERT_TRUE(load->done());
  EXPECT_EQ(load->call.cursor.outcome, LoadOutcome::kMiss);
  EXPECT_EQ(load->call.cursor.next, 0u);
  EXPECT_TRUE(load->call.extents.empty());
  EXPECT_EQ(h.control.holds().total_extents(), 0u);
  for (uint64_t key = 100; key < 106; ++key) EXPECT_EQ(h.FindBlock(ns, key)->holds, 0u) << key;
}

TEST_F(ControlTest, LeasesOfASessionAreBounded) {
  ControlHarness::Options options;
  options.control.session_leases = 2;
  ControlHarness h(options);
  const auto session = h.Open(1);
  const NamespaceId ns = h.Register(session, ControlHarness::Descriptor());
  h.Put(session, ns, {100});
  const LeaseId first = h.Lookup(session, ns, {100}, 1000)->call.lease_id;
  EXPECT_EQ(h.Lookup(session, ns, {100}, 1000)->call.lease, LeaseOutcome::kGranted);
  const auto refused = h.Lookup(session, ns, {100}, 1000);
  EXPECT_EQ(refused->call.lease, LeaseOutcome::kRefused);
  EXPECT_EQ(refused->call.hit_blocks, 1u);
  EXPECT_TRUE(h.ReleaseLease(session, first));
  EXPECT_EQ(h.Lookup(session, ns, {100}, 1000)->call.lease, LeaseOutcome::kGranted);
}

TEST_F(ControlTest, WhatWasDoneIsCountedByDomain) {
  ControlHarness h;
  const auto mine = h.Open(1);
  const auto mine_too = h.Open(1);
  h.Open(2);
  const NamespaceId ns = h.Register(mine, ControlHarness::Descriptor());
  h.Put(mine, ns, KeysFrom(100, 3));
  h.Hits(mine_too, ns, KeysFrom(100, 5));
  h.Put(mine_too, ns, KeysFrom(200, 100));  // More than there is room for.
  h.End(mine);

  const DomainUse& use = h.control.domain_uses().at(1);
  EXPECT_EQ(use.sessions, 1u);
  EXPECT_EQ(use.lookups, 1u);
  EXPECT_EQ(use.lookup_blocks, 5u);
  EXPECT_EQ(use.hit_blocks, 3u);
  EXPECT_EQ(use.committed_blocks, h.control.counters().committed_blocks);
  EXPECT_GT(use.rejected_blocks, 1u);  // And what stood below it in the list.
  EXPECT_EQ(h.control.domain_uses().at(2).sessions, 1u);
  EXPECT_EQ(h.control.domain_uses().at(2).lookups, 0u);
}

// Whatever a tenant uses up, all of it in as many sessions as it likes, the others go on.
TEST_F(ControlTest, ADomainLeavesSomethingToTheOthers) {
  ControlHarness::Options options;
  options.control.domain_leases = 2;
  options.control.domain_holds = 2;
  options.control.domain_extents = 5;
  options.control.domain_reservations = 2;
  options.control.domain_waiters = 1;
  options.control.domain_namespaces = 2;
  options.control.domain_layouts = 1;
  options.control.domain_pins = 1;
  ControlHarness h(options);
  const ControlHarness::Session mine[] = {h.Open(1), h.Open(1), h.Open(1)};
  const auto other = h.Open(2);
  const auto descriptor = [](std::string model, uint32_t part_bytes = kPartBytes) {
    return ControlHarness::Descriptor(std::move(model),
                                      {{.block_tokens = 16, .part_bytes = part_bytes}});
  };
  const auto refused = [](const absl::Status& status) {
    return status.code() == absl::StatusCode::kResourceExhausted;
  };
  const NamespaceId ns = h.Register(mine[0], descriptor("a"));
  EXPECT_TRUE(refused(
      h.control.RegisterNamespace(mine[1].token, descriptor("b", 512)).status()));  // Layouts.
  h.Register(mine[1], descriptor("b"));
  EXPECT_TRUE(refused(h.control.RegisterNamespace(mine[2].token, descriptor("c")).status()));
  const NamespaceId others = h.Register(other, descriptor("c", 512));

  // Twice: what was given back counts no more.
  for (uint64_t key = 100; key < 300; key += 100) {
    SCOPED_TRACE(key);
    const Keys keys = KeysFrom(key, 3);
    h.Put(mine[0], ns, keys);
    std::vector<LeaseId> leases;
    for (const auto& session : mine) {
      leases.push_back(h.Lookup(session, ns, keys, 1000)->call.lease_id);
    }
    EXPECT_TRUE(leases[0] != 0 && leases[1] != 0 && leases[2] == 0);
    for (const LeaseId lease : leases) h.ReleaseLease(mine[2], lease);

    const auto first = h.Load(mine[0], ns, keys);
    const auto second = h.Load(mine[1], ns, keys);
    EXPECT_EQ(first->call.cursor.next, 3u);
    EXPECT_EQ(second->call.cursor.next, 2u);  // Extents are used up ...
    EXPECT_TRUE(h.ReleaseHold(mine[0], first->call.cursor.hold));
    const auto third = h.Load(mine[0], ns, {key});
    EXPECT_EQ(h.Load(mine[2], ns, {key})->call.cursor.next, 0u);  // ... and now holds.
    EXPECT_TRUE(h.ReleaseHold(mine[0], third->call.cursor.hold));
    EXPECT_TRUE(h.ReleaseHold(mine[1], second->call.cursor.hold));

    const auto a = h.Reserve(mine[0], ns, {key + 10});
    const auto b = h.Reserve(mine[1], ns, {key + 10}, {}, 1000);
    EXPECT_TRUE(b->waits());
    EXPECT_TRUE(refused(h.Reserve(mine[2], ns, {key + 10}, {}, 1000)->step.status()));
    EXPECT_EQ(h.Reserve(other, others, {key})->call.granted, 1u);
    EXPECT_TRUE(h.control.Abort(mine[0].token, a->call.reservation_id).ok());
    h.PollAndResume(*b);
    EXPECT_TRUE(h.control.Abort(mine[1].token, b->call.reservation_id).ok());
    const auto c = h.Reserve(mine[0], ns, {key + 10});
    EXPECT_EQ(c->call.granted, 1u);
    EXPECT_TRUE(h.control.Abort(mine[0].token, c->call.reservation_id).ok());

    const auto pin = [&] {
      auto call = ControlHarness::Make<PinCall>(mine[0], ns, {});
      const std::string packed = PackKeys({key});
      call->call.key = packed;
      call->call.owner = "me";
      call->call.ttl_ms = 1000;
      call->call.budget_bytes = UINT64_MAX;
      return std::pair{h.control.Pin(call->call), call->call.pin_id};
    };
    const auto pinned = pin();
    EXPECT_TRUE(pinned.first.ok()) << pinned.first;
    EXPECT_TRUE(refused(pin().first));
    EXPECT_TRUE(h.control.Unpin(mine[1].token, pinned.second).ok());
  }
  h.Audit();
}

TEST_F(ControlTest, PinsHaveAnOwnerABudgetAndATimeToLive) {
  h_.Put(a_, ns_, KeysFrom(100, 3));
  const auto pin = [&](uint64_t key, const char* owner, uint64_t budget_blocks) {
    const std::string packed = PackKeys({key});
    PinCall call{
        .key = packed, .owner = owner, .budget_bytes = budget_blocks * kPartBytes, .ttl_ms = 1000};
    call.header.session = a_.token;
    call.header.ns = ns_;
    absl::Status status = h_.control.Pin(call);
    return std::pair(status.code(), call);
  };
  const auto [code, call] = pin(102, "system-prompts", 4);
  EXPECT_EQ(code, absl::StatusCode::kOk);
  EXPECT_EQ(call.blocks, 3u);
  EXPECT_EQ(call.bytes, 3 * kPartBytes);
  EXPECT_EQ(pin(101, "system-prompts", 4).first, absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(pin(100, "system-prompts", 4).first, absl::StatusCode::kOk);
  EXPECT_EQ(pin(101, "somebody", 4).first, absl::StatusCode::kOk);
  EXPECT_EQ(pin(200, "somebody", 4).first, absl::StatusCode::kNotFound);
  EXPECT_EQ(h_.control.pins(), 3u);
  EXPECT_EQ(h_.control.leases(), 0u);

  EXPECT_FALSE(h_.ReleaseLease(a_, call.pin_id));  // Only Unpin ends it.
  EXPECT_EQ(h_.control.Unpin(stranger_.token, call.pin_id).code(), absl::StatusCode::kNotFound);
  h_.End(a_);  // It belongs to no session.
  EXPECT_EQ(h_.control.pins(), 3u);
  EXPECT_TRUE(h_.control.Unpin(b_.token, call.pin_id).ok());
  EXPECT_EQ(h_.control.Unpin(b_.token, call.pin_id).code(), absl::StatusCode::kNotFound);
  h_.clock.Advance(1000 * kMillisecond);
  h_.control.Poll();
  EXPECT_EQ(h_.control.pins(), 0u);
  EXPECT_EQ(h_.FindBlock(ns_, 102)->leases, 0u);
}

// --- bounds --------------------------------------------------------------------------------------

TEST_F(ControlTest, ALookupTakesUpTo32768Keys) {
  for (const size_t n : {kMaxLookupBlocks - 1, kMaxLookupBlocks}) {
    EXPECT_TRUE(h_.Lookup(a_, ns_, KeysFrom(100, n))->done()) << n;
  }
  const auto above = h_.Lookup(a_, ns_, KeysFrom(100, kMaxLookupBlocks + 1));
  EXPECT_EQ(above->step.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(above->step.status().message()), HasSubstr("keys"));
}

TEST_F(ControlTest, APageHasUpTo2048Keys) {
  for (const size_t n : {kMaxPageBlocks - 1, kMaxPageBlocks}) {
    EXPECT_TRUE(h_.Load(a_, ns_, KeysFrom(100, n))->done()) << n;
    const auto reserve = h_.Reserve(a_, ns_, KeysFrom(100, n));
    ASSERT_TRUE(reserve->done()) << n;
    EXPECT_EQ(reserve->call.states.size(), n);
    EXPECT_TRUE(h_.control.Abort(a_.token, reserve->call.reservation_id).ok());
    EXPECT_TRUE(h_.Lookup(a_, ns_, {100}, 0, static_cast<uint32_t>(n))->done());
  }
  const Keys above = KeysFrom(100, kMaxPageBlocks + 1);
  EXPECT_EQ(h_.Load(a_, ns_, above)->step.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(h_.Reserve(a_, ns_, above)->step.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(h_.Lookup(a_, ns_, {100}, 0, kMaxPageBlocks + 1)->step.status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(ControlTest, APageHasUpTo16384Extents) {
  const NamespaceId wide = h_.Register(
      a_,
      ControlHarness::Descriptor("wide", {{.shards = 64, .block_tokens = 16, .part_bytes = 8}}));
  EXPECT_TRUE(h_.Load(a_, wide, KeysFrom(1, 255))->done());
  EXPECT_TRUE(h_.Load(a_, wide, KeysFrom(1, 256))->done());
  EXPECT_EQ(h_.Load(a_, wide, KeysFrom(1, 257))->step.status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(h_.Reserve(a_, wide, KeysFrom(1, 257))->step.status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(ControlTest, ALeaseLastsAtMostTenMinutes) {
  h_.Put(a_, ns_, {100});
  EXPECT_TRUE(h_.Lookup(a_, ns_, {100}, kMaxLeaseMs)->done());
  const auto above = h_.Lookup(a_, ns_, {100}, kMaxLeaseMs + 1);
  EXPECT_THAT(std::string(above->step.status().message()), HasSubstr("lease_ms"));
}

TEST_F(ControlTest, ACallReleasesAtMost1024) {
  std::vector<uint64_t> ids(kMaxReleasesPerCall + 1, 5);
  const absl::Span<const uint64_t> all(ids);
  EXPECT_TRUE(h_.control.Release(a_.token, {.holds = all.first(kMaxReleasesPerCall)}).ok());
  const auto above = h_.control.Release(a_.token, {.holds = all});
  EXPECT_EQ(above.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(above.status().message()), HasSubstr("releases"));
}

// Each extent called damaged is looked for in its hold: a list without a bound would keep everybody
// else waiting.
TEST_F(ControlTest, ACallReportsAtMost1024ExtentsDamaged) {
  h_.Put(a_, ns_, {100});
  const HoldId hold = h_.Load(a_, ns_, {100})->call.cursor.hold;
  const std::vector<uint32_t> positions(kMaxReleasesPerCall, 7);
  const absl::Span<const uint32_t> all(positions);
  ReleaseList releases;
  releases.damaged.push_back({hold, all.first(kMaxReleasesPerCall - 1)});
  EXPECT_TRUE(h_.control.Release(a_.token, releases).ok());
  releases.damaged[0].extents = all;
  EXPECT_EQ(h_.control.Release(a_.token, releases).status().code(),
            absl::StatusCode::kInvalidArgument);
  auto lookup = ControlHarness::Make<LookupCall>(a_, ns_, {100});
  lookup->call.header.releases = releases;
  h_.Run(*lookup);
  EXPECT_EQ(lookup->step.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ControlTest, ReservationsOfASessionAreBounded) {
  ControlHarness::Options options;
  options.control.session_reservations = 2;
  ControlHarness h(options);
  const auto session = h.Open(1);
  const auto other = h.Open(1);
  const NamespaceId ns = h.Register(session, ControlHarness::Descriptor());
  const auto first = h.Reserve(session, ns, {1});
  EXPECT_TRUE(h.Reserve(session, ns, {2})->done());
  EXPECT_EQ(h.Reserve(session, ns, {3})->step.status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(h.Reserve(other, ns, {3})->done());
  EXPECT_TRUE(h.control.Abort(session.token, first->call.reservation_id).ok());
  EXPECT_TRUE(h.Reserve(session, ns, {4})->done());
}

TEST_F(ControlTest, AMalformedCallNamesItsField) {
  const auto message = [](const absl::Status& status) { return std::string(status.message()); };
  auto call = ControlHarness::Make<LookupCall>(a_, ns_, {100});
  call->call.header.keys = std::string_view(call->keys).substr(1);
  h_.Run(*call);
  EXPECT_THAT(message(call->step.status()), HasSubstr("keys"));
  call->call.header.keys = {};
  h_.Run(*call);
  EXPECT_THAT(message(call->step.status()), HasSubstr("keys"));
  call->call.header.keys = call->keys;
  call->call.header.parent = "short";
  h_.Run(*call);
  EXPECT_THAT(message(call->step.status()), HasSubstr("parent"));
  // Half a pair, a group that is not there, a part named twice.
  for (const size_t size : {1, 2, 4}) {
    const std::string parts(size, size == 2 ? '\7' : '\0');
    const auto reserve = h_.Reserve(a_, ns_, {100}, {}, 0, parts);
    EXPECT_THAT(message(reserve->step.status()), HasSubstr("parts"));
  }
  EXPECT_EQ(h_.counts().used, 0u);
  EXPECT_EQ(h_.control.reservations(), 0u);
}

TEST_F(ControlTest, ForeignAndUnknownReservationsAreNotFound) {
  const auto reserve = h_.Reserve(a_, ns_, {100});
  const uint64_t id = reserve->call.reservation_id;
  EXPECT_EQ(h_.Commit(b_, id)->step.status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(h_.control.Abort(b_.token, id).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(h_.Commit(a_, id + 1)->step.status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(h_.Fill(b_, id, 0, ns_, 100, {}, kPartBytes), FillStatus::kGone);
  EXPECT_EQ(h_.Fill(a_, id, 1, ns_, 100, {}, kPartBytes), FillStatus::kInvalid);
  EXPECT_EQ(h_.Fill(a_, id, 0, ns_, 100, {}, kPartBytes + 1), FillStatus::kInvalid);
  EXPECT_EQ(h_.Commit(a_, id, 1)->step.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(h_.Commit(a_, id, 0, 2)->step.status().code(), absl::StatusCode::kInvalidArgument);
}

// --- damage --------------------------------------------------------------------------------------

TEST_F(ControlTest, ADamageReportIsNotBelievedWhenTheBytesAreIntact) {
  h_.Put(a_, ns_, KeysFrom(100, 3));
  const auto load = h_.Load(a_, ns_, KeysFrom(100, 3));
  h_.ReportDamage(a_, load->call.cursor.hold, {1});
  h_.mover.CompleteAll();
  h_.control.Poll();
  EXPECT_EQ(h_.Hits(a_, ns_, KeysFrom(100, 3)), 3u);
  EXPECT_EQ(h_.control.counters().damage_reported, 1u);
  EXPECT_EQ(h_.control.counters().damage_confirmed, 0u);
  h_.ReleaseHold(a_, load->call.cursor.hold);
  EXPECT_EQ(h_.FindBlock(ns_, 101)->holds, 0u);
}

TEST_F(ControlTest, DamageMakesAStubAndANewCommitFindsWhatLiesBelowAgain) {
  const Keys keys = KeysFrom(100, 4);
  h_.Put(a_, ns_, keys);
  const auto load = h_.Load(a_, ns_, keys);
  const auto extent = UnpackAt<PackedExtent>(load->call.extents, 1);
  h_.Damage(extent);
  h_.ReportDamage(a_, load->call.cursor.hold, {1, 1, 99});
  h_.mover.CompleteAll();
  h_.control.Poll();

  EXPECT_EQ(h_.control.counters().damage_confirmed, 1u);
  EXPECT_EQ(h_.Hits(a_, ns_, keys), 1u);
  EXPECT_EQ(h_.counts().stubs, 1u);
  EXPECT_EQ(h_.counts().quarantined_parts, 1u);

  const auto reserve = h_.Reserve(a_, ns_, keys);
  EXPECT_EQ(reserve->call.states, States({kPresent, kGranted, kPresent, kPresent}));
  h_.FillGranted(a_, reserve->call, keys);
  h_.Commit(a_, reserve->call.reservation_id);
  EXPECT_EQ(h_.Hits(a_, ns_, keys), 4u);
  const auto again = h_.Load(a_, ns_, keys);
  const auto fresh = UnpackAt<PackedExtent>(again->call.extents, 1);
  EXPECT_TRUE(h_.IsPayload(fresh, ns_, keys[1]));
  EXPECT_TRUE(fresh.region != extent.region || fresh.offset != extent.offset);  // Still held.

  h_.ReleaseHold(a_, load->call.cursor.hold);
  EXPECT_EQ(h_.counts().quarantined_parts, 0u);
}

TEST_F(ControlTest, ADamagedLeafGoes) {
  h_.Put(a_, ns_, {100});
  const auto load = h_.Load(a_, ns_, {100});
  h_.Damage(UnpackAt<PackedExtent>(load->call.extents, 0));
  h_.ReportDamage(a_, load->call.cursor.hold, {0});
  h_.mover.CompleteAll();
  h_.control.Poll();
  EXPECT_EQ(h_.counts().used, 0u);
  EXPECT_EQ(h_.arena->reserved_bytes(), kPartBytes);  // Quarantined.
  h_.ReleaseHold(a_, load->call.cursor.hold);
  EXPECT_EQ(h_.arena->reserved_bytes(), 0u);
}

TEST_F(ControlTest, DamageUnderAForeignHoldIsNotReported) {
  h_.Put(a_, ns_, {100});
  const auto load = h_.Load(a_, ns_, {100});
  h_.ReportDamage(b_, load->call.cursor.hold, {0});
  EXPECT_EQ(h_.mover.verifies(), 0u);
}

TEST_F(ControlTest, ADamageReportThatNobodyCanVerifyLeavesNothing) {
  h_.Put(a_, ns_, {100});
  const auto load = h_.Load(a_, ns_, {100});
  h_.mover.max_jobs = 0;
  h_.ReportDamage(a_, load->call.cursor.hold, {0});
  EXPECT_EQ(h_.FindBlock(ns_, 100)->holds, 1u);
}

// A window part is being produced below a block whose full part turns out to be damaged.
TEST_F(ControlTest, AProducerOfOtherPartsOutlivesTheDamageOfItsBlock) {
  const NamespaceId hybrid = h_.Register(
      a_, ControlHarness::Descriptor("hybrid", {{.block_tokens = 16, .part_bytes = kPartBytes},
                                                {.kind = GroupKind::kWindow,
                                                 .window_tokens = 16,
                                                 .block_tokens = 16,
                                                 .part_bytes = kPartBytes}}));
  const auto full = h_.Reserve(a_, hybrid, {100}, {}, 0, std::string("\0\0", 2));
  h_.FillGranted(a_, full->call, {100});
  h_.Commit(a_, full->call.reservation_id);
  auto load = ControlHarness::Make<LoadCall>(a_, hybrid, {100});
  h_.Run(*load);
  ASSERT_EQ(load->call.cursor.next, 1u);
  const auto window = h_.Reserve(b_, hybrid, {100});
  ASSERT_EQ(window->call.states, States({kGranted}));

  h_.Damage(UnpackAt<PackedExtent>(load->call.extents, 0));
  h_.ReportDamage(a_, load->call.cursor.hold, {0});
  h_.mover.CompleteAll();
  h_.control.Poll();
  h_.ReleaseHold(a_, load->call.cursor.hold);

  // Its room is nobody else's meanwhile, and its commit is one of a part of a block in production.
  const auto other = h_.Reserve(a_, hybrid, {500});
  EXPECT_EQ(h_.Fill(b_, window->call.reservation_id, 1, hybrid, 100, {1, 0}, kPartBytes),
            FillStatus::kOk);
  EXPECT_EQ(h_.Commit(b_, window->call.reservation_id)->call.stored, 0u);
  EXPECT_EQ(h_.Hits(a_, hybrid, {100}), 0u);
  const auto again = h_.Reserve(a_, hybrid, {100});
  EXPECT_EQ(again->call.states, States({kGranted}));
  EXPECT_EQ(h_.Fill(a_, again->call.reservation_id, 0, hybrid, 100, {}, kPartBytes),
            FillStatus::kOk);
  EXPECT_EQ(h_.Commit(a_, again->call.reservation_id)->call.stored, 1u);
  EXPECT_EQ(h_.Hits(a_, hybrid, {100}), 1u);
}

// --- put in one call -----------------------------------------------------------------------------

class InlinePutTest : public ControlTest {
 protected:
  // A put of blocks whose bytes lie one after the other in the staging memory.
  ControlHarness::CallPtr<CommitCall> MakePut(const ControlHarness::Session& session,
                                              const Keys& keys) {
    auto held = ControlHarness::Make<CommitCall>(session, ns_, keys);
    held->staged.resize(keys.size() * sizeof(PackedStaged));
    for (size_t i = 0; i < keys.size(); ++i) {
      ControlHarness::WritePayload(session.staging->writable().subspan(i * kPartBytes, kPartBytes),
                                   ns_, keys[i], {});
      PackAt(held->staged, i, PackedStaged{.offset = i * kPartBytes, .length = kPartBytes});
    }
    held->call.staged = held->staged;
    return held;
  }
  ControlHarness::CallPtr<CommitCall> Put(const ControlHarness::Session& session,
                                          const Keys& keys) {
    auto held = MakePut(session, keys);
    h_.Run(*held);
    return held;
  }
  void Finish(ControlHarness::Held<CommitCall>& put) {
    h_.mover.CompleteAll();
    h_.PollAndResume(put);
  }
};

TEST_F(InlinePutTest, IsVisibleWhenTheCopierIsDone) {
  const Keys keys = KeysFrom(100, 4);
  const auto put = Put(a_, keys);
  ASSERT_TRUE(put->waits()) << put->step.status();
  EXPECT_EQ(h_.Hits(a_, ns_, keys), 0u);

  Finish(*put);

  ASSERT_TRUE(put->done());
  EXPECT_EQ(put->call.results, Repeat(4, CommitResult::kCommitted));
  EXPECT_EQ(put->call.stored, 4u);
  const auto load = h_.Load(b_, ns_, keys);
  for (uint32_t i = 0; i < 4; ++i) {
    EXPECT_TRUE(h_.IsPayload(UnpackAt<PackedExtent>(load->call.extents, i), ns_, keys[i]));
  }
  EXPECT_EQ(h_.control.reservations(), 0u);
}

// What lies beyond the blocks of the put would be read from nowhere.
TEST_F(InlinePutTest, HasNoRangeOfBlocks) {
  for (const bool first : {true, false}) {
    const auto put = MakePut(a_, KeysFrom(100, 2));
    (first ? put->call.first_block : put->call.blocks) = first ? 1'000'000 : 1;
    h_.Run(*put);
    EXPECT_EQ(put->step.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(put->step.status().message().find(first ? "first_block" : "blocks"),
              absl::string_view::npos);
  }
  EXPECT_EQ(h_.control.reservations(), 0u);
}

TEST_F(InlinePutTest, StoresNothingFromABlockOnWhoseSumDiffers) {
  const Keys keys = KeysFrom(100, 3);
  auto put = ControlHarness::Make<CommitCall>(a_, ns_, keys);
  put->staged.resize(keys.size() * sizeof(PackedStaged));
  for (size_t i = 0; i < keys.size(); ++i) {
    const auto bytes = a_.staging->writable().subspan(i * kPartBytes, kPartBytes);
    ControlHarness::WritePayload(bytes, ns_, keys[i], {});
    PackAt(put->staged, i, PackedStaged{i * kPartBytes, kPartBytes, Crc32c(bytes)});
  }
  put->call.staged = put->staged;
  put->call.staged_sums = true;
  a_.staging->writable()[kPartBytes] ^= std::byte{1};  // A stray store into the second block.
  h_.Run(*put);

  Finish(*put);

  ASSERT_TRUE(put->done());
  EXPECT_EQ(put->call.results,
            Repeat(1, CommitResult::kCommitted) + Repeat(2, CommitResult::kFailed));
  EXPECT_EQ(h_.control.counters().put_sums_differ, 1u);
  EXPECT_EQ(h_.Hits(a_, ns_, keys), 1u);
  EXPECT_EQ(h_.control.reservations(), 0u);
}

TEST_F(InlinePutTest, DeduplicatesInItsAnswer) {
  h_.Put(a_, ns_, {100, 101});
  const auto put = Put(b_, KeysFrom(100, 3));
  Finish(*put);
  EXPECT_EQ(put->call.results,
            Results({CommitResult::kPresent, CommitResult::kPresent, CommitResult::kCommitted}));
  const auto again = Put(b_, KeysFrom(100, 3));
  ASSERT_TRUE(again->done());  // Nothing to copy, nothing to wait for.
  EXPECT_EQ(again->call.results, Repeat(3, CommitResult::kPresent));
}

TEST_F(InlinePutTest, RefusesStagingThatIsNotThere) {
  for (const PackedStaged staged : {PackedStaged{.offset = 61u << 10, .length = kPartBytes},
                                    PackedStaged{.offset = ~0ull, .length = kPartBytes},
                                    PackedStaged{.offset = 0, .length = kPartBytes - 1}}) {
    auto call = ControlHarness::Make<CommitCall>(a_, ns_, {100});
    call->staged.resize(sizeof staged);
    PackAt(call->staged, 0, staged);
    call->call.staged = call->staged;
    h_.Run(*call);
    EXPECT_EQ(call->step.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(call->step.status().message()), HasSubstr("staged[0]"));
  }
  EXPECT_EQ(h_.counts().used, 0u);
}

TEST_F(InlinePutTest, RefusesStagingThatWasReplacedMeanwhileByLess) {
  ControlHarness::Options options;
  options.control.slice_blocks = 1;
  ControlHarness h(options);
  const auto session = h.Open(1);
  const NamespaceId ns = h.Register(session, ControlHarness::Descriptor());
  auto put = ControlHarness::Make<CommitCall>(session, ns, KeysFrom(100, 2));
  put->staged.resize(2 * sizeof(PackedStaged));
  for (size_t i = 0; i < 2; ++i) {
    PackAt(put->staged, i, PackedStaged{.offset = 32u << 10, .length = kPartBytes});
  }
  put->call.staged = put->staged;
  ASSERT_EQ(*h.control.Commit(put->call), Step::kMore);
  h.inbox.Post(StagingOpened{.serial = session.serial,
                             .staging = std::make_shared<MemoryStaging>(size_t{kPartBytes})});
  h.control.Poll();
  h.Run(*put);
  EXPECT_EQ(put->step.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(h.mover.fills(), 0u);
  EXPECT_EQ(h.control.reservations(), 0u);
  EXPECT_EQ(h.counts().used, 0u);
}

TEST_F(InlinePutTest, IsRefusedWhenTooManyWait) {
  h_.mover.max_jobs = 0;
  const auto put = Put(a_, {100});
  EXPECT_EQ(put->step.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(h_.counts().used, 0u);
  EXPECT_EQ(h_.control.reservations(), 0u);
}

TEST_F(InlinePutTest, EndsWithItsSession) {
  const auto put = Put(a_, {100});
  h_.End(a_);
  h_.PollAndResume(*put);
  EXPECT_EQ(put->step.status().code(), absl::StatusCode::kUnauthenticated);
  h_.mover.CompleteAll();  // Finds that it may not write any more.
  h_.control.Poll();
  EXPECT_EQ(h_.counts().used, 0u);
  EXPECT_EQ(h_.arena->reserved_bytes(), 0u);
}

TEST_F(InlinePutTest, EndsWhenItsReservationExpires) {
  const auto put = Put(a_, {100});
  h_.clock.Advance(31 * kSecond);
  h_.PollAndResume(*put);
  EXPECT_EQ(put->step.status().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(h_.arena->reserved_bytes(), 0u);
}

// --- room ----------------------------------------------------------------------------------------

TEST_F(ControlTest, WithEverythingLeasedThereIsNoRoomAndTheCallerIsTold) {
  const Keys all = KeysFrom(100, 64);  // The whole arena.
  h_.Put(a_, ns_, all);
  const LeaseId lease = h_.Lookup(a_, ns_, all, 1000)->call.lease_id;
  EXPECT_EQ(h_.Reserve(b_, ns_, {900, 901})->call.states, Repeat(2, kNoRoom));
  EXPECT_EQ(h_.control.counters().reserve_no_room_blocks, 1u);
  EXPECT_EQ(h_.Hits(b_, ns_, all), 64u);

  h_.ReleaseLease(a_, lease);
  EXPECT_EQ(h_.Put(b_, ns_, {900, 901}), Repeat(2, CommitResult::kCommitted));
  EXPECT_EQ(h_.Hits(b_, ns_, all), 62u);
}

TEST_F(ControlTest, HeldRoomIsNotReused) {
  const Keys all = KeysFrom(100, 64);
  h_.Put(a_, ns_, all);
  const auto load = h_.Load(a_, ns_, KeysFrom(100, 16));
  ASSERT_EQ(load->call.cursor.next, 16u);
  h_.Put(b_, ns_, KeysFrom(500, 64));
  for (uint32_t i = 0; i < 16; ++i) {
    EXPECT_TRUE(h_.IsPayload(UnpackAt<PackedExtent>(load->call.extents, i), ns_, all[i])) << i;
  }
  EXPECT_EQ(h_.Hits(a_, ns_, all), 16u);
}

TEST_F(ControlTest, AChainLongerThanTheArenaKeepsItsHead) {
  const Keys keys = KeysFrom(100, 80);
  const auto reserve = h_.Reserve(a_, ns_, keys);
  EXPECT_EQ(reserve->call.states, Repeat(64, kGranted) + Repeat(16, kNoRoom));
  h_.FillGranted(a_, reserve->call, keys);
  const auto commit = h_.Commit(a_, reserve->call.reservation_id);
  EXPECT_EQ(commit->call.results,
            Repeat(64, CommitResult::kCommitted) + Repeat(16, CommitResult::kNoRoom));
  EXPECT_EQ(h_.Hits(a_, ns_, keys), 64u);
}

TEST_F(ControlTest, AChainLongerThanTheIndexKeepsItsHead) {
  ControlHarness::Options options;
  options.max_blocks = 20;
  ControlHarness h(options);
  const auto session = h.Open(1);
  const NamespaceId ns = h.Register(session, ControlHarness::Descriptor());
  h.Put(session, ns, KeysFrom(500, 10));
  const Keys keys = KeysFrom(100, 30);
  EXPECT_EQ(h.Put(session, ns, keys),
            Repeat(20, CommitResult::kCommitted) + Repeat(10, CommitResult::kNoRoom));
  EXPECT_EQ(h.Hits(session, ns, keys), 20u);
  EXPECT_EQ(h.counts().evicted, 10u);
  // And again: what is there is leased while the rest looks for room.
  EXPECT_EQ(h.Reserve(session, ns, keys)->call.states, Repeat(20, kPresent) + Repeat(10, kNoRoom));
  h.Audit();
}

TEST_F(ControlTest, ClosingAReservationUnderACopyKeepsTheRoomUntilTheCopyEnds) {
  const auto reserve = h_.Reserve(a_, ns_, {100});
  const uint64_t id = reserve->call.reservation_id;
  const FakeMover::Copy copy = h_.mover.BeginCopy(
      a_.serial, *a_.staging, {.reservation_id = id, .index = 0, .length = kPartBytes});
  ASSERT_EQ(copy.status, FillStatus::kOk);

  ASSERT_TRUE(h_.control.Abort(a_.token, id).ok());
  EXPECT_EQ(h_.arena->reserved_bytes(), kPartBytes);
  EXPECT_EQ(h_.Fill(a_, id, 0, ns_, 100, {}, kPartBytes), FillStatus::kGone);
  EXPECT_EQ(h_.control.Abort(a_.token, id).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(h_.Commit(a_, id)->step.status().code(), absl::StatusCode::kNotFound);

  h_.mover.EndCopy(copy);
  h_.control.Poll();
  EXPECT_EQ(h_.arena->reserved_bytes(), 0u);
  EXPECT_EQ(h_.counts().used, 0u);
  EXPECT_EQ(h_.control.reservations(), 0u);
}

// A client guesses the number of a reservation that it was not told yet, fills a part of it, and
// lets it end while its Reserve is still under way.
TEST_F(ControlTest, AReserveWhoseReservationIsClosingGrantsNothingMore) {
  ControlHarness::Options options;
  options.control.slice_blocks = 2;
  ControlHarness h(options);
  const auto session = h.Open(1);
  const NamespaceId ns = h.Register(session, ControlHarness::Descriptor());
  auto reserve = ControlHarness::Make<ReserveCall>(session, ns, KeysFrom(100, 6));
  ASSERT_EQ(*h.control.Reserve(reserve->call), Step::kMore);
  const uint64_t id = reserve->call.reservation_id;
  const FakeMover::Copy copy = h.mover.BeginCopy(
      session.serial, *session.staging, {.reservation_id = id, .index = 0, .length = kPartBytes});
  ASSERT_EQ(copy.status, FillStatus::kOk);
  ASSERT_TRUE(h.control.Abort(session.token, id).ok());

  h.Run(*reserve);
  ASSERT_TRUE(reserve->done());
  EXPECT_EQ(reserve->call.reservation_id, 0u);
  EXPECT_EQ(reserve->call.granted, 0u);

  h.mover.EndCopy(copy);
  h.control.Poll();
  EXPECT_EQ(h.counts().used, 0u);
  EXPECT_EQ(h.arena->reserved_bytes(), 0u);
}

TEST_F(ControlTest, ALongReserveIsDoneInSlicesAndOthersSeeOnlyItsResult) {
  ControlHarness::Options options;
  options.control.slice_blocks = 2;
  ControlHarness h(options);
  const auto session = h.Open(1);
  const NamespaceId ns = h.Register(session, ControlHarness::Descriptor());
  auto reserve = ControlHarness::Make<ReserveCall>(session, ns, KeysFrom(100, 5));
  EXPECT_EQ(*h.control.Reserve(reserve->call), Step::kMore);
  EXPECT_EQ(*h.control.Reserve(reserve->call), Step::kMore);
  EXPECT_EQ(*h.control.Reserve(reserve->call), Step::kDone);
  EXPECT_EQ(reserve->call.states, Repeat(5, kGranted));
}

}  // namespace
}  // namespace kvd
