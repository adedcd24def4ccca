// A thousand power losses, or as many as KVD_POWER_LOSS_IMAGES says.

#include "tests/sim/power_loss.h"

#include <algorithm>

#include "gtest/gtest.h"
#include "tests/testing/run_size.h"

namespace kvd {
namespace {

constexpr uint32_t kImagesOfASeed = 50;

TEST(PowerLossTest, NoImageBreaksAPromise) {
  const uint64_t first = NumberFromEnvironment("KVD_SEED", 1);
  const uint64_t images = NumberFromEnvironment("KVD_POWER_LOSS_IMAGES", RoundsForThisBuild(1000));
  PowerLossResult all;
  for (uint64_t seed = first; all.images < images; ++seed) {
    const PowerLossResult result = RunPowerLoss(
        {.seed = seed,
         .images = static_cast<uint32_t>(std::min<uint64_t>(images - all.images, kImagesOfASeed))});
    ASSERT_TRUE(result.ok()) << result.first_failure << "\nlost " << result.records_lost
                             << ", wrong " << result.wrong_blocks << ", resurrected "
                             << result.resurrected << ", failed opens " << result.failed_opens
                             << "\nKVD_SEED=" << seed << " KVD_POWER_LOSS_IMAGES=" << kImagesOfASeed
                             << " power_loss_test";
    all.images += result.images;
    all.records_promised += result.records_promised;
    all.records_verified += result.records_verified;
    all.given_up += result.given_up;
    all.appended += result.appended;
    all.reclaimed_segments += result.reclaimed_segments;
    all.moved += result.moved;
    all.purges += result.purges;
    all.writes.kept += result.writes.kept;
    all.writes.dropped += result.writes.dropped;
    all.writes.torn += result.writes.torn;
    for (const auto& [fault, count] : result.faults) all.faults[fault] += count;
  }
  RecordProperty("records_promised", std::to_string(all.records_promised));
  RecordProperty("records_verified", std::to_string(all.records_verified));
  RecordProperty("given_up", std::to_string(all.given_up));
  if (images < 500) return;
  // So that a simulation in which nothing happens does not pass.
  EXPECT_GT(all.records_promised, images);
  EXPECT_LT(all.given_up * 1000, all.records_promised);
  EXPECT_GT(all.appended, images);
  EXPECT_GT(all.reclaimed_segments, 0u);
  EXPECT_GT(all.moved, 0u);
  EXPECT_GT(all.purges, 0u);
  EXPECT_GT(all.writes.kept, 0u);
  EXPECT_GT(all.writes.dropped, 0u);
  EXPECT_GT(all.writes.torn, 0u);
  for (const auto& [fault, count] : all.faults) {
    if (fault == SimFault::kHang) continue;
    EXPECT_GT(count, 0u) << static_cast<int>(fault);
  }
}

}  // namespace
}  // namespace kvd
