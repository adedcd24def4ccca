#include "tiers/nvme_queue.h"

#include "proto/types/checksum.h"

namespace kvd {
namespace {

uint64_t BytesOf(const NvmeJob& job) {
  uint64_t bytes = 0;
  for (absl::Span<std::byte> piece : job.pieces) bytes += piece.size();
  return bytes;
}

bool IsWhole(uint64_t number) { return number % kNvmePageBytes == 0; }

}  // namespace

bool NvmeQueue::Push(NvmeJob job, Nanos now) {
  const uint64_t bytes = BytesOf(job);
  if (!accepted_.Fits(bytes, limits_.accepted_jobs, limits_.accepted_bytes)) return false;
  if (job.kind == NvmeJob::Kind::kWrite) {
    if (!accepted_writes_.Fits(bytes, limits_.accepted_jobs / 2, limits_.accepted_bytes / 2)) {
      return false;
    }
    accepted_writes_.Add(bytes);
  }
  accepted_.Add(bytes);
  ++waiting_;
  Waiting& waiting = Of(job.kind);
  const std::pair<Nanos, uint64_t> place = {job.deadline, arrivals_++};
  waiting.emplace(place, Entry{std::move(job), bytes, now});
  return true;
}

std::optional<NvmeQueue::Entry> NvmeQueue::TakeExpired(Nanos now) {
  for (Waiting& waiting : kinds_) {
    if (waiting.empty() || waiting.begin()->first.first > now) continue;
    Entry entry = Pop(waiting);
    Forget(entry);
    return entry;
  }
  return std::nullopt;
}

std::optional<NvmeQueue::Entry> NvmeQueue::TakeWaiting() {
  for (Waiting& waiting : kinds_) {
    if (waiting.empty()) continue;
    Entry entry = Pop(waiting);
    Forget(entry);
    return entry;
  }
  return std::nullopt;
}

std::optional<NvmeJob::Kind> NvmeQueue::NextKind() const {
  const bool reads = !Of(NvmeJob::Kind::kRead).empty();
  const bool writes = !Of(NvmeJob::Kind::kWrite).empty();
  if (!sync_begun_ && !Of(NvmeJob::Kind::kSync).empty()) return NvmeJob::Kind::kSync;
  if (reads && !(writes && reads_in_a_row_ >= kReadsPerWrite)) return NvmeJob::Kind::kRead;
  if (writes) return NvmeJob::Kind::kWrite;
  return std::nullopt;
}

std::optional<NvmeQueue::Entry> NvmeQueue::Begin() {
  if (!MayBegin()) return std::nullopt;
  const NvmeJob::Kind kind = *NextKind();
  if (kind == NvmeJob::Kind::kSync) sync_begun_ = true;
  if (kind == NvmeJob::Kind::kRead) ++reads_in_a_row_;
  if (kind == NvmeJob::Kind::kWrite) reads_in_a_row_ = 0;
  Entry entry = Pop(Of(kind));
  begun_.Add(entry.bytes);
  return entry;
}

void NvmeQueue::End(const Entry& entry) {
  if (entry.job.kind == NvmeJob::Kind::kSync) sync_begun_ = false;
  begun_.Remove(entry.bytes);
  Forget(entry);
}

NvmeQueue::Entry NvmeQueue::Pop(Waiting& from) {
  Entry entry = std::move(from.begin()->second);
  from.erase(from.begin());
  --waiting_;
  return entry;
}

void NvmeQueue::Forget(const Entry& entry) {
  accepted_.Remove(entry.bytes);
  if (entry.job.kind == NvmeJob::Kind::kWrite) accepted_writes_.Remove(entry.bytes);
}

bool IsValidJob(const NvmeJob& job, uint64_t device_bytes) {
  if (job.kind == NvmeJob::Kind::kSync) return job.pieces.empty();
  if (job.pieces.empty() || job.pieces.size() > NvmeQueue::kPiecesMax) return false;
  if (!job.sums.empty() && job.sums.size() != job.pieces.size()) return false;
  if (!IsWhole(job.offset) || job.offset > device_bytes) return false;
  uint64_t room = device_bytes - job.offset;
  for (absl::Span<std::byte> piece : job.pieces) {
    const bool aligned =
        IsWhole(reinterpret_cast<uintptr_t>(piece.data())) && IsWhole(piece.size());
    if (!aligned || piece.empty() || piece.size() > room) return false;
    room -= piece.size();
  }
  return true;
}

NvmeDone EndJob(const NvmeQueue::Entry& entry, int error, const Clock& clock) {
  NvmeDone done{.tag = entry.job.tag};
  if (error != 0) {
    done.outcome = NvmeOutcome::kError;
    done.error = error;
  } else if (entry.job.kind == NvmeJob::Kind::kRead) {
    for (size_t i = 0; i < entry.job.sums.size(); ++i) {
      if (Crc32c(entry.job.pieces[i]) != entry.job.sums[i]) done.outcome = NvmeOutcome::kCorrupt;
    }
  }
  done.took = clock.Now() - entry.submitted;
  return done;
}

}  // namespace kvd
