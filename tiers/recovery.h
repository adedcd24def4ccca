// What lies on the media at a start: finds the records of all segments, by the index where it
// agrees with the media, else by footers, else by walking headers.
//
// Two pages of each segment are read in any case, the first header and the trailer: they say which
// life of it is on the medium. Where the index says the same and says that it is complete, its rows
// are taken; payload is never read, let alone interpreted. Everything found is judged by the
// scopes' current epochs, and of two records of one part one stays: the original of a copy, the
// later of what was stored anew.
//
// Threads: one, blocking, before anybody is served.

#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/types/span.h"
#include "tiers/nvme_completions.h"
#include "tiers/nvme_device.h"
#include "tiers/nvme_tier.h"
#include "tiers/record_index.h"
#include "tiers/segment_table.h"

namespace kvd {

// What a recovery did, for the log, the metrics and tests.
struct RecoveryReport {
  uint64_t records = 0;       // Recovered; the next three add up to it.
  uint64_t from_index = 0;    // By a row that the media did not contradict.
  uint64_t from_footers = 0;  // By a copy in the footer.
  uint64_t from_headers = 0;  // By the header itself.

  // Dropped, by reason.
  uint64_t of_dead_epoch = 0;      // The scope was purged since.
  uint64_t of_unknown_scope = 0;   // No superblock knows the number.
  uint64_t duplicates = 0;         // Another record of the part stays.
  uint64_t damaged_records = 0;    // Of those: they would have stayed, had they been whole.
  uint64_t damaged_rows = 0;       // Rows of the index that cannot be read, or say what cannot be.
  uint64_t rows_without_data = 0;  // Rows past what the media hold.

  uint32_t segments_empty = 0;
  uint32_t segments_from_index = 0;
  uint32_t segments_from_footers = 0;
  uint32_t segments_from_headers = 0;
  uint32_t footers_damaged = 0;  // Their segments count as from headers.
  uint32_t read_errors = 0;

  bool index_damaged = false;           // It was reset and rebuilt from the media.
  bool index_repaired = true;           // What it lacked was written to it.
  uint32_t superblock_copies_lost = 0;  // The other copy was good.
  uint32_t devices_new = 0;             // Formatted at this start.
  int64_t took_ms = 0;
};

struct RecoveryDevice {
  NvmeDevice* device = nullptr;
  uint32_t ordinal = 0;
  SegmentGeometry geometry;
};

struct RecoveryInput {
  std::vector<RecoveryDevice> devices;  // At position i: what completions call device i.
  absl::Span<const StoredScope> scopes;
  RecordIndex* index = nullptr;  // May be none.
  NvmeCompletions* completions = nullptr;
  // Called when nothing has ended yet; empty: sleeps until something does.
  std::function<void()> pump;
  uint32_t segments_at_a_time = 128;     // Of each device: each has one read in flight.
  uint64_t bytes_in_flight = 16u << 20;  // Of all devices.
};

// A segment that holds something.
struct RecoveredSegment {
  uint32_t segment = 0;
  uint64_t incarnation = 0;
  bool has_trailer = false;
  bool indexed = false;  // The index has it already.
};

struct Recovered {
  std::vector<RecoveredSegment> segments;  // By number.
  std::vector<RecoveredRecord> records;    // By place.
};

Recovered Recover(const RecoveryInput& input, RecoveryReport& report);

// Writes what the index lacked into it. What could not be written is found again by the next start.
absl::Status RepairIndex(RecordIndex& index, absl::Span<const StoredScope> scopes,
                         const Recovered& recovered);

}  // namespace kvd
