// The ring of events: order, gaps, and that who waits is told.

#include "daemon/events.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "absl/time/clock.h"

namespace kvd {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(20);

void AddNumbered(EventRing& ring, uint64_t from, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) ring.Add({.number = from + i});
}

TEST(EventRingTest, EventsAreReadInOrderWithTheirTime) {
  EventRing ring(8);
  ring.SetTime(5);
  AddNumbered(ring, 100, 2);
  ring.SetTime(7);
  AddNumbered(ring, 102, 1);

  std::vector<Event> out(8);
  const EventRing::Batch batch = ring.Read(0, absl::MakeSpan(out));
  ASSERT_EQ(batch.first, 1u);
  ASSERT_EQ(batch.size, 3u);
  EXPECT_EQ(out[0].number, 100u);
  EXPECT_EQ(out[1].time, 5);
  EXPECT_EQ(out[2].number, 102u);
  EXPECT_EQ(out[2].time, 7);
}

TEST(EventRingTest, ASlowReaderSeesAGap) {
  EventRing ring(8);
  AddNumbered(ring, 1, 20);  // The n-th has the number n.

  std::vector<Event> out(3);
  EventRing::Batch batch = ring.Read(2, absl::MakeSpan(out));
  EXPECT_EQ(batch.first, 13u);
  ASSERT_EQ(batch.size, 3u);
  EXPECT_EQ(out[0].number, 13u);
  batch = ring.Read(batch.first + batch.size, absl::MakeSpan(out));
  EXPECT_EQ(batch.first, 16u);
  EXPECT_EQ(out[2].number, 18u);
  EXPECT_EQ(ring.oldest(), 13u);
  EXPECT_EQ(ring.next(), 21u);
}

TEST(EventRingTest, NothingIsReadBeyondTheLast) {
  EventRing ring(8);
  std::vector<Event> out(3);
  EXPECT_EQ(ring.Read(0, absl::MakeSpan(out)).size, 0u);
  AddNumbered(ring, 1, 2);
  const EventRing::Batch batch = ring.Read(1000, absl::MakeSpan(out));
  EXPECT_EQ(batch.first, 3u);
  EXPECT_EQ(batch.size, 0u);
}

TEST(EventRingTest, WhoWaitsIsToldOfEachEvent) {
  EventRing ring(8);
  constexpr uint64_t kEvents = 2000;
  std::thread follower([&] {
    for (uint64_t next = 1; next <= kEvents; ++next) ring.WaitFor(next, kPatience);
  });
  const absl::Time start = absl::Now();
  for (uint64_t i = 0; i < kEvents; ++i) {
    AddNumbered(ring, i, 1);
    ring.Publish();
  }
  follower.join();
  EXPECT_LT(absl::Now() - start, kPatience);  // A wake-up that was lost would take all of it.
}

TEST(EventRingTest, WhoAskedIsCalledOnceForTheEventThatWasAskedFor) {
  EventRing ring(8);
  int calls = 0;
  ring.SetWake([&calls] { ++calls; });
  EXPECT_TRUE(ring.WakeAt(3));
  AddNumbered(ring, 1, 2);
  ring.Publish();
  EXPECT_EQ(calls, 0);  // Not for those before it.
  AddNumbered(ring, 3, 2);
  ring.Publish();
  EXPECT_EQ(calls, 1);
  AddNumbered(ring, 5, 1);
  ring.Publish();
  EXPECT_EQ(calls, 1);
  EXPECT_FALSE(ring.WakeAt(5));  // It is there.
  EXPECT_TRUE(ring.WakeAt(6));
  ring.SetWake(nullptr);
  AddNumbered(ring, 6, 1);
  ring.Publish();
  EXPECT_EQ(calls, 1);
}

TEST(EventRingTest, AnEventThatIsThereIsNotWaitedFor) {
  EventRing ring(8);
  AddNumbered(ring, 1, 3);
  ring.Publish();
  const absl::Time start = absl::Now();
  ring.WaitFor(3, kPatience);
  EXPECT_LT(absl::Now() - start, kPatience / 2);
}

TEST(EventRingTest, WaitsEndWhenTheyAreToldTo) {
  EventRing ring(8);
  const absl::Time start = absl::Now();
  std::thread follower([&] { ring.WaitFor(1, kPatience); });
  ring.EndWaits();
  follower.join();
  EXPECT_LT(absl::Now() - start, kPatience / 2);
}

TEST(EventRingTest, EveryKindAndReasonHasAName) {
  for (int kind = 1; kind <= static_cast<int>(EventKind::kConfigReloaded); ++kind) {
    EXPECT_NE(EventKindName(static_cast<EventKind>(kind)), "unknown") << kind;
  }
  for (int reason = 1; reason <= static_cast<int>(EventReason::kGivenBack); ++reason) {
    EXPECT_NE(EventReasonName(static_cast<EventReason>(reason)), "unknown") << reason;
  }
}

}  // namespace
}  // namespace kvd
