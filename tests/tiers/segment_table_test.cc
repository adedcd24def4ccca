#include "tiers/segment_table.h"

#include <gtest/gtest.h>

namespace kvd {
namespace {

constexpr uint64_t kMiB = 1u << 20;
constexpr uint32_t kLength = kMiB - kNvmePageBytes;  // A record of 1 MiB with its header.

class SegmentTableTest : public testing::Test {
 protected:
  // Fills a segment with `records` of 1 MiB and seals it.
  uint32_t Sealed(uint32_t records, uint64_t incarnation = 1) {
    const uint32_t segment = *table_.Open(incarnation, 0);
    for (uint32_t i = 0; i < records; ++i) {
      table_.Add(segment, {.page = i * 256, .length = kLength, .occupant = i + 1});
    }
    table_.Sealing(segment);
    table_.Sealed(segment);
    return segment;
  }
  SegmentTable table_{SegmentGeometry::Of(kSuperblockBytes + 32 * kMiB, 4 * kMiB)};
};

TEST(SegmentGeometryTest, ADeviceIsCutIntoSegmentsOfItsSize) {
  EXPECT_EQ(SegmentGeometry::SegmentBytesFor(28 * kMiB), 4 * kMiB);
  EXPECT_EQ(SegmentGeometry::SegmentBytesFor(640 * kMiB), 10 * kMiB);
  EXPECT_EQ(SegmentGeometry::SegmentBytesFor(4096 * kMiB), 64 * kMiB);
  EXPECT_EQ(SegmentGeometry::SegmentBytesFor(1 << 30), 16 * kMiB);
  EXPECT_EQ(SegmentGeometry::SegmentBytesFor(uint64_t{1} << 42), 64 * kMiB);
  const SegmentGeometry geometry = SegmentGeometry::Of(100 * kMiB, 4 * kMiB);
  EXPECT_EQ(geometry.segments, 23u);
  EXPECT_EQ(geometry.pages(), 1024u);
  EXPECT_EQ(geometry.OffsetOf(1, 3), 12 * kMiB + 3 * 4096);
  EXPECT_EQ(SegmentGeometry::Of(kMiB, 4 * kMiB).segments, 0u);
}

TEST(SegmentGeometryTest, ANumberNamesDeviceAndSegment) {
  const uint32_t number = SegmentNumber(63, 1'000'000);
  EXPECT_EQ(OrdinalOf(number), 63u);
  EXPECT_EQ(LocalSegment(number), 1'000'000u);
}

TEST_F(SegmentTableTest, KeepsAsManyFreeAsItIsAsked) {
  for (int i = 0; i < 7; ++i) ASSERT_TRUE(table_.Open(1, 1).has_value());
  EXPECT_FALSE(table_.Open(1, 1).has_value());
  EXPECT_TRUE(table_.Open(1, 0).has_value());
  EXPECT_FALSE(table_.Open(1, 0).has_value());
}

TEST_F(SegmentTableTest, ASealedSegmentIsFreeWhenItsLastRecordDies) {
  const uint32_t segment = Sealed(3);
  EXPECT_EQ(table_.live_bytes(), 3 * kMiB);
  EXPECT_TRUE(table_.Drop({segment, 0}));
  EXPECT_FALSE(table_.Drop({segment, 0}));
  EXPECT_FALSE(table_.Drop({segment, 1}));
  EXPECT_FALSE(table_.Drop({1000, 0}));
  EXPECT_TRUE(table_.Drop({segment, 256}));
  EXPECT_TRUE(table_.TakeFreed().empty());
  EXPECT_TRUE(table_.Drop({segment, 512}));
  EXPECT_EQ(table_.TakeFreed(), std::vector<uint32_t>{segment});
  EXPECT_EQ(table_.at(segment).state, SegmentState::kFree);
  EXPECT_EQ(table_.live_bytes(), 0u);
}

TEST_F(SegmentTableTest, WhatIsBeingReadIsNotFree) {
  const uint32_t segment = Sealed(1);
  table_.BeginRead(segment);
  table_.Drop({segment, 0});
  EXPECT_EQ(table_.at(segment).state, SegmentState::kSealed);
  table_.EndRead(segment);
  EXPECT_EQ(table_.at(segment).state, SegmentState::kFree);
}

TEST_F(SegmentTableTest, ReclaimsWhereTheLeastLives) {
  Sealed(3);
  const uint32_t second = Sealed(2);
  Sealed(3);
  EXPECT_EQ(table_.BeginReclaim(), second);
}

TEST_F(SegmentTableTest, DoesNotReclaimWhatWouldWinNothing) {
  const uint32_t segment = Sealed(3);
  table_.Add(*table_.Open(1, 0), {.page = 0, .length = 2 * kMiB, .occupant = 9});
  EXPECT_FALSE(table_.BeginReclaim().has_value());  // Three live, and the tail may hold no other.
  table_.Drop({segment, 0});
  table_.Drop({segment, 256});
  EXPECT_EQ(table_.BeginReclaim(), segment);
}

TEST_F(SegmentTableTest, ADrainedSegmentWaitsForItsReleaseAndItsReaders) {
  const uint32_t segment = Sealed(1);
  ASSERT_EQ(table_.BeginReclaim(), segment);
  table_.BeginRead(segment);
  table_.Drop({segment, 0});
  EXPECT_EQ(table_.at(segment).state, SegmentState::kReclaiming);
  table_.Drained(segment);
  table_.Release(segment);
  EXPECT_EQ(table_.at(segment).state, SegmentState::kDrained);
  table_.EndRead(segment);
  EXPECT_EQ(table_.at(segment).state, SegmentState::kFree);
}

TEST_F(SegmentTableTest, RestoredRecordsLiveOnceAdopted) {
  table_.Restore(2, 55);
  table_.RestoreRecord(2, {.page = 0, .length = kLength});
  table_.RestoreRecord(2, {.page = 256, .length = kLength});
  EXPECT_EQ(table_.live_bytes(), 0u);
  EXPECT_EQ(table_.Find({2, 256}), nullptr);
  EXPECT_TRUE(table_.Adopt({2, 256}, 8));
  EXPECT_FALSE(table_.Adopt({2, 256}, 9));
  EXPECT_FALSE(table_.Adopt({2, 1}, 9));
  EXPECT_EQ(table_.Find({2, 256})->occupant, 8u);
  EXPECT_EQ(table_.live_bytes(), kMiB);
  EXPECT_EQ(table_.count(SegmentState::kFree), 7u);
}

TEST_F(SegmentTableTest, LeavesRoomForReclaimAndForTails) {
  // Eight segments: 0.8 of them would be six, but three stay; and a tail may be lost to a record.
  Sealed(1);
  EXPECT_EQ(table_.live_capacity_bytes(), 5 * 3 * kMiB);
}

}  // namespace
}  // namespace kvd
