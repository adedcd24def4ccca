// The segments of one device: in which state each is, which records of it live, which one to fill
// next and which one to reclaim. Arithmetic, no I/O.
//
// Life of a segment: free - open (being filled) - sealing (footer and trailer on their way) -
// sealed - reclaiming (what lives is copied elsewhere) - drained (copied, but the copies are not
// yet durable) - free. A sealed one in which nothing lives is free at once.
//
// Threads: one, the control thread.

#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "tiers/nvme_tier.h"
#include "tiers/superblock.h"

namespace kvd {

enum class SegmentState : uint8_t {
  kFree,
  kOpen,
  kSealing,
  kSealed,
  kReclaiming,
  kDrained,
};
inline constexpr size_t kSegmentStates = 6;

// A record in a segment. A dead one keeps its entry, so that entries stay in order of page.
struct SegmentRecord {
  uint32_t page = 0;
  uint32_t length = 0;
  uint32_t sum = 0;
  uint32_t occupant = 0;  // 0: dead.
};

struct Segment {
  SegmentState state = SegmentState::kFree;
  uint64_t incarnation = 0;
  uint64_t live_bytes = 0;  // With headers.
  uint32_t readers = 0;     // Reads of its records in flight: it is not filled anew meanwhile.
  std::vector<SegmentRecord> records;
};

// A segment's number among those of all devices: the device's ordinal in its set, then its number
// on the device, so that adding a device or growing one renumbers nothing.
inline constexpr uint32_t kSegmentOrdinalShift = 24;
inline constexpr uint32_t kMaxNvmeDevices = 64;
constexpr uint32_t SegmentNumber(uint32_t ordinal, uint32_t local) {
  return ordinal << kSegmentOrdinalShift | local;
}
constexpr uint32_t OrdinalOf(uint32_t segment) { return segment >> kSegmentOrdinalShift; }
constexpr uint32_t LocalSegment(uint32_t segment) {
  return segment & ((1u << kSegmentOrdinalShift) - 1);
}

// How a device is cut into segments.
struct SegmentGeometry {
  uint64_t segment_bytes = 0;
  uint32_t segments = 0;

  uint32_t pages() const { return static_cast<uint32_t>(segment_bytes / kNvmePageBytes); }
  // Bytes into the device.
  uint64_t OffsetOf(uint32_t segment, uint32_t page) const {
    return kSuperblockBytes + segment * segment_bytes + uint64_t{page} * kNvmePageBytes;
  }

  // Of a new device: 64 MiB, less where that would be fewer than 64 segments.
  static uint64_t SegmentBytesFor(uint64_t device_bytes);
  static SegmentGeometry Of(uint64_t device_bytes, uint64_t segment_bytes);
};

class SegmentTable {
 public:
  // Segments that are neither live nor open, at the least: room for copies and for what is next.
  static constexpr uint32_t kSegmentsForReclaim = 3;
  static constexpr uint32_t kMinSegments = 5;

  explicit SegmentTable(SegmentGeometry geometry);

  const SegmentGeometry& geometry() const { return geometry_; }
  const Segment& at(uint32_t segment) const { return segments_[segment]; }
  uint32_t count(SegmentState state) const { return counts_[static_cast<size_t>(state)]; }
  uint64_t live_bytes() const { return live_bytes_; }
  // The most that may live so that reclaiming can always win room: a segment's tail is wasted where
  // the next record does not fit, which is at most the largest record seen.
  uint64_t live_capacity_bytes() const;

  // --- at the start ------------------------------------------------------------------------------

  // Requires: free. It becomes sealed, with no record in it yet.
  void Restore(uint32_t segment, uint64_t incarnation);
  // A record that is there; dead until it is adopted. In order of page.
  void RestoreRecord(uint32_t segment, const SegmentRecord& record);
  // It lives from now on. False: there is no such dead record.
  bool Adopt(RecordPlace place, uint32_t occupant);

  // --- filling -----------------------------------------------------------------------------------

  // A free segment becomes open. Empty: no more than `keep` are free.
  std::optional<uint32_t> Open(uint64_t incarnation, uint32_t keep);
  // A record was placed at the end of an open segment.
  void Add(uint32_t segment, const SegmentRecord& record);
  void Sealing(uint32_t segment) { Become(segment, SegmentState::kSealing); }
  void Sealed(uint32_t segment);

  // --- records -----------------------------------------------------------------------------------

  // The live record at `place`, or none.
  const SegmentRecord* Find(RecordPlace place) const;
  // It is dead. False: it was already. A sealed segment in which nothing lives any more and which
  // nobody reads becomes free: see TakeFreed().
  bool Drop(RecordPlace place);
  void BeginRead(uint32_t segment) { ++segments_[segment].readers; }
  void EndRead(uint32_t segment);

  // --- reclaiming --------------------------------------------------------------------------------

  // The sealed segment with the least that lives, if copying it wins room; it becomes reclaiming.
  std::optional<uint32_t> BeginReclaim();
  // Nothing lives in it any more; its copies are not durable yet.
  void Drained(uint32_t segment);
  // The copies are durable: it becomes free as soon as nobody reads it.
  void Release(uint32_t segment);
  // Copying was given up: it is sealed again.
  void AbandonReclaim(uint32_t segment);

  // Segments that became free since the last call.
  std::vector<uint32_t> TakeFreed();

 private:
  void Become(uint32_t segment, SegmentState state);
  void FreeIfEmpty(uint32_t segment);
  SegmentRecord* FindRecord(RecordPlace place);

  const SegmentGeometry geometry_;
  std::vector<Segment> segments_;
  std::vector<bool> released_;  // Drained, durable, and waiting for its readers.
  std::deque<uint32_t> free_;   // Oldest first, so that all segments wear alike.
  std::vector<uint32_t> freed_;
  uint32_t counts_[kSegmentStates] = {};
  uint64_t live_bytes_ = 0;
  uint64_t largest_room_ = 4 * kNvmePageBytes;
};

}  // namespace kvd
