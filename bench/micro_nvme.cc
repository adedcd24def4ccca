// NVMe: records of 2 MiB between a tier and an arena, beside a bare io_uring loop between a file
// of the same disk and the same memory. The tier is whole but for its index: headers, footers,
// sums, syncs and the reclaiming of dead segments are in its figures.

#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "bench/machine.h"
#include "bench/micro_run.h"
#include "bench/payload.h"
#include "bench/uring_floor.h"
#include "proto/types/checksum.h"
#include "proto/types/host_memory.h"
#include "tiers/device_file.h"
#include "tiers/open_device.h"
#include "tiers/segment_tier.h"

namespace kvd {
namespace {

constexpr uint32_t kBlockBytes = 2u << 20;
constexpr uint64_t kRegionBytes = 256u << 20;  // As an arena has them.
constexpr uint32_t kRegions = 4;
constexpr uint32_t kBlocksPerRegion = kRegionBytes / kBlockBytes;
constexpr uint32_t kSlots = kRegions * kBlocksPerRegion;
constexpr uint64_t kTierBytes = 1536u << 20;
constexpr uint32_t kRecords = 256;  // Live in the tier; a third of it.
constexpr uint64_t kBareBytes = uint64_t{kSlots} * kBlockBytes;
constexpr uint64_t kRoomBytes = kTierBytes + kBareBytes + (1u << 30);  // Some is to stay free.
constexpr uint32_t kBlocksPerSample = 128;
constexpr uint32_t kDepths[] = {1, 2, 4, 8, 16};  // Of the bare loop.
constexpr uint32_t kJobsAhead = 32;               // What the control thread has begun.
constexpr Nanos kPatience = 10 * kSecond;         // A tier that does nothing for so long is broken.

enum class Way : uint8_t { kRead, kWrite };

// What moving some bytes took.
struct Cost {
  double gigabytes_per_second = 0;
  double cpu_us_per_mb = 0;  // Of this process; us for 10^6 bytes are ms for 10^9.
};

constexpr double kSampleMegabytes = double{kBlocksPerSample} * kBlockBytes * 1e-6;

// Of a sample that starts now.
class CostMeter {
 public:
  Cost Read() const {
    return {kSampleMegabytes * 1e6 / static_cast<double>(clock_.Now() - start_),
            (CpuSecondsOf(getpid()) - cpu_) * 1e6 / kSampleMegabytes};
  }

 private:
  const SystemClock clock_;
  const Nanos start_ = clock_.Now();
  const double cpu_ = CpuSecondsOf(getpid());
};

// The i-th of `count` places, none beside the one before. Requires: `step` and `count` have no
// common divisor.
uint32_t Scattered(uint64_t i, uint32_t step, uint32_t count) {
  return static_cast<uint32_t>(i * step % count);
}

// Memory as of an arena, each slot with a payload. On huge pages, as an arena is to be: on small
// ones each block is hundreds of segments for the disk, or few, as chance will have it, and what
// is measured is that.
class BenchArena {
 public:
  BenchArena() : bytes_(kRegions * kRegionBytes + kHugePage, Touch::kNow) {
    for (uint32_t i = 0; i < kSlots; ++i) FillPayload({}, i, 0, slot(i));
  }
  absl::Span<std::byte> slot(uint32_t i) const {
    return region(i / kBlocksPerRegion)
        .subspan(uint64_t{i % kBlocksPerRegion} * kBlockBytes, kBlockBytes);
  }
  std::vector<absl::Span<std::byte>> memory() const {
    std::vector<absl::Span<std::byte>> memory;
    for (uint32_t i = 0; i < kRegions; ++i) memory.push_back(region(i));
    return memory;
  }
  uint32_t NextSlot() { return Scattered(next_++, 171, kSlots); }

 private:
  static constexpr uint64_t kHugePage = 2u << 20;

  absl::Span<std::byte> region(uint32_t i) const {
    // Where the first huge page may begin.
    const auto address = reinterpret_cast<uintptr_t>(&bytes_[0]);
    const uint64_t first = (kHugePage - address % kHugePage) % kHugePage;
    return {const_cast<std::byte*>(&bytes_[first + i * kRegionBytes]), kRegionBytes};
  }

  MappedArray<std::byte> bytes_;
  uint64_t next_ = 0;
};

// The bare loop and its file.
class BareCase {
 public:
  explicit BareCase(BenchArena& arena) : arena_(arena) {}
  absl::Status Open(const std::string& path);
  absl::StatusOr<Cost> Run(Way way, uint32_t depth);

 private:
  BenchArena& arena_;
  std::shared_ptr<const DeviceFile> file_;
  std::unique_ptr<UringFloor> floor_;
  uint64_t next_ = 0;
};

// Writes all of a file once: space that never was written costs a file system more.
absl::Status FillWithZeros(const DeviceFile& file) {
  constexpr uint64_t kPieceBytes = 16u << 20;
  const MappedArray<std::byte> zeros(kPieceBytes, Touch::kNow);
  for (uint64_t at = 0; at < file.size_bytes(); at += kPieceBytes) {
    const uint64_t bytes = std::min(kPieceBytes, file.size_bytes() - at);
    const absl::Status written = file.WriteNow(at, {&zeros[0], bytes});
    if (!written.ok()) return written;
  }
  return absl::OkStatus();
}

absl::Status BareCase::Open(const std::string& path) {
  absl::StatusOr<std::shared_ptr<const DeviceFile>> file = DeviceFile::Open(path, kBareBytes);
  if (!file.ok()) return file.status();
  file_ = *std::move(file);
  if (!file_->notes().empty()) return absl::UnavailableError(file_->notes().front());
  if (absl::Status filled = FillWithZeros(*file_); !filled.ok()) return filled;
  absl::StatusOr<std::unique_ptr<UringFloor>> floor =
      UringFloor::Create(file_->fd(), arena_.memory());
  if (!floor.ok()) return floor.status();
  floor_ = *std::move(floor);
  return absl::OkStatus();
}

absl::StatusOr<Cost> BareCase::Run(Way way, uint32_t depth) {
  std::vector<FloorRequest> requests;
  for (uint32_t i = 0; i < kBlocksPerSample; ++i) {
    const uint64_t offset = uint64_t{Scattered(next_++, 201, kSlots)} * kBlockBytes;
    requests.push_back({offset, arena_.slot(arena_.NextSlot())});
  }
  const CostMeter meter;
  const absl::Status ran =
      way == Way::kRead ? floor_->Read(requests, depth) : floor_->Write(requests, depth);
  if (!ran.ok()) return ran;
  return meter.Read();
}

// The tier, and this thread as its control thread.
class TierCase final : public NvmeTier::Owner {
 public:
  explicit TierCase(BenchArena& arena) : arena_(arena) {}
  absl::Status Open(const std::string& path);

  absl::StatusOr<Cost> Read();
  absl::StatusOr<Cost> Write();
  // CPU time of summing a sample once, us for 10^6 bytes.
  double SumCpu() const;

  void NvmeEnded(const NvmeTier::Completion& completion) override;
  void NvmeMoved(uint32_t occupant, RecordPlace to) override { records_[occupant - 1].place = to; }
  void NvmeLost(uint32_t /*occupant*/, NvmeOutcome outcome) override { failed_ = outcome; }

 private:
  struct Record {
    RecordInfo info;
    RecordPlace place;
  };
  // The i-th record that was ever appended; the last kRecords of them live.
  Record& record(uint64_t i) { return records_[i % (2 * kRecords)]; }

  // Calls `begin` until it has begun so many jobs, and waits for all; `begin` says false when the
  // tier takes no more for now.
  absl::Status RunJobs(uint32_t count, const std::function<bool()>& begin);
  bool BeginRead();
  bool BeginAppend();
  void Sleep();

  BenchArena& arena_;
  const SystemClock clock_;
  std::unique_ptr<NvmeDevice> device_;
  std::unique_ptr<SegmentTier> tier_;
  ScopeNumber scope_ = 0;
  std::vector<Record> records_ = std::vector<Record>(2 * kRecords);  // By occupant - 1.
  std::vector<uint32_t> slot_sums_;                                  // Of the payload in each slot.
  uint32_t jobs_ = 0;                                                // Under way.
  Nanos last_ended_ = 0;
  uint64_t next_read_ = 0;
  uint64_t next_append_ = 0;
  NvmeOutcome failed_ = NvmeOutcome::kOk;

  absl::Mutex mutex_;
  absl::CondVar woken_;
  bool wake_ ABSL_GUARDED_BY(mutex_) = false;
};

absl::Status TierCase::Open(const std::string& path) {
  {
    absl::StatusOr<std::shared_ptr<const DeviceFile>> file = DeviceFile::Open(path, kTierBytes);
    if (!file.ok()) return file.status();
    if (absl::Status filled = FillWithZeros(**file); !filled.ok()) return filled;
  }
  absl::StatusOr<OpenedNvmeDevice> opened =
      OpenNvmeDevice({.path = path, .size_bytes = kTierBytes, .memory = arena_.memory()}, clock_);
  if (!opened.ok()) return opened.status();
  if (!opened->notes.empty()) return absl::UnavailableError(opened->notes.front());
  device_ = std::move(opened->device);

  SegmentTierOptions options;
  options.devices = {device_.get()};
  options.clock = &clock_;
  options.owner = this;
  options.wake = [this] {
    absl::MutexLock lock(&mutex_);
    wake_ = true;
    woken_.Signal();
  };
  std::vector<RecoveredRecord> found;
  RecoveryReport report;
  absl::StatusOr<std::unique_ptr<SegmentTier>> tier = OpenSegmentTier(options, found, report);
  if (!tier.ok()) return tier.status();
  tier_ = *std::move(tier);
  const absl::StatusOr<ScopeNumber> scope = tier_->AddScope("bench", "{}");
  if (!scope.ok()) return scope.status();
  scope_ = *scope;
  for (uint32_t i = 0; i < kSlots; ++i) slot_sums_.push_back(Crc32c(arena_.slot(i)));
  return RunJobs(kRecords, [this] { return BeginAppend(); });
}

absl::StatusOr<Cost> TierCase::Read() {
  const CostMeter meter;
  const absl::Status ran = RunJobs(kBlocksPerSample, [this] { return BeginRead(); });
  if (!ran.ok()) return ran;
  return meter.Read();
}

absl::StatusOr<Cost> TierCase::Write() {
  const CostMeter meter;
  const absl::Status ran = RunJobs(kBlocksPerSample, [this] { return BeginAppend(); });
  if (!ran.ok()) return ran;
  return meter.Read();
}

absl::Status TierCase::RunJobs(uint32_t count, const std::function<bool()>& begin) {
  last_ended_ = clock_.Now();
  for (uint32_t begun = 0; begun < count || jobs_ > 0;) {
    while (begun < count && jobs_ < kJobsAhead && begin()) {
      ++begun;
      ++jobs_;
    }
    tier_->Poll(clock_.Now());
    if (failed_ != NvmeOutcome::kOk) {
      return absl::DataLossError(
          absl::StrCat("a job of the NVMe tier ended with outcome ", static_cast<int>(failed_)));
    }
    if (clock_.Now() - last_ended_ > kPatience) {
      return absl::DeadlineExceededError("the NVMe tier does nothing any more");
    }
    if (begun < count || jobs_ > 0) Sleep();
  }
  return absl::OkStatus();
}

void TierCase::Sleep() {
  const Nanos until = std::min(tier_->NextDeadline(), clock_.Now() + kSecond);
  const absl::Time deadline = absl::Now() + absl::Nanoseconds(until - clock_.Now());
  absl::MutexLock lock(&mutex_);
  while (!wake_ && !woken_.WaitWithDeadline(&mutex_, deadline)) {
  }
  wake_ = false;
}

bool TierCase::BeginRead() {
  const Record& from = record(next_append_ - 1 - Scattered(next_read_, kRecords / 2 + 1, kRecords));
  const uint32_t slot = arena_.NextSlot();
  if (!tier_->Read(from.place, from.info, arena_.slot(slot), INT64_MAX, 0)) return false;
  slot_sums_[slot] = from.info.sum;
  ++next_read_;
  return true;
}

bool TierCase::BeginAppend() {
  const uint32_t slot = arena_.NextSlot();
  RecordInfo info{.scope = scope_, .length = kBlockBytes, .sum = slot_sums_[slot]};
  std::memcpy(info.key.bytes.data(), &next_append_, sizeof next_append_);
  const auto occupant = static_cast<uint32_t>(next_append_ % (2 * kRecords)) + 1;
  const std::optional<RecordPlace> place =
      tier_->Append(info, arena_.slot(slot), occupant, occupant);
  if (!place.has_value()) return false;
  if (next_append_ >= kRecords) tier_->Drop(record(next_append_ - kRecords).place, kBlockBytes);
  record(next_append_++) = {info, *place};
  return true;
}

void TierCase::NvmeEnded(const NvmeTier::Completion& completion) {
  --jobs_;
  last_ended_ = clock_.Now();
  if (completion.outcome != NvmeOutcome::kOk) failed_ = completion.outcome;
}

double TierCase::SumCpu() const {
  const double start = CpuSecondsOfThisThread();
  for (uint32_t i = 0; i < kBlocksPerSample; ++i)
    Crc32c(arena_.slot(i * kSlots / kBlocksPerSample));
  return (CpuSecondsOfThisThread() - start) * 1e6 / kSampleMegabytes;
}

// --- rows ----------------------------------------------------------------------------------------

absl::Status MeasureWay(MicroRun& run, TierCase& tier, BareCase& bare, Way way,
                        std::string_view row, std::string_view cpu_row) {
  if (!run.WantedAny({row, cpu_row})) return absl::OkStatus();
  constexpr size_t kDepthCount = std::size(kDepths);
  // The tier's rate and CPU, then the rates of the bare loop by depth, then its CPU likewise.
  const absl::StatusOr<Rounds> rounds = run.Take([&]() -> absl::StatusOr<std::vector<double>> {
    std::vector<double> figures(2 + 2 * kDepthCount);
    const absl::StatusOr<Cost> cost = way == Way::kRead ? tier.Read() : tier.Write();
    if (!cost.ok()) return cost.status();
    figures[0] = cost->gigabytes_per_second;
    figures[1] = cost->cpu_us_per_mb - (way == Way::kRead ? tier.SumCpu() : 0);
    for (size_t i = 0; i < kDepthCount; ++i) {
      const absl::StatusOr<Cost> floor = bare.Run(way, kDepths[i]);
      if (!floor.ok()) return floor.status();
      figures[2 + i] = floor->gigabytes_per_second;
      figures[2 + kDepthCount + i] = floor->cpu_us_per_mb;
    }
    return figures;
  });
  if (!rounds.ok()) return rounds.status();
  const size_t best = rounds->LargestOf(2, 2 + kDepthCount);
  const std::string floor = absl::StrCat("bare io_uring loop, depth ", kDepths[best - 2]);
  run.Add(row, *rounds, 0, best, floor);
  run.Add(cpu_row, *rounds, 1, best + kDepthCount, floor);
  return absl::OkStatus();
}

absl::Status MeasureIn(const std::string& folder, MicroRun& run) {
  BenchArena arena;
  BareCase bare(arena);
  if (absl::Status opened = bare.Open(folder + "/bare"); !opened.ok()) return opened;
  TierCase tier(arena);
  if (absl::Status opened = tier.Open(folder + "/tier"); !opened.ok()) return opened;
  const absl::Status read =
      MeasureWay(run, tier, bare, Way::kRead, "nvme_read_2mib", "nvme_read_2mib_cpu");
  if (!read.ok()) return read;
  return MeasureWay(run, tier, bare, Way::kWrite, "nvme_write_2mib", "nvme_write_2mib_cpu");
}

}  // namespace

absl::Status MeasureNvme(MicroRun& run) {
  if (!run.WantedAny(
          {"nvme_read_2mib", "nvme_read_2mib_cpu", "nvme_write_2mib", "nvme_write_2mib_cpu"})) {
    return absl::OkStatus();
  }
  run.Place(Placement::kAnywhere);
  std::string folder = "/var/tmp/kvd-bench-XXXXXX";  // On a disk, where /tmp may be memory.
  struct statvfs room = {};
  if (statvfs("/var/tmp", &room) != 0 || room.f_bavail * room.f_frsize < kRoomBytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the NVMe rows need ", kRoomBytes >> 20, " MiB free in /var/tmp"));
  }
  if (mkdtemp(folder.data()) == nullptr) {
    return absl::UnavailableError(absl::StrCat(folder, ": no such folder can be made"));
  }
  const absl::Cleanup removed = [&folder] {
    std::error_code ignored;
    std::filesystem::remove_all(folder, ignored);
  };
  return MeasureIn(folder, run);
}

}  // namespace kvd
