// What a start finds, whatever the media and the index hold.

#include "tiers/recovery.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <cstring>
#include <random>
#include <set>

#include "tests/testing/memory_index.h"
#include "tests/testing/nvme_harness.h"

namespace kvd {
namespace {

constexpr uint32_t kKiB = 1024;
constexpr uint64_t kMiB = 1u << 20;
constexpr uint64_t kSegmentBytes = 4 * kMiB;
constexpr uint32_t kSegmentPages = kSegmentBytes / kNvmePageBytes;

class RecoveryTest : public testing::Test {
 protected:
  void SetUp() override {
    h_.options.index = &index_;
    ASSERT_TRUE(h_.Open().ok());
    h_.MustAddScope();
  }
  void Fill(uint64_t records, uint32_t length = 300 * kKiB) {
    for (uint64_t i = 0; i < records; ++i) h_.MustAppend(next_key_++, length);
  }
  // As after a second of rest: segments that are full have their trailers.
  void Settle() {
    h_.clock.Advance(2 * kSecond);
    h_.Turn(5);
  }
  std::byte* At(uint32_t segment, uint32_t page, uint32_t byte = 0) {
    return &h_.devices[0]->media()[kSuperblockBytes + segment * kSegmentBytes +
                                   uint64_t{page} * kNvmePageBytes + byte];
  }
  void Zero(uint32_t segment, uint32_t page, uint32_t pages) {
    std::memset(At(segment, page), 0, uint64_t{pages} * kNvmePageBytes);
  }
  std::set<uint64_t> Keys(uint64_t from, uint64_t to) {
    std::set<uint64_t> keys;
    for (uint64_t key = from; key < to; ++key) keys.insert(key);
    return keys;
  }
  void Restart() { ASSERT_TRUE(h_.Restart().ok()); }
  void RestartWithoutIndex() {
    index_.Reset().IgnoreError();
    Restart();
  }

  MemoryIndex index_;
  NvmeHarness h_;
  uint64_t next_key_ = 0;
};

// --- with the index ------------------------------------------------------------------------------

TEST_F(RecoveryTest, TakesTheIndexWhereItIsComplete) {
  Fill(30);
  ASSERT_TRUE(h_.tier->Close(absl::Seconds(1)).ok());
  Restart();
  EXPECT_EQ(h_.FoundKeys(), Keys(0, 30));
  EXPECT_EQ(h_.report.from_index, 30u);
  EXPECT_EQ(h_.report.segments_from_index, 3u);
  EXPECT_EQ(h_.ReadAll(), 30u);
}

TEST_F(RecoveryTest, WalksTheSegmentsThatWereOpen) {
  Fill(30);
  Settle();
  Restart();
  EXPECT_EQ(h_.FoundKeys(), Keys(0, 30));
  EXPECT_EQ(h_.report.from_index, 26u);
  EXPECT_EQ(h_.report.from_headers, 4u);
  EXPECT_EQ(h_.ReadAll(), 30u);
  Restart();  // And writes into the index what it found.
  EXPECT_EQ(h_.report.from_index, 30u);
}

TEST_F(RecoveryTest, FindsWhatTheIndexMissed) {
  Fill(10);
  index_.lags = true;
  Fill(40);
  Settle();
  index_.lags = false;
  Restart();
  EXPECT_EQ(h_.FoundKeys(), Keys(0, 50));
  EXPECT_GT(h_.report.from_footers, 30u);
  EXPECT_EQ(h_.ReadAll(), 50u);
}

TEST_F(RecoveryTest, FindsWhatTheIndexHasOfAnEarlierLife) {
  Fill(26);
  Settle();
  index_.lags = true;  // It still knows the segments as they are now,
  while (!h_.known.empty()) h_.Drop(h_.known.begin()->first);
  next_key_ = 100;
  for (int i = 0; i < 13 * 14; ++i) {  // when they have been filled anew.
    while (h_.known.size() > 60) h_.Drop(h_.known.begin()->first);
    h_.clock.Advance(50 * kMillisecond);  // Segments wait for a sync before they are sealed.
    Fill(1);
  }
  Settle();
  std::set<uint64_t> living;
  for (const auto& [occupant, known] : h_.known) living.insert(known.info.depth);
  index_.lags = false;
  Restart();
  // What was dropped since the index lagged is found as well: it is on the media.
  EXPECT_THAT(h_.FoundKeys(), testing::IsSupersetOf(living));
  EXPECT_EQ(*h_.FoundKeys().begin(), 100u);
  EXPECT_EQ(h_.ReadAll(), h_.found.size());
}

TEST_F(RecoveryTest, DropsRowsPastWhatTheMediaHold) {
  Fill(5);
  // The power failed: the rows are there, the last two records are not.
  std::vector<uint32_t> pages;
  for (const auto& [occupant, known] : h_.known) pages.push_back(known.place.page);
  Zero(0, pages[3], kSegmentPages - pages[3]);
  Restart();
  EXPECT_EQ(h_.FoundKeys(), Keys(0, 3));
  EXPECT_EQ(h_.report.rows_without_data, 2u);
  EXPECT_EQ(h_.ReadAll(), 3u);
}

TEST_F(RecoveryTest, TheIndexHelpsOverAHole) {
  Fill(8);
  uint32_t third = 0;
  for (const auto& [occupant, known] : h_.known) {
    if (known.info.depth == 2) third = known.place.page;
  }
  Zero(0, third, 1);
  Restart();
  EXPECT_EQ(h_.FoundKeys(), (std::set<uint64_t>{0, 1, 3, 4, 5, 6, 7}));
  EXPECT_EQ(h_.report.rows_without_data, 1u);
  EXPECT_EQ(h_.ReadAll(), 7u);
}

TEST_F(RecoveryTest, ADamagedIndexIsResetAndFilledAnew) {
  Fill(30);
  Settle();
  index_.damaged = true;
  Restart();
  EXPECT_TRUE(h_.report.index_damaged);
  EXPECT_EQ(index_.resets, 1u);
  EXPECT_EQ(h_.FoundKeys(), Keys(0, 30));
  EXPECT_EQ(h_.report.from_index, 0u);
  Restart();
  EXPECT_FALSE(h_.report.index_damaged);
  EXPECT_EQ(h_.report.from_index, 30u);
}

TEST_F(RecoveryTest, WhatWasDroppedDoesNotComeBackByTheIndex) {
  Fill(30);
  h_.Drop(h_.known.begin()->first);
  ASSERT_TRUE(h_.tier->Close(absl::Seconds(1)).ok());
  Restart();
  EXPECT_EQ(h_.FoundKeys(), Keys(1, 30));
}

TEST_F(RecoveryTest, WhatWasPurgedStaysDeadWithoutTheIndex) {
  Fill(30);
  Settle();
  ASSERT_TRUE(h_.tier->PurgeScope(1, nullptr).ok());
  h_.Turn(2);
  Fill(3);
  RestartWithoutIndex();
  EXPECT_EQ(h_.FoundKeys(), Keys(30, 33));
  EXPECT_EQ(h_.report.of_dead_epoch, 30u);
}

TEST_F(RecoveryTest, AnIndexOfOtherMediaIsRefused) {
  Fill(3);
  index_.set = "another";
  h_.Plug();
  const std::vector<std::byte> before = h_.devices[0]->media();
  const absl::Status status = h_.Open();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("the data directory to another"));
  EXPECT_EQ(before, h_.devices[0]->media());
}

TEST_F(RecoveryTest, AnIndexWhoseMediaAreGoneBeginsAnew) {
  Fill(30);
  NvmeHarness anew;
  anew.options.index = &index_;
  ASSERT_TRUE(anew.Open().ok());
  EXPECT_EQ(anew.found.size(), 0u);
  EXPECT_EQ(index_.records.size(), 0u);
}

// F07: whatever the rows say, no start fails, no read is wrong, and what is intact on the media of
// the segments that rows were wrong about is found.
TEST_F(RecoveryTest, WrongRowsLeadNobodyAstray) {
  Fill(40);
  Settle();
  const auto good_records = index_.records;
  const auto good_segments = index_.segments;
  std::mt19937_64 random(20261121);
  uint64_t found_all = 0;
  constexpr int kRounds = 300;
  for (int round = 0; round < kRounds; ++round) {
    index_.records = good_records;
    index_.segments = good_segments;
    for (int change = 0; change < 3; ++change) {
      auto row = index_.records.begin();
      std::advance(row, random() % index_.records.size());
      std::optional<RecordHeader> header = UnpackHeader(row->second);
      MemoryIndex::Key key = row->first;
      switch (random() % 8) {
        case 0:  // Damaged.
          row->second[random() % kPackedHeaderBytes] ^= static_cast<std::byte>(1 + random() % 255);
          continue;
        case 1:  // Past the end.
          key.second = header->place.page = kSegmentPages - 1 - random() % 10;
          break;
        case 2:  // Another segment.
          key.first = header->place.segment = random() % 20;
          break;
        case 3:  // Overlapping its neighbour.
          header->info.length += (1 + random() % 64) * kNvmePageBytes;
          break;
        case 4:
          header->info.length = static_cast<uint32_t>(random() % kMaxPartBytes) + 1;
          break;
        case 5:  // A key that disagrees with its value.
          key.second += static_cast<uint32_t>(random() % 100);
          break;
        case 6:
          header->sequence = random();
          break;
        default:
          header->place = {static_cast<uint32_t>(random()), static_cast<uint32_t>(random())};
          key = {header->place.segment, header->place.page};
          break;
      }
      index_.records.erase(row);
      index_.records[key] = PackHeader(*header);
    }
    if (random() % 4 == 0) {
      auto segment = index_.segments.begin();
      std::advance(segment, random() % index_.segments.size());
      switch (random() % 3) {
        case 0:
          segment->second.incarnation += random() % 3 - 1;
          break;
        case 1:
          segment->second.sealed = !segment->second.sealed;
          break;
        default:
          segment->second.has_trailer = !segment->second.has_trailer;
          break;
      }
    }
    ASSERT_TRUE(h_.Restart().ok()) << round;
    // The harness ends the test where bytes are wrong; a wrong length or sum is a miss.
    EXPECT_GE(h_.ReadAll() + 3, h_.found.size()) << round;
    found_all += h_.FoundKeys() == Keys(0, 40);
  }
  // A row that is gone from a segment that is told complete is not missed; all others are.
  EXPECT_GT(found_all, kRounds / 2);
}

// --- without it ----------------------------------------------------------------------------------

TEST_F(RecoveryTest, FootersSufficeWithoutTheIndex) {
  Fill(39);
  ASSERT_TRUE(h_.tier->Close(absl::Seconds(1)).ok());
  RestartWithoutIndex();
  EXPECT_EQ(h_.FoundKeys(), Keys(0, 39));
  EXPECT_EQ(h_.report.from_footers, 39u);
  EXPECT_EQ(h_.report.segments_from_footers, 3u);
}

TEST_F(RecoveryTest, ADamagedFooterIsReplacedByTheHeaders) {
  Fill(13);
  ASSERT_TRUE(h_.tier->Close(absl::Seconds(1)).ok());
  const auto trailer = ReadTrailer({At(0, kSegmentPages - 1), kNvmePageBytes}, kSegmentPages);
  ASSERT_TRUE(trailer.has_value());
  *At(0, trailer->footer_page, 300) ^= std::byte{1};
  RestartWithoutIndex();
  EXPECT_EQ(h_.FoundKeys(), Keys(0, 13));
  EXPECT_EQ(h_.report.footers_damaged, 1u);
  EXPECT_EQ(h_.report.from_headers, 13u);
}

TEST_F(RecoveryTest, ATornTrailerIsReplacedByTheHeaders) {
  Fill(13);
  ASSERT_TRUE(h_.tier->Close(absl::Seconds(1)).ok());
  std::memset(At(0, kSegmentPages - 1, 512), 0, kNvmePageBytes - 512);
  RestartWithoutIndex();
  EXPECT_EQ(h_.FoundKeys(), Keys(0, 13));
  EXPECT_EQ(h_.report.from_headers, 13u);
}

TEST_F(RecoveryTest, ADamagedFirstHeaderLeavesTheOthersOfTheFooter) {
  Fill(13);
  ASSERT_TRUE(h_.tier->Close(absl::Seconds(1)).ok());
  *At(0, 0, 20) ^= std::byte{1};
  RestartWithoutIndex();
  EXPECT_EQ(h_.FoundKeys(), Keys(1, 13));
  EXPECT_EQ(h_.ReadAll(), 12u);
}

TEST_F(RecoveryTest, ATornHeaderEndsTheWalk) {
  Fill(6);
  uint32_t fourth = 0;
  for (const auto& [occupant, known] : h_.known) {
    if (known.info.depth == 3) fourth = known.place.page;
  }
  std::memset(At(0, fourth, 2048), 0x33, 2048);
  RestartWithoutIndex();
  EXPECT_EQ(h_.FoundKeys(), Keys(0, 3));
}

TEST_F(RecoveryTest, SmallRecordsAreWalkedManyAtATime) {
  Fill(400, 5000);
  const uint32_t before = h_.devices[0]->reads;
  EXPECT_EQ(before, 2u * 14);
  RestartWithoutIndex();
  EXPECT_EQ(h_.FoundKeys(), Keys(0, 400));
  EXPECT_LT(h_.devices[0]->reads, 100u);
}

TEST_F(RecoveryTest, APageThatCannotBeReadIsCounted) {
  Fill(13);
  ASSERT_TRUE(h_.tier->Close(absl::Seconds(1)).ok());
  Fill(0);
  index_.Reset().IgnoreError();
  h_.Plug();
  h_.devices[0]->fail = [](const NvmeJob& job) {
    return job.offset == kSuperblockBytes + kSegmentBytes - kNvmePageBytes ? EIO : 0;
  };
  ASSERT_TRUE(h_.Open().ok());
  EXPECT_EQ(h_.report.read_errors, 1u);
  EXPECT_EQ(h_.FoundKeys(), Keys(0, 13));
}

// --- what tenants write --------------------------------------------------------------------------

// A payload may hold anything: also a header page that is right in every way, for the very place
// where it lies, as only somebody could make it who has seen the segment.
class ForgeryTest : public RecoveryTest {
 protected:
  // A page that says it is the record of `key`, at `page` of segment 0, in the life of `like`.
  static void Forge(const RecordHeader& like, uint64_t key, uint32_t page, uint64_t sequence,
                    std::byte* target) {
    RecordHeader forged = like;
    forged.info.key = TestKey(key);
    forged.info.length = kNvmePageBytes;
    forged.place.page = page;
    forged.sequence = sequence;
    WriteHeaderPage(PackHeader(forged), {target, kNvmePageBytes});
  }
  // Fills the payload of the record at `page` with forged headers, and has the record's sum match,
  // as if it had been put so.
  void ForgeInto(uint32_t page) {
    std::optional<RecordHeader> header = ReadHeaderPage({At(0, page), kNvmePageBytes});
    ASSERT_TRUE(header.has_value());
    const uint32_t pages = PagesOfRecord(header->info.length) - 1;
    for (uint32_t i = 0; i < pages; ++i) {
      Forge(*header, 1'000'000 + i, page + 1 + i, header->sequence + 1 + i, At(0, page + 1 + i));
    }
    header->info.sum = Crc32c({At(0, page + 1), header->info.length});
    WriteHeaderPage(PackHeader(*header), {At(0, page), kNvmePageBytes});
  }
  std::vector<uint32_t> Pages() {
    std::vector<uint32_t> pages;
    for (const auto& [occupant, known] : h_.known) pages.push_back(known.place.page);
    return pages;
  }
};

TEST_F(ForgeryTest, HeadersInsideAPayloadAreNeverRead) {
  Fill(6);
  for (const uint32_t page : Pages()) ForgeInto(page);
  RestartWithoutIndex();
  EXPECT_EQ(h_.FoundKeys(), Keys(0, 6));
}

TEST_F(ForgeryTest, NorWhenTheRecordsOwnHeaderIsLost) {
  Fill(6);
  const std::vector<uint32_t> pages = Pages();
  for (const uint32_t page : pages) ForgeInto(page);
  Zero(0, pages[2], 1);
  RestartWithoutIndex();
  EXPECT_EQ(h_.FoundKeys(), Keys(0, 2));
  Zero(0, 0, 1);
  RestartWithoutIndex();
  EXPECT_TRUE(h_.found.empty());
}

// A footer or a trailer in a payload is nothing either: the last page is never a record's.
TEST_F(ForgeryTest, NoPayloadReachesTheLastPage) {
  h_.MustAppend(1, h_.tier->max_payload_bytes());
  const uint32_t end = PagesOfRecord(h_.tier->max_payload_bytes());
  EXPECT_LT(end, kSegmentPages - 1);
  for (uint64_t key = 10; key < 60; ++key) {
    const uint32_t length = static_cast<uint32_t>(1 + key * 65'537 % (3 * kMiB));
    const auto occupant = h_.Append(key, length);
    if (!occupant) break;
    const RecordPlace place = h_.known.at(*occupant).place;
    EXPECT_LT(place.page + PagesOfRecord(length), kSegmentPages);
    h_.Turn(2);
  }
}

// --- copies --------------------------------------------------------------------------------------

TEST_F(RecoveryTest, OfACopyAndItsOriginalTheOriginalStays) {
  const RecordPlace place = h_.known.at(h_.MustAppend(7, 300 * kKiB)).place;
  h_.MustAppend(7, 300 * kKiB);
  for (const bool with_index : {true, false}) {
    with_index ? Restart() : RestartWithoutIndex();
    ASSERT_EQ(h_.found.size(), 1u);
    EXPECT_EQ(h_.found[0].place, place);
    EXPECT_EQ(h_.report.duplicates, 1u);
  }
}

TEST_F(RecoveryTest, ACopyStaysWhereItsOriginalIsNotWhole) {
  const RecordPlace original = h_.known.at(h_.MustAppend(7, 300 * kKiB)).place;
  const RecordPlace copy = h_.known.at(h_.MustAppend(7, 300 * kKiB)).place;
  *At(original.segment, original.page, 100 * kKiB) ^= std::byte{1};
  for (const bool with_index : {true, false}) {
    with_index ? Restart() : RestartWithoutIndex();
    ASSERT_EQ(h_.found.size(), 1u);
    EXPECT_EQ(h_.found[0].place, copy);
  }
}

TEST_F(RecoveryTest, OfBytesThatWereStoredAnewTheLaterStay) {
  h_.MustAppend(7, 300 * kKiB);
  const RecordPlace place = h_.known.at(h_.MustAppend(7, 200 * kKiB)).place;
  for (const bool with_index : {true, false}) {
    with_index ? Restart() : RestartWithoutIndex();
    ASSERT_EQ(h_.found.size(), 1u);
    EXPECT_EQ(h_.found[0].place, place);
    EXPECT_EQ(h_.report.duplicates, 1u);
  }
}

TEST_F(RecoveryTest, PartsOfOneBlockAreNotCopies) {
  for (const uint8_t shard : {0, 1}) {
    RecordInfo info = h_.InfoFor(7, 4096);
    info.id.shard = shard;
    NvmeBuffer payload(4096);
    FillTestPayload(7, payload.span());
    ASSERT_TRUE(h_.tier->Append(info, payload.span(), 100u + shard, 100u + shard).has_value());
    h_.Turn(2);
  }
  RestartWithoutIndex();
  EXPECT_EQ(h_.found.size(), 2u);
}

TEST_F(RecoveryTest, RecordsOfAScopeThatNobodyKnowsAreDropped) {
  Fill(3);
  const auto loaded = LoadSuperblock(*h_.devices[0]);
  Superblock without = (*loaded)->superblock;
  without.scopes.clear();
  ++without.generation;
  ASSERT_TRUE(StoreSuperblock(*h_.devices[0], without, (*loaded)->next_copy).ok());
  RestartWithoutIndex();
  EXPECT_TRUE(h_.found.empty());
  EXPECT_EQ(h_.report.of_unknown_scope, 3u);
}

TEST_F(RecoveryTest, ALostSuperblockCopyLosesNothing) {
  Fill(3);
  for (const uint64_t copy : {uint64_t{0}, kSuperblockCopyBytes}) {
    h_.devices[0]->media()[copy + 50] ^= std::byte{1};
    Restart();
    EXPECT_EQ(h_.FoundKeys(), Keys(0, 3));
    EXPECT_EQ(h_.report.superblock_copies_lost, 1u);
  }
}

TEST_F(RecoveryTest, NoIncarnationIsGivenTwice) {
  std::set<uint64_t> seen;
  for (int round = 0; round < 5; ++round) {
    Fill(1);
    const auto header = ReadHeaderPage({At(static_cast<uint32_t>(round), 0), kNvmePageBytes});
    ASSERT_TRUE(header.has_value());
    EXPECT_TRUE(seen.insert(header->incarnation).second);
    RestartWithoutIndex();
  }
}

}  // namespace
}  // namespace kvd
