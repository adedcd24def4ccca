// One device of the NVMe tier: fills its segments, seals them, reads records, reclaims.
//
// A record is acknowledged in the order of its segment: all before it are there, so that walking
// the headers finds it. A write that fails ends its segment: it and what comes after it are not
// acknowledged, and later appends go elsewhere. A segment is sealed by its footer, a sync, and only
// then its trailer: a trailer says that all before it is durable.
//
// Threads: one, the control thread. What it tells the tier's owner waits in SegmentShared::events,
// so nothing calls back in the midst of something.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "proto/types/clock.h"
#include "tiers/device_breaker.h"
#include "tiers/nvme_buffer.h"
#include "tiers/nvme_device.h"
#include "tiers/nvme_tier.h"
#include "tiers/record_index.h"
#include "tiers/scope_ledger.h"
#include "tiers/segment_format.h"
#include "tiers/segment_table.h"

namespace kvd {

enum class NvmeDurability : uint8_t {
  kAsync,  // Acknowledged when written; synced once a second.
  kSync,   // Acknowledged when a sync covers it.
};

// What happened since the start, for metrics.
struct NvmeTierCounters {
  uint64_t appended_records = 0;  // Acknowledged.
  uint64_t appended_bytes = 0;    // With headers.
  uint64_t append_errors = 0;     // Records that were not acknowledged.
  uint64_t read_records = 0;
  uint64_t read_bytes = 0;  // Of payload.
  uint64_t reads_corrupt = 0;
  uint64_t reads_expired = 0;
  uint64_t read_errors = 0;
  uint64_t copied_records = 0;  // By reclaiming.
  uint64_t copied_bytes = 0;
  uint64_t lost_records = 0;      // Could not be read when they were to be copied.
  uint64_t given_up_records = 0;  // So that anything could be copied at all.
  uint64_t segments_sealed = 0;
  uint64_t segments_bad = 0;  // Ended by a failed write or sync.
  uint64_t segments_freed = 0;
  uint64_t syncs = 0;
  uint64_t sync_errors = 0;
  uint64_t superblock_writes = 0;
  uint64_t superblock_errors = 0;
  uint64_t breaker_changes = 0;
};

// What the devices of one tier have in common.
struct SegmentShared {
  struct Moved {
    uint32_t occupant = 0;
    RecordPlace to;
  };
  struct Lost {
    uint32_t occupant = 0;
    NvmeOutcome outcome = NvmeOutcome::kOk;
  };

  RecordIndex* index = nullptr;  // May be none.
  NvmeDurability durability = NvmeDurability::kAsync;
  ScopeLedger scopes;
  uint64_t next_sequence = 1;
  uint64_t next_incarnation = 1;
  NvmeTierCounters counters;
  // For the owner.
  std::vector<NvmeTier::Completion> ended;
  std::vector<Moved> moved;
  std::vector<Lost> lost;
};

class SegmentDevice {
 public:
  struct Options {
    uint32_t ordinal = 0;
    SegmentGeometry geometry;
    uint32_t max_records = 512;            // Being written.
    uint32_t max_jobs = 512;               // Of the device.
    uint64_t max_write_bytes = 64u << 20;  // In flight.
    uint64_t gather_bytes = 256u << 10;    // A write is at least so large, or a turn has ended.
    uint64_t max_copy_bytes = 8u << 20;    // In flight while reclaiming; at least one record.
    Nanos sync_every = kSecond;            // Of kAsync, while something is not durable.
    Nanos sync_soon = 100 * kMillisecond;  // The same, while a segment waits for it.
    uint32_t segments_low = 0;             // Reclaim below so many free ones; 0: a 50th.
    DeviceBreaker::Options breaker;
  };

  // Borrows both. Jobs in flight when it is destroyed leave their memory behind: the device may
  // still write there.
  SegmentDevice(NvmeDevice& device, SegmentShared& shared, const Options& options);
  ~SegmentDevice();
  SegmentDevice(const SegmentDevice&) = delete;
  SegmentDevice& operator=(const SegmentDevice&) = delete;

  // At the start: what recovery found.
  void Restore(uint32_t local, uint64_t incarnation) { table_.Restore(local, incarnation); }
  void RestoreRecord(uint32_t local, const SegmentRecord& record) {
    table_.RestoreRecord(local, record);
  }

  // As in NvmeTier; places have numbers of all devices.
  std::optional<RecordPlace> Append(const RecordInfo& info, absl::Span<std::byte> payload,
                                    uint32_t occupant, uint64_t tag, Nanos now);
  bool Read(RecordPlace place, const RecordInfo& info, absl::Span<std::byte> target, Nanos deadline,
            uint64_t tag, Nanos now);
  bool Adopt(RecordPlace place, uint32_t occupant) { return table_.Adopt(Local(place), occupant); }
  void Drop(RecordPlace place);

  void Ended(const NvmeDone& done, Nanos now);
  void Poll(Nanos now);
  Nanos NextDeadline() const;
  // Ends the open segments, so that the next start need not walk them.
  void SealAll(Nanos now);
  bool quiet() const;  // Nothing in flight, nothing being sealed.

  // A segment more could be filled.
  bool has_room() const;
  bool making_room() const { return !out() && (reclaim_.has_value() || !drained_.empty()); }
  bool out() const { return breaker_.out(); }
  const SegmentTable& table() const { return table_; }
  const NvmeDevice& device() const { return device_; }
  // As of NvmeDevice.
  void ReplaceMemory(absl::Span<std::byte> before, absl::Span<std::byte> after) {
    device_.ReplaceMemory(before, after);
  }
  uint32_t ordinal() const { return options_.ordinal; }
  uint32_t in_flight() const { return owner_jobs_; }
  uint64_t write_bytes_in_flight() const { return write_bytes_; }
  uint64_t EstimateReadUs(uint64_t bytes) const;
  // The largest payload that a segment has room for.
  uint32_t max_payload_bytes() const;

 private:
  // Records that came together, and copies, fill segments of their own: those that were copied once
  // live longer.
  enum LogKind : uint8_t { kFresh, kCopied };
  static constexpr int kLogs = 2;

  // A record on its way.
  struct Writing {
    enum class State : uint8_t { kQueued, kSubmitted, kWritten, kFailed };
    State state = State::kQueued;
    bool is_copy = false;
    int error = 0;
    uint32_t occupant = 0;
    uint32_t length = 0;
    uint64_t tag = 0;
    RecordPlace place;
    RecordPlace from;  // Of a copy.
    uint64_t scope_version = 0;
    uint64_t sync_needed = 0;  // Durable once the sync of this number went well.
    Nanos begun = 0;
    PackedHeader packed;
    // As it lies on the device; borrowed until the device has taken it.
    std::array<absl::Span<std::byte>, 2> pieces;  // Header page, payload; a copy has one.
    uint32_t copy = 0;
  };

  // A segment being filled or sealed.
  struct Log {
    enum class Stage : uint8_t { kFilling, kEnding, kFooter, kSync, kTrailer, kDone };
    uint32_t local = 0;
    uint64_t incarnation = 0;
    Stage stage = Stage::kFilling;
    bool broken = false;    // A write or a sync of it failed: it gets no footer.
    bool refusing = false;  // The failed record has come to the front: none is acknowledged.
    int error = 0;
    bool job_in_flight = false;  // Of footer or trailer.
    uint32_t next_page = 0;
    std::deque<uint32_t> pending;      // Writings, in order of page.
    std::vector<PackedHeader> packed;  // Of the acknowledged ones.
    uint32_t placed = 0;               // Records, acknowledged or not.
    uint64_t sync_needed = 0;          // Of the last write.
    // Not yet given to the device.
    std::vector<uint32_t> gathered;
    uint64_t gathered_bytes = 0;
    NvmeBuffer buffer;  // Footer, then trailer.
  };

  struct Job {
    enum class Kind : uint8_t { kRecords, kRead, kFooter, kTrailer, kSync, kCopyRead, kProbe };
    Kind kind = Kind::kProbe;
    Log* log = nullptr;
    std::vector<uint32_t> writings;
    uint64_t tag = 0;
    RecordPlace place;  // Of a read; local.
    RecordInfo info;
    uint64_t incarnation = 0;
    absl::Span<std::byte> target;  // Of a read. Small ones are copied there afterwards.
    uint64_t bytes = 0;
    uint64_t bytes_ahead = 0;  // Of reads, when it was submitted; with its own.
    uint32_t copy = 0;
  };

  // A record that is being copied out of the segment being reclaimed.
  struct Copy {
    uint32_t page = 0;
    NvmeBuffer buffer;                   // Header page and payload.
    std::optional<RecordHeader> header;  // Once it was read.
    bool in_use = false;
    bool waits = false;  // Read, and waiting for room to be written to.
  };
  struct Reclaim {
    uint32_t local = 0;
    size_t next_record = 0;
    uint64_t bytes_in_flight = 0;
    uint32_t copies_in_flight = 0;  // Reading or being written.
    bool failed = false;            // Give up when the rest has ended.
  };
  struct DrainedSegment {
    uint32_t local = 0;
    uint64_t sync_needed = 0;
  };

  RecordPlace Local(RecordPlace place) const { return {LocalSegment(place.segment), place.page}; }
  RecordPlace Global(RecordPlace place) const {
    return {SegmentNumber(options_.ordinal, place.segment), place.page};
  }

  // --- filling: segment_device.cc
  Log* LogFor(LogKind kind, uint32_t length, Nanos now);
  bool Fits(const Log& log, uint32_t length) const;
  std::unique_ptr<Log> OpenLog(uint32_t keep_free);
  // Gives the record its place in the log, and writes its header there.
  uint32_t Place(Log& log, const RecordInfo& info, uint32_t epoch, uint32_t occupant,
                 absl::Span<std::byte> header_page);
  void Gather(Log& log, uint32_t writing, Nanos now);
  bool Flush(Log& log, Nanos now);
  void RecordsEnded(const Job& job, const NvmeDone& done, Nanos now);
  void Acknowledge(Log& log, Nanos now);
  enum class Front : uint8_t { kWaits, kAcknowledged, kRefused };
  Front Judge(const Log& log, const Writing& front) const;
  void AcknowledgeOne(Log& log, const Writing& writing, Nanos now);
  void RefuseOne(const Log& log, const Writing& writing, Nanos now);
  void Break(Log& log, int error);

  // --- sealing and syncing: segment_seal.cc
  void StartSealing(std::unique_ptr<Log> log);
  void AdvanceSeals(Nanos now);
  void AdvanceSeal(Log& log, Nanos now);
  void WriteFooter(Log& log, Nanos now);
  void WriteTrailerPage(Log& log, Nanos now);
  void SubmitSealPiece(Log& log, Job::Kind kind, uint32_t page, Nanos now);
  void SealPieceEnded(Log& log, Job::Kind kind, const NvmeDone& done);
  void FinishLog(Log& log);
  bool AwaitsSync(const Log& log) const;
  Nanos SyncAt() const;
  void MaybeSync(Nanos now);
  void SyncEnded(const NvmeDone& done, Nanos now);
  void SyncFailed(int error);

  // --- reclaiming: segment_reclaim.cc
  void AdvanceReclaim(Nanos now);
  bool HasNowhereToCopy() const;
  void GiveUpReclaimed();
  bool ReadNextCopy(Nanos now);
  void CopyRead(const Job& job, const NvmeDone& done);
  void WriteCopies(Nanos now);
  bool WriteCopy(uint32_t copy, Nanos now);
  void CopyWritten(const Writing& writing, bool ok);
  void LoseCopy(uint32_t copy, NvmeOutcome outcome);
  void EndCopy(uint32_t copy);
  void FinishReclaim();
  void ReleaseDrained();
  void TellFreed();
  uint32_t low_mark() const;

  // --- jobs: segment_device.cc
  // False: as much is in flight as may be. `job` is kept for Ended().
  bool Submit(NvmeJob nvme_job, Job job, Nanos now);
  absl::Span<std::byte> JobPage(uint32_t job, uint32_t page) const {
    return job_pages_->span((2 * job + page) * uint64_t{kNvmePageBytes}, kNvmePageBytes);
  }
  absl::Span<std::byte> WritingPage(uint32_t writing, uint32_t page) const {
    return writing_pages_->span((2 * writing + page) * uint64_t{kNvmePageBytes}, kNvmePageBytes);
  }
  void ReadEnded(const Job& job, uint32_t index, const NvmeDone& done);
  void Probe(Nanos now);

  NvmeDevice& device_;
  SegmentShared& shared_;
  const Options options_;
  SegmentTable table_;
  DeviceBreaker breaker_;
  uint32_t told_changes_ = 0;  // Of it, that were counted.

  std::vector<Writing> writings_;
  std::vector<uint32_t> free_writings_;
  std::vector<Job> jobs_;
  std::vector<uint32_t> free_jobs_;
  // Two pages for each writing and for each job: a header, and a payload that needs no more.
  std::unique_ptr<NvmeBuffer> writing_pages_;
  std::unique_ptr<NvmeBuffer> job_pages_;

  std::unique_ptr<Log> logs_[kLogs];
  std::vector<std::unique_ptr<Log>> sealing_;

  uint32_t jobs_in_flight_ = 0;
  uint32_t owner_jobs_ = 0;
  uint64_t write_bytes_ = 0;
  uint64_t read_bytes_ = 0;
  double read_bytes_per_us_ = 1000;  // Measured; a guess before that.

  uint64_t sync_started_ = 0;
  uint64_t sync_ok_ = 0;
  bool syncing_ = false;
  uint64_t dirty_needs_ = 0;  // The sync that would cover all that was written; 0: nothing was.
  Nanos last_sync_ = 0;
  Nanos write_pause_until_ = 0;  // The device is full or read-only.
  Nanos polled_ = 0;             // The last turn.
  bool probing_ = false;
  bool closing_ = false;  // Nobody waits for a better moment any more.

  std::optional<Reclaim> reclaim_;
  std::vector<Copy> copies_;
  std::vector<DrainedSegment> drained_;
};

}  // namespace kvd
