// How room comes back: what lives in a segment is copied to another one, and when the copies are
// durable and nobody reads the segment any more, it is free. The rest of SegmentDevice is in
// segment_device.cc and segment_seal.cc.

#include <algorithm>
#include <utility>

#include "proto/types/check.h"
#include "proto/types/kill_point.h"
#include "tiers/segment_device.h"

namespace kvd {

uint32_t SegmentDevice::low_mark() const {
  const uint32_t wanted =
      options_.segments_low != 0 ? options_.segments_low : options_.geometry.segments / 50;
  return std::max(wanted, SegmentTable::kSegmentsForReclaim);
}

void SegmentDevice::AdvanceReclaim(Nanos now) {
  if (!reclaim_) {
    // Those that are drained will be free at the next sync.
    const uint32_t soon_free =
        table_.count(SegmentState::kFree) + table_.count(SegmentState::kDrained);
    if (soon_free >= low_mark()) return;
    const std::optional<uint32_t> local = table_.BeginReclaim();
    if (!local) return;
    reclaim_ = Reclaim{.local = *local};
    KVD_KILL_POINT("reclaim.begun");
  }
  WriteCopies(now);
  while (!reclaim_->failed && ReadNextCopy(now)) {
  }
  if (HasNowhereToCopy()) GiveUpReclaimed();
  const bool all_begun =
      reclaim_->failed || reclaim_->next_record >= table_.at(reclaim_->local).records.size();
  if (all_begun && reclaim_->copies_in_flight == 0) FinishReclaim();
}

// Of a start that found the index lost: what was free is found again as it was before, and may
// leave no segment free. Who owns the records first gives up those that are more than may live.
bool SegmentDevice::HasNowhereToCopy() const {
  return table_.at(reclaim_->local).live_bytes > 0 && logs_[kCopied] == nullptr &&
         table_.count(SegmentState::kFree) == 0 && drained_.empty() &&
         table_.live_bytes() <= table_.live_capacity_bytes();
}

void SegmentDevice::GiveUpReclaimed() {
  for (const SegmentRecord& record : table_.at(reclaim_->local).records) {
    if (record.occupant == 0) continue;
    ++shared_.counters.given_up_records;
    shared_.lost.push_back({record.occupant, NvmeOutcome::kExpired});
    Drop(Global({reclaim_->local, record.page}));
  }
}

// Starts the next copy. False: there is none left, or enough is in flight.
bool SegmentDevice::ReadNextCopy(Nanos now) {
  const std::vector<SegmentRecord>& records = table_.at(reclaim_->local).records;
  while (reclaim_->next_record < records.size() && records[reclaim_->next_record].occupant == 0) {
    ++reclaim_->next_record;
  }
  if (reclaim_->next_record >= records.size()) return false;
  const SegmentRecord& record = records[reclaim_->next_record];
  const uint64_t bytes = NvmeTier::RoomOf(record.length);
  if (reclaim_->copies_in_flight > 0 &&
      reclaim_->bytes_in_flight + bytes > options_.max_copy_bytes) {
    return false;
  }
  auto free = std::find_if(copies_.begin(), copies_.end(), [](const Copy& c) { return !c.in_use; });
  if (free == copies_.end()) free = copies_.emplace(copies_.end());
  Copy& copy = *free;
  copy = {.page = record.page, .buffer = NvmeBuffer(bytes)};

  NvmeJob nvme_job;
  nvme_job.kind = NvmeJob::Kind::kRead;
  nvme_job.offset = options_.geometry.OffsetOf(reclaim_->local, record.page);
  nvme_job.pieces.push_back(copy.buffer.span(0, kNvmePageBytes));
  nvme_job.pieces.push_back(copy.buffer.span(kNvmePageBytes, bytes - kNvmePageBytes));
  nvme_job.sums = {kSelfSummedPage, PaddedSum(record.sum, record.length)};
  Job job;
  job.kind = Job::Kind::kCopyRead;
  job.copy = static_cast<uint32_t>(free - copies_.begin());
  job.bytes = bytes;
  if (!Submit(std::move(nvme_job), std::move(job), now)) return false;
  copy.in_use = true;
  reclaim_->bytes_in_flight += bytes;
  ++reclaim_->copies_in_flight;
  ++reclaim_->next_record;
  return true;
}

void SegmentDevice::CopyRead(const Job& job, const NvmeDone& done) {
  Copy& copy = copies_[job.copy];
  if (done.outcome == NvmeOutcome::kError && out()) {
    reclaim_->failed = true;  // It is the device: another attempt comes when that is back.
    return EndCopy(job.copy);
  }
  if (done.outcome != NvmeOutcome::kOk) return LoseCopy(job.copy, done.outcome);
  copy.header = ReadHeaderPage(copy.buffer.span(0, kNvmePageBytes));
  const RecordPlace place = {reclaim_->local, copy.page};
  if (!copy.header || copy.header->place != Global(place) ||
      copy.header->incarnation != table_.at(place.segment).incarnation) {
    return LoseCopy(job.copy, NvmeOutcome::kCorrupt);
  }
  KVD_KILL_POINT("reclaim.copy_read");
  copy.waits = true;
}

// The record in its old place is given up, and whoever has it is told.
void SegmentDevice::LoseCopy(uint32_t copy, NvmeOutcome outcome) {
  const RecordPlace place = {reclaim_->local, copies_[copy].page};
  const SegmentRecord* record = table_.Find(place);
  if (record != nullptr) {
    ++shared_.counters.lost_records;
    shared_.lost.push_back({record->occupant, outcome});
    Drop(Global(place));
  }
  EndCopy(copy);
}

void SegmentDevice::EndCopy(uint32_t copy) {
  reclaim_->bytes_in_flight -= copies_[copy].buffer.size();
  --reclaim_->copies_in_flight;
  copies_[copy] = Copy();
}

void SegmentDevice::WriteCopies(Nanos now) {
  for (uint32_t i = 0; i < copies_.size(); ++i) {
    if (!copies_[i].waits) continue;
    if (reclaim_->failed) {
      EndCopy(i);
    } else if (!WriteCopy(i, now)) {
      return;  // No room now: what is in flight must end first.
    }
  }
}

bool SegmentDevice::WriteCopy(uint32_t index, Nanos now) {
  Copy& copy = copies_[index];
  const SegmentRecord* record = table_.Find({reclaim_->local, copy.page});
  const RecordInfo& info = copy.header->info;
  // Dropped while it was read, or purged: a copy keeps the epoch that it was written with.
  if (record == nullptr || copy.header->epoch != shared_.scopes.Epoch(info.scope)) {
    Drop(Global({reclaim_->local, copy.page}));
    EndCopy(index);
    return true;
  }
  if (free_writings_.empty() || now < write_pause_until_) return false;
  Log* log = LogFor(kCopied, info.length, now);
  if (log == nullptr) return false;
  const uint32_t placed =
      Place(*log, info, copy.header->epoch, record->occupant, copy.buffer.span(0, kNvmePageBytes));
  Writing& writing = writings_[placed];
  writing.is_copy = true;
  writing.copy = index;
  writing.from = {reclaim_->local, copy.page};
  writing.begun = now;
  writing.pieces = {copy.buffer.span(), {}};
  copy.waits = false;
  KVD_KILL_POINT("reclaim.copy_placed");
  Gather(*log, placed, now);
  return true;
}

void SegmentDevice::CopyWritten(const Writing& writing, bool ok) {
  const RecordPlace from = writing.from;
  const RecordPlace to = writing.place;
  EndCopy(writing.copy);
  if (!ok) {
    reclaim_->failed = true;  // It lives on in its old place; another attempt comes later.
    return;
  }
  ++shared_.counters.copied_records;
  shared_.counters.copied_bytes += NvmeTier::RoomOf(writing.length);
  if (table_.Find(from) == nullptr) {
    Drop(Global(to));  // Dropped while it was copied.
    return;
  }
  KVD_KILL_POINT("reclaim.copy_written");
  table_.Drop(from);  // Its row goes with its segment.
  shared_.moved.push_back({writing.occupant, Global(to)});
}

void SegmentDevice::FinishReclaim() {
  const uint32_t local = reclaim_->local;
  reclaim_.reset();
  copies_.clear();
  if (table_.at(local).live_bytes > 0) return table_.AbandonReclaim(local);
  table_.Drained(local);
  KVD_KILL_POINT("reclaim.drained");
  // The copies are written; before they are durable the originals must not be overwritten.
  drained_.push_back({local, dirty_needs_});
}

void SegmentDevice::ReleaseDrained() {
  std::erase_if(drained_, [this](const DrainedSegment& drained) {
    if (drained.sync_needed > sync_ok_) return false;
    KVD_KILL_POINT("reclaim.before_release");
    table_.Release(drained.local);
    return true;
  });
}

void SegmentDevice::TellFreed() {
  for (const uint32_t local : table_.TakeFreed()) {
    ++shared_.counters.segments_freed;
    KVD_KILL_POINT("segment.freed");
    if (shared_.index != nullptr) {
      const uint32_t number = SegmentNumber(options_.ordinal, local);
      shared_.index->EraseSegment(number);
      shared_.index->PutSegment(
          {.segment = number, .incarnation = table_.at(local).incarnation, .freed = true});
    }
  }
}

}  // namespace kvd
