// Every method with arbitrary messages, as the fuzzer runs them, over fixed seeds; so that each
// build has some of it.

#include "daemon/methods.h"

#include <gtest/gtest.h>

#include <random>
#include <string>

#include "tests/fuzz/methods_harness.h"

namespace kvd {
namespace {

// A program of `operations`; how likely each field is right differs from seed to seed.
std::string Program(uint32_t seed, int operations) {
  std::mt19937 random(seed);
  const double right = 0.5 + 0.5 * (seed % 11) / 10;
  std::string program;
  for (int i = 0; i < operations; ++i) {
    program.push_back(static_cast<char>(random()));  // Method.
    int flags = 0;
    for (int bit = 0; bit < 8; ++bit) {
      // Right most of the time, but for the kind of a put and what is released on the way.
      const double odds = bit == 4 ? 0.3 : bit == 6 ? 0.2 : right;
      flags |= (std::uniform_real_distribution<>()(random) < odds) << bit;
    }
    program.push_back(static_cast<char>(flags));
    for (int argument = 0; argument < 4; ++argument) {
      program.push_back(static_cast<char>(random()));
    }
    const size_t payload = random() % 4 == 0 ? random() % 24 : 0;
    program.push_back(static_cast<char>(payload));
    for (size_t j = 0; j < payload; ++j) program.push_back(static_cast<char>(random()));
  }
  return program;
}

TEST(MethodsTest, ArbitraryMessagesBreakNoPromise) {
  MethodsHarness::Reached reached;
  for (uint32_t seed = 1; seed <= 120; ++seed) {
    SCOPED_TRACE(seed);
    MethodsHarness harness;
    const std::string program = Program(seed, 1500);
    harness.Run(reinterpret_cast<const uint8_t*>(program.data()), program.size());
    harness.Finish();
    reached.calls += harness.reached().calls;
    reached.answered_ok += harness.reached().answered_ok;
    reached.waits += harness.reached().waits;
    reached.early_commits += harness.reached().early_commits;
    reached.fills += harness.reached().fills;
    reached.pieces += harness.reached().pieces;
    reached.sums_differ += harness.reached().sums_differ;
    reached.stored += harness.reached().stored;
    reached.extents += harness.reached().extents;
    reached.damaged += harness.reached().damaged;
  }
  // The programs reach what they are for.
  EXPECT_GT(reached.answered_ok, reached.calls / 20);
  EXPECT_GT(reached.waits, 100u);
  EXPECT_GT(reached.early_commits, 5u);
  EXPECT_GT(reached.fills, 1000u);
  EXPECT_GT(reached.pieces, 100u);
  EXPECT_GT(reached.sums_differ, 8u);
  EXPECT_GT(reached.stored, 500u);
  EXPECT_GT(reached.extents, 500u);
  EXPECT_GT(reached.damaged, 50u);
}

// A client fills a reservation whose number it guessed, and lets it expire meanwhile.
TEST(MethodsTest, AReservationThatEndsWhileItGrowsLeavesNothing) {
  constexpr uint8_t kProgram[] = {
      4,  0x2b, 0,  0, 0, 7, 0,  // Reserve eight blocks; the first slice of them.
      14, 0x04, 0,  0, 0, 0, 0,  // A copy begins.
      16, 0,    36, 0, 0, 0, 0,  // More than a minute.
      17, 0,    1,  0, 0, 0, 0,  // It expires; the second slice.
      15, 0,    0,  0, 0, 0, 0,  // The copy ends.
      17, 0,    1,  0, 0, 0, 0,  // The third slice.
  };
  MethodsHarness harness;
  harness.Run(kProgram, sizeof kProgram);
  harness.Finish();
  EXPECT_EQ(harness.reached().fills, 1u);
}

}  // namespace
}  // namespace kvd
