// The index of NVMe records: what a start needs so that it need not read every header on media. It
// can always be rebuilt from the segments, so losing any of it costs time and nothing else.
//
// What is put is written later, in order, by whoever implements this; a crash keeps a prefix of it.
// Implementations: RocksDB (rocks_index.h), memory (tests).
//
// Threads: Load() and Reset() at the start; the rest from the control thread, never blocking, but
// for Flush().

#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "tiers/segment_format.h"

namespace kvd {

// What the index says of a segment.
struct SegmentRow {
  uint32_t segment = 0;
  uint64_t incarnation = 0;  // Whose rows follow.
  bool sealed = false;       // All rows of it were put before this one.
  bool has_trailer = true;   // Of a sealed one: false where a crash left none.
  bool freed = false;        // This life is over: what the medium still has of it is not wanted.
};

class RecordIndex {
 public:
  // What Load() finds, each segment's row before those of its records, and those by page. Damaged
  // rows are left out and counted.
  struct Visitor {
    std::function<void(const SegmentRow&)> segment;
    // `place` is by the key; what the header says may differ, and is for the visitor to judge.
    std::function<void(RecordPlace place, const RecordHeader& header)> record;
    std::function<void()> damaged;
  };

  virtual ~RecordIndex() = default;  // Writes what waits.

  // kDataLoss: the index is damaged; whatever was visited before is to be forgotten.
  virtual absl::Status Load(const Visitor& visitor) = 0;
  // Forgets everything: the index starts anew.
  virtual absl::Status Reset() = 0;

  // Which set of devices this is the index of; empty: of none yet.
  virtual std::string owner() const = 0;
  virtual void SetOwner(const std::string& set) = 0;

  // Where more waits than may, a row is dropped, its segment is never told to be sealed, and the
  // next start reads it from media.
  virtual void PutRecord(RecordPlace place, const PackedHeader& header) = 0;
  virtual void EraseRecord(RecordPlace place) = 0;
  virtual void PutSegment(const SegmentRow& row) = 0;
  virtual void EraseSegment(uint32_t segment) = 0;  // With all its records.

  // Waits until all that was put is written. The error of what could not be.
  virtual absl::Status Flush() = 0;
};

}  // namespace kvd
