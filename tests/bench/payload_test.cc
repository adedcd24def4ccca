// Every damage that a payload is meant to show.

#include "bench/payload.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <random>
#include <set>
#include <vector>

#include "gtest/gtest.h"

namespace kvd {
namespace {

using Bytes = std::vector<std::byte>;
using Key = std::array<std::byte, 32>;

Bytes Payload(const Key& key, uint32_t group, uint32_t shard, size_t size) {
  Bytes bytes(size);
  FillPayload(key, group, shard, absl::MakeSpan(bytes));
  return bytes;
}

TEST(PayloadTest, WhatIsFilledMatchesAtEveryLength) {
  const Key key = KeyOf(1, 2);
  for (size_t size = 0; size < 600; ++size) {
    EXPECT_EQ(CheckPayload(key, 3, 4, Payload(key, 3, 4, size)), kPayloadMatches) << size;
  }
}

TEST(PayloadTest, FillWritesNoFurtherThanItsTarget) {
  for (size_t size = 0; size < 300; ++size) {
    Bytes bytes(size + 1, std::byte{0xa5});
    FillPayload(KeyOf(1, 2), 0, 0, absl::MakeSpan(bytes).first(size));
    EXPECT_EQ(bytes.back(), std::byte{0xa5}) << size;
  }
}

TEST(PayloadTest, AnyFlippedBitIsFoundWhereItIs) {
  const Key key = KeyOf(1, 2);
  Bytes bytes = Payload(key, 0, 0, 1003);
  for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    EXPECT_EQ(CheckPayload(key, 0, 0, bytes), bit / 8);
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
  }
}

TEST(PayloadTest, BytesSwappedBetweenTwoOffsetsAreFound) {
  const Key key = KeyOf(1, 2);
  const Bytes whole = Payload(key, 0, 0, 4096);
  std::mt19937 random(1);
  for (int round = 0; round < 2000; ++round) {
    Bytes bytes = whole;
    size_t a = random() % bytes.size(), b = random() % bytes.size();
    if (a > b) std::swap(a, b);
    if (bytes[a] == bytes[b]) continue;  // Nothing would change.
    std::swap(bytes[a], bytes[b]);
    EXPECT_EQ(CheckPayload(key, 0, 0, bytes), a);
  }
}

TEST(PayloadTest, NoTwoWordsOfAPartAreEqual) {
  const Bytes bytes = Payload(KeyOf(1, 2), 0, 0, 2u << 20);
  std::vector<uint64_t> words(bytes.size() / 8);
  std::memcpy(words.data(), bytes.data(), bytes.size());
  std::sort(words.begin(), words.end());
  EXPECT_EQ(std::adjacent_find(words.begin(), words.end()), words.end());
}

TEST(PayloadTest, BytesLookRandom) {
  const Bytes bytes = Payload(KeyOf(1, 2), 0, 0, 1u << 20);
  std::array<int, 256> counts{};
  for (const std::byte byte : bytes) ++counts[static_cast<size_t>(byte)];
  // 4096 of each are expected, give or take 64; seven times that allows for no chance.
  EXPECT_GT(*std::min_element(counts.begin(), counts.end()), 4096 - 448);
  EXPECT_LT(*std::max_element(counts.begin(), counts.end()), 4096 + 448);
}

TEST(PayloadTest, PagesInTheWrongOrderAreFound) {
  const Key key = KeyOf(1, 2);
  Bytes bytes = Payload(key, 0, 0, 64u << 10);
  std::swap_ranges(bytes.begin() + 4096, bytes.begin() + 8192, bytes.begin() + 40960);
  EXPECT_LT(CheckPayload(key, 0, 0, bytes), 4096u + 8);
  EXPECT_GE(CheckPayload(key, 0, 0, bytes), 4096u);
}

TEST(PayloadTest, ANeighboursPartIsFoundAtOnce) {
  const Key key = KeyOf(1, 2);
  const Bytes bytes = Payload(key, 5, 6, 4096);
  EXPECT_LT(CheckPayload(KeyOf(2, 2), 5, 6, bytes), 8u);
  EXPECT_LT(CheckPayload(KeyOf(1, 3), 5, 6, bytes), 8u);
  EXPECT_LT(CheckPayload(key, 6, 5, bytes), 8u);
  EXPECT_LT(CheckPayload(key, 4, 6, bytes), 8u);
  EXPECT_LT(CheckPayload(key, 5, 7, bytes), 8u);
  EXPECT_LT(CheckPayload(absl::MakeConstSpan(key).first(31), 5, 6, bytes), 8u);
}

TEST(PayloadTest, EveryByteOfTheKeyCounts) {
  const Key key = KeyOf(1, 2);
  const Bytes bytes = Payload(key, 0, 0, 64);
  for (size_t i = 0; i < key.size(); ++i) {
    Key other = key;
    other[i] ^= std::byte{1};
    EXPECT_LT(CheckPayload(other, 0, 0, bytes), 8u) << i;
  }
}

TEST(PayloadTest, AWriteThatStoppedEarlyIsFoundWhereItStopped) {
  const Key key = KeyOf(1, 2);
  const Bytes whole = Payload(key, 0, 0, 8192);
  const Bytes before = Payload(KeyOf(9, 2), 0, 0, 8192);
  for (const Bytes& old : {Bytes(8192), before}) {
    for (const size_t written : {0, 1, 7, 8, 100, 4096, 8000, 8184}) {
      Bytes bytes = old;
      std::copy_n(whole.begin(), written, bytes.begin());
      const size_t wrong = CheckPayload(key, 0, 0, bytes);
      EXPECT_GE(wrong, written);
      EXPECT_LT(wrong, written + 8);
    }
  }
}

TEST(PayloadTest, ARangeIsTheSameBytesAsTheWhole) {
  const Key key = KeyOf(1, 2);
  const Bytes whole = Payload(key, 1, 1, 4096);
  Bytes range(1001);
  FillPayload(key, 1, 1, absl::MakeSpan(range), 1024);
  EXPECT_TRUE(std::equal(range.begin(), range.end(), whole.begin() + 1024));
  EXPECT_EQ(CheckPayload(key, 1, 1, absl::MakeConstSpan(whole).subspan(2048), 2048),
            kPayloadMatches);
}

TEST(PayloadTest, AllLoopsAgree) {
  const absl::Span<const PayloadLoop> loops = PayloadLoops();
  for (const PayloadLoop& loop : loops) {
    for (size_t words = 0; words < 200; ++words) {
      Bytes expected(8 * words + 1), bytes(8 * words + 1);  // At an odd address.
      loops[0].fill(12345, expected.data() + 1, words);
      loop.fill(12345, bytes.data() + 1, words);
      EXPECT_EQ(bytes, expected) << loop.name << " " << words;
      EXPECT_TRUE(loop.check(12345, bytes.data() + 1, words)) << loop.name << " " << words;
      if (words == 0) continue;
      bytes[1 + 8 * words - 1] ^= std::byte{0x80};
      EXPECT_FALSE(loop.check(12345, bytes.data() + 1, words)) << loop.name << " " << words;
    }
  }
}

// Parts on media outlive a build, and so must what says whether they are right. The values were
// computed apart from this code.
TEST(PayloadTest, TheFunctionIsFixed) {
  const Key key = KeyOf(1, 2);
  uint64_t key_word, payload_word;
  std::memcpy(&key_word, key.data(), 8);
  std::memcpy(&payload_word, Payload(key, 0, 0, 8).data(), 8);
  EXPECT_EQ(key_word, 0xf2826f98653e9e57u);
  EXPECT_EQ(payload_word, 0x3cf1f5d9eadae9a3u);
}

TEST(KeyOfTest, DiffersByIdAndSeed) {
  std::set<Key> keys;
  for (uint64_t seed = 0; seed < 4; ++seed) {
    for (uint64_t id = 0; id < 10'000; ++id) keys.insert(KeyOf(id, seed));
  }
  EXPECT_EQ(keys.size(), 40'000u);
}

}  // namespace
}  // namespace kvd
