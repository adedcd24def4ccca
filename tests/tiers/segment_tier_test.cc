// The tier over devices in memory: what is acknowledged, what a failed write or sync does, what a
// restart finds, how room comes back.

#include "tiers/segment_tier.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>

#include "tests/testing/nvme_harness.h"

namespace kvd {
namespace {

constexpr uint32_t kKiB = 1024;
constexpr uint32_t kMiB = 1024 * kKiB;

class SegmentTierTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(h_.Open().ok());
    h_.MustAddScope();
  }
  NvmeHarness h_;
};

TEST_F(SegmentTierTest, ReadsWhatWasAppended) {
  const uint32_t big = h_.MustAppend(1, 300 * kKiB);
  const uint32_t odd = h_.MustAppend(2, 100'001);
  const uint32_t tiny = h_.MustAppend(3, 512);
  EXPECT_EQ(h_.Read(big), NvmeOutcome::kOk);
  EXPECT_EQ(h_.Read(odd), NvmeOutcome::kOk);
  EXPECT_EQ(h_.Read(tiny), NvmeOutcome::kOk);
}

TEST_F(SegmentTierTest, SmallRecordsAreWrittenTogether) {
  std::vector<uint32_t> occupants;
  const uint32_t before = h_.devices[0]->writes;
  for (uint64_t key = 0; key < 32; ++key) occupants.push_back(*h_.Append(key, 4 * kKiB));
  EXPECT_EQ(h_.devices[0]->writes, before + 1);
  EXPECT_EQ(h_.devices[0]->bytes_of_largest_write, 256 * kKiB);
  h_.Turn();
  for (const uint32_t occupant : occupants) EXPECT_EQ(h_.Read(occupant), NvmeOutcome::kOk);
}

TEST_F(SegmentTierTest, ARestartFindsWhatWasAcknowledged) {
  for (uint64_t key = 0; key < 40; ++key) h_.MustAppend(key, 256 * kKiB);
  ASSERT_TRUE(h_.Restart().ok());
  EXPECT_EQ(h_.found.size(), 40u);
  EXPECT_EQ(h_.ReadAll(), 40u);
}

TEST_F(SegmentTierTest, ClosedTiersAreFoundByTheirFooters) {
  for (uint64_t key = 0; key < 40; ++key) h_.MustAppend(key, 256 * kKiB);
  ASSERT_TRUE(h_.tier->Close(absl::Seconds(1)).ok());
  ASSERT_TRUE(h_.Restart().ok());
  EXPECT_EQ(h_.report.from_footers, 40u);
  EXPECT_EQ(h_.report.from_headers, 0u);
  EXPECT_EQ(h_.ReadAll(), 40u);
}

}  // namespace
}  // namespace kvd
