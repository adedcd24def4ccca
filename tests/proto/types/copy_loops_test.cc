// Every loop that this CPU can run, against memcmp and the table. What the tests call a frame is
// the room around a target: none of its bytes may change.
#include "proto/types/copy_loops.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "proto/types/checksum.h"

namespace kvd {
namespace {

constexpr size_t kKiB = 1 << 10;
constexpr size_t kMiB = 1 << 20;
constexpr size_t kLine = 64;
constexpr size_t kFrame = 256;
constexpr std::byte kFrameByte{0xC3};

// Memory that starts at a cache line, so that an offset is an alignment.
class LineAligned {
 public:
  explicit LineAligned(size_t size) : memory_(size + kLine) {
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    start_ = memory_.data() + (-address & (kLine - 1));
  }
  std::byte* data() { return start_; }

 private:
  std::vector<std::byte> memory_;
  std::byte* start_;
};

class CopyLoopTest : public testing::TestWithParam<CopyLoop> {
 protected:
  static constexpr size_t kLargest = 2 * kMiB + 64 * kKiB;

  static void SetUpTestSuite() {
    source_ = new LineAligned(kLargest + kLine);
    target_ = new LineAligned(kLargest + kLine + 2 * kFrame);
    std::mt19937_64 random(20261121);
    for (size_t i = 0; i < kLargest + kLine; i += 8) {
      const uint64_t word = random();
      std::memcpy(source_->data() + i, &word, 8);
    }
  }
  static void TearDownTestSuite() {
    delete source_;
    delete target_;
  }

  // Copies `size` bytes between the two alignments, with and without a sum, and checks everything.
  // A plain result, because a million expectations would take longer than the copies.
  static testing::AssertionResult Copies(size_t size, size_t target_offset, size_t source_offset) {
    const std::byte* source = source_->data() + source_offset;
    const uint32_t expected = Crc32cPortable(absl::MakeConstSpan(source, size));
    for (const bool with_sum : {true, false}) {
      std::byte* frame = target_->data() + target_offset;
      std::byte* target = frame + kFrame;
      std::memset(frame, static_cast<int>(kFrameByte), size + 2 * kFrame);
      if (with_sum) {
        const uint32_t sum = GetParam().copy_sum(target, source, size);
        if (sum != expected) return Fault("sum", size, target_offset, source_offset);
      } else {
        GetParam().copy(target, source, size);
      }
      if (std::memcmp(target, source, size) != 0) {
        return Fault("bytes", size, target_offset, source_offset);
      }
      const auto untouched = [](std::byte byte) { return byte == kFrameByte; };
      if (!std::all_of(frame, target, untouched) ||
          !std::all_of(target + size, target + size + kFrame, untouched)) {
        return Fault("frame", size, target_offset, source_offset);
      }
    }
    return testing::AssertionSuccess();
  }

  static testing::AssertionResult Fault(std::string_view what, size_t size, size_t target_offset,
                                        size_t source_offset) {
    return testing::AssertionFailure() << what << " wrong: size " << size << " target +"
                                       << target_offset << " source +" << source_offset;
  }

 private:
  static inline LineAligned* source_;
  static inline LineAligned* target_;
};

TEST_P(CopyLoopTest, EveryLengthUpTo1100) {
  for (size_t size = 0; size <= 1100; ++size) {
    ASSERT_TRUE(Copies(size, 0, 0));
    ASSERT_TRUE(Copies(size, size % 64, size * 7 % 64));
    ASSERT_TRUE(Copies(size, size * 11 % 64, size % 64));
  }
}

TEST_P(CopyLoopTest, EveryPairOfAlignments) {
  for (size_t target_offset = 0; target_offset < kLine; ++target_offset) {
    for (size_t source_offset = 0; source_offset < kLine; ++source_offset) {
      const size_t size = 600 + 13 * target_offset + 5 * source_offset;
      ASSERT_TRUE(Copies(size, target_offset, source_offset));
    }
  }
}

TEST_P(CopyLoopTest, SizesAroundWholePages) {
  for (size_t pages : {1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17}) {
    for (int delta : {-257, -64, -8, -1, 0, 1, 8, 63, 64, 255, 256, 2049}) {
      const size_t size = pages * 4 * kKiB + static_cast<size_t>(delta);
      ASSERT_TRUE(Copies(size, 0, 0));
      ASSERT_TRUE(Copies(size, size * 3 % 64, size * 5 % 64));
    }
  }
}

TEST_P(CopyLoopTest, SizesOfBlocks) {
  for (size_t block : {64 * kKiB, 256 * kKiB, 2 * kMiB}) {
    for (int delta : {-65, -1, 0, 1, 65}) {
      ASSERT_TRUE(Copies(block + static_cast<size_t>(delta), 0, 0));
      ASSERT_TRUE(Copies(block + static_cast<size_t>(delta), 8, 40));
      ASSERT_TRUE(Copies(block + static_cast<size_t>(delta), 63, 1));
    }
  }
}

// Each bit of a block moves the sum: no part of it is left out and none is taken twice.
TEST_P(CopyLoopTest, DamageAnywhereMovesTheSum) {
  std::vector<std::byte> source(40 * kKiB), target(source.size());
  const uint32_t clean = GetParam().copy_sum(target.data(), source.data(), source.size());
  for (size_t i = 0; i < source.size(); i += 101) {
    source[i] ^= std::byte{1};
    ASSERT_NE(GetParam().copy_sum(target.data(), source.data(), source.size()), clean) << i;
    source[i] ^= std::byte{1};
  }
}

std::string TestName(std::string name) {
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(All, CopyLoopTest,
                         testing::ValuesIn(CopyLoops().begin(), CopyLoops().end()),
                         [](const testing::TestParamInfo<CopyLoop>& info) {
                           const bool cache = info.param.use == CopyUse::kCache;
                           return TestName(std::string(info.param.name)) +
                                  (cache ? "_cache" : "_memory");
                         });

class SumLoopTest : public testing::TestWithParam<SumLoop> {};

TEST_P(SumLoopTest, IsThePortableSumAndContinues) {
  constexpr size_t kSize = 80 * kKiB;
  std::vector<std::byte> bytes(kSize);
  std::mt19937 random(1);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  for (size_t size = 0; size < kSize - kLine; size += 1 + size / 29) {
    for (size_t offset : {size_t{0}, size * 7 % kLine}) {
      const auto part = absl::MakeConstSpan(bytes).subspan(offset, size);
      const size_t cut = size / 3;
      const uint32_t head = GetParam().sum(0, part.data(), cut);
      const uint32_t whole = GetParam().sum(head, part.data() + cut, size - cut);
      ASSERT_EQ(whole, Crc32cPortable(part)) << size << " +" << offset;
      ASSERT_EQ(GetParam().sum(0, part.data(), size), whole) << size << " +" << offset;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, SumLoopTest, testing::ValuesIn(SumLoops().begin(), SumLoops().end()),
                         [](const testing::TestParamInfo<SumLoop>& info) {
                           return TestName(std::string(info.param.name));
                         });

TEST(CopyLoopsTest, PlainIsThereForBothUsesAndNoNameTwice) {
  std::set<std::pair<std::string_view, CopyUse>> names;
  for (const CopyLoop& loop : CopyLoops()) {
    EXPECT_TRUE(names.emplace(loop.name, loop.use).second) << loop.name;
  }
  EXPECT_EQ(names.count({"plain", CopyUse::kMemory}), 1u);
  EXPECT_EQ(names.count({"plain", CopyUse::kCache}), 1u);
}

#if defined(__x86_64__)
TEST(CopyLoopsTest, WhatTheCpuCanDoIsOffered) {
  std::set<std::string_view> names;
  for (const CopyLoop& loop : CopyLoops()) names.insert(loop.name);
  const bool crc = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul");
  const bool wide =
      crc && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq");
  for (const char* name : {"nt1-fold", "nt1-fold-4k", "nt4-fold", "st1-fold"}) {
    EXPECT_EQ(names.count(name), wide ? 1u : 0u) << name;
  }
  for (const char* name :
       {"nt1-fold128", "nt4-fold128", "nt1-crc32", "nt4-crc32", "st1-fold128", "st1-crc32"}) {
    EXPECT_EQ(names.count(name), crc ? 1u : 0u) << name;
  }
}
#endif

}  // namespace
}  // namespace kvd
