// What is next, and what may begin: the order and the bounds of a device's jobs, without a device.

#include "tiers/nvme_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace kvd {
namespace {

using testing::ElementsAre;
using Kind = NvmeJob::Kind;

class NvmeQueueTest : public testing::Test {
 protected:
  static constexpr uint32_t kPage = kNvmePageBytes;

  bool Push(NvmeQueue& queue, Kind kind, uint64_t tag, uint32_t bytes = kPage,
            Nanos deadline = INT64_MAX) {
    NvmeJob job{.kind = kind, .deadline = deadline, .tag = tag};
    if (kind != Kind::kSync) job.pieces.push_back({memory_, bytes});
    return queue.Push(std::move(job), 0);
  }
  // Begins all that may, and says which.
  static std::vector<uint64_t> BeginAll(NvmeQueue& queue) {
    std::vector<uint64_t> tags;
    while (auto entry = queue.Begin()) tags.push_back(entry->job.tag);
    return tags;
  }
  // Begins and ends one after the other.
  static std::vector<uint64_t> RunAll(NvmeQueue& queue) {
    std::vector<uint64_t> tags;
    while (auto entry = queue.Begin()) {
      tags.push_back(entry->job.tag);
      queue.End(*entry);
    }
    return tags;
  }

  alignas(kNvmePageBytes) std::byte memory_[16 * kNvmePageBytes] = {};
};

TEST_F(NvmeQueueTest, ASyncThenReadsThenWritesEachByDeadlineThenByArrival) {
  NvmeQueue queue({});
  ASSERT_TRUE(Push(queue, Kind::kWrite, 1));
  ASSERT_TRUE(Push(queue, Kind::kWrite, 2, kPage, 500));
  ASSERT_TRUE(Push(queue, Kind::kRead, 3, kPage, 900));
  ASSERT_TRUE(Push(queue, Kind::kRead, 4, kPage, 700));
  ASSERT_TRUE(Push(queue, Kind::kRead, 5, kPage, 900));
  ASSERT_TRUE(Push(queue, Kind::kSync, 6));
  EXPECT_THAT(RunAll(queue), ElementsAre(6, 4, 3, 5, 2, 1));
  EXPECT_FALSE(queue.waiting());
}

TEST_F(NvmeQueueTest, AWriteIsNotStarvedByReads) {
  NvmeQueue queue({});
  for (uint64_t i = 0; i < 20; ++i) ASSERT_TRUE(Push(queue, Kind::kRead, i));
  ASSERT_TRUE(Push(queue, Kind::kWrite, 100));
  ASSERT_TRUE(Push(queue, Kind::kWrite, 101));
  const std::vector<uint64_t> order = RunAll(queue);
  ASSERT_EQ(order.size(), 22u);
  EXPECT_EQ(order[NvmeQueue::kReadsPerWrite], 100u);
  EXPECT_EQ(order[2 * NvmeQueue::kReadsPerWrite + 1], 101u);
}

TEST_F(NvmeQueueTest, DepthIsBoundedInJobs) {
  NvmeQueue queue({.depth_jobs = 2});
  for (uint64_t i = 0; i < 4; ++i) ASSERT_TRUE(Push(queue, Kind::kRead, i));
  const NvmeQueue::Entry first = *queue.Begin();
  ASSERT_TRUE(queue.Begin().has_value());
  EXPECT_FALSE(queue.MayBegin());
  EXPECT_EQ(queue.begun(), 2u);
  queue.End(first);
  EXPECT_THAT(BeginAll(queue), ElementsAre(2));
  EXPECT_TRUE(queue.waiting());
}

TEST_F(NvmeQueueTest, DepthIsBoundedInBytesAndTheLastJobMayGoBeyond) {
  NvmeQueue queue({.depth_bytes = 4 * kPage});
  ASSERT_TRUE(Push(queue, Kind::kRead, 1, 8 * kPage));
  ASSERT_TRUE(Push(queue, Kind::kRead, 2, 3 * kPage));
  ASSERT_TRUE(Push(queue, Kind::kRead, 3, 2 * kPage));
  ASSERT_TRUE(Push(queue, Kind::kRead, 4));
  const NvmeQueue::Entry large = *queue.Begin();
  EXPECT_TRUE(queue.full());
  EXPECT_FALSE(queue.MayBegin());
  queue.End(large);
  EXPECT_FALSE(queue.full());
  EXPECT_THAT(BeginAll(queue), ElementsAre(2, 3));
  ASSERT_TRUE(Push(queue, Kind::kSync, 5));  // Nothing passes a full depth.
  EXPECT_FALSE(queue.MayBegin());
}

TEST_F(NvmeQueueTest, OneSyncAtATime) {
  NvmeQueue queue({});
  ASSERT_TRUE(Push(queue, Kind::kSync, 1));
  ASSERT_TRUE(Push(queue, Kind::kSync, 2));
  ASSERT_TRUE(Push(queue, Kind::kRead, 3));
  const NvmeQueue::Entry sync = *queue.Begin();
  EXPECT_THAT(BeginAll(queue), ElementsAre(3));
  queue.End(sync);
  EXPECT_THAT(BeginAll(queue), ElementsAre(2));
}

TEST_F(NvmeQueueTest, WhatIsAcceptedIsBoundedAndWritesTakeHalf) {
  NvmeQueue queue({.accepted_jobs = 4});
  EXPECT_TRUE(Push(queue, Kind::kWrite, 1));
  EXPECT_TRUE(Push(queue, Kind::kWrite, 2));
  EXPECT_FALSE(Push(queue, Kind::kWrite, 3));
  EXPECT_TRUE(Push(queue, Kind::kRead, 4));
  EXPECT_TRUE(Push(queue, Kind::kSync, 5));
  EXPECT_FALSE(Push(queue, Kind::kRead, 6));
  EXPECT_FALSE(Push(queue, Kind::kSync, 7));
  EXPECT_THAT(RunAll(queue), ElementsAre(5, 4, 1, 2));
  EXPECT_TRUE(Push(queue, Kind::kWrite, 8));
  EXPECT_TRUE(Push(queue, Kind::kWrite, 9));
}

TEST_F(NvmeQueueTest, AcceptedBytesAreBounded) {
  NvmeQueue queue({.accepted_bytes = 8 * kPage});
  EXPECT_TRUE(Push(queue, Kind::kWrite, 1, 4 * kPage));
  EXPECT_FALSE(Push(queue, Kind::kWrite, 2, kPage));
  EXPECT_TRUE(Push(queue, Kind::kRead, 3, 4 * kPage));
  EXPECT_FALSE(Push(queue, Kind::kRead, 4, kPage));
  // What has begun counts until it ends.
  const NvmeQueue::Entry read = *queue.Begin();
  EXPECT_FALSE(Push(queue, Kind::kRead, 5, kPage));
  queue.End(read);
  EXPECT_TRUE(Push(queue, Kind::kRead, 6, kPage));
}

TEST_F(NvmeQueueTest, ExpiredJobsGoWhetherOrNotTheyCouldBegin) {
  NvmeQueue queue({.depth_jobs = 1, .accepted_jobs = 4});
  ASSERT_TRUE(Push(queue, Kind::kRead, 1, kPage, 50));
  const NvmeQueue::Entry begun = *queue.Begin();
  ASSERT_TRUE(Push(queue, Kind::kRead, 2, kPage, 100));
  ASSERT_TRUE(Push(queue, Kind::kWrite, 3, kPage, 90));
  ASSERT_TRUE(Push(queue, Kind::kRead, 4, kPage, 101));
  EXPECT_FALSE(queue.TakeExpired(89).has_value());
  EXPECT_EQ(queue.TakeExpired(100)->job.tag, 2u);
  EXPECT_EQ(queue.TakeExpired(100)->job.tag, 3u);
  EXPECT_FALSE(queue.TakeExpired(100).has_value());  // Not the one that has begun.
  EXPECT_TRUE(Push(queue, Kind::kRead, 5));          // Their room is free again.
  EXPECT_TRUE(Push(queue, Kind::kRead, 6));
  EXPECT_EQ(begun.job.tag, 1u);
}

TEST_F(NvmeQueueTest, WhatADeviceCannotBeAsked) {
  const NvmeJob good{.offset = kPage, .pieces = {{memory_, kPage}, {memory_ + kPage, 2 * kPage}}};
  EXPECT_TRUE(IsValidJob(good, 4 * kPage));
  EXPECT_FALSE(IsValidJob(good, 4 * kPage - 1));
  EXPECT_TRUE(IsValidJob({.kind = Kind::kSync}, 0));

  NvmeJob bad = good;
  bad.offset = 512;
  EXPECT_FALSE(IsValidJob(bad, 8 * kPage));
  bad = good;
  bad.offset = uint64_t{0} - kPage;
  EXPECT_FALSE(IsValidJob(bad, 8 * kPage));
  bad = good;
  bad.pieces[0] = {memory_ + 512, kPage};
  EXPECT_FALSE(IsValidJob(bad, 8 * kPage));
  bad = good;
  bad.pieces[0] = {memory_, kPage - 512};
  EXPECT_FALSE(IsValidJob(bad, 8 * kPage));
  bad = good;
  bad.pieces[0] = {};
  EXPECT_FALSE(IsValidJob(bad, 8 * kPage));
  bad = good;
  bad.sums = {1};
  EXPECT_FALSE(IsValidJob(bad, 8 * kPage));
  bad = good;
  bad.pieces.assign(NvmeQueue::kPiecesMax + 1, {memory_, kPage});
  EXPECT_FALSE(IsValidJob(bad, 10000 * kPage));
  bad.pieces.clear();
  EXPECT_FALSE(IsValidJob(bad, 10000 * kPage));
}

}  // namespace
}  // namespace kvd
