// The simulated device keeps the contract of tiers/nvme_device.h, and loses what a real one may
// lose, never more.

#include "tests/sim/sim_device.h"

#include <algorithm>
#include <cerrno>
#include <set>
#include <vector>

#include "gtest/gtest.h"
#include "proto/types/checksum.h"

namespace kvd {
namespace {

using Bytes = std::vector<std::byte>;

constexpr uint64_t kDeviceBytes = 1u << 20;
constexpr size_t kPage = kNvmePageBytes;

Bytes Pattern(uint8_t fill, size_t pages = 1) {
  return Bytes(pages * kPage, static_cast<std::byte>(fill));
}

class SimDeviceTest : public testing::Test {
 protected:
  SimDeviceTest() { Listen(device_); }

  void Listen(SimDevice& device) {
    device.SetSink([this](const NvmeDone& done) { done_.push_back(done); });
  }
  static NvmeJob Write(uint64_t offset, Bytes& bytes, uint64_t tag = 1) {
    NvmeJob job{.kind = NvmeJob::Kind::kWrite, .offset = offset, .tag = tag};
    job.pieces.push_back(absl::MakeSpan(bytes));
    return job;
  }
  static NvmeJob Read(uint64_t offset, Bytes& bytes, uint64_t tag = 2) {
    NvmeJob job{.offset = offset, .tag = tag};
    job.pieces.push_back(absl::MakeSpan(bytes));
    return job;
  }
  static NvmeJob Sync(uint64_t tag = 3) { return {.kind = NvmeJob::Kind::kSync, .tag = tag}; }

  // Until nothing more is due, whatever time it takes.
  void RunAll() { RunAll(device_); }
  void RunAll(SimDevice& device) {
    while (const std::optional<Nanos> due = device.NextDue()) {
      clock_.Advance(std::max<Nanos>(0, *due - clock_.Now()));
      device.Run();
    }
  }
  void Must(NvmeJob job) {
    ASSERT_TRUE(device_.Submit(std::move(job)));
    RunAll();
  }
  static Bytes At(const MediaImage& image, uint64_t offset, size_t bytes = kPage) {
    Bytes got(bytes);
    image.Read(offset, absl::MakeSpan(got));
    return got;
  }
  Bytes Now(uint64_t offset, size_t bytes = kPage) {
    Bytes got(bytes);
    EXPECT_TRUE(device_.ReadNow(offset, absl::MakeSpan(got)).ok());
    return got;
  }

  ManualClock clock_;
  std::vector<NvmeDone> done_;
  SimDevice device_{clock_, {.bytes = kDeviceBytes, .seed = 7, .parallel = 4, .max_jobs = 8}};
};

TEST_F(SimDeviceTest, WhatWasWrittenIsRead) {
  Bytes source = Pattern(5, 2);
  Must(Write(8 * kPage, source));
  Bytes target(2 * kPage);
  Must(Read(8 * kPage, target));
  EXPECT_EQ(target, source);
  ASSERT_EQ(done_.size(), 2u);
  EXPECT_EQ(done_[0].tag, 1u);
  EXPECT_EQ(done_[1].outcome, NvmeOutcome::kOk);
  EXPECT_GE(done_[1].took, 20'000);
}

TEST_F(SimDeviceTest, NothingEndsBeforeItsTime) {
  Bytes source = Pattern(5);
  ASSERT_TRUE(device_.Submit(Write(0, source)));
  EXPECT_EQ(device_.Run(), 0u);
  EXPECT_EQ(Now(0), Pattern(0));
  EXPECT_EQ(device_.in_flight(), 1u);
}

TEST_F(SimDeviceTest, JobsOvertakeEachOther) {
  std::vector<Bytes> sources(4, Pattern(1));
  std::set<std::vector<uint64_t>> orders;
  for (int round = 0; round < 20; ++round) {
    done_.clear();
    for (uint64_t i = 0; i < 4; ++i) ASSERT_TRUE(device_.Submit(Write(i * kPage, sources[i], i)));
    RunAll();
    std::vector<uint64_t> order;
    for (const NvmeDone& done : done_) order.push_back(done.tag);
    ASSERT_EQ(order.size(), 4u);
    orders.insert(order);
  }
  EXPECT_GT(orders.size(), 3u);
}

TEST_F(SimDeviceTest, AsManyInFlightAsMayBe) {
  std::vector<Bytes> sources(9, Pattern(1));
  for (uint64_t i = 0; i < 8; ++i) ASSERT_TRUE(device_.Submit(Write(i * kPage, sources[i])));
  EXPECT_FALSE(device_.Submit(Write(8 * kPage, sources[8])));
  RunAll();
  EXPECT_EQ(done_.size(), 8u);
  EXPECT_TRUE(device_.Submit(Write(8 * kPage, sources[8])));
}

TEST_F(SimDeviceTest, ReadsGoFirstAndByDeadline) {
  SimDevice one(clock_, {.bytes = kDeviceBytes, .parallel = 1});
  Listen(one);
  Bytes a = Pattern(1);
  std::vector<Bytes> targets(2, Bytes(kPage));
  ASSERT_TRUE(one.Submit(Write(0, a, 10)));
  NvmeJob late = Read(0, targets[0], 20);
  late.deadline = clock_.Now() + 2 * kSecond;
  ASSERT_TRUE(one.Submit(std::move(late)));
  NvmeJob soon = Read(0, targets[1], 30);
  soon.deadline = clock_.Now() + kSecond;
  ASSERT_TRUE(one.Submit(std::move(soon)));
  RunAll(one);
  ASSERT_EQ(done_.size(), 3u);
  EXPECT_EQ(done_[0].tag, 30u);
  EXPECT_EQ(done_[1].tag, 20u);
  EXPECT_EQ(done_[2].tag, 10u);
}

TEST_F(SimDeviceTest, WhatNobodyWantsAnyMoreIsDropped) {
  Bytes target = Pattern(9);
  NvmeJob job = Read(0, target);
  job.deadline = clock_.Now() + kMillisecond;
  ASSERT_TRUE(device_.Submit(std::move(job)));
  clock_.Advance(kSecond);
  device_.Run();
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_EQ(done_[0].outcome, NvmeOutcome::kExpired);
  EXPECT_EQ(target, Pattern(9));
}

TEST_F(SimDeviceTest, ASumThatDiffersIsTold) {
  Bytes source = Pattern(5);
  Must(Write(0, source));
  Bytes target(kPage);
  NvmeJob right = Read(0, target);
  right.sums.push_back(Crc32c(source));
  Must(std::move(right));
  NvmeJob wrong = Read(0, target);
  wrong.sums.push_back(~Crc32c(source));
  Must(std::move(wrong));
  EXPECT_EQ(done_[1].outcome, NvmeOutcome::kOk);
  EXPECT_EQ(done_[2].outcome, NvmeOutcome::kCorrupt);
}

TEST_F(SimDeviceTest, ASyncMakesDurableWhatEndedBeforeIt) {
  Bytes before = Pattern(1);
  Bytes after = Pattern(2);
  Must(Write(0, before));
  ASSERT_TRUE(device_.Submit(Sync()));
  ASSERT_TRUE(device_.Submit(Write(kPage, after)));
  RunAll();
  int lost = 0;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    const MediaImage image = device_.ImageAfterPowerLoss(seed);
    ASSERT_EQ(At(image, 0), before) << seed;
    lost += At(image, kPage) != after;
  }
  EXPECT_GT(lost, 10);
  EXPECT_LT(lost, 90);
}

TEST_F(SimDeviceTest, APowerLossKeepsDropsTearsAndReorders) {
  Bytes source = Pattern(3, 8);
  Must(Write(0, source));
  Bytes second = Pattern(4, 8);
  Must(Write(0, second));
  std::vector<Bytes> others(4, Pattern(6, 2));
  for (uint64_t i = 0; i < others.size(); ++i) {  // Some of them run, none has ended.
    ASSERT_TRUE(device_.Submit(Write((16 + 2 * i) * kPage, others[i])));
  }
  device_.Run();
  PowerLoss sum;
  int torn_within_a_page = 0;
  int older_wins = 0;
  int in_flight_kept = 0;
  for (uint64_t seed = 0; seed < 500; ++seed) {
    PowerLoss what;
    const MediaImage image = device_.ImageAfterPowerLoss(seed, &what);
    EXPECT_EQ(what.kept + what.dropped + what.torn, 6u);
    sum.kept += what.kept;
    sum.dropped += what.dropped;
    sum.torn += what.torn;
    const Bytes got = At(image, 0, 8 * kPage);
    older_wins += got == source;
    for (size_t page = 0; page < 8; ++page) {
      const auto begin = got.begin() + static_cast<ptrdiff_t>(page * kPage);
      torn_within_a_page += std::set<std::byte>(begin, begin + kPage).size() > 1;
    }
    for (std::byte byte : got)
      ASSERT_TRUE(byte == std::byte{0} || byte == std::byte{3} || byte == std::byte{4});
    in_flight_kept += At(image, 16 * kPage, 2 * kPage) == others[0];
  }
  EXPECT_GT(sum.kept, 200u);
  EXPECT_GT(sum.dropped, 200u);
  EXPECT_GT(sum.torn, 200u);
  EXPECT_GT(torn_within_a_page, 20);
  EXPECT_GT(older_wins, 20);
  EXPECT_GT(in_flight_kept, 20);
  EXPECT_EQ(At(device_.ImageAfterPowerLoss(3), 0, 8 * kPage),
            At(device_.ImageAfterPowerLoss(3), 0, 8 * kPage))
      << "one seed, two images";
}

TEST_F(SimDeviceTest, AKillLosesNothingThatEnded) {
  Bytes source = Pattern(3);
  Must(Write(0, source));
  Bytes open = Pattern(4, 2);
  ASSERT_TRUE(device_.Submit(Write(kPage, open)));
  device_.Run();
  int there = 0;
  for (uint64_t seed = 0; seed < 50; ++seed) {
    const MediaImage image = device_.ImageAfterKill(seed);
    ASSERT_EQ(At(image, 0), source);
    const Bytes got = At(image, kPage, 2 * kPage);
    ASSERT_TRUE(got == open || got == Pattern(0, 2));
    there += got == open;
  }
  EXPECT_GT(there, 5);
  EXPECT_LT(there, 45);
}

TEST_F(SimDeviceTest, ADeviceOfAnImageHoldsIt) {
  Bytes source = Pattern(3);
  Must(Write(kPage, source));
  SimDevice next(clock_, {.bytes = kDeviceBytes}, device_.ImageAfterKill(1));
  Bytes got(kPage);
  ASSERT_TRUE(next.ReadNow(kPage, absl::MakeSpan(got)).ok());
  EXPECT_EQ(got, source);
  EXPECT_EQ(At(next.ImageAfterPowerLoss(1), kPage), source);
}

TEST_F(SimDeviceTest, ErrorsAreTold) {
  Bytes source = Pattern(3, 4);
  Bytes target(4 * kPage);
  device_.Force(SimFault::kNoSpace);
  Must(Write(0, source));
  EXPECT_EQ(done_.back().error, ENOSPC);
  EXPECT_EQ(Now(0, 4 * kPage), Pattern(0, 4));

  device_.Force(SimFault::kWriteError);
  Must(Write(0, source));
  EXPECT_EQ(done_.back().error, EIO);
  EXPECT_NE(Now(0, 4 * kPage), source);

  Must(Write(0, source));
  device_.Force(SimFault::kReadError);
  Must(Read(0, target));
  EXPECT_EQ(done_.back().error, EIO);
  EXPECT_NE(target, source) << "nobody would notice who uses bytes after an error";

  device_.Force(SimFault::kShort);
  Must(Read(0, target));
  EXPECT_EQ(done_.back().outcome, NvmeOutcome::kError);
  EXPECT_EQ(device_.count(SimFault::kShort), 1u);
}

TEST_F(SimDeviceTest, LiesAreNotTold) {
  Bytes source = Pattern(3);
  device_.Force(SimFault::kLost);
  Must(Write(0, source));
  EXPECT_EQ(Now(0), Pattern(0));

  device_.Force(SimFault::kFlipped);
  Must(Write(0, source));
  const Bytes flipped = Now(0);
  EXPECT_EQ(std::count_if(flipped.begin(), flipped.end(),
                          [](std::byte byte) { return byte != std::byte{3}; }),
            1);

  device_.Force(SimFault::kMisdirected);
  Must(Write(kPage, source));
  EXPECT_EQ(Now(kPage), Pattern(0));
  uint64_t elsewhere = 0;
  for (uint64_t page = 0; page < kDeviceBytes / kPage; ++page)
    elsewhere += Now(page * kPage) == source;
  EXPECT_EQ(elsewhere, 1u);
  for (const NvmeDone& done : done_) EXPECT_EQ(done.outcome, NvmeOutcome::kOk);
}

TEST_F(SimDeviceTest, AHungJobEndsWhenItIsReleased) {
  Bytes target(kPage);
  device_.Force(SimFault::kHang);
  Must(Read(0, target));
  EXPECT_TRUE(done_.empty());
  EXPECT_EQ(device_.NextDue(), std::nullopt);
  EXPECT_EQ(device_.in_flight(), 1u);
  device_.ReleaseHung();
  RunAll();
  ASSERT_EQ(done_.size(), 1u);
  EXPECT_EQ(done_[0].outcome, NvmeOutcome::kOk);
}

TEST_F(SimDeviceTest, RatesAreRates) {
  device_.SetRate(SimFault::kReadError, 100'000);
  Bytes target(kPage);
  for (int i = 0; i < 1000; ++i) Must(Read(0, target));
  EXPECT_GT(device_.count(SimFault::kReadError), 60u);
  EXPECT_LT(device_.count(SimFault::kReadError), 140u);
  Bytes source = Pattern(1);
  for (int i = 0; i < 100; ++i) Must(Write(0, source));
  EXPECT_EQ(done_.back().outcome, NvmeOutcome::kOk);
}

TEST_F(SimDeviceTest, WhatIsWrittenNowIsDurableAfterASync) {
  const Bytes source = Pattern(3);
  ASSERT_TRUE(device_.WriteNow(0, source).ok());
  EXPECT_EQ(Now(0), source);
  int there = 0;
  for (uint64_t seed = 0; seed < 50; ++seed) {
    there += At(device_.ImageAfterPowerLoss(seed), 0) == source;
  }
  EXPECT_LT(there, 50);
  ASSERT_TRUE(device_.SyncNow().ok());
  for (uint64_t seed = 0; seed < 50; ++seed) {
    ASSERT_EQ(At(device_.ImageAfterPowerLoss(seed), 0), source);
  }
  Bytes page(kPage);
  EXPECT_FALSE(device_.ReadNow(kDeviceBytes, absl::MakeSpan(page)).ok());
  EXPECT_FALSE(device_.WriteNow(kDeviceBytes, page).ok());
}

}  // namespace
}  // namespace kvd
