// One suite for both engines: what a device promises, on a real file, with the kernel's results
// replaced only where a fault must be had.

#include "tiers/nvme_device.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "proto/types/checksum.h"
#include "proto/types/host_memory.h"
#include "tiers/device_file.h"
#include "tiers/thread_device.h"
#include "tiers/uring_device.h"

namespace kvd {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Kind = NvmeJob::Kind;

constexpr uint64_t kPage = kNvmePageBytes;
constexpr uint64_t kDeviceBytes = 32u << 20;
const absl::Duration kLong = absl::Seconds(60);  // Only a failing test waits for so long.

const SystemClock& TheClock() {
  static const auto& clock = *new SystemClock();
  return clock;
}

// Collects what a device tells.
class Told {
 public:
  NvmeDevice::Sink sink() {
    return [this](const NvmeDone& done) {
      absl::MutexLock lock(&mutex_);
      told_.push_back(done);
    };
  }
  // Everything told so far, in order, once it is `count` at least.
  std::vector<NvmeDone> WaitFor(size_t count) {
    absl::MutexLock lock(&mutex_);
    const auto enough = [this, count] { return told_.size() >= count; };
    EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&enough), kLong)) << told_.size();
    return told_;
  }

 private:
  absl::Mutex mutex_;
  std::vector<NvmeDone> told_;
};

struct DeviceOptions {
  NvmeLimits limits;
  std::vector<absl::Span<std::byte>> memory;
  Nanos close_wait = 60 * kSecond;
  NvmeFault fault;
};

std::unique_ptr<NvmeDevice> MakeDevice(const std::string& engine,
                                       std::shared_ptr<const DeviceFile> file,
                                       const DeviceOptions& options) {
  if (engine == "threads") {
    return std::make_unique<ThreadDevice>(
        std::move(file), ThreadDevice::Options{options.limits, options.close_wait, options.fault},
        TheClock());
  }
  auto device = UringDevice::Open(
      std::move(file), {options.limits, options.memory, options.close_wait, options.fault},
      TheClock());
  EXPECT_TRUE(device.ok()) << device.status();
  return device.ok() ? *std::move(device) : nullptr;
}

// Holds the first result of the kernel back until it is released, so that jobs submitted meanwhile
// wait; and remembers at which offsets results came.
class Gate {
 public:
  NvmeFault fault() {
    return [this](const NvmeTransfer& transfer, int64_t result) {
      {
        absl::MutexLock lock(&mutex_);
        offsets_.push_back(transfer.offset());
        if (offsets_.size() > 1) return result;
      }
      open_.WaitForNotification();
      return result;
    };
  }
  void WaitForFirst() {
    absl::MutexLock lock(&mutex_);
    const auto held = [this] { return !offsets_.empty(); };
    EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&held), kLong));
  }
  void Open() { open_.Notify(); }
  std::vector<uint64_t> pages() {
    absl::MutexLock lock(&mutex_);
    std::vector<uint64_t> pages;
    for (uint64_t offset : offsets_) pages.push_back(offset / kPage);
    return pages;
  }

 private:
  absl::Mutex mutex_;
  std::vector<uint64_t> offsets_;
  absl::Notification open_;
};

class NvmeDeviceTest : public testing::TestWithParam<const char*> {
 protected:
  NvmeDeviceTest() : memory_(kDeviceBytes, Touch::kNow) {
    std::string folder = testing::TempDir() + "/kvd-nvme-XXXXXX";
    EXPECT_NE(mkdtemp(folder.data()), nullptr);
    folder_ = folder;
    path_ = folder + "/device";
  }
  ~NvmeDeviceTest() override {
    device_.reset();
    std::filesystem::remove_all(folder_);
  }

  void Open(const DeviceOptions& options = {}) {
    auto file = DeviceFile::Open(path_, kDeviceBytes);
    ASSERT_TRUE(file.ok()) << file.status();
    device_ = MakeDevice(GetParam(), *std::move(file), options);
    ASSERT_NE(device_, nullptr);
    device_->SetSink(told_.sink());
  }
  absl::Span<std::byte> Memory(uint64_t page, uint64_t pages = 1) {
    return {&memory_[page * kPage], pages * kPage};
  }
  void Fill(absl::Span<std::byte> bytes, uint32_t seed) {
    std::minstd_rand random(seed + 1);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random() >> 8);
  }
  NvmeJob Job(Kind kind, uint64_t page, absl::Span<std::byte> bytes, uint64_t tag = 0) {
    NvmeJob job{.kind = kind, .offset = page * kPage, .tag = tag};
    if (kind != Kind::kSync) job.pieces.push_back(bytes);
    return job;
  }
  NvmeDone Run(NvmeJob job) {
    const size_t before = done_count_++;
    EXPECT_TRUE(device_->Submit(std::move(job)));
    return told_.WaitFor(before + 1)[before];
  }

  MappedArray<std::byte> memory_;
  std::string folder_;
  std::string path_;
  Told told_;
  size_t done_count_ = 0;  // Of Run().
  std::unique_ptr<NvmeDevice> device_;
};

INSTANTIATE_TEST_SUITE_P(Engines, NvmeDeviceTest, testing::Values("io_uring", "threads"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(NvmeDeviceTest, SaysWhatItIs) {
  Open();
  EXPECT_EQ(device_->name(), path_);
  EXPECT_EQ(device_->engine(), GetParam());
  EXPECT_EQ(device_->size_bytes(), kDeviceBytes);
}

TEST_P(NvmeDeviceTest, WhatWasWrittenInPiecesIsReadInOthersWithSums) {
  Open({.memory = {Memory(0, 64)}});  // Some pieces registered, some not.
  Fill(Memory(0, 3), 1);
  Fill(Memory(100, 2), 2);
  NvmeJob write = Job(Kind::kWrite, 7, Memory(0, 3), 11);
  write.pieces.push_back(Memory(100, 2));
  EXPECT_EQ(Run(std::move(write)).outcome, NvmeOutcome::kOk);

  NvmeJob read = Job(Kind::kRead, 7, Memory(200, 1), 12);
  read.pieces.push_back(Memory(10, 4));
  read.sums = {Crc32c(Memory(0, 1)), Crc32cExtend(Crc32c(Memory(1, 2)), Memory(100, 2))};
  const NvmeDone done = Run(std::move(read));
  EXPECT_EQ(done.tag, 12u);
  EXPECT_EQ(done.outcome, NvmeOutcome::kOk);
  EXPECT_GT(done.took, 0);
  EXPECT_EQ(Memory(200, 1), Memory(0, 1));
  EXPECT_EQ(Memory(10, 2), Memory(1, 2));
  EXPECT_EQ(Memory(12, 2), Memory(100, 2));
}

TEST_P(NvmeDeviceTest, MemoryThatIsReplacedIsNotWrittenAnyMore) {
  constexpr uint64_t kBytes = 64 * kPage;
  void* first = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  void* second = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(first, MAP_FAILED);
  ASSERT_NE(second, MAP_FAILED);
  const absl::Span<std::byte> before = {static_cast<std::byte*>(first), kBytes};
  const absl::Span<std::byte> after = {static_cast<std::byte*>(second), kBytes};
  Open({.memory = {before, Memory(0, 64)}});
  Fill(Memory(0, 3), 1);
  ASSERT_EQ(Run(Job(Kind::kWrite, 0, Memory(0, 3))).outcome, NvmeOutcome::kOk);

  device_->ReplaceMemory(before, after);
  NvmeJob read = Job(Kind::kRead, 0, after.subspan(5 * kPage, 3 * kPage));
  read.sums = {Crc32c(Memory(0, 3))};
  EXPECT_EQ(Run(read).outcome, NvmeOutcome::kOk);
  // The same addresses, other pages: what is pinned must not be taken for them.
  ASSERT_EQ(
      mmap(first, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
      first);
  read.pieces[0] = before.subspan(5 * kPage, 3 * kPage);
  EXPECT_EQ(Run(read).outcome, NvmeOutcome::kOk);
  EXPECT_EQ(read.pieces[0], Memory(0, 3));
  device_.reset();
  munmap(first, kBytes);
  munmap(second, kBytes);
}

TEST_P(NvmeDeviceTest, ADifferentSumIsCorrupt) {
  Open();
  Fill(Memory(0, 2), 1);
  ASSERT_EQ(Run(Job(Kind::kWrite, 0, Memory(0, 2))).outcome, NvmeOutcome::kOk);
  for (size_t wrong : {0, 1}) {
    NvmeJob read = Job(Kind::kRead, 0, Memory(8), 1);
    read.pieces.push_back(Memory(9));
    read.sums = {Crc32c(Memory(0)), Crc32c(Memory(1))};
    read.sums[wrong] ^= 1;
    EXPECT_EQ(Run(std::move(read)).outcome, NvmeOutcome::kCorrupt) << wrong;
  }
}

TEST_P(NvmeDeviceTest, ManyJobsOfRandomSizesKeepTheirBytes) {
  Open({.limits = {.depth_jobs = 8, .depth_bytes = 2u << 20}, .memory = {Memory(0, 4096)}});
  std::mt19937 random(4);
  Fill(Memory(0, kDeviceBytes / kPage), 9);
  struct Run {
    uint64_t page, pages;
  };
  std::vector<Run> runs;  // Of device and memory alike; they cover all of both.
  for (uint64_t page = 0; page < kDeviceBytes / kPage;) {
    const uint64_t pages = std::min<uint64_t>(1 + random() % 256, kDeviceBytes / kPage - page);
    runs.push_back({page, pages});
    page += pages;
  }
  std::shuffle(runs.begin(), runs.end(), random);
  for (const Run& run : runs) {
    ASSERT_TRUE(device_->Submit(Job(Kind::kWrite, run.page, Memory(run.page, run.pages))));
  }
  for (const NvmeDone& done : told_.WaitFor(runs.size())) EXPECT_EQ(done.outcome, NvmeOutcome::kOk);

  std::vector<uint32_t> sums;
  for (const Run& run : runs) sums.push_back(Crc32c(Memory(run.page, run.pages)));
  std::memset(&memory_[0], 0, memory_.size());
  for (size_t i = 0; i < runs.size(); ++i) {
    NvmeJob job = Job(Kind::kRead, runs[i].page, Memory(runs[i].page, runs[i].pages), i);
    job.sums = {sums[i]};
    ASSERT_TRUE(device_->Submit(std::move(job)));
  }
  std::vector<bool> seen(runs.size());
  const std::vector<NvmeDone> told = told_.WaitFor(2 * runs.size());
  for (size_t i = runs.size(); i < told.size(); ++i) {
    EXPECT_EQ(told[i].outcome, NvmeOutcome::kOk);
    EXPECT_FALSE(seen[told[i].tag]);
    seen[told[i].tag] = true;
  }
  for (size_t i = 0; i < runs.size(); ++i) {  // The device's thread was not alone to look.
    EXPECT_EQ(Crc32c(Memory(runs[i].page, runs[i].pages)), sums[i]);
  }
}

TEST_P(NvmeDeviceTest, WhatWaitsGoesSyncFirstThenReadsByDeadlineThenWrites) {
  Gate gate;
  Open({.limits = {.depth_jobs = 1}, .fault = gate.fault()});
  ASSERT_TRUE(device_->Submit(Job(Kind::kRead, 50, Memory(0))));
  gate.WaitForFirst();
  const Nanos later = TheClock().Now() + 1000 * kSecond;
  ASSERT_TRUE(device_->Submit(Job(Kind::kWrite, 51, Memory(1))));
  for (auto [page, after] : {std::pair{52u, 3}, {53u, 1}, {54u, 2}}) {
    NvmeJob job = Job(Kind::kRead, page, Memory(page));
    job.deadline = later + after;
    ASSERT_TRUE(device_->Submit(std::move(job)));
  }
  ASSERT_TRUE(device_->Submit(Job(Kind::kSync, 0, {})));
  gate.Open();
  told_.WaitFor(6);
  EXPECT_THAT(gate.pages(), ElementsAre(50, 0, 53, 54, 52, 51));
}

TEST_P(NvmeDeviceTest, AtTheBoundNothingMoreIsAcceptedUntilSomethingEnds) {
  Gate gate;
  Open({.limits = {.depth_jobs = 1, .accepted_jobs = 3}, .fault = gate.fault()});
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(device_->Submit(Job(Kind::kRead, i, Memory(i))));
  EXPECT_FALSE(device_->Submit(Job(Kind::kRead, 3, Memory(3))));
  gate.WaitForFirst();
  EXPECT_FALSE(device_->Submit(Job(Kind::kRead, 3, Memory(3))));
  gate.Open();
  told_.WaitFor(3);
  EXPECT_TRUE(device_->Submit(Job(Kind::kRead, 3, Memory(3))));
  EXPECT_EQ(told_.WaitFor(4).size(), 4u);
}

TEST_P(NvmeDeviceTest, AJobThatExpiresBeforeItBeginsIsDropped) {
  Gate gate;
  Open({.limits = {.depth_jobs = 1}, .fault = gate.fault()});
  NvmeJob first = Job(Kind::kRead, 0, Memory(0), 1);
  first.deadline = TheClock().Now() + kSecond;  // It begins at once.
  ASSERT_TRUE(device_->Submit(std::move(first)));
  gate.WaitForFirst();
  NvmeJob late = Job(Kind::kRead, 1, Memory(1), 2);
  late.deadline = TheClock().Now();
  ASSERT_TRUE(device_->Submit(std::move(late)));
  ASSERT_TRUE(device_->Submit(Job(Kind::kRead, 2, Memory(2), 3)));
  gate.Open();
  std::map<uint64_t, NvmeOutcome> outcomes;
  for (const NvmeDone& done : told_.WaitFor(3)) outcomes[done.tag] = done.outcome;
  EXPECT_EQ(outcomes[1], NvmeOutcome::kOk);
  EXPECT_EQ(outcomes[2], NvmeOutcome::kExpired);
  EXPECT_EQ(outcomes[3], NvmeOutcome::kOk);
  EXPECT_THAT(gate.pages(), ElementsAre(0, 2));  // The kernel never heard of the second.
}

TEST_P(NvmeDeviceTest, ShortTransfersAreResumed) {
  // Every result is cut to what is not even whole pages, until nothing is left to cut.
  Open({.fault = [](const NvmeTransfer&, int64_t result) {
    return result > 8192 ? result / 2 + 100 : result;
  }});
  Fill(Memory(0, 40), 3);
  ASSERT_EQ(Run(Job(Kind::kWrite, 5, Memory(0, 40))).outcome, NvmeOutcome::kOk);
  NvmeJob read = Job(Kind::kRead, 5, Memory(100, 40));
  read.sums = {Crc32c(Memory(0, 40))};
  EXPECT_EQ(Run(std::move(read)).outcome, NvmeOutcome::kOk);
  EXPECT_EQ(Memory(0, 40), Memory(100, 40));
}

TEST_P(NvmeDeviceTest, ManySmallPiecesAreWrittenAndReadAsOneAlsoWhenCutShort) {
  for (const bool cut : {false, true}) {
    // Cut within pieces, at their ends, and beyond several at once.
    const auto fault = [cut](const NvmeTransfer& transfer, int64_t result) -> int64_t {
      return cut && result > 3 * 4096 ? 4096 * (1 + transfer.offset() / 4096 % 3) : result;
    };
    device_.reset();
    Open({.memory = {Memory(0, 512)}, .fault = fault});
    Fill(Memory(0, 400), 3 + cut);
    NvmeJob write = Job(Kind::kWrite, 5, Memory(0, 1));
    uint64_t page = 1;
    // A large piece among them goes by itself.
    for (uint64_t i = 1; i < 100; ++i) {
      const uint64_t pages = i == 50 ? 40 : 1 + i % 3;
      write.pieces.push_back(Memory(page, pages));
      page += pages;
    }
    NvmeJob read = write;
    read.kind = Kind::kRead;
    EXPECT_EQ(Run(write).outcome, NvmeOutcome::kOk);
    for (absl::Span<std::byte>& piece : read.pieces) {
      read.sums.push_back(Crc32c(piece));
      piece = {piece.data() + 1000 * kPage, piece.size()};
    }
    EXPECT_EQ(Run(read).outcome, NvmeOutcome::kOk);
    EXPECT_EQ(Memory(0, page), Memory(1000, page));
  }
}

TEST_P(NvmeDeviceTest, ATransferThatDoesNotAdvanceIsEio) {
  Open({.fault = [](const NvmeTransfer&, int64_t) { return 100; }});
  const NvmeDone done = Run(Job(Kind::kRead, 0, Memory(0, 2)));
  EXPECT_EQ(done.outcome, NvmeOutcome::kError);
  EXPECT_EQ(done.error, EIO);
}

TEST_P(NvmeDeviceTest, InterruptionsAreTriedAgainButNotForEver) {
  absl::Mutex mutex;
  int results = 0;
  int refusals = 5;
  Open({.fault = [&](const NvmeTransfer&, int64_t result) -> int64_t {
    absl::MutexLock lock(&mutex);
    return ++results <= refusals ? (results % 2 == 0 ? -EINTR : -EAGAIN) : result;
  }});
  EXPECT_EQ(Run(Job(Kind::kRead, 0, Memory(0, 2))).outcome, NvmeOutcome::kOk);
  {
    absl::MutexLock lock(&mutex);
    EXPECT_EQ(results, 6);
    refusals = INT_MAX;
  }
  EXPECT_EQ(Run(Job(Kind::kRead, 0, Memory(0, 2))).error, EAGAIN);
}

TEST_P(NvmeDeviceTest, AnErrorOfOnePieceIsTheJobsAndNobodyElses) {
  Open({.fault = [](const NvmeTransfer& transfer, int64_t result) -> int64_t {
    return transfer.offset() <= 3 * kPage ? -EIO : result;
  }});
  NvmeJob bad = Job(Kind::kWrite, 2, Memory(0), 1);
  bad.pieces.push_back(Memory(1, 64));
  const NvmeDone done = Run(std::move(bad));
  EXPECT_EQ(done.outcome, NvmeOutcome::kError);
  EXPECT_EQ(done.error, EIO);
  EXPECT_EQ(Run(Job(Kind::kWrite, 90, Memory(0), 2)).outcome, NvmeOutcome::kOk);
}

TEST_P(NvmeDeviceTest, ASyncIsAskedOfTheKernelAndItsErrorIsTold) {
  absl::Mutex mutex;
  std::vector<int64_t> syncs;
  Open({.fault = [&](const NvmeTransfer& transfer, int64_t result) -> int64_t {
    if (transfer.kind() != Kind::kSync) return result;
    absl::MutexLock lock(&mutex);
    syncs.push_back(result);
    return syncs.size() == 2 ? -ENOSPC : result;
  }});
  ASSERT_EQ(Run(Job(Kind::kWrite, 0, Memory(0))).outcome, NvmeOutcome::kOk);
  EXPECT_EQ(Run(Job(Kind::kSync, 0, {})).outcome, NvmeOutcome::kOk);
  const NvmeDone failed = Run(Job(Kind::kSync, 0, {}));
  EXPECT_EQ(failed.outcome, NvmeOutcome::kError);
  EXPECT_EQ(failed.error, ENOSPC);
  absl::MutexLock lock(&mutex);
  EXPECT_THAT(syncs, ElementsAre(0, 0));
}

TEST_P(NvmeDeviceTest, WhatCannotBeAskedIsEinval) {
  Open();
  EXPECT_EQ(Run(Job(Kind::kRead, kDeviceBytes / kPage, Memory(0))).error, EINVAL);
  NvmeJob crooked = Job(Kind::kRead, 0, Memory(0));
  crooked.offset = 100;
  EXPECT_EQ(Run(std::move(crooked)).error, EINVAL);
  EXPECT_EQ(Run(Job(Kind::kRead, 0, Memory(0))).outcome, NvmeOutcome::kOk);
}

TEST_P(NvmeDeviceTest, ADeviceThatShrinksBelowUsIsEio) {
  Open();
  ASSERT_EQ(Run(Job(Kind::kRead, 100, Memory(0))).outcome, NvmeOutcome::kOk);
  ASSERT_EQ(truncate(path_.c_str(), 64 * kPage), 0);
  const NvmeDone gone = Run(Job(Kind::kRead, 100, Memory(0)));
  EXPECT_EQ(gone.outcome, NvmeOutcome::kError);
  EXPECT_EQ(gone.error, EIO);
  EXPECT_EQ(Run(Job(Kind::kRead, 62, Memory(0, 4))).error, EIO);  // Half of it is there.
  EXPECT_EQ(Run(Job(Kind::kRead, 62, Memory(0, 2))).outcome, NvmeOutcome::kOk);
}

TEST_P(NvmeDeviceTest, AnUnlinkedFileServesOn) {
  Open();
  Fill(Memory(0), 6);
  ASSERT_EQ(unlink(path_.c_str()), 0);
  ASSERT_EQ(Run(Job(Kind::kWrite, 1, Memory(0))).outcome, NvmeOutcome::kOk);
  ASSERT_EQ(Run(Job(Kind::kRead, 1, Memory(1))).outcome, NvmeOutcome::kOk);
  EXPECT_EQ(Memory(0), Memory(1));
}

TEST_P(NvmeDeviceTest, NowReadsWritesAndSyncsAndSaysWhatWentWrong) {
  Open();
  Fill(Memory(0, 4), 8);
  ASSERT_TRUE(device_->WriteNow(3 * kPage, Memory(0, 4)).ok());
  ASSERT_TRUE(device_->SyncNow().ok());
  ASSERT_TRUE(device_->ReadNow(3 * kPage, Memory(10, 4)).ok());
  EXPECT_EQ(Memory(0, 4), Memory(10, 4));
  ASSERT_EQ(truncate(path_.c_str(), 5 * kPage), 0);
  const absl::Status lost = device_->ReadNow(3 * kPage, Memory(10, 4));
  EXPECT_TRUE(absl::IsDataLoss(lost)) << lost;
  EXPECT_THAT(std::string(lost.message()), HasSubstr(path_ + ": reading at "));
}

TEST_P(NvmeDeviceTest, ClosedWithJobsUnderWayItTellsEachOnce) {
  Open({.limits = {.depth_jobs = 4}});
  constexpr uint64_t kJobs = 500;
  for (uint64_t i = 0; i < kJobs; ++i) {
    ASSERT_TRUE(device_->Submit(Job(Kind::kRead, i, Memory(i, 8), i)));
  }
  device_.reset();
  std::vector<int> times(kJobs);
  for (const NvmeDone& done : told_.WaitFor(kJobs)) {
    ++times[done.tag];
    EXPECT_TRUE(done.outcome == NvmeOutcome::kOk || done.error == ECANCELED);
  }
  EXPECT_THAT(times, testing::Each(1));
}

// --- a device that does not answer ---------------------------------------------------------------

// Reading from an empty pipe is what hangs.
class PipeDevice {
 public:
  PipeDevice() {
    int ends[2];
    EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
    write_end_ = ends[1];
    file_ = DeviceFile::Adopt("pipe", ends[0], kDeviceBytes);
  }
  ~PipeDevice() { close(write_end_); }
  std::shared_ptr<const DeviceFile> file() const { return file_; }

 private:
  int write_end_ = -1;
  std::shared_ptr<const DeviceFile> file_;
};

class HungDevice {
 public:
  // A device whose first read does not return.
  HungDevice(const std::string& engine, const std::string& path) {
    DeviceOptions options{.limits = {.depth_jobs = 1}, .close_wait = 20 * kMillisecond};
    if (engine == "threads") {
      auto file = DeviceFile::Open(path, kDeviceBytes);
      EXPECT_TRUE(file.ok());
      options.fault = [this](const NvmeTransfer&, int64_t result) {
        begun_.Notify();
        hung_.WaitForNotification();
        returned_.Notify();
        return result;
      };
      device_ = MakeDevice(engine, *std::move(file), options);
    } else {
      device_ = MakeDevice(engine, pipe_.file(), options);
    }
  }
  std::unique_ptr<NvmeDevice>& device() { return device_; }
  // The pool has begun what hangs. A ring begins a read before it tells of any write.
  void WaitForBegun(const std::string& engine) {
    if (engine == "threads") begun_.WaitForNotification();
  }
  // What was left behind in the kernel returns.
  void Release(const std::string& engine) {
    if (engine != "threads") return;
    hung_.Notify();
    returned_.WaitForNotification();
  }

 private:
  PipeDevice pipe_;
  absl::Notification begun_;
  absl::Notification hung_;
  absl::Notification returned_;
  std::unique_ptr<NvmeDevice> device_;
};

TEST_P(NvmeDeviceTest, WhileTheKernelHangsWaitingJobsExpireAndClosingIsBounded) {
  // Never freed: a thread that was left behind in the kernel still has it.
  static auto& kept = *new std::vector<std::unique_ptr<HungDevice>>();
  HungDevice& hung = *kept.emplace_back(std::make_unique<HungDevice>(GetParam(), path_));
  std::unique_ptr<NvmeDevice>& device = hung.device();
  ASSERT_NE(device, nullptr);
  device->SetSink(told_.sink());
  ASSERT_TRUE(device->Submit(Job(Kind::kRead, 0, Memory(0), 1)));
  hung.WaitForBegun(GetParam());
  NvmeJob waiting = Job(Kind::kWrite, 1, Memory(1), 2);
  waiting.deadline = TheClock().Now() + 5 * kMillisecond;
  ASSERT_TRUE(device->Submit(std::move(waiting)));
  const std::vector<NvmeDone> expired = told_.WaitFor(1);
  EXPECT_EQ(expired[0].tag, 2u);
  EXPECT_EQ(expired[0].outcome, NvmeOutcome::kExpired);

  ASSERT_TRUE(device->Submit(Job(Kind::kWrite, 2, Memory(2), 3)));
  device.reset();
  hung.Release(GetParam());
  const std::vector<NvmeDone> told = told_.WaitFor(2);
  ASSERT_EQ(told.size(), 2u);  // Nothing of the first: its buffer may still be written.
  EXPECT_EQ(told[1].tag, 3u);
  EXPECT_EQ(told[1].error, ECANCELED);
}

}  // namespace
}  // namespace kvd
