#include "proto/types/block.h"

#include <gtest/gtest.h>

#include <string>

namespace kvd {
namespace {

TEST(KeyListTest, PadsShorterHashesWithZeros) {
  const std::string packed = "aaaaaaaabbbbbbbbcccccccc";
  const KeyList keys(packed, 8);
  ASSERT_EQ(keys.size(), 3u);
  const ChainHash hash = keys[1];
  EXPECT_EQ(std::memcmp(hash.bytes.data(), "bbbbbbbb", 8), 0);
  for (size_t i = 8; i < kMaxHashBytes; ++i) EXPECT_EQ(hash.bytes[i], std::byte{0});
  EXPECT_TRUE(keys.Equals(1, hash));
  EXPECT_FALSE(keys.Equals(2, hash));
}

TEST(KeyListTest, EveryLengthReadsItsOwnBytesOnly) {
  for (uint32_t length = 1; length <= kMaxHashBytes; ++length) {
    std::string packed;
    for (char c = 'a'; c < 'f'; ++c) packed.append(length, c);
    const KeyList keys(packed, length);
    ASSERT_EQ(keys.size(), 5u);
    for (uint32_t i = 0; i < 5; ++i) {
      ChainHash expected;
      std::memset(expected.bytes.data(), 'a' + static_cast<int>(i), length);
      EXPECT_EQ(keys[i], expected) << length;
    }
  }
}

TEST(KeyListTest, PartsOfAListAreLists) {
  const std::string packed = "aaaaaaaabbbbbbbbccccccccdddddddd";
  const KeyList keys(packed, 8);
  EXPECT_EQ(keys.Prefix(2).size(), 2u);
  EXPECT_EQ(keys.Prefix(2)[1], keys[1]);
  EXPECT_EQ(keys.Suffix(1).size(), 3u);
  EXPECT_EQ(keys.Suffix(1)[0], keys[1]);
  EXPECT_EQ(keys.Suffix(1).Prefix(2)[1], keys[2]);
  EXPECT_TRUE(keys.Suffix(4).empty());
  EXPECT_TRUE(KeyList().empty());
}

TEST(ChainHashTest, DiffersInAnyByte) {
  const ChainHash zero;
  for (size_t i = 0; i < kMaxHashBytes; ++i) {
    ChainHash other;
    other.bytes[i] = std::byte{1};
    EXPECT_FALSE(zero == other) << i;
  }
  EXPECT_TRUE(zero == ChainHash{});
}

}  // namespace
}  // namespace kvd
