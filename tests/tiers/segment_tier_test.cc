// The tier over devices in memory: what is acknowledged, what a failed write or sync does, what a
// restart finds, how room comes back.

#include "tiers/segment_tier.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <random>
#include <tuple>
#include <utility>

#include "tests/testing/memory_index.h"
#include "tests/testing/nvme_harness.h"
#include "tests/testing/run_size.h"
#include "tiers/superblock.h"

namespace kvd {
namespace {

constexpr uint32_t kKiB = 1024;
constexpr uint32_t kMiB = 1024 * kKiB;

class SegmentTierTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(h_.Open().ok());
    h_.MustAddScope();
  }
  NvmeHarness h_;
};

TEST_F(SegmentTierTest, ReadsWhatWasAppended) {
  const uint32_t big = h_.MustAppend(1, 300 * kKiB);
  const uint32_t odd = h_.MustAppend(2, 100'001);
  const uint32_t tiny = h_.MustAppend(3, 512);
  EXPECT_EQ(h_.Read(big), NvmeOutcome::kOk);
  EXPECT_EQ(h_.Read(odd), NvmeOutcome::kOk);
  EXPECT_EQ(h_.Read(tiny), NvmeOutcome::kOk);
}

TEST_F(SegmentTierTest, SmallRecordsAreWrittenTogether) {
  std::vector<uint32_t> occupants;
  const uint32_t before = h_.devices[0]->writes;
  for (uint64_t key = 0; key < 32; ++key) occupants.push_back(*h_.Append(key, 4 * kKiB));
  EXPECT_EQ(h_.devices[0]->writes, before + 1);
  EXPECT_EQ(h_.devices[0]->bytes_of_largest_write, 256 * kKiB);
  h_.Turn();
  for (const uint32_t occupant : occupants) EXPECT_EQ(h_.Read(occupant), NvmeOutcome::kOk);
}

TEST_F(SegmentTierTest, ARestartFindsWhatWasAcknowledged) {
  for (uint64_t key = 0; key < 40; ++key) h_.MustAppend(key, 256 * kKiB);
  ASSERT_TRUE(h_.Restart().ok());
  EXPECT_EQ(h_.found.size(), 40u);
  EXPECT_EQ(h_.ReadAll(), 40u);
}

TEST_F(SegmentTierTest, ClosedTiersAreFoundByTheirFooters) {
  for (uint64_t key = 0; key < 40; ++key) h_.MustAppend(key, 256 * kKiB);
  ASSERT_TRUE(h_.tier->Close(absl::Seconds(1)).ok());
  ASSERT_TRUE(h_.Restart().ok());
  EXPECT_EQ(h_.report.from_footers, 40u);
  EXPECT_EQ(h_.report.from_headers, 0u);
  EXPECT_EQ(h_.ReadAll(), 40u);
}

// --- acknowledging -------------------------------------------------------------------------------

bool IsWrite(const NvmeJob& job) { return job.kind == NvmeJob::Kind::kWrite; }
bool IsRead(const NvmeJob& job) { return job.kind == NvmeJob::Kind::kRead; }
bool IsSync(const NvmeJob& job) { return job.kind == NvmeJob::Kind::kSync; }

TEST_F(SegmentTierTest, AFailedWriteIsNotAcknowledgedAndItsSegmentEnds) {
  const uint32_t good = h_.MustAppend(1, 300 * kKiB);
  const RecordPlace good_place = h_.known.at(good).place;
  h_.devices[0]->fail = [](const NvmeJob& job) { return IsWrite(job) ? EIO : 0; };
  const uint32_t bad = *h_.Append(2, 300 * kKiB);
  h_.Turn();
  EXPECT_EQ(h_.ended.at(bad).outcome, NvmeOutcome::kError);
  EXPECT_EQ(h_.ended.at(bad).error, EIO);
  EXPECT_EQ(h_.tier->counters().segments_bad, 1u);
  EXPECT_EQ(h_.tier->counters().append_errors, 1u);
  h_.devices[0]->fail = nullptr;
  const uint32_t later = h_.MustAppend(3, 300 * kKiB);
  EXPECT_NE(h_.known.at(later).place.segment, good_place.segment);
  EXPECT_EQ(h_.Read(good), NvmeOutcome::kOk);
  EXPECT_EQ(h_.Read(later), NvmeOutcome::kOk);
  ASSERT_TRUE(h_.Restart().ok());
  EXPECT_EQ(h_.FoundKeys(), (std::set<uint64_t>{1, 3}));
}

TEST_F(SegmentTierTest, RecordsAreAcknowledgedInTheOrderOfTheirSegment) {
  MemoryNvmeDevice& device = *h_.devices[0];
  device.at_once = false;
  const uint32_t first = *h_.Append(1, 300 * kKiB);
  const uint64_t first_at = device.waiting();
  ASSERT_EQ(first_at, 1u);
  bool release = false;
  uint64_t held_offset = 0;
  device.hold = [&](const NvmeJob& job) {
    if (held_offset == 0) held_offset = job.offset;
    return job.offset == held_offset && !release;
  };
  const uint32_t second = *h_.Append(2, 300 * kKiB);
  h_.Turn(3);
  EXPECT_FALSE(h_.ended.contains(second));  // Walking the headers would not reach it.
  release = true;
  h_.Turn();
  EXPECT_EQ(h_.ended.at(first).outcome, NvmeOutcome::kOk);
  EXPECT_EQ(h_.ended.at(second).outcome, NvmeOutcome::kOk);
}

TEST_F(SegmentTierTest, WhatComesAfterAFailedRecordIsNotAcknowledged) {
  MemoryNvmeDevice& device = *h_.devices[0];
  device.at_once = false;
  const uint32_t before = *h_.Append(1, 300 * kKiB);
  const uint32_t failed = *h_.Append(2, 300 * kKiB);
  const uint32_t after = *h_.Append(3, 300 * kKiB);
  int writes = 0;
  device.fail = [&](const NvmeJob& job) { return IsWrite(job) && ++writes == 2 ? EIO : 0; };
  h_.Turn();
  EXPECT_EQ(h_.ended.at(before).outcome, NvmeOutcome::kOk);
  EXPECT_EQ(h_.ended.at(failed).outcome, NvmeOutcome::kError);
  EXPECT_EQ(h_.ended.at(after).outcome, NvmeOutcome::kError);
  EXPECT_EQ(h_.tier->in_flight(), 0u);
}

// Whichever write or sync fails, with whichever error: what was acknowledged is there after a
// restart, and everything ended.
TEST(SegmentTierFaultTest, NoFailureOfAnyJobLosesWhatWasAcknowledged) {
  for (const NvmeDurability durability : {NvmeDurability::kAsync, NvmeDurability::kSync}) {
    for (const int error : {EIO, ENOSPC}) {
      for (int nth = 1; nth <= 24; ++nth) {
        NvmeHarness h(32 * kMiB);
        h.options.durability = durability;
        ASSERT_TRUE(h.Open().ok());
        h.MustAddScope();
        int jobs = 0;
        h.devices[0]->fail = [&](const NvmeJob& job) {
          return !IsRead(job) && ++jobs == nth ? error : 0;
        };
        for (uint64_t key = 0; key < 24; ++key) {
          h.Append(key, 400 * kKiB);
          h.Turn(2);
          h.clock.Advance(kSecond);
        }
        h.Turn(4);
        EXPECT_EQ(h.tier->in_flight(), 0u);
        std::set<uint64_t> acknowledged;
        for (const auto& [occupant, known] : h.known) {
          ASSERT_EQ(known.written, NvmeOutcome::kOk);
          acknowledged.insert(known.info.depth);
        }
        EXPECT_GE(acknowledged.size(), 20u) << nth;
        EXPECT_EQ(h.ReadAll(), acknowledged.size());
        ASSERT_TRUE(h.Restart().ok());
        EXPECT_THAT(h.FoundKeys(), testing::IsSupersetOf(acknowledged)) << nth;
        // Of what was written but not acknowledged, a header may be there without its payload: that
        // is found out when it is read.
        EXPECT_GE(h.ReadAll(), acknowledged.size());
      }
    }
  }
}

TEST_F(SegmentTierTest, AFullDeviceIsLeftAloneForAWhile) {
  h_.devices[0]->fail = [](const NvmeJob& job) { return IsWrite(job) ? ENOSPC : 0; };
  h_.Append(1, 300 * kKiB);
  h_.Turn();
  EXPECT_FALSE(h_.Append(2, 300 * kKiB).has_value());
  EXPECT_FALSE(h_.tier->writable());  // What would leave memory for it stays there.
  EXPECT_LE(h_.tier->NextDeadline(), h_.clock.Now() + kSecond);
  for (int i = 0; i < 30; ++i) {
    h_.clock.Advance(kSecond);
    h_.Append(2, 300 * kKiB);
    h_.Turn();
  }
  EXPECT_TRUE(h_.tier->readable());  // It is full, not broken.
  h_.devices[0]->fail = nullptr;
  h_.clock.Advance(kSecond);
  h_.Turn();
  EXPECT_TRUE(h_.tier->writable());
  h_.MustAppend(3, 300 * kKiB);
}

class SyncTierTest : public SegmentTierTest {
 protected:
  void SetUp() override {
    h_.options.durability = NvmeDurability::kSync;
    SegmentTierTest::SetUp();
  }
};

TEST_F(SyncTierTest, AcknowledgesWhenASyncCoversIt) {
  MemoryNvmeDevice& device = *h_.devices[0];
  bool release = false;
  device.hold = [&](const NvmeJob& job) { return IsSync(job) && !release; };
  const uint32_t first = *h_.Append(1, 300 * kKiB);
  h_.Turn(3);
  EXPECT_EQ(device.waiting(), 1u);
  const uint32_t second = *h_.Append(2, 300 * kKiB);  // Written after the sync began.
  h_.Turn(3);
  EXPECT_FALSE(h_.ended.contains(first));
  release = true;
  device.Run();
  device.hold = IsSync;
  h_.Turn();
  EXPECT_TRUE(h_.ended.contains(first));
  EXPECT_FALSE(h_.ended.contains(second));
  device.hold = nullptr;
  h_.Turn(2);
  EXPECT_TRUE(h_.ended.contains(second));
}

TEST_F(SyncTierTest, RecordsShareASync) {
  MemoryNvmeDevice& device = *h_.devices[0];
  const uint32_t before = device.syncs;
  for (uint64_t key = 0; key < 10; ++key) h_.Append(key, 300 * kKiB);
  h_.Turn(3);
  EXPECT_EQ(h_.ended.size(), 10u);
  EXPECT_EQ(device.syncs, before + 1);
}

TEST_F(SyncTierTest, AfterAFailedSyncNothingOfItIsAcknowledged) {
  MemoryNvmeDevice& device = *h_.devices[0];
  const uint32_t durable = h_.MustAppend(1, 300 * kKiB);
  const uint32_t segment = h_.known.at(durable).place.segment;
  bool fail = true;
  device.fail = [&](const NvmeJob& job) {
    return IsSync(job) && std::exchange(fail, false) ? EIO : 0;
  };
  const uint32_t lost = *h_.Append(2, 300 * kKiB);
  const uint32_t also = *h_.Append(3, 300 * kKiB);
  h_.Turn(3);
  EXPECT_EQ(h_.ended.at(lost).outcome, NvmeOutcome::kError);
  EXPECT_EQ(h_.ended.at(also).outcome, NvmeOutcome::kError);
  EXPECT_EQ(h_.tier->counters().sync_errors, 1u);
  h_.Turn(3);  // A later sync says nothing about them.
  const uint32_t later = h_.MustAppend(4, 300 * kKiB);
  EXPECT_NE(h_.known.at(later).place.segment, segment);
}

TEST_F(SegmentTierTest, SyncsOnceASecondWhileSomethingIsNotDurable) {
  MemoryNvmeDevice& device = *h_.devices[0];
  h_.clock.Advance(2 * kSecond);
  h_.MustAppend(1, 300 * kKiB);
  h_.Turn(2);
  const uint32_t before = device.syncs;
  h_.MustAppend(2, 300 * kKiB);
  h_.Turn(5);
  EXPECT_EQ(device.syncs, before);
  EXPECT_EQ(h_.tier->NextDeadline(), h_.clock.Now() + kSecond);
  h_.clock.Advance(kSecond);
  h_.Turn(5);
  EXPECT_EQ(device.syncs, before + 1);
  h_.clock.Advance(10 * kSecond);
  h_.Turn(5);
  EXPECT_EQ(device.syncs, before + 1);
}

// --- scopes --------------------------------------------------------------------------------------

TEST_F(SegmentTierTest, ARecordWaitsUntilItsScopeIsDurable) {
  h_.defer_blocking = true;
  h_.scope = *h_.tier->AddScope("domain", "another");
  const uint32_t occupant = *h_.Append(1, 300 * kKiB);
  h_.Turn(3);
  EXPECT_FALSE(h_.ended.contains(occupant));
  ASSERT_EQ(h_.blocking.size(), 1u);
  h_.blocking[0]();
  h_.Turn(2);
  EXPECT_EQ(h_.ended.at(occupant).outcome, NvmeOutcome::kOk);
}

TEST_F(SegmentTierTest, ARecordOfAScopeThatCannotBeStoredIsRefused) {
  h_.devices[0]->write_now_error = EIO;
  h_.scope = *h_.tier->AddScope("domain", "another");
  const uint32_t occupant = *h_.Append(1, 300 * kKiB);
  h_.Turn(3);
  EXPECT_EQ(h_.ended.at(occupant).outcome, NvmeOutcome::kError);
  EXPECT_EQ(h_.tier->counters().superblock_errors, 1u);
  h_.devices[0]->write_now_error = 0;
  h_.clock.Advance(kSecond);  // It is tried again.
  h_.Turn(2);
  h_.MustAppend(2, 300 * kKiB);
}

TEST_F(SegmentTierTest, AScopeKeepsItsNumber) {
  const ScopeNumber second = *h_.tier->AddScope("other", "namespace");
  EXPECT_EQ(*h_.tier->AddScope("domain", "namespace"), 1u);
  EXPECT_EQ(*h_.tier->AddScope("other", "namespace"), second);
  h_.Turn(2);
  ASSERT_TRUE(h_.Restart().ok());
  EXPECT_EQ(*h_.tier->AddScope("other", "namespace"), second);
  EXPECT_EQ(h_.tier->scopes().size(), 2u);
}

TEST_F(SegmentTierTest, WhatWasPurgedStaysDead) {
  for (uint64_t key = 0; key < 5; ++key) h_.MustAppend(key, 300 * kKiB);
  std::optional<absl::Status> purged;
  ASSERT_TRUE(h_.tier->PurgeScope(1, [&](absl::Status s) { purged = s; }).ok());
  EXPECT_FALSE(purged.has_value());
  h_.Turn(2);
  ASSERT_TRUE(purged.has_value() && purged->ok());
  h_.MustAppend(9, 300 * kKiB);
  ASSERT_TRUE(h_.Restart().ok());
  EXPECT_EQ(h_.FoundKeys(), std::set<uint64_t>{9});
  EXPECT_EQ(h_.report.of_dead_epoch, 5u);
}

TEST_F(SegmentTierTest, APurgeThatIsNotDurableSaysSo) {
  h_.devices[0]->write_now_error = EIO;
  std::optional<absl::Status> purged;
  ASSERT_TRUE(h_.tier->PurgeScope(1, [&](absl::Status s) { purged = s; }).ok());
  h_.Turn(2);
  ASSERT_TRUE(purged.has_value());
  EXPECT_FALSE(purged->ok());
  EXPECT_EQ(h_.tier->PurgeScope(99, nullptr).code(), absl::StatusCode::kNotFound);
}

TEST_F(SegmentTierTest, TooManyScopesAreRefused) {
  const std::string large(1 << 20, 'x');
  absl::StatusOr<ScopeNumber> number = 1u;
  for (char c = 'a'; c < 'h' && number.ok(); ++c) {
    number = h_.tier->AddScope(std::string(1, c), large);
  }
  EXPECT_EQ(number.status().code(), absl::StatusCode::kResourceExhausted);
}

// --- reading -------------------------------------------------------------------------------------

TEST_F(SegmentTierTest, DamageAnywhereInARecordIsSeen) {
  const uint32_t occupant = h_.MustAppend(1, 300'001);
  const RecordPlace place = h_.known.at(occupant).place;
  const uint64_t at = kSuperblockBytes + uint64_t{place.page} * kNvmePageBytes;
  for (const uint64_t offset : {0, 8, 100, 2000, 4095, 4096, 200'000, 304'096, 304'097}) {
    h_.devices[0]->media()[at + offset] ^= std::byte{4};
    EXPECT_EQ(h_.Read(occupant), NvmeOutcome::kCorrupt) << offset;
    h_.devices[0]->media()[at + offset] ^= std::byte{4};
  }
  EXPECT_EQ(h_.Read(occupant), NvmeOutcome::kOk);
  EXPECT_EQ(h_.tier->counters().reads_corrupt, 9u);
}

TEST_F(SegmentTierTest, TheTailOfASlotDoesNotReachTheMedia) {
  const uint32_t occupant = h_.MustAppend(1, 300'001);
  const uint64_t at = kSuperblockBytes + h_.known.at(occupant).place.page * kNvmePageBytes;
  const std::vector<std::byte>& media = h_.devices[0]->media();
  EXPECT_EQ(media[at + 4096 + 300'001], std::byte{0});
  EXPECT_EQ(media[at + 4096 + 303'103], std::byte{0});
}

TEST_F(SegmentTierTest, ASwappedRecordIsNotTakenForTheOther) {
  const uint32_t a = h_.MustAppend(1, 300 * kKiB);
  const uint32_t b = h_.MustAppend(2, 300 * kKiB);
  const auto at = [&](uint32_t occupant) {
    return h_.devices[0]->media().begin() + static_cast<ptrdiff_t>(kSuperblockBytes) +
           h_.known.at(occupant).place.page * kNvmePageBytes;
  };
  std::swap_ranges(at(a), at(a) + 301 * kNvmePageBytes / 4, at(b));
  EXPECT_EQ(h_.Read(a), NvmeOutcome::kCorrupt);
  EXPECT_EQ(h_.Read(b), NvmeOutcome::kCorrupt);
}

TEST_F(SegmentTierTest, AnotherPartsPlaceIsNotServed) {
  const uint32_t a = h_.MustAppend(1, 300 * kKiB);
  const uint32_t b = h_.MustAppend(2, 300 * kKiB);
  EXPECT_EQ(h_.Read(h_.known.at(a).place, h_.known.at(b).info), NvmeOutcome::kCorrupt);
  RecordInfo info = h_.known.at(a).info;
  info.depth += 1;
  EXPECT_EQ(h_.Read(h_.known.at(a).place, info), NvmeOutcome::kCorrupt);
  info = h_.known.at(a).info;
  info.scope = 2;
  EXPECT_EQ(h_.Read(h_.known.at(a).place, info), NvmeOutcome::kCorrupt);
}

TEST_F(SegmentTierTest, AnErrorOfAReadIsTold) {
  const uint32_t occupant = h_.MustAppend(1, 300 * kKiB);
  h_.devices[0]->fail = [](const NvmeJob& job) { return IsRead(job) ? EIO : 0; };
  EXPECT_EQ(h_.Read(occupant), NvmeOutcome::kError);
  EXPECT_EQ(h_.tier->counters().read_errors, 1u);
}

TEST_F(SegmentTierTest, TooMuchInFlightIsRefused) {
  h_.devices[0]->at_once = false;
  h_.devices[0]->max_jobs = 2;
  uint64_t key = 0;
  while (h_.Append(key, 300 * kKiB).has_value()) ++key;
  EXPECT_LE(key, 4u);
  h_.devices[0]->max_jobs = 100;
  h_.Turn(4);
  EXPECT_EQ(h_.ended.size(), key);
}

TEST_F(SegmentTierTest, APayloadThatNoSegmentHoldsIsRefused) {
  EXPECT_FALSE(h_.Append(1, h_.tier->max_payload_bytes() + 1).has_value());
  h_.MustAppend(2, h_.tier->max_payload_bytes());
}

// --- the breaker ---------------------------------------------------------------------------------

TEST_F(SegmentTierTest, AHungDeviceGoesOutAndComesBack) {
  const uint32_t occupant = h_.MustAppend(1, 300 * kKiB);
  h_.clock.Advance(2 * kSecond);
  h_.Turn(3);
  MemoryNvmeDevice& device = *h_.devices[0];
  device.hold = [](const NvmeJob&) { return true; };
  const uint32_t hung = *h_.Append(2, 300 * kKiB);
  h_.Turn();
  EXPECT_EQ(h_.tier->NextDeadline(), h_.clock.Now() + 2 * kSecond);
  h_.clock.Advance(2 * kSecond);
  h_.Turn();
  EXPECT_FALSE(h_.tier->readable());
  EXPECT_FALSE(h_.tier->writable());
  EXPECT_FALSE(h_.Append(3, 300 * kKiB).has_value());
  EXPECT_EQ(h_.Read(occupant), NvmeOutcome::kExpired);  // Refused.
  EXPECT_FALSE(h_.ended.contains(hung));                // The kernel still has its memory.
  EXPECT_EQ(h_.tier->counters().breaker_changes, 1u);
  EXPECT_EQ(h_.tier->NextDeadline(), h_.clock.Now() + 5 * kSecond);
  h_.clock.Advance(5 * kSecond);
  h_.Turn();  // The probe hangs as well.
  EXPECT_EQ(h_.tier->NextDeadline(), INT64_MAX);
  device.hold = nullptr;
  h_.Turn(2);
  EXPECT_TRUE(h_.tier->readable());
  EXPECT_EQ(h_.ended.at(hung).outcome, NvmeOutcome::kOk);
  EXPECT_EQ(h_.Read(occupant), NvmeOutcome::kOk);
  EXPECT_EQ(h_.tier->counters().breaker_changes, 2u);
}

TEST_F(SegmentTierTest, AFailingDeviceGoesOut) {
  const uint32_t occupant = h_.MustAppend(1, 300 * kKiB);
  h_.devices[0]->fail = [](const NvmeJob&) { return EIO; };
  for (int i = 0; i < 10; ++i) EXPECT_EQ(h_.Read(occupant), NvmeOutcome::kError);
  h_.Turn();
  EXPECT_FALSE(h_.tier->readable());
  h_.clock.Advance(5 * kSecond);
  h_.Turn(2);
  EXPECT_FALSE(h_.tier->readable());  // The probe failed.
  h_.devices[0]->fail = nullptr;
  h_.clock.Advance(5 * kSecond);
  h_.Turn(2);
  EXPECT_TRUE(h_.tier->readable());
}

// --- several devices -----------------------------------------------------------------------------

class StripeTest : public testing::Test {
 protected:
  StripeTest() : media_{NewMedia(48 * kMiB), NewMedia(64 * kMiB)}, h_(media_) {}
  void SetUp() override {
    ASSERT_TRUE(h_.Open().ok());
    h_.MustAddScope();
    for (uint64_t key = 0; key < 16; ++key) h_.MustAppend(key, 300 * kKiB);
  }
  std::vector<MediaBytes> media_;
  NvmeHarness h_;
};

TEST_F(StripeTest, RecordsGoToAll) {
  int on_first = 0;
  for (const auto& [occupant, known] : h_.known) on_first += OrdinalOf(known.place.segment) == 0;
  EXPECT_EQ(on_first, 8);
  EXPECT_EQ(h_.ReadAll(), 16u);
}

TEST_F(StripeTest, TheBusyOneGetsLess) {
  h_.devices[0]->hold = IsWrite;
  for (uint64_t key = 100; key < 110; ++key) {
    h_.Append(key, 300 * kKiB);
    h_.Turn();
  }
  int on_first = 0;
  for (const auto& [occupant, known] : h_.known) {
    on_first += known.info.depth >= 100 && OrdinalOf(known.place.segment) == 0;
  }
  EXPECT_EQ(on_first, 1);
}

TEST_F(StripeTest, TheOrderInWhichTheyAreGivenDoesNotMatter) {
  h_.devices.clear();
  NvmeHarness swapped({media_[1], media_[0]});
  ASSERT_TRUE(swapped.Open().ok());
  EXPECT_EQ(swapped.found.size(), 16u);
  EXPECT_EQ(swapped.ReadAll(), 16u);
}

TEST_F(StripeTest, WithoutOneTheOthersRecordsAreThere) {
  NvmeHarness alone(std::vector<MediaBytes>{media_[1]});
  ASSERT_TRUE(alone.Open().ok());
  EXPECT_EQ(alone.found.size(), 8u);
  EXPECT_EQ(alone.ReadAll(), 8u);
  // What is purged meanwhile is dead when the other one comes back.
  ASSERT_TRUE(alone.tier->PurgeScope(1, nullptr).ok());
  alone.Turn(2);
  ASSERT_TRUE(h_.Restart().ok());
  EXPECT_EQ(h_.found.size(), 0u);
  EXPECT_EQ(h_.report.of_dead_epoch, 16u);
}

TEST_F(StripeTest, ANewOneJoinsTheSet) {
  NvmeHarness three({media_[0], media_[1], NewMedia(64 * kMiB)});
  ASSERT_TRUE(three.Open().ok());
  EXPECT_EQ(three.report.devices_new, 1u);
  EXPECT_EQ(three.found.size(), 16u);
  three.MustAppend(50, 300 * kKiB);
  ASSERT_TRUE(three.Restart().ok());
  EXPECT_EQ(three.found.size(), 17u);
}

TEST_F(StripeTest, OneOfAnotherSetIsRefused) {
  const MediaBytes other = NewMedia(64 * kMiB);
  NvmeHarness stranger(std::vector<MediaBytes>{other});
  stranger.options.new_id = nullptr;
  ASSERT_TRUE(stranger.Open().ok());
  (*other)[kSuperblockBytes - 1] = std::byte{0};
  std::vector<std::byte> before = *other;
  // Its set has the same first identity in the harness: give it another.
  Superblock superblock = (*LoadSuperblock(*stranger.devices[0]))->superblock;
  superblock.set[5] = 0x99;
  for (const uint32_t copy : {0u, 1u}) {
    ASSERT_TRUE(StoreSuperblock(*stranger.devices[0], superblock, copy).ok());
  }
  before = *other;
  NvmeHarness mixed({media_[0], other});
  const absl::Status status = mixed.Open();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("belongs to the set"));
  EXPECT_EQ(before, *other);
}

TEST_F(StripeTest, OneGivenTwiceIsRefused) {
  NvmeHarness twice({media_[0], media_[0]});
  EXPECT_EQ(twice.Open().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(StripeTest, WhenOneIsOutTheOtherTakesOver) {
  h_.devices[0]->hold = [](const NvmeJob&) { return true; };
  h_.Append(30, 300 * kKiB);
  h_.Append(31, 300 * kKiB);
  h_.clock.Advance(2 * kSecond);
  h_.Turn(2);
  EXPECT_TRUE(h_.tier->devices()[0].out);
  EXPECT_TRUE(h_.tier->readable());
  EXPECT_TRUE(h_.tier->writable());
  for (uint64_t key = 40; key < 44; ++key) {
    EXPECT_EQ(OrdinalOf(h_.known.at(h_.MustAppend(key, 300 * kKiB)).place.segment), 1u);
  }
}

TEST(SegmentTierOpenTest, ADeviceThatIsTooSmallIsRefused) {
  NvmeHarness small(28 * kMiB - kNvmePageBytes);
  const absl::Status status = small.Open();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("memory-0: "));
  NvmeHarness enough(28 * kMiB);
  EXPECT_TRUE(enough.Open().ok());
}

TEST(SegmentTierOpenTest, ADeviceThatCannotBeWrittenIsRefused) {
  NvmeHarness h;
  h.devices[0]->write_now_error = EROFS;
  EXPECT_FALSE(h.Open().ok());
}

// --- reclaiming ----------------------------------------------------------------------------------

// Appends and drops at random, so that as much lives as may, for many times the capacity.
class ReclaimTest : public testing::TestWithParam<std::tuple<uint32_t, NvmeDurability>> {
 protected:
  void SetUp() override {
    h_.options.durability = std::get<1>(GetParam());
    ASSERT_TRUE(h_.Open().ok());
    h_.MustAddScope();
  }
  uint32_t length() const { return std::get<0>(GetParam()); }
  void MakeRoom() {
    while (h_.tier->live_bytes() + NvmeTier::RoomOf(length()) > h_.tier->live_capacity_bytes()) {
      DropOne();
    }
  }
  void DropOne() {
    auto victim = h_.known.begin();
    std::advance(victim, random_() % h_.known.size());
    while (!victim->second.written) victim = h_.known.begin();
    h_.Drop(victim->first);
  }
  // Appends within the bounds; waits where the tier must reclaim first.
  void AppendWithin(uint64_t key) {
    MakeRoom();
    for (int tries = 0; !h_.Append(key, length()).has_value(); ++tries) {
      ASSERT_LT(tries, 1000) << "no room comes back; live " << h_.tier->live_bytes() << " of "
                             << h_.tier->live_capacity_bytes() << "; segments by state "
                             << testing::PrintToString(h_.tier->devices()[0].segments);
      h_.Turn();
      h_.clock.Advance(10 * kMillisecond);
    }
    h_.Turn();
    h_.clock.Advance(kMillisecond);
  }

  NvmeHarness h_{uint64_t{88} * kMiB};
  std::mt19937_64 random_{7};
};

TEST_P(ReclaimTest, RoomComesBackAsLongAsLessLivesThanMay) {
  const uint64_t turns = (2 + RoundsForThisBuild(4)) * 80 * kMiB / length();
  for (uint64_t key = 0; key < turns; ++key) AppendWithin(key);
  h_.Turn(10);
  EXPECT_GT(h_.tier->counters().segments_freed, 10u);
  if (length() < 2 * kMiB) {  // Of those a segment holds only one.
    EXPECT_GT(h_.moved, 0u);
  }
  EXPECT_TRUE(h_.lost.empty());
  const size_t living = h_.known.size();
  EXPECT_EQ(h_.ReadAll(), living);
  std::set<uint64_t> keys;
  for (const auto& [occupant, known] : h_.known) keys.insert(known.info.depth);
  ASSERT_TRUE(h_.Restart().ok());
  EXPECT_THAT(h_.FoundKeys(), testing::IsSupersetOf(keys));
  EXPECT_EQ(h_.ReadAll(), h_.found.size());  // Copies are whole, and each is there once.
}

// What was being filled when it was killed is sealed as it is; were copies and originals to share
// what lives between them, each of some kills would cost a free segment until none is left.
TEST_P(ReclaimTest, KillsInTheMidstOfCopyingCostNoRoom) {
  MemoryIndex index;
  h_.options.index = &index;
  ASSERT_TRUE(h_.Restart().ok());
  uint64_t key = 0;
  const uint64_t kills = RoundsForThisBuild(40);
  for (uint64_t kill = 0; kill < kills; ++kill) {
    const uint64_t appends = 1 + random_() % (12 * kMiB / length());
    for (uint64_t i = 0; i < appends; ++i) ASSERT_NO_FATAL_FAILURE(AppendWithin(key++)) << kill;
    std::set<uint64_t> keys;
    for (const auto& [occupant, known] : h_.known) {
      if (known.written == NvmeOutcome::kOk) keys.insert(known.info.depth);
    }
    // Without the index, what was free is found again as it was before.
    if (kill % 8 == 7) index.Reset().IgnoreError();
    ASSERT_TRUE(h_.Restart().ok());
    EXPECT_THAT(h_.FoundKeys(), testing::IsSupersetOf(keys)) << kill;
  }
  const uint32_t fine = h_.ReadAll();
  EXPECT_EQ(fine, h_.known.size());
  h_.tier.reset();  // Before the index goes.
}

INSTANTIATE_TEST_SUITE_P(
    Sizes, ReclaimTest,
    testing::Combine(testing::Values(40'000u, 256u * kKiB, 1000u * kKiB, 2u * kMiB),
                     testing::Values(NvmeDurability::kAsync, NvmeDurability::kSync)));

TEST_F(SegmentTierTest, WhatIsBeingReadIsNotOverwritten) {
  for (uint64_t key = 0; key < 3; ++key) h_.MustAppend(key, 1200 * kKiB);
  const auto first = h_.known.begin();
  MemoryNvmeDevice& device = *h_.devices[0];
  NvmeBuffer target(1200 * kKiB);
  device.hold = [&](const NvmeJob& job) {
    return IsRead(job) && job.pieces.back().data() == target.data();
  };
  const RecordInfo info = first->second.info;
  ASSERT_TRUE(h_.tier->Read(first->second.place, info, target.span(), INT64_MAX, 1'000'000));
  while (!h_.known.empty()) h_.Drop(h_.known.begin()->first);
  // Many times the device's capacity passes by.
  for (uint64_t key = 10; key < 200; ++key) {
    while (h_.known.size() > 5) h_.Drop(h_.known.begin()->first);
    while (!h_.Append(key, 1200 * kKiB)) {
      h_.clock.Advance(100 * kMillisecond);
      h_.Turn();
    }
    h_.Turn(2);
  }
  device.hold = nullptr;
  h_.Turn(2);
  EXPECT_EQ(h_.ended.at(1'000'000).outcome, NvmeOutcome::kOk);  // By the sum of its bytes.
}

TEST_F(SegmentTierTest, WhatCannotBeReadWhileItIsCopiedIsTold) {
  std::vector<uint32_t> occupants;
  for (uint64_t key = 0; key < 33; ++key) occupants.push_back(h_.MustAppend(key, 1200 * kKiB));
  // Of each segment of three, one lives, and of one of these a byte is damaged.
  for (size_t i = 0; i < occupants.size(); ++i) {
    if (i % 3 != 0) h_.Drop(occupants[i]);
  }
  const RecordPlace damaged = h_.known.at(occupants[0]).place;
  h_.devices[0]->media()[kSuperblockBytes + LocalSegment(damaged.segment) * 4 * kMiB +
                         damaged.page * kNvmePageBytes + 70'000] ^= std::byte{1};
  for (uint64_t key = 100; key < 130 && h_.lost.empty(); ++key) {
    while (!h_.Append(key, 1200 * kKiB)) {
      h_.clock.Advance(100 * kMillisecond);
      h_.Turn();
    }
    h_.Turn(3);
    h_.Drop(h_.known.rbegin()->first);
    h_.clock.Advance(100 * kMillisecond);
  }
  EXPECT_EQ(h_.lost, (std::map<uint32_t, NvmeOutcome>{{occupants[0], NvmeOutcome::kCorrupt}}));
  EXPECT_EQ(h_.tier->counters().lost_records, 1u);
}

TEST_F(SegmentTierTest, ADeviceThatGoesOutWhileItIsReclaimedLosesNothing) {
  std::vector<uint32_t> occupants;
  for (uint64_t key = 0; key < 33; ++key) occupants.push_back(h_.MustAppend(key, 1200 * kKiB));
  for (size_t i = 0; i < occupants.size(); ++i) {
    if (i % 3 != 0) h_.Drop(occupants[i]);
  }
  h_.devices[0]->fail = [](const NvmeJob& job) {
    return job.kind == NvmeJob::Kind::kRead ? EIO : 0;
  };
  for (int i = 0; i < 9; ++i) EXPECT_EQ(h_.Read(occupants[0]), NvmeOutcome::kError);
  ASSERT_TRUE(h_.tier->readable());
  for (uint64_t key = 100; key < 130 && h_.tier->readable(); ++key) {
    if (const auto occupant = h_.Append(key, 1200 * kKiB)) {
      h_.Turn(3);
      h_.Drop(*occupant);
    }
    h_.clock.Advance(100 * kMillisecond);
    h_.Turn();
  }
  ASSERT_FALSE(h_.tier->readable());  // The first read of reclaiming was one too many.
  h_.Turn(3);
  EXPECT_EQ(h_.lost.size(), 0u);
  h_.devices[0]->fail = nullptr;
  h_.clock.Advance(6 * kSecond);
  h_.Turn(3);
  ASSERT_TRUE(h_.tier->readable());
  for (size_t i = 0; i < occupants.size(); i += 3) {
    EXPECT_EQ(h_.Read(occupants[i]), NvmeOutcome::kOk) << i;
  }
}

}  // namespace
}  // namespace kvd
