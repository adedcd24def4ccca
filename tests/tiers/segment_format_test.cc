#include "tiers/segment_format.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "proto/types/checksum.h"
#include "tiers/nvme_buffer.h"

namespace kvd {
namespace {

constexpr uint32_t kPages = 1024;

RecordHeader SomeHeader() {
  RecordHeader header;
  header.info.scope = 3;
  for (size_t i = 0; i < kMaxHashBytes; ++i) {
    header.info.key.bytes[i] = static_cast<std::byte>(i);
    header.info.parent.bytes[i] = static_cast<std::byte>(200 - i);
  }
  header.info.has_parent = true;
  header.info.depth = 17;
  header.info.id = {2, 5};
  header.info.length = 12'345;
  header.info.sum = 0xdeadbeef;
  header.info.generation = 9;
  header.epoch = 4;
  header.incarnation = 0x0102030405060708;
  header.sequence = 0x1112131415161718;
  header.place = {77, 12};
  return header;
}

void ExpectSame(const RecordHeader& a, const RecordHeader& b) {
  EXPECT_EQ(PackHeader(a), PackHeader(b));
  EXPECT_EQ(a.info.key, b.info.key);
  EXPECT_EQ(a.info.parent, b.info.parent);
  EXPECT_EQ(a.info.depth, b.info.depth);
  EXPECT_EQ(a.info.id, b.info.id);
  EXPECT_EQ(a.info.length, b.info.length);
  EXPECT_EQ(a.info.sum, b.info.sum);
  EXPECT_EQ(a.info.generation, b.info.generation);
  EXPECT_EQ(a.epoch, b.epoch);
  EXPECT_EQ(a.incarnation, b.incarnation);
  EXPECT_EQ(a.sequence, b.sequence);
  EXPECT_EQ(a.place, b.place);
}

TEST(SegmentFormatTest, AHeaderSaysWhatWasPacked) {
  const std::optional<RecordHeader> header = UnpackHeader(PackHeader(SomeHeader()));
  ASSERT_TRUE(header.has_value());
  ExpectSame(*header, SomeHeader());
}

// What is on media stays readable: a change of this sum is a new format.
TEST(SegmentFormatTest, TheFormatIsThatOfTheFirstVersion) {
  EXPECT_EQ(Crc32c(PackHeader(SomeHeader())), kSelfSummedPage);  // It ends in its own sum.
  const PackedHeader packed = PackHeader(SomeHeader());
  uint32_t sum = 0;
  std::memcpy(&sum, packed.data() + packed.size() - sizeof(sum), sizeof(sum));
  EXPECT_EQ(sum, 3692987445u);
}

TEST(SegmentFormatTest, EveryFlippedBitOfAHeaderPageIsSeen) {
  NvmeBuffer page(kNvmePageBytes);
  WriteHeaderPage(PackHeader(SomeHeader()), page.span());
  ASSERT_TRUE(ReadHeaderPage(page.span()).has_value());
  EXPECT_EQ(Crc32c(page.span()), kSelfSummedPage);
  for (size_t bit = 0; bit < kNvmePageBytes * 8; ++bit) {
    page.data()[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
    ASSERT_FALSE(ReadHeaderPage(page.span()).has_value()) << bit;
    ASSERT_NE(Crc32c(page.span()), kSelfSummedPage) << bit;
    page.data()[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
  }
}

TEST(SegmentFormatTest, ATornHeaderPageIsSeen) {
  NvmeBuffer page(kNvmePageBytes);
  WriteHeaderPage(PackHeader(SomeHeader()), page.span());
  for (size_t kept = 0; kept < kNvmePageBytes; kept += 512) {
    NvmeBuffer torn(kNvmePageBytes);
    std::memset(torn.data(), 0x77, torn.size());
    std::memcpy(torn.data(), page.data(), kept);
    EXPECT_FALSE(ReadHeaderPage(torn.span()).has_value()) << kept;
  }
}

TEST(SegmentFormatTest, AHeaderThatSaysWhatCannotBeIsRefused) {
  const auto refused = [](auto change) {
    RecordHeader header = SomeHeader();
    change(header);
    return !UnpackHeader(PackHeader(header)).has_value();
  };
  EXPECT_TRUE(refused([](RecordHeader& h) { h.info.length = 0; }));
  EXPECT_TRUE(refused([](RecordHeader& h) { h.info.length = kMaxPartBytes + 1; }));
  EXPECT_FALSE(refused([](RecordHeader& h) { h.info.length = kMaxPartBytes; }));
  EXPECT_TRUE(refused([](RecordHeader& h) { h.info.scope = 0; }));
  EXPECT_TRUE(refused([](RecordHeader& h) { h.info.id.group = kMaxGroups; }));
  EXPECT_TRUE(refused([](RecordHeader& h) { h.info.depth = kMaxChainDepth + 1; }));
}

TEST(SegmentFormatTest, AnotherFormatIsNotRead) {
  PackedHeader packed = PackHeader(SomeHeader());
  packed[2] = std::byte{kSegmentFormat + 1};
  const uint32_t sum = Crc32c(absl::MakeConstSpan(packed).first(124));
  std::memcpy(packed.data() + 124, &sum, sizeof(sum));
  EXPECT_FALSE(UnpackHeader(packed).has_value());
}

TEST(SegmentFormatTest, RandomBytesAreNoHeader) {
  std::mt19937_64 random(20261121);
  NvmeBuffer page(kNvmePageBytes);
  for (int i = 0; i < 2000; ++i) {
    for (size_t at = 0; at < kNvmePageBytes; at += 8) {
      const uint64_t value = random();
      std::memcpy(page.data() + at, &value, sizeof(value));
    }
    page.data()[0] = std::byte{0x4b};
    page.data()[1] = std::byte{0x52};
    page.data()[2] = std::byte{kSegmentFormat};
    EXPECT_FALSE(ReadHeaderPage(page.span()).has_value());
    EXPECT_FALSE(UnpackHeader(page.span()).has_value());
    EXPECT_FALSE(ReadTrailer(page.span(), kPages).has_value());
  }
}

TEST(SegmentFormatTest, ATrailerSaysWhatWasWritten) {
  const SegmentTrailer trailer = {.segment = 5,
                                  .incarnation = 1234567890123,
                                  .records = 100,
                                  .footer_page = 900,
                                  .footer_sum = 42,
                                  .first_sequence = 7,
                                  .last_sequence = 1000};
  NvmeBuffer page(kNvmePageBytes);
  WriteTrailer(trailer, page.span());
  EXPECT_EQ(ReadTrailer(page.span(), kPages), trailer);
  for (size_t at = 0; at < kNvmePageBytes; ++at) {
    page.data()[at] ^= std::byte{0x10};
    ASSERT_FALSE(ReadTrailer(page.span(), kPages).has_value()) << at;
    page.data()[at] ^= std::byte{0x10};
  }
}

TEST(SegmentFormatTest, ATrailerWhoseFooterWouldNotFitIsRefused) {
  const auto readable = [](uint32_t records, uint32_t footer_page) {
    NvmeBuffer page(kNvmePageBytes);
    WriteTrailer({.segment = 1, .incarnation = 1, .records = records, .footer_page = footer_page},
                 page.span());
    return ReadTrailer(page.span(), kPages).has_value();
  };
  EXPECT_TRUE(readable(32, kPages - 2));
  EXPECT_FALSE(readable(33, kPages - 2));
  EXPECT_FALSE(readable(32, kPages - 1));
  EXPECT_FALSE(readable(0, 10));
  EXPECT_FALSE(readable(UINT32_MAX, 1));
  EXPECT_FALSE(readable(1, UINT32_MAX));
}

TEST(SegmentFormatTest, OnlyWhatFollowsIsTaken) {
  const RecordHeader header = SomeHeader();  // Segment 77, page 12, four pages of payload.
  const auto follows = [&](uint32_t segment, uint64_t incarnation, uint32_t page, uint64_t after,
                           uint32_t pages) {
    return Follows(header, segment, incarnation, page, after, pages);
  };
  EXPECT_TRUE(follows(77, header.incarnation, 12, header.sequence - 1, kPages));
  EXPECT_TRUE(follows(77, header.incarnation, 0, 0, 12 + 5 + 1));
  EXPECT_FALSE(follows(78, header.incarnation, 12, 0, kPages));
  EXPECT_FALSE(follows(77, header.incarnation + 1, 12, 0, kPages));
  EXPECT_FALSE(follows(77, header.incarnation, 13, 0, kPages));
  EXPECT_FALSE(follows(77, header.incarnation, 12, header.sequence, kPages));
  EXPECT_FALSE(follows(77, header.incarnation, 12, 0, 12 + 5));
}

TEST(SegmentFormatTest, PaddingIsKnownToTheSum) {
  std::vector<std::byte> bytes(3 * kNvmePageBytes);
  for (const uint32_t length : {1u, 511u, 4095u, 4096u, 4097u, 10'000u}) {
    std::fill(bytes.begin(), bytes.end(), std::byte{0});
    for (uint32_t i = 0; i < length; ++i) bytes[i] = static_cast<std::byte>(i * 7 + 1);
    const uint32_t sum = Crc32c(absl::MakeConstSpan(bytes).first(length));
    EXPECT_EQ(PaddedSum(sum, length), Crc32c(absl::MakeConstSpan(bytes).first(WholePages(length))))
        << length;
  }
}

}  // namespace
}  // namespace kvd
