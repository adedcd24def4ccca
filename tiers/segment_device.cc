#include "tiers/segment_device.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "proto/types/check.h"
#include "proto/types/checksum.h"
#include "proto/types/kill_point.h"
#include "proto/types/safety.h"

namespace kvd {
namespace {

// Of the free segments: kept for the copies of reclaiming, or nothing could ever be won back.
constexpr uint32_t kKeepForCopies = 1;
// How long a full or read-only device is left alone.
constexpr Nanos kWritePause = kSecond;
// Of one record; the rest of EstimateReadUs() is bandwidth.
constexpr uint64_t kReadBaseUs = 60;

// All that can be said of a record by one who does not know what it should be.
bool IsWholeByItself(const std::optional<RecordHeader>& header,
                     absl::Span<const std::byte> payload) {
  return header && payload.size() == WholePages(header->info.length) &&
         Crc32c(payload) == PaddedSum(header->info.sum, header->info.length);
}

// Nobody frees it: something else may still use the memory that it names.
template <typename T>
void KeepForEver(T value) {
  static std::vector<T>& kept = *new std::vector<T>;  // Of the one thread that has tiers.
  kept.push_back(std::move(value));
}

bool MeansNoRoom(int error) { return error == ENOSPC || error == EDQUOT || error == EROFS; }

}  // namespace

SegmentDevice::SegmentDevice(NvmeDevice& device, SegmentShared& shared, const Options& options)
    : device_(device),
      shared_(shared),
      options_(options),
      table_(options.geometry),
      breaker_(options.breaker),
      writings_(options.max_records),
      jobs_(options.max_jobs),
      writing_pages_(
          std::make_unique<NvmeBuffer>(uint64_t{options.max_records} * 2 * kNvmePageBytes)),
      job_pages_(std::make_unique<NvmeBuffer>(uint64_t{options.max_jobs} * 2 * kNvmePageBytes)) {
  for (uint32_t i = options.max_records; i-- > 0;) free_writings_.push_back(i);
  for (uint32_t i = options.max_jobs; i-- > 0;) free_jobs_.push_back(i);
}

SegmentDevice::~SegmentDevice() {
  if (jobs_in_flight_ == 0) return;
  // The kernel may still read from and write to these: they stay for as long as the process lives.
  KeepForEver(std::move(writing_pages_));
  KeepForEver(std::move(job_pages_));
  for (std::unique_ptr<Log>& log : logs_) KeepForEver(std::move(log));
  for (std::unique_ptr<Log>& log : sealing_) KeepForEver(std::move(log));
  KeepForEver(std::move(copies_));
}

// --- appending -----------------------------------------------------------------------------------

std::optional<RecordPlace> SegmentDevice::Append(const RecordInfo& info,
                                                 absl::Span<std::byte> payload, uint32_t occupant,
                                                 uint64_t tag, Nanos now) {
  KVD_CHECK(occupant != 0 && info.length > 0 && payload.size() >= info.length) << info.length;
  const bool small = info.length <= kNvmePageBytes;
  const uint64_t whole = WholePages(info.length);
  KVD_CHECK(small || payload.size() >= whole) << payload.size();
  if (out() || now < write_pause_until_ || free_writings_.empty()) return std::nullopt;
  if (write_bytes_ > 0 && write_bytes_ + whole > options_.max_write_bytes) return std::nullopt;
  Log* log = LogFor(kFresh, info.length, now);
  if (log == nullptr) return std::nullopt;

  const uint32_t index = free_writings_.back();
  const absl::Span<std::byte> header_page = WritingPage(index, 0);
  absl::Span<std::byte> stored;
  if (small) {  // Slots so small are not aligned to pages.
    stored = WritingPage(index, 1);
    std::memcpy(stored.data(), payload.data(), info.length);
  } else {
    stored = payload.first(whole);
  }
  // What lies behind the payload is nobody's: media get zeros, and the sum is known without a look.
  std::memset(stored.data() + info.length, 0, stored.size() - info.length);

  const uint32_t placed =
      Place(*log, info, shared_.scopes.Epoch(info.scope), occupant, header_page);
  KVD_CHECK(placed == index);
  Writing& writing = writings_[index];
  writing.tag = tag;
  writing.begun = now;
  writing.pieces = {header_page, stored};
  ++owner_jobs_;
  const RecordPlace place = writing.place;
  Gather(*log, index, now);
  return Global(place);
}

bool SegmentDevice::Fits(const Log& log, uint32_t length) const {
  const uint64_t needed =
      uint64_t{log.next_page} + PagesOfRecord(length) + PagesOfFooter(uint64_t{log.placed} + 1) + 1;
  return needed <= options_.geometry.pages();
}

uint32_t SegmentDevice::max_payload_bytes() const {
  // A header page, the footer and the trailer go with it.
  return (options_.geometry.pages() - 3) * kNvmePageBytes;
}

bool SegmentDevice::has_room() const {
  return !out() && polled_ >= write_pause_until_ &&
         (logs_[kFresh] != nullptr || table_.count(SegmentState::kFree) > kKeepForCopies);
}

// The segment that records of this kind go to, with room for one of `length`. Null: none is free,
// or what waits for the device must go first.
SegmentDevice::Log* SegmentDevice::LogFor(LogKind kind, uint32_t length, Nanos now) {
  if (length > max_payload_bytes()) return nullptr;
  std::unique_ptr<Log>& log = logs_[kind];
  if (log != nullptr && !Fits(*log, length)) StartSealing(std::exchange(log, nullptr));
  if (log == nullptr) log = OpenLog(kind == kFresh ? kKeepForCopies : 0);
  if (log == nullptr) return nullptr;
  if (log->gathered_bytes >= options_.gather_bytes && !Flush(*log, now)) return nullptr;
  return log.get();
}

std::unique_ptr<SegmentDevice::Log> SegmentDevice::OpenLog(uint32_t keep_free) {
  TellFreed();  // The index hears of a life's end before the next one begins.
  const std::optional<uint32_t> local = table_.Open(shared_.next_incarnation, keep_free);
  if (!local) return nullptr;
  auto log = std::make_unique<Log>();
  log->local = *local;
  log->incarnation = shared_.next_incarnation++;
  if (shared_.index != nullptr) {
    const uint32_t number = SegmentNumber(options_.ordinal, *local);
    shared_.index->EraseSegment(number);
    shared_.index->PutSegment({.segment = number, .incarnation = log->incarnation});
  }
  KVD_KILL_POINT("segment.opened");
  return log;
}

uint32_t SegmentDevice::Place(Log& log, const RecordInfo& info, uint32_t epoch, uint32_t occupant,
                              absl::Span<std::byte> header_page) {
  const uint32_t index = free_writings_.back();
  free_writings_.pop_back();
  Writing& writing = writings_[index];
  writing = Writing();
  writing.occupant = occupant;
  writing.length = info.length;
  writing.place = {log.local, log.next_page};
  writing.scope_version = shared_.scopes.Needs(info.scope);
  writing.packed = PackHeader({.info = info,
                               .epoch = epoch,
                               .incarnation = log.incarnation,
                               .sequence = shared_.next_sequence++,
                               .place = Global(writing.place)});
  WriteHeaderPage(writing.packed, header_page);
  table_.Add(log.local,
             {.page = log.next_page, .length = info.length, .sum = info.sum, .occupant = occupant});
  log.next_page += PagesOfRecord(info.length);
  ++log.placed;
  if (!SafetyOn(Safety::kDataBeforeIndex) && shared_.index != nullptr) {
    shared_.index->PutRecord(Global(writing.place), writing.packed);
  }
  log.pending.push_back(index);
  KVD_KILL_POINT("record.placed");
  return index;
}

void SegmentDevice::Gather(Log& log, uint32_t writing, Nanos now) {
  const uint64_t bytes = NvmeTier::RoomOf(writings_[writing].length);
  log.gathered.push_back(writing);
  log.gathered_bytes += bytes;
  write_bytes_ += bytes;
  if (log.gathered_bytes >= options_.gather_bytes) Flush(log, now);  // Else again in Poll().
}

// Gives what was gathered to the device, as one write: it lies back to back.
bool SegmentDevice::Flush(Log& log, Nanos now) {
  if (log.gathered.empty()) return true;
  if (out()) return false;
  NvmeJob nvme_job;
  nvme_job.kind = NvmeJob::Kind::kWrite;
  nvme_job.offset =
      options_.geometry.OffsetOf(log.local, writings_[log.gathered.front()].place.page);
  for (const uint32_t i : log.gathered) {
    for (const absl::Span<std::byte> piece : writings_[i].pieces) {
      if (!piece.empty()) nvme_job.pieces.push_back(piece);
    }
  }
  Job job;
  job.kind = Job::Kind::kRecords;
  job.log = &log;
  job.writings = log.gathered;
  job.bytes = log.gathered_bytes;
  KVD_KILL_POINT("record.before_write");
  if (!Submit(std::move(nvme_job), std::move(job), now)) return false;
  for (const uint32_t i : log.gathered) writings_[i].state = Writing::State::kSubmitted;
  log.gathered.clear();
  log.gathered_bytes = 0;
  return true;
}

void SegmentDevice::RecordsEnded(const Job& job, const NvmeDone& done, Nanos now) {
  Log& log = *job.log;
  KVD_KILL_POINT("record.written");
  const bool ok = done.outcome == NvmeOutcome::kOk;
  write_bytes_ -= job.bytes;
  for (const uint32_t i : job.writings) {
    writings_[i].state = ok ? Writing::State::kWritten : Writing::State::kFailed;
    writings_[i].error = done.error;
    writings_[i].sync_needed = sync_started_ + 1;
  }
  if (ok) {
    log.sync_needed = dirty_needs_ = sync_started_ + 1;
  } else {
    if (MeansNoRoom(done.error)) write_pause_until_ = now + kWritePause;
    Break(log, done.error);
  }
  Acknowledge(log, now);
}

// Ends what has ended, in the order of the segment.
void SegmentDevice::Acknowledge(Log& log, Nanos now) {
  while (!log.pending.empty()) {
    const uint32_t index = log.pending.front();
    const Writing& front = writings_[index];
    const Front verdict = Judge(log, front);
    if (verdict == Front::kWaits) return;
    if (front.state == Writing::State::kFailed) log.refusing = true;
    log.pending.pop_front();
    if (verdict == Front::kAcknowledged) {
      AcknowledgeOne(log, front, now);
    } else {
      RefuseOne(log, front, now);
    }
    free_writings_.push_back(index);
  }
}

SegmentDevice::Front SegmentDevice::Judge(const Log& log, const Writing& front) const {
  if (front.state == Writing::State::kFailed) return Front::kRefused;
  if (front.state != Writing::State::kWritten) return Front::kWaits;
  if (log.refusing) return Front::kRefused;
  switch (shared_.scopes.StandingOf(front.scope_version)) {
    case ScopeLedger::Standing::kOnItsWay:
      return Front::kWaits;
    case ScopeLedger::Standing::kFailed:
      return Front::kRefused;
    case ScopeLedger::Standing::kDurable:
      break;
  }
  const bool durable = front.sync_needed <= sync_ok_;
  if (shared_.durability == NvmeDurability::kSync && !durable) return Front::kWaits;
  return Front::kAcknowledged;
}

void SegmentDevice::AcknowledgeOne(Log& log, const Writing& writing, Nanos now) {
  log.packed.push_back(writing.packed);
  if (shared_.index != nullptr && table_.Find(writing.place) != nullptr) {
    shared_.index->PutRecord(Global(writing.place), writing.packed);
  }
  KVD_KILL_POINT("record.acknowledged");
  if (writing.is_copy) return CopyWritten(writing, true);
  ++shared_.counters.appended_records;
  shared_.counters.appended_bytes += NvmeTier::RoomOf(writing.length);
  --owner_jobs_;
  shared_.ended.push_back({writing.tag, NvmeOutcome::kOk, 0, now - writing.begun});
}

void SegmentDevice::RefuseOne(const Log& log, const Writing& writing, Nanos now) {
  table_.Drop(writing.place);
  if (writing.is_copy) return CopyWritten(writing, false);
  ++shared_.counters.append_errors;
  --owner_jobs_;
  const int error = writing.error != 0 ? writing.error : log.error != 0 ? log.error : EIO;
  shared_.ended.push_back({writing.tag, NvmeOutcome::kError, error, now - writing.begun});
}

// Nothing more goes to this segment.
void SegmentDevice::Break(Log& log, int error) {
  if (!log.broken) ++shared_.counters.segments_bad;
  log.broken = true;
  log.error = error;
  for (const uint32_t i : log.gathered) writings_[i].state = Writing::State::kFailed;
  log.gathered.clear();
  write_bytes_ -= std::exchange(log.gathered_bytes, 0);
  for (std::unique_ptr<Log>& filling : logs_) {
    if (filling.get() == &log) return StartSealing(std::move(filling));
  }
}

// --- reading -------------------------------------------------------------------------------------

bool SegmentDevice::Read(RecordPlace place, const RecordInfo& info, absl::Span<std::byte> target,
                         Nanos deadline, uint64_t tag, Nanos now) {
  const RecordPlace local = Local(place);
  const bool small = info.length <= kNvmePageBytes;
  const uint64_t whole = WholePages(info.length);
  KVD_CHECK(target.size() >= (small ? info.length : whole)) << target.size();
  KVD_CHECK(local.segment < options_.geometry.segments &&
            uint64_t{local.page} + PagesOfRecord(info.length) < options_.geometry.pages())
      << local.segment << ":" << local.page;
  if (out() || free_jobs_.empty()) return false;
  const uint32_t index = free_jobs_.back();
  NvmeJob nvme_job;
  nvme_job.kind = NvmeJob::Kind::kRead;
  nvme_job.offset = options_.geometry.OffsetOf(local.segment, local.page);
  nvme_job.pieces.push_back(JobPage(index, 0));
  nvme_job.pieces.push_back(small ? JobPage(index, 1) : target.first(whole));
  if (SafetyOn(Safety::kChecksum) && SafetyOn(Safety::kKeyInHeader)) {
    nvme_job.sums = {kSelfSummedPage, PaddedSum(info.sum, info.length)};
  }
  nvme_job.deadline = deadline;
  Job job;
  job.kind = Job::Kind::kRead;
  job.tag = tag;
  job.place = local;
  job.info = info;
  job.incarnation = table_.at(local.segment).incarnation;
  job.target = target.first(small ? info.length : whole);
  job.bytes = whole + kNvmePageBytes;
  job.bytes_ahead = read_bytes_ + job.bytes;
  if (!Submit(std::move(nvme_job), std::move(job), now)) return false;
  table_.BeginRead(local.segment);
  read_bytes_ += whole + kNvmePageBytes;
  ++owner_jobs_;
  return true;
}

void SegmentDevice::ReadEnded(const Job& job, uint32_t index, const NvmeDone& done) {
  KVD_KILL_POINT("record.read");
  table_.EndRead(job.place.segment);
  read_bytes_ -= job.bytes;
  --owner_jobs_;
  NvmeTierCounters& counters = shared_.counters;
  NvmeOutcome outcome = done.outcome;
  if (outcome == NvmeOutcome::kOk) {
    // The device's thread took the sums; what the header says is compared here. Of the right
    // segment, page and life, with the right part in it, it is the record that was asked for.
    const std::optional<RecordHeader> header = UnpackHeader(JobPage(index, 0));
    const RecordInfo& info = job.info;
    const bool right = header && header->place == Global(job.place) &&
                       header->incarnation == job.incarnation && header->info.scope == info.scope &&
                       header->info.key == info.key && header->info.id == info.id &&
                       header->info.length == info.length && header->info.sum == info.sum &&
                       header->info.has_parent == info.has_parent &&
                       header->info.parent == info.parent && header->info.depth == info.depth;
    const bool small = job.info.length <= kNvmePageBytes;
    const bool good = SafetyOn(Safety::kKeyInHeader)
                          ? right
                          : IsWholeByItself(header, small ? JobPage(index, 1) : job.target);
    if (!good) outcome = NvmeOutcome::kCorrupt;
  }
  switch (outcome) {
    case NvmeOutcome::kOk:
      ++counters.read_records;
      counters.read_bytes += job.info.length;
      if (job.info.length <= kNvmePageBytes) {
        std::memcpy(job.target.data(), JobPage(index, 1).data(), job.target.size());
      }
      if (done.took > 0) {
        const double rate = static_cast<double>(job.bytes_ahead) * 1000.0 / done.took;
        read_bytes_per_us_ += (rate - read_bytes_per_us_) / 8;
      }
      break;
    case NvmeOutcome::kCorrupt:
      ++counters.reads_corrupt;
      break;
    case NvmeOutcome::kExpired:
      ++counters.reads_expired;
      break;
    case NvmeOutcome::kError:
      ++counters.read_errors;
      break;
  }
  shared_.ended.push_back({job.tag, outcome, done.error, done.took});
}

uint64_t SegmentDevice::EstimateReadUs(uint64_t bytes) const {
  return kReadBaseUs +
         static_cast<uint64_t>(static_cast<double>(read_bytes_ + bytes) / read_bytes_per_us_);
}

void SegmentDevice::Drop(RecordPlace place) {
  if (table_.Drop(Local(place)) && shared_.index != nullptr) shared_.index->EraseRecord(place);
  KVD_KILL_POINT("record.dropped");
}

// --- turns ---------------------------------------------------------------------------------------

bool SegmentDevice::Submit(NvmeJob nvme_job, Job job, Nanos now) {
  if (free_jobs_.empty()) return false;
  const uint32_t index = free_jobs_.back();
  nvme_job.tag = index;
  if (!device_.Submit(std::move(nvme_job))) return false;
  free_jobs_.pop_back();
  jobs_[index] = std::move(job);
  breaker_.Began(++jobs_in_flight_, now);
  return true;
}

void SegmentDevice::Ended(const NvmeDone& done, Nanos now) {
  const auto index = static_cast<uint32_t>(done.tag);
  const Job job = std::move(jobs_[index]);
  --jobs_in_flight_;
  const bool failed = done.outcome == NvmeOutcome::kError && !MeansNoRoom(done.error);
  if (done.outcome != NvmeOutcome::kExpired) breaker_.Ended(!failed, now);
  switch (job.kind) {
    case Job::Kind::kRecords:
      RecordsEnded(job, done, now);
      break;
    case Job::Kind::kRead:
      ReadEnded(job, index, done);
      break;
    case Job::Kind::kFooter:
    case Job::Kind::kTrailer:
      SealPieceEnded(*job.log, job.kind, done);
      break;
    case Job::Kind::kSync:
      SyncEnded(done, now);
      break;
    case Job::Kind::kCopyRead:
      CopyRead(job, done);
      break;
    case Job::Kind::kProbe:
      probing_ = false;
      breaker_.ProbeEnded(!failed, now);
      break;
  }
  free_jobs_.push_back(index);
}

void SegmentDevice::Poll(Nanos now) {
  polled_ = now;
  breaker_.Check(jobs_in_flight_, now);
  shared_.counters.breaker_changes +=
      breaker_.changes() - std::exchange(told_changes_, breaker_.changes());
  for (const std::unique_ptr<Log>& log : logs_) {
    if (log == nullptr) continue;
    Flush(*log, now);
    Acknowledge(*log, now);
  }
  AdvanceSeals(now);
  if (out()) {
    Probe(now);
  } else {
    if (!closing_ || reclaim_) AdvanceReclaim(now);
    MaybeSync(now);
  }
  ReleaseDrained();
  TellFreed();
}

void SegmentDevice::Probe(Nanos now) {
  if (probing_ || now < breaker_.ProbeAt() || free_jobs_.empty()) return;
  NvmeJob nvme_job;
  nvme_job.kind = NvmeJob::Kind::kRead;
  nvme_job.offset = 0;
  nvme_job.pieces.push_back(JobPage(free_jobs_.back(), 0));
  breaker_.ProbeBegan(now);
  probing_ = Submit(std::move(nvme_job), Job(), now);
}

Nanos SegmentDevice::NextDeadline() const {
  if (out()) return probing_ ? INT64_MAX : breaker_.ProbeAt();
  for (const std::unique_ptr<Log>& log : logs_) {
    if (log != nullptr && !log->gathered.empty() && jobs_in_flight_ == 0) return 0;
  }
  Nanos next = SyncAt();
  if (polled_ < write_pause_until_) next = std::min(next, write_pause_until_);
  if (jobs_in_flight_ > 0) next = std::min(next, breaker_.CheckAt());
  return next;
}

bool SegmentDevice::quiet() const {
  return jobs_in_flight_ == 0 && logs_[kFresh] == nullptr && logs_[kCopied] == nullptr &&
         sealing_.empty();
}

}  // namespace kvd
