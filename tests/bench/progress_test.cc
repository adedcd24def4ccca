#include "bench/progress.h"

#include <string>
#include <vector>

#include "bench/table.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/types/clock.h"

namespace kvd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

class ProgressTest : public testing::Test {
 protected:
  ProgressBar::Options Options(uint64_t total) {
    return {.label = "replay", .total = total, .write = [this](std::string_view text) {
              written_.emplace_back(text);
            }};
  }

  ManualClock clock_;
  std::vector<std::string> written_;
};

TEST_F(ProgressTest, ShowsShareRateAndTimeLeft) {
  ProgressBar bar(clock_, Options(12'000));
  clock_.Advance(2 * kSecond);
  bar.Add(3'000);

  EXPECT_THAT(written_, ElementsAre("\r\x1b[Kreplay  [#####---------------]  25.0 %  "
                                    "3,000 of 12,000  1,500/s  ETA 0:06"));
}

TEST_F(ProgressTest, DrawsAtMostTenTimesASecond) {
  ProgressBar bar(clock_, Options(1'000'000));
  for (int i = 0; i < 10'000; ++i) {  // One second.
    clock_.Advance(kMillisecond / 10);
    bar.Add();
  }
  EXPECT_EQ(written_.size(), 10u);
}

TEST_F(ProgressTest, WipesItsLineAtTheEnd) {
  {
    ProgressBar bar(clock_, Options(10));
    clock_.Advance(kSecond);
    bar.Add();
  }
  EXPECT_EQ(written_.back(), "\r\x1b[K");
}

TEST_F(ProgressTest, WritesNothingWhenItIsOverAtOnce) {
  {
    ProgressBar bar(clock_, Options(10));
    bar.Add(10);
  }
  EXPECT_THAT(written_, IsEmpty());
}

TEST_F(ProgressTest, WritesNothingWhenDisabled) {
  ProgressBar::Options options = Options(10);
  options.enabled = false;
  ProgressBar bar(clock_, options);
  clock_.Advance(kSecond);
  bar.Add();
  bar.Finish();
  EXPECT_THAT(written_, IsEmpty());
}

TEST_F(ProgressTest, AnUnknownTotalHasNoBar) {
  ProgressBar bar(clock_, Options(0));
  clock_.Advance(kSecond);
  bar.Add(1'234);
  EXPECT_THAT(written_, ElementsAre("\r\x1b[Kreplay  1,234  1,234/s"));
}

TEST_F(ProgressTest, MoreThanTheTotalIsStillALine) {
  ProgressBar bar(clock_, Options(10));
  clock_.Advance(kSecond);
  bar.Add(20);
  EXPECT_THAT(written_[0], HasSubstr("100.0 %"));
  EXPECT_THAT(written_[0], Not(HasSubstr("ETA")));
}

TEST_F(ProgressTest, IsCutToTheTerminal) {
  ProgressBar::Options options = Options(10);
  options.columns = 20;
  ProgressBar bar(clock_, options);
  clock_.Advance(kSecond);
  bar.Add();
  EXPECT_THAT(written_[0], StartsWith("\r\x1b[Kreplay  ["));
  EXPECT_EQ(DisplayWidth(written_[0].substr(4)), 19u);
}

TEST_F(ProgressTest, AsksForSilenceWhenQuiet) {
  EXPECT_FALSE(ProgressBar::OnStandardError("x", 1, /*quiet=*/true).enabled);
}

}  // namespace
}  // namespace kvd
