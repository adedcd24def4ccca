#include "bench/floors.h"

#include <memory>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvd {
namespace {

TEST(FloorsTest, TheBestCopyLoopHasANameAndASpeed) {
  for (const size_t block_bytes : {size_t{1}, size_t{4096}, size_t{16} << 20}) {
    const CopyFloor floor = MeasureCopyFloor(block_bytes);

    EXPECT_GT(floor.gib_per_s, 0);
    EXPECT_FALSE(floor.loop.empty());
  }
}

TEST(FloorsTest, AnEchoIsMeasuredForMessagesOfAnySize) {
  const absl::StatusOr<std::unique_ptr<EchoProcess>> echo = EchoProcess::Start();
  ASSERT_TRUE(echo.ok()) << echo.status();

  for (const size_t bytes :
       {size_t{0}, size_t{448}, EchoProcess::kMaxMessageBytes, size_t{1} << 30}) {
    const absl::StatusOr<std::vector<double>> samples = (*echo)->Measure(bytes, 5);

    ASSERT_TRUE(samples.ok()) << samples.status();
    EXPECT_EQ(samples->size(), 5);
    EXPECT_THAT(*samples, testing::Each(testing::Gt(0)));
  }
}

}  // namespace
}  // namespace kvd
