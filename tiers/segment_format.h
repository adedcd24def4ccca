// How a segment looks on media: record headers, the footer that repeats them, the trailer.
//
//   page 0                    header page of the first record, then its payload in whole pages,
//   ...                       the next record's header page, and so on
//   footer page               after the last record: the packed headers, back to back
//   last page of the segment  trailer; valid only in a sealed segment
//
// All numbers are little-endian. A header says where it lies itself, and of which life
// (incarnation) of its segment it is, so neither a misdirected write nor what was left of an
// earlier life is taken for a record. README.md has the fields in a table.
//
// Threads: all functions are pure.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "tiers/nvme_device.h"
#include "tiers/nvme_tier.h"

namespace kvd {

inline constexpr uint8_t kSegmentFormat = 1;
inline constexpr size_t kPackedHeaderBytes = 128;

// The CRC32C of a header page or of a trailer, whatever it says: it ends in the sum of all before,
// and the sum over that is always this. So the device's thread can verify a page that it knows
// nothing about.
inline constexpr uint32_t kSelfSummedPage = 0x48674bc7;

// Everything that a header says.
struct RecordHeader {
  RecordInfo info;
  uint32_t epoch = 0;  // Of the scope, when the record was first written.
  uint64_t incarnation = 0;
  uint64_t sequence = 0;
  RecordPlace place;
};
// In a footer, in the index, and at the start of a header page; with a sum of its own.
using PackedHeader = std::array<std::byte, kPackedHeaderBytes>;

PackedHeader PackHeader(const RecordHeader& header);
// Empty: damaged, of another format, or saying what cannot be (no payload, group out of range).
std::optional<RecordHeader> UnpackHeader(absl::Span<const std::byte> packed);

// Requires: `page` has kNvmePageBytes.
void WriteHeaderPage(const PackedHeader& packed, absl::Span<std::byte> page);
// Empty: not a header page, or damaged anywhere in it.
std::optional<RecordHeader> ReadHeaderPage(absl::Span<const std::byte> page);

// Pages of a record with its header, of a footer of `records` headers.
inline uint32_t PagesOfRecord(uint32_t length) {
  return static_cast<uint32_t>(NvmeTier::RoomOf(length) / kNvmePageBytes);
}
constexpr uint32_t PagesOfFooter(uint64_t records) {
  return static_cast<uint32_t>((records * kPackedHeaderBytes + kNvmePageBytes - 1) /
                               kNvmePageBytes);
}

struct SegmentTrailer {
  uint32_t segment = 0;
  uint64_t incarnation = 0;
  uint32_t records = 0;
  uint32_t footer_page = 0;
  uint32_t footer_sum = 0;  // CRC32C of records * kPackedHeaderBytes.
  uint64_t first_sequence = 0;
  uint64_t last_sequence = 0;

  friend bool operator==(const SegmentTrailer&, const SegmentTrailer&) = default;
};
void WriteTrailer(const SegmentTrailer& trailer, absl::Span<std::byte> page);
// Empty: none, damaged, of another format, or of a footer that would not fit before the trailer of
// a segment of `segment_pages`.
std::optional<SegmentTrailer> ReadTrailer(absl::Span<const std::byte> page, uint32_t segment_pages);

// Whether a record at `header.place` can be where it says, after all that lies before `page`, in
// the segment's life `incarnation`: what every reader of headers asks, wherever it has them from.
bool Follows(const RecordHeader& header, uint32_t segment, uint64_t incarnation, uint32_t page,
             uint64_t after_sequence, uint32_t segment_pages);

// The sum of a payload of `length` bytes, whose sum is `sum`, once zeros fill its last page.
uint32_t PaddedSum(uint32_t sum, uint32_t length);

}  // namespace kvd
