// How a segment ends, and when the device is told to sync; the rest of SegmentDevice is in
// segment_device.cc and segment_reclaim.cc.

#include <algorithm>
#include <cstring>
#include <utility>

#include "proto/types/check.h"
#include "proto/types/checksum.h"
#include "proto/types/kill_point.h"
#include "tiers/segment_device.h"

namespace kvd {

void SegmentDevice::StartSealing(std::unique_ptr<Log> log) {
  log->stage = Log::Stage::kEnding;
  table_.Sealing(log->local);
  sealing_.push_back(std::move(log));
}

void SegmentDevice::SealAll(Nanos now) {
  closing_ = true;
  for (std::unique_ptr<Log>& log : logs_) {
    if (log != nullptr) StartSealing(std::move(log));
  }
  AdvanceSeals(now);
}

void SegmentDevice::AdvanceSeals(Nanos now) {
  for (size_t i = 0; i < sealing_.size(); ++i) AdvanceSeal(*sealing_[i], now);
  std::erase_if(sealing_,
                [](const std::unique_ptr<Log>& log) { return log->stage == Log::Stage::kDone; });
}

// Every way from the last record to the end of a segment is in this function.
void SegmentDevice::AdvanceSeal(Log& log, Nanos now) {
  if (log.stage == Log::Stage::kEnding) {
    Flush(log, now);
    Acknowledge(log, now);
    if (!log.pending.empty()) return;
    if (log.broken || log.packed.empty()) return FinishLog(log);
    log.stage = Log::Stage::kFooter;
    KVD_KILL_POINT("seal.before_footer");
    WriteFooter(log, now);
  }
  if (log.job_in_flight) return;
  if (log.broken) return FinishLog(log);
  switch (log.stage) {
    case Log::Stage::kFooter:
      return SubmitSealPiece(log, Job::Kind::kFooter, log.next_page, now);
    case Log::Stage::kSync:
      // The trailer says that all before it is durable, so it comes after a sync.
      if (log.sync_needed > sync_ok_) return;
      log.stage = Log::Stage::kTrailer;
      KVD_KILL_POINT("seal.before_trailer");
      return WriteTrailerPage(log, now);
    case Log::Stage::kTrailer:
      return SubmitSealPiece(log, Job::Kind::kTrailer, options_.geometry.pages() - 1, now);
    case Log::Stage::kFilling:
    case Log::Stage::kEnding:
    case Log::Stage::kDone:
      return;
  }
}

void SegmentDevice::WriteFooter(Log& log, Nanos now) {
  log.buffer = NvmeBuffer(log.packed.size() * kPackedHeaderBytes);
  std::memcpy(log.buffer.data(), log.packed.data(), log.packed.size() * kPackedHeaderBytes);
  SubmitSealPiece(log, Job::Kind::kFooter, log.next_page, now);
}

void SegmentDevice::WriteTrailerPage(Log& log, Nanos now) {
  const uint64_t bytes = log.packed.size() * kPackedHeaderBytes;
  const SegmentTrailer trailer = {
      .segment = SegmentNumber(options_.ordinal, log.local),
      .incarnation = log.incarnation,
      .records = static_cast<uint32_t>(log.packed.size()),
      .footer_page = log.next_page,
      .footer_sum = Crc32c(log.buffer.span(0, bytes)),
      .first_sequence = UnpackHeader(log.packed.front())->sequence,
      .last_sequence = UnpackHeader(log.packed.back())->sequence,
  };
  log.buffer = NvmeBuffer(kNvmePageBytes);
  WriteTrailer(trailer, log.buffer.span());
  SubmitSealPiece(log, Job::Kind::kTrailer, options_.geometry.pages() - 1, now);
}

// Writes log.buffer at `page`; where the device takes no more, AdvanceSeal() tries again.
void SegmentDevice::SubmitSealPiece(Log& log, Job::Kind kind, uint32_t page, Nanos now) {
  if (log.job_in_flight || out()) return;
  NvmeJob nvme_job;
  nvme_job.kind = NvmeJob::Kind::kWrite;
  nvme_job.offset = options_.geometry.OffsetOf(log.local, page);
  nvme_job.pieces.push_back(log.buffer.span());
  Job job;
  job.kind = kind;
  job.log = &log;
  log.job_in_flight = Submit(std::move(nvme_job), std::move(job), now);
}

void SegmentDevice::SealPieceEnded(Log& log, Job::Kind kind, const NvmeDone& done) {
  log.job_in_flight = false;
  if (done.outcome != NvmeOutcome::kOk) return Break(log, done.error);
  dirty_needs_ = sync_started_ + 1;
  if (kind == Job::Kind::kFooter) {
    log.sync_needed = dirty_needs_;
    log.stage = Log::Stage::kSync;
    return;
  }
  ++shared_.counters.segments_sealed;
  KVD_KILL_POINT("seal.trailer_written");
  if (shared_.index != nullptr) {
    shared_.index->PutSegment({.segment = SegmentNumber(options_.ordinal, log.local),
                               .incarnation = log.incarnation,
                               .sealed = true});
  }
  FinishLog(log);
}

void SegmentDevice::FinishLog(Log& log) {
  log.stage = Log::Stage::kDone;
  table_.Sealed(log.local);
}

bool SegmentDevice::AwaitsSync(const Log& log) const {
  if (log.stage == Log::Stage::kSync) return log.sync_needed > sync_ok_;
  if (shared_.durability != NvmeDurability::kSync || log.pending.empty()) return false;
  const Writing& front = writings_[log.pending.front()];
  return front.state == Writing::State::kWritten && front.sync_needed > sync_ok_;
}

// When the next sync is due. Records that wait for one have it at once (those that end while it
// runs share the next), segments soon, and what nobody waits for once in a while.
Nanos SegmentDevice::SyncAt() const {
  if (syncing_ || dirty_needs_ <= sync_ok_) return INT64_MAX;
  bool soon = !drained_.empty();
  for (const std::unique_ptr<Log>& log : sealing_) soon = soon || AwaitsSync(*log);
  if (soon && closing_) return 0;
  if (shared_.durability == NvmeDurability::kSync) {
    for (const std::unique_ptr<Log>& log : logs_) {
      if (log != nullptr && AwaitsSync(*log)) return 0;
    }
    if (soon) return 0;
  }
  return last_sync_ + (soon ? options_.sync_soon : options_.sync_every);
}

void SegmentDevice::MaybeSync(Nanos now) {
  if (now < SyncAt()) return;
  NvmeJob nvme_job;
  nvme_job.kind = NvmeJob::Kind::kSync;
  Job job;
  job.kind = Job::Kind::kSync;
  syncing_ = Submit(std::move(nvme_job), std::move(job), now);
  if (!syncing_) return;
  ++sync_started_;
  last_sync_ = now;
}

void SegmentDevice::SyncEnded(const NvmeDone& done, Nanos now) {
  syncing_ = false;
  if (done.outcome == NvmeOutcome::kOk) {
    sync_ok_ = sync_started_;
    KVD_KILL_POINT("segment.synced");
    ++shared_.counters.syncs;
  } else {
    ++shared_.counters.sync_errors;
    SyncFailed(done.error);
  }
  for (const std::unique_ptr<Log>& log : logs_) {
    if (log != nullptr) Acknowledge(*log, now);
  }
}

// What the failed sync was to cover may never become durable, and no later sync says anything about
// it: its segments end, and what waited for it is not acknowledged.
void SegmentDevice::SyncFailed(int error) {
  std::vector<Log*> hit;
  const auto judge = [&](Log* log) {
    if (log == nullptr) return;
    if (log->sync_needed > sync_ok_) hit.push_back(log);
    for (const uint32_t i : log->pending) {
      Writing& writing = writings_[i];
      if (writing.state != Writing::State::kWritten || writing.sync_needed > sync_started_)
        continue;
      writing.state = Writing::State::kFailed;
      writing.error = error;
    }
  };
  for (const std::unique_ptr<Log>& log : logs_) judge(log.get());
  for (const std::unique_ptr<Log>& log : sealing_) judge(log.get());
  for (Log* log : hit) Break(*log, error);
  for (DrainedSegment& drained : drained_) {
    if (drained.sync_needed <= sync_started_) drained.sync_needed = sync_started_ + 1;
  }
  dirty_needs_ = sync_started_ + 1;
}

}  // namespace kvd
