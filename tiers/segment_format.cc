#include "tiers/segment_format.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "proto/types/check.h"
#include "proto/types/checksum.h"
#include "proto/types/limits.h"
#include "tiers/nvme_buffer.h"

namespace kvd {
namespace {

static_assert(std::endian::native == std::endian::little, "media are little-endian");

constexpr uint16_t kRecordMagic = 0x524b;                 // "KR"
constexpr uint64_t kTrailerMagic = 0x31474553'44564bULL;  // "KVDSEG1"
constexpr uint8_t kHasParent = 1;

// On media. Every byte has a name, so that equal records have equal bytes.
struct PackedFields {
  uint16_t magic;
  uint8_t format;
  uint8_t flags;
  uint32_t generation;
  uint64_t incarnation;
  uint64_t sequence;
  uint32_t segment;
  uint32_t page;
  std::array<std::byte, kMaxHashBytes> key;
  std::array<std::byte, kMaxHashBytes> parent;
  uint32_t scope;
  uint32_t epoch;
  uint32_t depth;
  uint8_t group;
  uint8_t shard;
  uint8_t codec;  // 0: stored as it is, so stored and logical length are one.
  uint8_t reserved;
  uint32_t length;
  uint32_t payload_sum;
  uint32_t logical_length;
  uint32_t sum;  // CRC32C of all before.
};
static_assert(sizeof(PackedFields) == kPackedHeaderBytes);

struct TrailerFields {
  uint64_t magic;
  uint32_t format;
  uint32_t segment;
  uint64_t incarnation;
  uint32_t records;
  uint32_t footer_page;
  uint32_t footer_sum;
  uint32_t reserved;
  uint64_t first_sequence;
  uint64_t last_sequence;
};
static_assert(sizeof(TrailerFields) == 56);

constexpr size_t kPageSumAt = kNvmePageBytes - sizeof(uint32_t);

void SumPage(absl::Span<std::byte> page) {
  const uint32_t sum = Crc32c(page.first(kPageSumAt));
  std::memcpy(page.data() + kPageSumAt, &sum, sizeof(sum));
}

bool PageSumHolds(absl::Span<const std::byte> page) {
  return page.size() == kNvmePageBytes && Crc32c(page) == kSelfSummedPage;
}

}  // namespace

PackedHeader PackHeader(const RecordHeader& header) {
  const RecordInfo& info = header.info;
  PackedFields fields = {};
  fields.magic = kRecordMagic;
  fields.format = kSegmentFormat;
  fields.flags = info.has_parent ? kHasParent : 0;
  fields.generation = info.generation;
  fields.incarnation = header.incarnation;
  fields.sequence = header.sequence;
  fields.segment = header.place.segment;
  fields.page = header.place.page;
  fields.key = info.key.bytes;
  if (info.has_parent) fields.parent = info.parent.bytes;
  fields.scope = info.scope;
  fields.epoch = header.epoch;
  fields.depth = info.depth;
  fields.group = info.id.group;
  fields.shard = info.id.shard;
  fields.length = info.length;
  fields.logical_length = info.length;
  fields.payload_sum = info.sum;
  PackedHeader packed;
  std::memcpy(packed.data(), &fields, sizeof(fields));
  fields.sum = Crc32c(absl::MakeConstSpan(packed).first(offsetof(PackedFields, sum)));
  std::memcpy(packed.data(), &fields, sizeof(fields));
  return packed;
}

std::optional<RecordHeader> UnpackHeader(absl::Span<const std::byte> packed) {
  if (packed.size() < kPackedHeaderBytes) return std::nullopt;
  PackedFields fields;
  std::memcpy(&fields, packed.data(), sizeof(fields));
  if (fields.magic != kRecordMagic || fields.format != kSegmentFormat) return std::nullopt;
  if (fields.sum != Crc32c(packed.first(offsetof(PackedFields, sum)))) return std::nullopt;
  // Who can write media can write a sum too: what would lead a reader astray is refused.
  if (fields.length == 0 || fields.length > kMaxPartBytes || fields.codec != 0 ||
      fields.logical_length != fields.length || fields.scope == 0 || fields.group >= kMaxGroups ||
      fields.depth > kMaxChainDepth) {
    return std::nullopt;
  }
  RecordHeader header;
  header.info = {.scope = fields.scope,
                 .key = ChainHash{fields.key},
                 .has_parent = (fields.flags & kHasParent) != 0,
                 .parent = ChainHash{fields.parent},
                 .depth = fields.depth,
                 .id = PartId{fields.group, fields.shard},
                 .length = fields.length,
                 .sum = fields.payload_sum,
                 .generation = fields.generation};
  header.epoch = fields.epoch;
  header.incarnation = fields.incarnation;
  header.sequence = fields.sequence;
  header.place = {fields.segment, fields.page};
  return header;
}

void WriteHeaderPage(const PackedHeader& packed, absl::Span<std::byte> page) {
  KVD_CHECK(page.size() == kNvmePageBytes);
  std::memset(page.data(), 0, page.size());
  std::memcpy(page.data(), packed.data(), packed.size());
  SumPage(page);
}

std::optional<RecordHeader> ReadHeaderPage(absl::Span<const std::byte> page) {
  if (!PageSumHolds(page)) return std::nullopt;
  return UnpackHeader(page.first(kPackedHeaderBytes));
}

void WriteTrailer(const SegmentTrailer& trailer, absl::Span<std::byte> page) {
  KVD_CHECK(page.size() == kNvmePageBytes);
  const TrailerFields fields = {.magic = kTrailerMagic,
                                .format = kSegmentFormat,
                                .segment = trailer.segment,
                                .incarnation = trailer.incarnation,
                                .records = trailer.records,
                                .footer_page = trailer.footer_page,
                                .footer_sum = trailer.footer_sum,
                                .reserved = 0,
                                .first_sequence = trailer.first_sequence,
                                .last_sequence = trailer.last_sequence};
  std::memset(page.data(), 0, page.size());
  std::memcpy(page.data(), &fields, sizeof(fields));
  SumPage(page);
}

std::optional<SegmentTrailer> ReadTrailer(absl::Span<const std::byte> page,
                                          uint32_t segment_pages) {
  if (!PageSumHolds(page)) return std::nullopt;
  TrailerFields fields;
  std::memcpy(&fields, page.data(), sizeof(fields));
  if (fields.magic != kTrailerMagic || fields.format != kSegmentFormat || fields.records == 0) {
    return std::nullopt;
  }
  const uint64_t footer_end = uint64_t{fields.footer_page} + PagesOfFooter(fields.records);
  if (footer_end >= segment_pages) return std::nullopt;
  return SegmentTrailer{.segment = fields.segment,
                        .incarnation = fields.incarnation,
                        .records = fields.records,
                        .footer_page = fields.footer_page,
                        .footer_sum = fields.footer_sum,
                        .first_sequence = fields.first_sequence,
                        .last_sequence = fields.last_sequence};
}

bool Follows(const RecordHeader& header, uint32_t segment, uint64_t incarnation, uint32_t page,
             uint64_t after_sequence, uint32_t segment_pages) {
  const uint64_t end = uint64_t{header.place.page} + PagesOfRecord(header.info.length);
  return header.place.segment == segment && header.incarnation == incarnation &&
         header.place.page >= page && header.sequence > after_sequence && end < segment_pages;
}

uint32_t PaddedSum(uint32_t sum, uint32_t length) {
  static constexpr std::array<std::byte, kNvmePageBytes> kZeros = {};
  const uint64_t padding = WholePages(length) - length;
  if (padding == 0) return sum;
  return Crc32cConcat(sum, Crc32c(absl::MakeConstSpan(kZeros).first(padding)), padding);
}

}  // namespace kvd
