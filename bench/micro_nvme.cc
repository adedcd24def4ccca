// NVMe: reads and writes of 2 MiB blocks between a device and an arena, as the tier asks for them
// (a header page and the payload, one job), beside a bare io_uring loop over the same file and
// memory.

#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "bench/micro_run.h"
#include "bench/payload.h"
#include "bench/uring_floor.h"
#include "proto/types/checksum.h"
#include "tiers/device_file.h"
#include "tiers/memory_region.h"
#include "tiers/uring_device.h"

namespace kvd {
namespace {

constexpr uint32_t kBlockBytes = 2u << 20;
constexpr uint32_t kRecordBytes = kNvmePageBytes + kBlockBytes;
constexpr uint64_t kRegionBytes = 256u << 20;  // As an arena has them.
constexpr uint32_t kRegions = 4;
constexpr uint32_t kBlocksPerRegion = kRegionBytes / kBlockBytes;
constexpr uint32_t kSlots = kRegions * kBlocksPerRegion - 1;      // The last has the headers.
constexpr uint64_t kFileBytes = uint64_t{kSlots} * kRecordBytes;  // As many records as slots.
constexpr uint64_t kFreeBytes = kFileBytes + (1u << 30);          // What must be there: leave some.
constexpr uint32_t kBlocksPerSample = 128;
constexpr uint32_t kDepths[] = {1, 2, 4, 8, 16};  // Of the bare loop.
constexpr uint32_t kJobsAhead = 32;               // What the control thread has submitted.

enum class Sums : uint8_t { kNone, kTaken };

// What moving some bytes took.
struct Cost {
  double gigabytes_per_second = 0;
  double cpu_us_per_mb = 0;  // Of this process; us for 10^6 bytes are ms for 10^9.
};

double ProcessCpuSeconds() {
  timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

class CostMeter {
 public:
  Cost CostOf(uint64_t bytes) const {
    const double megabytes = static_cast<double>(bytes) * 1e-6;
    return {static_cast<double>(bytes) / static_cast<double>(clock_.Now() - start_),
            (ProcessCpuSeconds() - cpu_) * 1e6 / megabytes};
  }

 private:
  const SystemClock clock_;
  const Nanos start_ = clock_.Now();
  const double cpu_ = ProcessCpuSeconds();
};

class NvmeBench {
 public:
  static absl::StatusOr<std::unique_ptr<NvmeBench>> Start(MicroRun& run);

  absl::Status Measure(NvmeJob::Kind kind, std::string_view row, std::string_view cpu_row);

 private:
  explicit NvmeBench(MicroRun& run) : run_(run) {}
  absl::Status Open();
  absl::Status Fill();

  absl::Span<std::byte> Slot(uint32_t i) {
    return {regions_[i / kBlocksPerRegion].data() + uint64_t{i % kBlocksPerRegion} * kBlockBytes,
            kBlockBytes};
  }
  absl::Span<std::byte> Header(uint32_t i) {
    return {regions_.back().data() + kRegionBytes - kBlockBytes + i * kNvmePageBytes,
            kNvmePageBytes};
  }
  struct Move {
    uint32_t record = 0;
    uint32_t slot = 0;
  };
  // The next block to move: its places lie beside neither those of the one before.
  Move NextMove(NvmeJob::Kind kind);
  absl::StatusOr<Cost> RunDevice(NvmeJob::Kind kind, Sums sums);
  absl::StatusOr<Cost> RunFloor(NvmeJob::Kind kind, uint32_t depth);
  absl::Status WaitUntil(uint32_t jobs_at_most);

  MicroRun& run_;
  std::vector<MemoryRegion> regions_;
  std::shared_ptr<const DeviceFile> file_;
  std::unique_ptr<UringFloor> floor_;
  std::unique_ptr<UringDevice> device_;
  const SystemClock clock_;
  uint64_t next_record_ = 0;
  uint64_t next_slot_ = 0;
  std::vector<uint32_t> sums_;       // By payload.
  std::vector<uint32_t> in_slot_;    // Which payload.
  std::vector<uint32_t> in_record_;  // Likewise.
  uint32_t header_sum_ = 0;          // All are alike.

  absl::Mutex mutex_;
  absl::CondVar ended_;
  uint32_t jobs_ = 0;      // Under way.
  uint32_t wait_for_ = 0;  // jobs_ at which somebody is to be woken.
  NvmeDone failed_;        // The first that did not end well.
};

absl::StatusOr<std::unique_ptr<NvmeBench>> NvmeBench::Start(MicroRun& run) {
  auto bench = std::unique_ptr<NvmeBench>(new NvmeBench(run));
  if (absl::Status opened = bench->Open(); !opened.ok()) return opened;
  if (absl::Status filled = bench->Fill(); !filled.ok()) return filled;
  return bench;
}

absl::Status NvmeBench::Open() {
  std::string path = "/var/tmp/kvd-bench-nvme-XXXXXX";  // On a disk, where /tmp may be memory.
  struct statvfs room = {};
  if (statvfs("/var/tmp", &room) != 0 || room.f_bavail * room.f_frsize < kFreeBytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("NVMe rows need ", kFreeBytes >> 20, " MiB free in /var/tmp"));
  }
  const int made = mkstemp(path.data());
  if (made < 0) return absl::UnavailableError(absl::StrCat("no file can be made: ", path));
  close(made);
  // It goes with us, however we end.
  const absl::Cleanup unlinked = [&path] { unlink(path.c_str()); };
  absl::StatusOr<std::shared_ptr<const DeviceFile>> file = DeviceFile::Open(path, kFileBytes);
  if (!file.ok()) return file.status();
  file_ = *std::move(file);
  if (!file_->notes().empty()) return absl::UnavailableError(file_->notes().front());

  std::vector<absl::Span<std::byte>> memory;
  for (uint32_t i = 0; i < kRegions; ++i) {
    absl::StatusOr<MemoryRegion> region = MemoryRegion::Create(kRegionBytes, PageKind::kHugetlb);
    if (!region.ok()) return region.status();
    regions_.push_back(*std::move(region));
    memory.push_back({regions_.back().data(), kRegionBytes});
  }
  absl::StatusOr<std::unique_ptr<UringFloor>> floor = UringFloor::Create(file_->fd(), memory);
  if (!floor.ok()) return floor.status();
  floor_ = *std::move(floor);
  absl::StatusOr<std::unique_ptr<UringDevice>> device =
      UringDevice::Open(file_, {.memory = memory}, clock_);
  if (!device.ok()) return device.status();
  device_ = *std::move(device);
  if (!device_->notes().empty()) return absl::UnavailableError(device_->notes().front());
  device_->SetSink([this](const NvmeDone& done) {
    absl::MutexLock lock(&mutex_);
    if (done.outcome != NvmeOutcome::kOk && failed_.outcome == NvmeOutcome::kOk) failed_ = done;
    if (--jobs_ == wait_for_) ended_.Signal();
  });
  return absl::OkStatus();
}

absl::Status NvmeBench::Fill() {
  // Each block of the file is written once: space that never was costs a file system more.
  std::vector<FloorRequest> requests;
  for (uint32_t i = 0; i < kSlots; ++i) {
    FillPayload({}, i, 0, Slot(i));
    sums_.push_back(Crc32c(Slot(i)));
    in_slot_.push_back(i);
    in_record_.push_back(i);
    const uint64_t offset = uint64_t{i} * kRecordBytes;
    requests.push_back({offset, Header(0)});
    requests.push_back({offset + kNvmePageBytes, Slot(i)});
  }
  header_sum_ = Crc32c(Header(0));
  return floor_->Write(requests, 4);
}

NvmeBench::Move NvmeBench::NextMove(NvmeJob::Kind kind) {
  const Move move = {static_cast<uint32_t>(next_record_++ * (kSlots / 2 + 1) % kSlots),
                     static_cast<uint32_t>(next_slot_++ * (kSlots / 3 + 1) % kSlots)};
  if (kind == NvmeJob::Kind::kRead) {
    in_slot_[move.slot] = in_record_[move.record];
  } else {
    in_record_[move.record] = in_slot_[move.slot];
  }
  return move;
}

absl::StatusOr<Cost> NvmeBench::RunFloor(NvmeJob::Kind kind, uint32_t depth) {
  std::vector<FloorRequest> requests;
  for (uint32_t i = 0; i < kBlocksPerSample; ++i) {
    const Move move = NextMove(kind);
    requests.push_back({uint64_t{move.record} * kRecordBytes + kNvmePageBytes, Slot(move.slot)});
  }
  const CostMeter meter;
  const absl::Status ran =
      kind == NvmeJob::Kind::kRead ? floor_->Read(requests, depth) : floor_->Write(requests, depth);
  if (!ran.ok()) return ran;
  return meter.CostOf(uint64_t{kBlocksPerSample} * kBlockBytes);
}

absl::StatusOr<Cost> NvmeBench::RunDevice(NvmeJob::Kind kind, Sums sums) {
  const CostMeter meter;
  for (uint32_t i = 0; i < kBlocksPerSample; ++i) {
    const Move move = NextMove(kind);
    NvmeJob job{.kind = kind, .offset = uint64_t{move.record} * kRecordBytes, .tag = move.record};
    job.pieces = {Header(i % kJobsAhead), Slot(move.slot)};
    if (sums == Sums::kTaken) job.sums = {header_sum_, sums_[in_record_[move.record]]};
    {
      absl::MutexLock lock(&mutex_);
      ++jobs_;
    }
    if (!device_->Submit(std::move(job))) return absl::InternalError("the device takes no job");
    // As the control thread does: it comes back when there is something to do, not for each job.
    if (i % (kJobsAhead / 2) == kJobsAhead / 2 - 1) {
      if (absl::Status waited = WaitUntil(kJobsAhead / 2); !waited.ok()) return waited;
    }
  }
  if (absl::Status waited = WaitUntil(0); !waited.ok()) return waited;
  return meter.CostOf(uint64_t{kBlocksPerSample} * kBlockBytes);
}

absl::Status NvmeBench::WaitUntil(uint32_t jobs_at_most) {
  absl::MutexLock lock(&mutex_);
  wait_for_ = jobs_at_most;
  while (jobs_ > jobs_at_most) ended_.Wait(&mutex_);
  if (failed_.outcome == NvmeOutcome::kOk) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("record ", failed_.tag, " of the NVMe file: outcome ",
                                          static_cast<int>(failed_.outcome), ", errno ",
                                          failed_.error));
}

absl::Status NvmeBench::Measure(NvmeJob::Kind kind, std::string_view row,
                                std::string_view cpu_row) {
  if (!run_.WantedAny({row, cpu_row})) return absl::OkStatus();
  constexpr size_t kDepthCount = std::size(kDepths);
  // The device's rate and CPU, then the rates of the bare loop by depth, then its CPU likewise.
  const absl::StatusOr<Rounds> rounds = run_.Take([&]() -> absl::StatusOr<std::vector<double>> {
    std::vector<double> figures(2 + 2 * kDepthCount);
    const bool read = kind == NvmeJob::Kind::kRead;
    absl::StatusOr<Cost> cost = RunDevice(kind, read ? Sums::kTaken : Sums::kNone);
    if (!cost.ok()) return cost.status();
    figures[0] = cost->gigabytes_per_second;
    for (size_t i = 0; i < kDepthCount; ++i) {
      const absl::StatusOr<Cost> bare = RunFloor(kind, kDepths[i]);
      if (!bare.ok()) return bare.status();
      figures[2 + i] = bare->gigabytes_per_second;
      figures[2 + kDepthCount + i] = bare->cpu_us_per_mb;
    }
    if (read) cost = RunDevice(kind, Sums::kNone);
    if (!cost.ok()) return cost.status();
    figures[1] = cost->cpu_us_per_mb;
    return figures;
  });
  if (!rounds.ok()) return rounds.status();
  const size_t best = rounds->LargestOf(2, 2 + kDepthCount);
  const std::string floor = absl::StrCat("bare io_uring loop, depth ", kDepths[best - 2]);
  run_.Add(row, *rounds, 0, best, floor);
  run_.Add(cpu_row, *rounds, 1, best + kDepthCount, floor);
  return absl::OkStatus();
}

}  // namespace

absl::Status MeasureNvme(MicroRun& run) {
  if (!run.WantedAny(
          {"nvme_read_2mib", "nvme_read_2mib_cpu", "nvme_write_2mib", "nvme_write_2mib_cpu"})) {
    return absl::OkStatus();
  }
  run.Place(Placement::kAnywhere);
  absl::StatusOr<std::unique_ptr<NvmeBench>> bench = NvmeBench::Start(run);
  if (!bench.ok()) return bench.status();
  absl::Status read =
      (*bench)->Measure(NvmeJob::Kind::kRead, "nvme_read_2mib", "nvme_read_2mib_cpu");
  if (!read.ok()) return read;
  return (*bench)->Measure(NvmeJob::Kind::kWrite, "nvme_write_2mib", "nvme_write_2mib_cpu");
}

}  // namespace kvd
