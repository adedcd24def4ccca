// What a start costs beside its device: a tier of a million records with its index, after a clean
// end and after a kill; and rebuilding the index, from footers and from headers alone.
//
// Recovery reads no payload, so there is none. With footers the device is in memory and has only
// the pages that were written: the disk's part of a start (two pages and a footer for each segment)
// is not in the figures. From headers the disk is all there is to it, so there it is a file. The
// index is on a disk.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "bench/micro_run.h"
#include "bench/uring_floor.h"
#include "proto/types/check.h"
#include "proto/types/checksum.h"
#include "proto/types/status.h"
#include "tiers/device_file.h"
#include "tiers/nvme_buffer.h"
#include "tiers/open_device.h"
#include "tiers/rocks_index.h"
#include "tiers/segment_tier.h"
#include "tiers/superblock.h"

namespace kvd {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kSegmentBytes = 64u << 20;
constexpr uint32_t kSegmentPages = kSegmentBytes / kNvmePageBytes;
constexpr uint32_t kEntries = 1'000'000;
constexpr uint32_t kEntryPages = 16;
// Of the device whose headers are walked. Records are so large that each header is a read of its
// own: of smaller ones recovery reads several at once.
constexpr uint64_t kWalkedSegmentBytes = 8u << 20;
constexpr uint32_t kWalkedSegments = 248;
constexpr uint32_t kWalkedPages = 18;
constexpr uint32_t kWalkedDepths[] = {16, 32, 64, 128};  // Of the bare loop.

class NoOwner final : public NvmeTier::Owner {
  void NvmeEnded(const NvmeTier::Completion&) override {}
  void NvmeMoved(uint32_t, RecordPlace) override {}
  void NvmeLost(uint32_t, NvmeOutcome) override {}
};

// A folder on a disk, where /tmp may be memory; removed with it.
class DiskFolder {
 public:
  DiskFolder() {
    path_ = "/var/tmp/kvd-bench-recovery-XXXXXX";
    made_ = mkdtemp(path_.data()) != nullptr;
  }
  ~DiskFolder() {
    std::error_code error;
    if (made_) fs::remove_all(path_, error);
  }
  bool made() const { return made_; }
  std::string operator/(const char* name) const { return absl::StrCat(path_, "/", name); }

 private:
  std::string path_;
  bool made_ = false;
};

// A device of which only the pages that were written take room; the others are zeros.
class SparseDevice final : public NvmeDevice {
 public:
  explicit SparseDevice(uint64_t bytes) : bytes_(bytes) {}

  void SetSink(Sink sink) override { sink_ = std::move(sink); }
  bool Submit(NvmeJob job) override {
    uint64_t offset = job.offset;
    for (const absl::Span<std::byte> piece : job.pieces) {
      if (job.kind == NvmeJob::Kind::kWrite) Write(offset, piece);
      if (job.kind == NvmeJob::Kind::kRead) Read(offset, piece);
      offset += piece.size();
    }
    sink_({.tag = job.tag});
    return true;
  }
  uint64_t size_bytes() const override { return bytes_; }
  std::string_view name() const override { return "sparse"; }
  std::string_view engine() const override { return "memory"; }
  absl::Status ReadNow(uint64_t offset, absl::Span<std::byte> bytes) override {
    Read(offset, bytes);
    return absl::OkStatus();
  }
  absl::Status WriteNow(uint64_t offset, absl::Span<const std::byte> bytes) override {
    Write(offset, bytes);
    return absl::OkStatus();
  }
  absl::Status SyncNow() override { return absl::OkStatus(); }

 private:
  using Page = std::array<std::byte, kNvmePageBytes>;

  void Read(uint64_t offset, absl::Span<std::byte> bytes) const {
    for (size_t at = 0; at < bytes.size(); at += kNvmePageBytes) {
      const auto page = pages_.find((offset + at) / kNvmePageBytes);
      if (page == pages_.end()) {
        std::memset(bytes.data() + at, 0, kNvmePageBytes);
      } else {
        std::memcpy(bytes.data() + at, page->second->data(), kNvmePageBytes);
      }
    }
  }
  void Write(uint64_t offset, absl::Span<const std::byte> bytes) {
    for (size_t at = 0; at < bytes.size(); at += kNvmePageBytes) {
      std::unique_ptr<Page>& page = pages_[(offset + at) / kNvmePageBytes];
      if (page == nullptr) page = std::make_unique<Page>();
      std::memcpy(page->data(), bytes.data() + at,
                  std::min<size_t>(kNvmePageBytes, bytes.size() - at));
    }
  }

  const uint64_t bytes_;
  Sink sink_;
  absl::flat_hash_map<uint64_t, std::unique_ptr<Page>> pages_;
};

// Writes a device as the tier would have left it.
class MediaWriter {
 public:
  MediaWriter(uint32_t records, uint32_t record_pages)
      : record_pages_(record_pages), records_(records) {
    per_segment_ = (kSegmentPages - 1) / record_pages;
    while (per_segment_ * record_pages + PagesOfFooter(per_segment_) + 1 > kSegmentPages) {
      --per_segment_;
    }
    segments_ = (records + per_segment_ - 1) / per_segment_;
  }

  uint64_t device_bytes() const { return kSuperblockBytes + (segments_ + 8) * kSegmentBytes; }

  std::unique_ptr<SparseDevice> Write() {
    device_ = std::make_unique<SparseDevice>(device_bytes());
    absl::Status status = WriteSuperblock();
    for (uint32_t segment = 0; segment < segments_; ++segment) status.Update(WriteSegment(segment));
    KVD_CHECK(status.ok()) << status;
    return std::move(device_);
  }

 private:
  absl::Status Put(uint64_t offset, absl::Span<const std::byte> bytes) const {
    return device_->WriteNow(offset, bytes);
  }
  absl::Status WriteSuperblock() const {
    const std::string encoded = *EncodeSuperblock({.set = {1},
                                                   .segment_bytes = kSegmentBytes,
                                                   .generation = 1,
                                                   .run = 1,
                                                   .scopes = {{"bench", "bench", 1}}});
    return Put(0, {reinterpret_cast<const std::byte*>(encoded.data()), encoded.size()});
  }
  absl::Status WriteSegment(uint32_t segment) {
    std::vector<PackedHeader> footer;
    NvmeBuffer page(kNvmePageBytes);
    const uint64_t start = kSuperblockBytes + segment * kSegmentBytes;
    const uint64_t first = sequence_ + 1;
    for (uint32_t i = 0; i < per_segment_ && sequence_ < records_; ++i) {
      RecordHeader header;
      ++sequence_;
      header.info.scope = 1;
      std::memcpy(header.info.key.bytes.data(), &sequence_, sizeof(sequence_));
      header.info.length = (record_pages_ - 1) * kNvmePageBytes;
      header.epoch = 1;
      header.incarnation = segment + 1;
      header.sequence = sequence_;
      header.place = {segment, i * record_pages_};
      footer.push_back(PackHeader(header));
      if (i > 0) continue;  // Nobody looks at the others.
      WriteHeaderPage(footer.back(), page.span());
      const absl::Status put =
          Put(start + i * record_pages_ * uint64_t{kNvmePageBytes}, page.span());
      if (!put.ok()) return put;
    }
    const uint32_t footer_page = static_cast<uint32_t>(footer.size()) * record_pages_;
    const auto bytes = absl::MakeConstSpan(reinterpret_cast<const std::byte*>(footer.data()),
                                           footer.size() * kPackedHeaderBytes);
    const absl::Status put = Put(start + footer_page * uint64_t{kNvmePageBytes}, bytes);
    if (!put.ok()) return put;
    WriteTrailer({.segment = segment,
                  .incarnation = segment + 1,
                  .records = static_cast<uint32_t>(footer.size()),
                  .footer_page = footer_page,
                  .footer_sum = Crc32c(bytes),
                  .first_sequence = first,
                  .last_sequence = sequence_},
                 page.span());
    return Put(start + (kSegmentPages - 1) * uint64_t{kNvmePageBytes}, page.span());
  }

  const uint32_t record_pages_;
  const uint32_t records_;
  uint32_t per_segment_ = 0;
  uint32_t segments_ = 0;
  uint64_t sequence_ = 0;
  std::unique_ptr<SparseDevice> device_;
};

// Segments in a file that nobody ended: headers and nothing else, each a page.
class WalkedMedia {
 public:
  static constexpr uint64_t kDeviceBytes = kSuperblockBytes + kWalkedSegments * kWalkedSegmentBytes;

  absl::Status Write(const std::string& path) {
    absl::StatusOr<std::shared_ptr<const DeviceFile>> file = DeviceFile::Open(path, kDeviceBytes);
    if (!file.ok()) return file.status();
    if (!(*file)->notes().empty()) return absl::UnavailableError((*file)->notes().front());
    NvmeBuffer page(kNvmePageBytes);
    const std::string superblock = *EncodeSuperblock({.set = {1},
                                                      .segment_bytes = kWalkedSegmentBytes,
                                                      .generation = 1,
                                                      .run = 1,
                                                      .scopes = {{"bench", "bench", 1}}});
    KVD_CHECK(superblock.size() <= page.size()) << superblock.size();
    std::memset(page.span().data(), 0, page.size());
    std::memcpy(page.span().data(), superblock.data(), superblock.size());
    absl::Status status = (*file)->WriteNow(0, page.span());
    for (uint32_t segment = 0; segment < kWalkedSegments && status.ok(); ++segment) {
      status = WriteSegment(**file, segment, page);
    }
    return status;
  }
  // Where the headers are, in bytes of the file.
  const std::vector<uint64_t>& headers() const { return headers_; }

 private:
  absl::Status WriteSegment(const DeviceFile& file, uint32_t segment, NvmeBuffer& page) {
    constexpr uint32_t kPages = kWalkedSegmentBytes / kNvmePageBytes;
    // The last page is the trailer's.
    for (uint32_t at = 0; at + kWalkedPages < kPages; at += kWalkedPages) {
      RecordHeader header;
      header.sequence = headers_.size() + 1;
      header.info.scope = 1;
      std::memcpy(header.info.key.bytes.data(), &header.sequence, sizeof header.sequence);
      header.info.length = (kWalkedPages - 1) * kNvmePageBytes;
      header.epoch = 1;
      header.incarnation = segment + 1;
      header.place = {segment, at};
      WriteHeaderPage(PackHeader(header), page.span());
      headers_.push_back(kSuperblockBytes + segment * kWalkedSegmentBytes +
                         at * uint64_t{kNvmePageBytes});
      const absl::Status written = file.WriteNow(headers_.back(), page.span());
      if (!written.ok()) return written;
    }
    return absl::OkStatus();
  }

  std::vector<uint64_t> headers_;
};

// Reads the same pages in no order, and does nothing else.
class RandomReads {
 public:
  static absl::StatusOr<std::unique_ptr<RandomReads>> Create(const std::string& path,
                                                             std::vector<uint64_t> offsets) {
    const int fd = open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (fd < 0) return ErrnoStatus(errno, path);
    const absl::Cleanup closed = [fd] { close(fd); };  // The ring has its own.
    auto reads = std::make_unique<RandomReads>(std::move(offsets));
    absl::StatusOr<std::unique_ptr<UringFloor>> floor =
        UringFloor::Create(fd, {reads->memory_.span()});
    if (!floor.ok()) return floor.status();
    reads->floor_ = *std::move(floor);
    return reads;
  }
  explicit RandomReads(std::vector<uint64_t> offsets) : memory_(kPages * kNvmePageBytes) {
    std::shuffle(offsets.begin(), offsets.end(), std::mt19937_64(1));
    for (size_t i = 0; i < offsets.size(); ++i) {
      requests_.push_back({offsets[i], memory_.span(i % kPages * kNvmePageBytes, kNvmePageBytes)});
    }
  }
  // Thousands a second.
  absl::StatusOr<double> Run(uint32_t depth) {
    const Nanos begun = clock_.Now();
    if (absl::Status read = floor_->Read(requests_, depth); !read.ok()) return read;
    return static_cast<double>(requests_.size()) * 1e6 / static_cast<double>(clock_.Now() - begun);
  }

 private:
  static constexpr size_t kPages = 256;

  const SystemClock clock_;
  NvmeBuffer memory_;
  std::vector<FloorRequest> requests_;
  std::unique_ptr<UringFloor> floor_;
};

class RecoveryBench {
 public:
  absl::Status MeasureIndexed(MicroRun& run);
  absl::Status MeasureWalk(MicroRun& run);

 private:
  // Seconds of opening the tier; it must find `records`.
  absl::StatusOr<double> Start(RecordIndex* index, uint64_t records);
  // The same with opening the index in `path`.
  absl::StatusOr<double> StartWith(const std::string& path, uint64_t records);

  const DiskFolder folder_;
  const SystemClock clock_;
  NoOwner owner_;
  std::unique_ptr<NvmeDevice> device_;
};

absl::StatusOr<double> RecoveryBench::Start(RecordIndex* index, uint64_t records) {
  SegmentTierOptions options;
  options.devices = {device_.get()};
  options.index = index;
  options.clock = &clock_;
  options.owner = &owner_;
  std::vector<RecoveredRecord> found;
  RecoveryReport report;
  const Nanos begun = clock_.Now();
  const absl::StatusOr<std::unique_ptr<SegmentTier>> tier = OpenSegmentTier(options, found, report);
  const Nanos ended = clock_.Now();
  if (!tier.ok()) return tier.status();
  if (found.size() != records) {
    return absl::InternalError(absl::StrCat("a start found ", found.size(), " records"));
  }
  return static_cast<double>(ended - begun) * 1e-9;
}

absl::StatusOr<double> RecoveryBench::StartWith(const std::string& path, uint64_t records) {
  const Nanos begun = clock_.Now();
  absl::StatusOr<std::unique_ptr<RocksIndex>> index = RocksIndex::Open({.path = path}, nullptr);
  if (!index.ok()) return index.status();
  const Nanos opened = clock_.Now();
  const absl::StatusOr<double> started = Start(index->get(), records);
  if (!started.ok()) return started;
  return *started + static_cast<double>(opened - begun) * 1e-9;
}

std::map<std::string, uintmax_t> SizesOfFiles(const std::string& folder) {
  std::map<std::string, uintmax_t> sizes;
  std::error_code gone;
  for (const auto& entry : fs::directory_iterator(folder, gone)) {
    sizes[entry.path().filename()] = entry.file_size(gone);
  }
  return sizes;
}

// What a kill would leave of a living database now. It removes and adds files by itself: with some
// of before and some of after that, the copy would be of a state that never was.
absl::Status CopyAsKilled(const std::string& from, const std::string& to) {
  std::error_code error;
  for (int tries = 0; tries < 100; ++tries) {
    const std::map<std::string, uintmax_t> before = SizesOfFiles(from);
    fs::remove_all(to, error);
    fs::copy(from, to, error);
    if (!error && SizesOfFiles(from) == before) return absl::OkStatus();
  }
  return absl::UnavailableError(absl::StrCat("cannot copy ", from, " while it is in use"));
}

absl::Status RecoveryBench::MeasureIndexed(MicroRun& run) {
  if (!run.WantedAny({"index_rebuild_footers", "start_1m_clean", "start_1m_killed"})) {
    return absl::OkStatus();
  }
  if (!folder_.made()) return absl::UnavailableError("no folder can be made in /var/tmp");
  device_ = MediaWriter(kEntries, kEntryPages).Write();
  const std::string path = folder_ / "index";
  const std::string killed = folder_ / "killed";
  const absl::StatusOr<Rounds> rounds = run.Take([&]() -> absl::StatusOr<std::vector<double>> {
    fs::remove_all(path);
    fs::remove_all(killed);
    absl::StatusOr<double> rebuilt = 0;
    {
      absl::StatusOr<std::unique_ptr<RocksIndex>> index = RocksIndex::Open({.path = path}, nullptr);
      if (!index.ok()) return index.status();
      rebuilt = Start(index->get(), kEntries);
      if (!rebuilt.ok()) return rebuilt.status();
      if (absl::Status copied = CopyAsKilled(path, killed); !copied.ok()) return copied;
    }
    const absl::StatusOr<double> after_kill = StartWith(killed, kEntries);
    if (!after_kill.ok()) return after_kill.status();
    const absl::StatusOr<double> clean = StartWith(path, kEntries);
    if (!clean.ok()) return clean.status();
    return std::vector<double>{kEntries * 1e-3 / *rebuilt, *clean * 1e3, *after_kill * 1e3};
  });
  if (!rounds.ok()) return rounds.status();
  run.Add({.name = "index_rebuild_footers",
           .value = rounds->MedianOf(0),
           .samples = rounds->count,
           .foreign_cpus = rounds->foreign_cpus});
  run.Add({.name = "start_1m_clean",
           .value = rounds->MedianOf(1),
           .samples = rounds->count,
           .foreign_cpus = rounds->foreign_cpus});
  run.Add({.name = "start_1m_killed",
           .value = rounds->MedianOf(2),
           .samples = rounds->count,
           .foreign_cpus = rounds->foreign_cpus});
  return absl::OkStatus();
}

absl::Status RecoveryBench::MeasureWalk(MicroRun& run) {
  if (!run.Wanted("index_rebuild_headers")) return absl::OkStatus();
  if (!folder_.made()) return absl::UnavailableError("no folder can be made in /var/tmp");
  const std::string path = folder_ / "device";
  WalkedMedia media;
  if (absl::Status written = media.Write(path); !written.ok()) return written;
  const absl::StatusOr<std::unique_ptr<RandomReads>> bare =
      RandomReads::Create(path, media.headers());
  if (!bare.ok()) return bare.status();
  absl::StatusOr<OpenedNvmeDevice> opened =
      OpenNvmeDevice({.path = path, .size_bytes = WalkedMedia::kDeviceBytes}, clock_);
  if (!opened.ok()) return opened.status();
  if (!opened->notes.empty()) return absl::UnavailableError(opened->notes.front());
  device_ = std::move(opened->device);
  const std::string index = folder_ / "walked";
  const absl::StatusOr<Rounds> rounds = run.Take([&]() -> absl::StatusOr<std::vector<double>> {
    fs::remove_all(index);
    const absl::StatusOr<double> rebuilt = StartWith(index, media.headers().size());
    if (!rebuilt.ok()) return rebuilt.status();
    std::vector<double> figures = {static_cast<double>(media.headers().size()) * 1e-3 / *rebuilt};
    for (const uint32_t depth : kWalkedDepths) {
      const absl::StatusOr<double> floor = (*bare)->Run(depth);
      if (!floor.ok()) return floor.status();
      figures.push_back(*floor);
    }
    return figures;
  });
  if (!rounds.ok()) return rounds.status();
  const size_t best = rounds->LargestOf(1, 1 + std::size(kWalkedDepths));
  run.Add("index_rebuild_headers", *rounds, 0, best,
          absl::StrCat("bare io_uring loop, 4 KiB random reads, depth ", kWalkedDepths[best - 1]));
  return absl::OkStatus();
}

}  // namespace

absl::Status MeasureRecovery(MicroRun& run) {
  {
    RecoveryBench bench;
    if (absl::Status status = bench.MeasureIndexed(run); !status.ok()) return status;
  }
  RecoveryBench bench;
  return bench.MeasureWalk(run);
}

}  // namespace kvd
