#include "tiers/recovery.h"

#include <algorithm>
#include <deque>
#include <memory>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "proto/types/check.h"
#include "proto/types/checksum.h"
#include "proto/types/safety.h"
#include "tiers/nvme_buffer.h"

namespace kvd {
namespace {

// Of a segment of records this small several headers are read at once.
constexpr uint32_t kSmallRecordPages = 16;
constexpr uint32_t kSmallRecordsReadPages = 32;
constexpr uint32_t kRowsBetweenFlushes = 16384;

enum class Source : uint8_t { kIndex, kFooter, kHeader };

struct Found {
  RecordHeader header;
  Source source = Source::kHeader;
};

// One segment while it is looked at.
struct Scan {
  enum class Step : uint8_t { kFirst, kTrailer, kFooter, kHeaders, kVerify, kOver };

  uint32_t device = 0;  // Position among the devices.
  uint32_t local = 0;
  uint32_t number = 0;
  Step step = Step::kFirst;
  std::optional<RecordHeader> first;
  std::optional<SegmentTrailer> trailer;
  std::optional<SegmentRow> row;
  uint64_t incarnation = 0;  // Of the life that is being looked for.
  bool trusted = false;      // The index's rows are taken.
  bool distrusted = false;   // They were, and one of them was wrong.
  bool freed = false;        // The index says that nothing of it is wanted.
  bool footer_damaged = false;
  // Headers that were said to be somewhere, and are believed once they were seen there.
  std::vector<RecordHeader> candidates;
  size_t next_candidate = 0;
  std::vector<Found> found;
  uint32_t next_page = 0;  // Where the next header would be.
  uint64_t last_sequence = 0;
  // The read under way.
  NvmeBuffer buffer;
  uint32_t read_page = 0;
  uint32_t read_pages = 0;
};

class Recoverer {
 public:
  Recoverer(const RecoveryInput& input, RecoveryReport& report) : input_(input), report_(report) {
    for (uint32_t d = 0; d < input.devices.size(); ++d) {
      first_scan_.push_back(static_cast<uint32_t>(scans_.size()));
      const RecoveryDevice& device = input.devices[d];
      for (uint32_t local = 0; local < device.geometry.segments; ++local) {
        Scan scan;
        scan.device = d;
        scan.local = local;
        scan.number = SegmentNumber(device.ordinal, local);
        scans_.push_back(std::move(scan));
      }
    }
  }

  Recovered Run() {
    RunScans([](const Scan&) { return true; });  // The ends of all.
    LoadIndex();
    for (Scan& scan : scans_) Plan(scan);
    RunScans([](const Scan& scan) { return scan.step != Scan::Step::kOver; });
    return Judge();
  }

 private:
  const SegmentGeometry& GeometryOf(const Scan& scan) const {
    return input_.devices[scan.device].geometry;
  }
  Scan* ScanOf(uint32_t number);

  // --- reading, many segments at once ---------------------------------------------------------
  template <typename Wanted>
  void RunScans(Wanted wanted);
  bool Submit(uint32_t index);
  void Await(std::vector<uint32_t>& over);

  // --- what was read --------------------------------------------------------------------------
  void Ask(Scan& scan, uint32_t page, uint32_t pages) {
    scan.read_page = page;
    scan.read_pages = pages;
  }
  void Advance(Scan& scan, bool read);
  void TakeTrailer(Scan& scan, bool read);
  void TakeFooter(Scan& scan, bool read);
  void TakeHeaders(Scan& scan, bool read);
  void TakeCandidate(Scan& scan, bool read);
  void Accept(Scan& scan, const RecordHeader& header, Source source);
  bool Fits(const Scan& scan, const RecordHeader& header) const {
    return Follows(header, scan.number, scan.incarnation, scan.next_page, scan.last_sequence,
                   GeometryOf(scan).pages());
  }

  // --- the index ------------------------------------------------------------------------------
  void LoadIndex();
  void SeeSegmentRow(const SegmentRow& row);
  void SeeRecordRow(RecordPlace place, const RecordHeader& header);
  void Plan(Scan& scan);
  void StartHeaders(Scan& scan);
  void StartVerify(Scan& scan);

  Recovered Judge();
  bool Lives(const RecordHeader& header);
  bool IsWhole(const RecoveredRecord& record);

  const RecoveryInput& input_;
  RecoveryReport& report_;
  std::vector<Scan> scans_;
  std::vector<uint32_t> first_scan_;  // Of each device.
  std::vector<bool> read_ok_ = {};
  uint64_t bytes_in_flight_ = 0;
  uint32_t in_flight_ = 0;
};

Scan* Recoverer::ScanOf(uint32_t number) {
  for (uint32_t d = 0; d < input_.devices.size(); ++d) {
    const RecoveryDevice& device = input_.devices[d];
    if (device.ordinal == OrdinalOf(number) && LocalSegment(number) < device.geometry.segments) {
      return &scans_[first_scan_[d] + LocalSegment(number)];
    }
  }
  return nullptr;
}

// Starts the scans that are wanted, in order, so many of each device at a time, and runs each until
// it wants no more reads.
template <typename Wanted>
void Recoverer::RunScans(Wanted wanted) {
  std::vector<std::deque<uint32_t>> waiting(input_.devices.size());
  std::vector<uint32_t> running(input_.devices.size());
  for (uint32_t i = 0; i < scans_.size(); ++i) {
    if (!wanted(scans_[i])) continue;
    if (scans_[i].step == Scan::Step::kFirst) Ask(scans_[i], 0, 1);
    waiting[scans_[i].device].push_back(i);
  }
  std::deque<uint32_t> again;  // Run, and want their next read.
  std::vector<uint32_t> over;
  while (true) {
    while (!again.empty() && Submit(again.front())) again.pop_front();
    bool left = !again.empty();
    for (uint32_t d = 0; d < waiting.size(); ++d) {
      while (again.empty() && !waiting[d].empty() && running[d] < input_.segments_at_a_time &&
             Submit(waiting[d].front())) {
        waiting[d].pop_front();
        ++running[d];
      }
      left = left || !waiting[d].empty();
    }
    if (in_flight_ == 0) {
      KVD_CHECK(!left) << "a device takes no read though none is in flight";
      return;
    }
    over.clear();
    Await(over);
    for (const uint32_t i : over) {
      Scan& scan = scans_[i];
      Advance(scan, read_ok_[i]);
      if (scan.read_pages > 0) {
        again.push_back(i);
      } else {
        scan.buffer = NvmeBuffer();
        --running[scan.device];
      }
    }
  }
}

bool Recoverer::Submit(uint32_t index) {
  Scan& scan = scans_[index];
  const uint64_t bytes = uint64_t{scan.read_pages} * kNvmePageBytes;
  if (in_flight_ > 0 && bytes_in_flight_ + bytes > input_.bytes_in_flight) return false;
  if (scan.buffer.size() < bytes) scan.buffer = NvmeBuffer(bytes);
  NvmeJob job;
  job.kind = NvmeJob::Kind::kRead;
  job.offset = GeometryOf(scan).OffsetOf(scan.local, scan.read_page);
  job.pieces.push_back(scan.buffer.span(0, bytes));
  job.tag = index;
  if (!input_.devices[scan.device].device->Submit(std::move(job))) return false;
  bytes_in_flight_ += bytes;
  ++in_flight_;
  return true;
}

void Recoverer::Await(std::vector<uint32_t>& over) {
  read_ok_.resize(scans_.size());
  NvmeCompletions::Batch batch;
  input_.completions->Take(batch);
  while (batch.empty()) {
    if (input_.pump) {
      input_.pump();
    } else {
      input_.completions->Wait(absl::Seconds(1));
    }
    input_.completions->Take(batch);
  }
  for (const NvmeCompletions::Entry& entry : batch.entries) {
    const auto index = static_cast<uint32_t>(entry.done.tag);
    read_ok_[index] = entry.done.outcome == NvmeOutcome::kOk;
    if (!read_ok_[index]) ++report_.read_errors;
    bytes_in_flight_ -= uint64_t{scans_[index].read_pages} * kNvmePageBytes;
    --in_flight_;
    over.push_back(index);
  }
}

// Takes what was read and says what to read next, if anything (read_pages).
void Recoverer::Advance(Scan& scan, bool read) {
  switch (scan.step) {
    case Scan::Step::kFirst:
      if (read) scan.first = ReadHeaderPage(scan.buffer.span(0, kNvmePageBytes));
      if (scan.first && scan.first->place != RecordPlace{scan.number, 0}) scan.first.reset();
      scan.step = Scan::Step::kTrailer;
      return Ask(scan, GeometryOf(scan).pages() - 1, 1);
    case Scan::Step::kTrailer:
      return TakeTrailer(scan, read);
    case Scan::Step::kFooter:
      return TakeFooter(scan, read);
    case Scan::Step::kHeaders:
      return TakeHeaders(scan, read);
    case Scan::Step::kVerify:
      return TakeCandidate(scan, read);
    case Scan::Step::kOver:
      KVD_CHECK(false) << "a read of a scan that is over";
  }
}

void Recoverer::TakeTrailer(Scan& scan, bool read) {
  if (read) {
    scan.trailer = ReadTrailer(scan.buffer.span(0, kNvmePageBytes), GeometryOf(scan).pages());
  }
  if (scan.trailer && scan.trailer->segment != scan.number) scan.trailer.reset();
  Ask(scan, 0, 0);  // The index is asked before anything else is read.
}

void Recoverer::LoadIndex() {
  if (input_.index == nullptr) return;
  const absl::Status status = input_.index->Load(
      {.segment = [this](const SegmentRow& row) { SeeSegmentRow(row); },
       .record = [this](RecordPlace place,
                        const RecordHeader& header) { SeeRecordRow(place, header); },
       .damaged = [this] { ++report_.damaged_rows; }});
  if (status.ok()) return;
  report_.index_damaged = true;
  for (Scan& scan : scans_) {
    scan.row.reset();
    scan.trusted = false;
    scan.candidates.clear();
    scan.found.clear();
  }
  (void)input_.index->Reset();  // An index that cannot be reset takes no rows; Flush() says so.
}

void Recoverer::SeeSegmentRow(const SegmentRow& row) {
  Scan* scan = ScanOf(row.segment);
  if (scan == nullptr) {
    ++report_.damaged_rows;
    return;
  }
  scan->row = row;
  // The first header tells the life that is on the medium now, the trailer that it ended whole.
  const bool same_life = scan->first && scan->first->incarnation == row.incarnation;
  const bool same_end = row.has_trailer
                            ? scan->trailer && scan->trailer->incarnation == row.incarnation
                            : !scan->trailer || scan->trailer->incarnation < row.incarnation;
  scan->trusted = (row.sealed && same_life && same_end) || !SafetyOn(Safety::kDataBeforeIndex);
  scan->freed = row.freed && same_life;
  scan->incarnation = row.incarnation;
}

void Recoverer::SeeRecordRow(RecordPlace place, const RecordHeader& header) {
  Scan* scan = ScanOf(place.segment);
  if (scan == nullptr || header.place != place) {
    ++report_.damaged_rows;
    if (scan != nullptr) scan->distrusted = true;
    return;
  }
  if (!scan->row || header.incarnation != scan->row->incarnation) return;  // Of an earlier life.
  if (scan->trusted && Fits(*scan, header)) {
    Accept(*scan, header, Source::kIndex);
  } else if (scan->trusted) {
    ++report_.damaged_rows;
    scan->distrusted = true;
  } else {
    scan->candidates.push_back(header);
  }
}

// Decides how a segment is read, now that the index was heard.
void Recoverer::Plan(Scan& scan) {
  if (scan.freed || (scan.trusted && !scan.distrusted)) {
    scan.step = Scan::Step::kOver;
    return;
  }
  if (scan.trusted) {  // Some of its rows are wrong: none is believed without looking.
    for (const Found& found : scan.found) scan.candidates.push_back(found.header);
    scan.found.clear();
    scan.trusted = false;
  }
  scan.next_page = 0;
  scan.last_sequence = 0;
  // A trailer of another life than the first header's was left by an earlier one.
  const bool whole =
      scan.trailer && (!scan.first || scan.first->incarnation == scan.trailer->incarnation);
  if (scan.first) scan.incarnation = scan.first->incarnation;
  if (whole) {
    scan.incarnation = scan.trailer->incarnation;
    scan.step = Scan::Step::kFooter;
    return Ask(scan, scan.trailer->footer_page, PagesOfFooter(scan.trailer->records));
  }
  scan.trailer.reset();
  if (scan.first) return StartHeaders(scan);
  StartVerify(scan);
}

void Recoverer::TakeFooter(Scan& scan, bool read) {
  const uint64_t bytes = uint64_t{scan.trailer->records} * kPackedHeaderBytes;
  const absl::Span<const std::byte> footer = scan.buffer.span(0, bytes);
  if (!read || Crc32c(footer) != scan.trailer->footer_sum) {
    scan.footer_damaged = true;
    ++report_.footers_damaged;
    scan.trailer.reset();
    return scan.first ? StartHeaders(scan) : StartVerify(scan);
  }
  std::vector<RecordHeader> headers;
  for (uint64_t at = 0; at < bytes; at += kPackedHeaderBytes) {
    const std::optional<RecordHeader> header = UnpackHeader(footer.subspan(at));
    if (header) headers.push_back(*header);
  }
  scan.candidates.clear();  // The footer has them all.
  if (!scan.first) {
    // The first header is damaged, or a new life has just begun over it: see what is still there.
    scan.candidates = std::move(headers);
    return StartVerify(scan);
  }
  for (const RecordHeader& header : headers) {
    if (Fits(scan, header)) Accept(scan, header, Source::kFooter);
  }
  scan.step = Scan::Step::kOver;
  Ask(scan, 0, 0);
}

void Recoverer::StartHeaders(Scan& scan) {
  scan.step = Scan::Step::kHeaders;
  Accept(scan, *scan.first, Source::kHeader);
  const bool small = scan.next_page <= kSmallRecordPages;
  const uint32_t left = GeometryOf(scan).pages() - 1 - scan.next_page;
  if (left == 0) return StartVerify(scan);
  Ask(scan, scan.next_page, small ? std::min(left, kSmallRecordsReadPages) : 1);
}

void Recoverer::TakeHeaders(Scan& scan, bool read) {
  const uint32_t end = scan.read_page + scan.read_pages;
  const uint32_t pages = GeometryOf(scan).pages();
  bool more = read;
  uint32_t record_pages = 0;
  while (more && scan.next_page < end && scan.next_page + 1 < pages) {
    const uint64_t at = uint64_t{scan.next_page - scan.read_page} * kNvmePageBytes;
    const std::optional<RecordHeader> header = ReadHeaderPage(scan.buffer.span(at, kNvmePageBytes));
    more = header && header->place.page == scan.next_page && Fits(scan, *header);
    if (!more) break;
    record_pages = PagesOfRecord(header->info.length);
    Accept(scan, *header, Source::kHeader);
  }
  const uint32_t left = pages - 1 - std::min(scan.next_page, pages - 1);
  if (!more || left == 0) return StartVerify(scan);
  Ask(scan, scan.next_page,
      record_pages <= kSmallRecordPages ? std::min(left, kSmallRecordsReadPages) : 1);
}

// Looks at the places that others named and the walk did not reach, one after the other.
void Recoverer::StartVerify(Scan& scan) {
  scan.step = Scan::Step::kVerify;
  while (scan.next_candidate < scan.candidates.size()) {
    const RecordHeader& header = scan.candidates[scan.next_candidate];
    if (Fits(scan, header)) return Ask(scan, header.place.page, 1);
    // Those that the walk has seen already lie before its end.
    if (header.place.page >= scan.next_page) ++report_.rows_without_data;
    ++scan.next_candidate;
  }
  scan.candidates = {};
  scan.step = Scan::Step::kOver;
  Ask(scan, 0, 0);
}

void Recoverer::TakeCandidate(Scan& scan, bool read) {
  const RecordHeader& said = scan.candidates[scan.next_candidate++];
  std::optional<RecordHeader> header;
  if (read) header = ReadHeaderPage(scan.buffer.span(0, kNvmePageBytes));
  if (header && PackHeader(*header) == PackHeader(said)) {
    Accept(scan, *header, Source::kHeader);
  } else {
    ++report_.rows_without_data;
  }
  StartVerify(scan);
}

void Recoverer::Accept(Scan& scan, const RecordHeader& header, Source source) {
  scan.found.push_back({header, source});
  scan.next_page = header.place.page + PagesOfRecord(header.info.length);
  scan.last_sequence = header.sequence;
}

bool Recoverer::Lives(const RecordHeader& header) {
  const ScopeNumber scope = header.info.scope;
  if (scope == 0 || scope > input_.scopes.size()) {
    ++report_.of_unknown_scope;
    return false;
  }
  if (header.epoch != input_.scopes[scope - 1].epoch && SafetyOn(Safety::kEpoch)) {
    ++report_.of_dead_epoch;
    return false;
  }
  return true;
}

// Whether two records are copies of one part; by their position in the list.
struct SamePart {
  const std::vector<RecoveredRecord>* records;
  bool operator()(uint32_t a, uint32_t b) const {
    const RecordInfo& x = (*records)[a].info;
    const RecordInfo& y = (*records)[b].info;
    return x.key == y.key && x.scope == y.scope && x.id == y.id;
  }
};
struct HashPart {
  const std::vector<RecoveredRecord>* records;
  size_t operator()(uint32_t i) const {
    const RecordInfo& info = (*records)[i].info;
    const std::string_view key(reinterpret_cast<const char*>(info.key.bytes.data()),
                               info.key.bytes.size());
    return absl::HashOf(key, info.scope, info.id.group, info.id.shard);
  }
};

bool SameBytes(const RecordInfo& a, const RecordInfo& b) {
  return a.generation == b.generation && a.length == b.length && a.sum == b.sum;
}

// Of two records of one part one stays, by their place in `dead`. A copy that reclaiming made gives
// way to its original: what was being filled at a crash is empty then, and not one more segment
// that is half full, of which some crashes would leave no room to copy to. Of bytes that were
// stored anew the later stay. `whole` says whether all of a record is there: a power loss may leave
// the header of one that was on its way, or half of what was about to be overwritten.
template <typename Whole>
void KeepOneOfEach(const std::vector<RecoveredRecord>& records, std::vector<bool>& dead,
                   Whole whole) {
  absl::flat_hash_set<uint32_t, HashPart, SamePart> seen(0, HashPart{&records}, SamePart{&records});
  seen.reserve(records.size());
  for (uint32_t i = 0; i < records.size(); ++i) {
    const auto [other, is_new] = seen.insert(i);
    if (is_new) continue;
    const bool copy = SameBytes(records[*other].info, records[i].info);
    const bool other_first = records[*other].sequence < records[i].sequence;
    const uint32_t wanted = copy == other_first ? *other : i;
    const uint32_t spare = wanted == i ? *other : i;
    const uint32_t loser = whole(wanted) ? spare : wanted;
    dead[loser] = true;
    if (loser == i) continue;
    seen.erase(other);
    seen.insert(i);
  }
}

bool Recoverer::IsWhole(const RecoveredRecord& record) {
  const Scan& scan = *ScanOf(record.place.segment);
  const NvmeBuffer bytes(NvmeTier::RoomOf(record.info.length));
  const absl::Status read = input_.devices[scan.device].device->ReadNow(
      GeometryOf(scan).OffsetOf(scan.local, record.place.page), bytes.span());
  if (!read.ok()) return false;
  const std::optional<RecordHeader> header = ReadHeaderPage(bytes.span(0, kNvmePageBytes));
  const absl::Span<const std::byte> payload = bytes.span().subspan(kNvmePageBytes);
  return header && header->place == record.place && header->sequence == record.sequence &&
         Crc32c(payload) == PaddedSum(record.info.sum, record.info.length);
}

Recovered Recoverer::Judge() {
  Recovered recovered;
  std::vector<Source> sources;
  size_t total = 0;
  for (const Scan& scan : scans_) total += scan.found.size();
  recovered.records.reserve(total);
  sources.reserve(total);
  for (Scan& scan : scans_) {
    if (scan.found.empty()) {
      ++report_.segments_empty;
      continue;
    }
    recovered.segments.push_back({.segment = scan.number,
                                  .incarnation = scan.incarnation,
                                  .has_trailer = scan.trailer.has_value(),
                                  .indexed = scan.trusted});
    ++(scan.trusted   ? report_.segments_from_index
       : scan.trailer ? report_.segments_from_footers
                      : report_.segments_from_headers);
    for (const Found& found : scan.found) {
      if (!Lives(found.header)) continue;
      recovered.records.push_back({found.header.info, found.header.place, found.header.sequence});
      sources.push_back(found.source);
    }
    scan.found = {};
  }
  std::vector<bool> dead(recovered.records.size());
  KeepOneOfEach(recovered.records, dead, [&](uint32_t i) {
    const bool whole = !SafetyOn(Safety::kDataBeforeIndex) || IsWhole(recovered.records[i]);
    report_.damaged_records += !whole;
    return whole;
  });
  size_t kept = 0;
  for (size_t i = 0; i < recovered.records.size(); ++i) {
    if (dead[i]) {
      ++report_.duplicates;
      continue;
    }
    ++(sources[i] == Source::kIndex    ? report_.from_index
       : sources[i] == Source::kFooter ? report_.from_footers
                                       : report_.from_headers);
    if (kept != i) recovered.records[kept] = recovered.records[i];
    ++kept;
  }
  recovered.records.resize(kept);
  report_.records = kept;
  return recovered;
}

}  // namespace

Recovered Recover(const RecoveryInput& input, RecoveryReport& report) {
  return Recoverer(input, report).Run();
}

absl::Status RepairIndex(RecordIndex& index, absl::Span<const StoredScope> scopes,
                         const Recovered& recovered) {
  uint32_t rows = 0;
  size_t next = 0;
  for (const RecoveredSegment& segment : recovered.segments) {
    size_t end = next;
    while (end < recovered.records.size() &&
           recovered.records[end].place.segment == segment.segment) {
      ++end;
    }
    const size_t begin = std::exchange(next, end);
    if (segment.indexed) continue;
    index.EraseSegment(segment.segment);
    for (size_t i = begin; i < end; ++i) {
      const RecoveredRecord& record = recovered.records[i];
      index.PutRecord(record.place, PackHeader({.info = record.info,
                                                .epoch = scopes[record.info.scope - 1].epoch,
                                                .incarnation = segment.incarnation,
                                                .sequence = record.sequence,
                                                .place = record.place}));
      if (++rows % kRowsBetweenFlushes != 0) continue;
      const absl::Status status = index.Flush();
      if (!status.ok()) return status;
    }
    index.PutSegment({.segment = segment.segment,
                      .incarnation = segment.incarnation,
                      .sealed = true,
                      .has_trailer = segment.has_trailer});
  }
  return rows > 0 ? index.Flush() : absl::OkStatus();
}

}  // namespace kvd
