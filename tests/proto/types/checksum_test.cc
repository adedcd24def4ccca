#include "proto/types/checksum.h"

#include <gtest/gtest.h>

#include <random>
#include <string_view>
#include <vector>

namespace kvd {
namespace {

using Bytes = std::vector<std::byte>;

Bytes FromText(std::string_view text) {
  Bytes bytes;
  for (const char c : text) bytes.push_back(static_cast<std::byte>(c));
  return bytes;
}

Bytes RandomBytes(size_t size) {
  std::mt19937 random(static_cast<uint32_t>(size));
  Bytes bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

// RFC 3720, appendix B.4, and the catalogue's check value.
TEST(ChecksumTest, KnownVectors) {
  Bytes ascending(32);
  for (size_t i = 0; i < 32; ++i) ascending[i] = static_cast<std::byte>(i);
  const std::pair<Bytes, uint32_t> vectors[] = {{FromText("123456789"), 0xE3069283},
                                                {Bytes(32, std::byte{0}), 0x8A9136AA},
                                                {Bytes(32, std::byte{0xFF}), 0x62A8AB43},
                                                {ascending, 0x46DD794E},
                                                {Bytes(), 0}};
  for (const auto& [bytes, crc] : vectors) {
    EXPECT_EQ(Crc32cPortable(bytes), crc);
    EXPECT_EQ(Crc32c(bytes), crc);
  }
}

TEST(ChecksumTest, FastSumIsThePortableSum) {
  const Bytes bytes = RandomBytes(100000);
  for (size_t size : {1, 7, 8, 511, 512, 513, 4096, 16384, 65535, 99000}) {
    const absl::Span<const std::byte> part = absl::MakeConstSpan(bytes).subspan(size % 61, size);
    EXPECT_EQ(Crc32c(part), Crc32cPortable(part)) << size;
  }
}

TEST(ChecksumTest, ExtendContinuesWhereverTheCutIs) {
  const Bytes bytes = RandomBytes(3000);
  const absl::Span<const std::byte> all = bytes;
  const uint32_t expected = Crc32cPortable(all);
  for (size_t cut = 0; cut <= all.size(); ++cut) {
    ASSERT_EQ(Crc32cExtend(Crc32c(all.first(cut)), all.subspan(cut)), expected) << cut;
  }
}

TEST(ChecksumTest, ConcatIsTheSumOfBoth) {
  const Bytes bytes = RandomBytes(70000);
  const absl::Span<const std::byte> all = bytes;
  const uint32_t expected = Crc32cPortable(all);
  for (size_t cut = 0; cut <= all.size(); cut += 1 + cut / 3) {
    ASSERT_EQ(Crc32cConcat(Crc32c(all.first(cut)), Crc32c(all.subspan(cut)), all.size() - cut),
              expected)
        << cut;
  }
}

TEST(ChecksumTest, ConcatTakesLengthsThatNoMemoryHolds) {
  // Zeros in front of nothing: twice 2^40 bytes and once 2^41 bytes are the same message.
  const uint64_t half = uint64_t{1} << 40;
  const uint32_t start = 0x12345678;
  EXPECT_EQ(Crc32cConcat(Crc32cConcat(start, 0, half), 0, half), Crc32cConcat(start, 0, 2 * half));
}

}  // namespace
}  // namespace kvd
