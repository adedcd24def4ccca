// MessagePack, byte by byte: what is written is what Python's msgpack writes, and what is read may
// be anything.

#include "proto/types/msgpack.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <random>
#include <string>

#include "absl/strings/escaping.h"

namespace kvd {
namespace {

std::string Hex(const std::string& bytes) { return absl::BytesToHexString(bytes); }

template <typename Write>
std::string Written(Write write) {
  std::string out;
  MsgpackWriter writer(out);
  write(writer);
  return Hex(out);
}

TEST(MsgpackTest, EveryIntegerTakesItsShortestForm) {
  const auto uint = [](uint64_t value) {
    return Written([&](MsgpackWriter& writer) { writer.Uint(value); });
  };
  const auto sint = [](int64_t value) {
    return Written([&](MsgpackWriter& writer) { writer.Int(value); });
  };
  EXPECT_EQ(uint(0), "00");
  EXPECT_EQ(uint(127), "7f");
  EXPECT_EQ(uint(128), "cc80");
  EXPECT_EQ(uint(256), "cd0100");
  EXPECT_EQ(uint(65536), "ce00010000");
  EXPECT_EQ(uint(1ull << 32), "cf0000000100000000");
  EXPECT_EQ(uint(UINT64_MAX), "cfffffffffffffffff");
  EXPECT_EQ(sint(5), "05");
  EXPECT_EQ(sint(-1), "ff");
  EXPECT_EQ(sint(-32), "e0");
  EXPECT_EQ(sint(-33), "d0df");
  EXPECT_EQ(sint(-129), "d1ff7f");
  EXPECT_EQ(sint(-32769), "d2ffff7fff");
  EXPECT_EQ(sint(INT64_MIN), "d38000000000000000");
}

TEST(MsgpackTest, TextsArraysAndMapsHaveHeadsOfTheirSize) {
  EXPECT_EQ(Written([](auto& w) { w.Str("abc"); }), "a3616263");
  EXPECT_EQ(Written([](auto& w) { w.Str(std::string(32, 'x')); }).substr(0, 6), "d92078");
  EXPECT_EQ(Written([](auto& w) { w.Str(std::string(256, 'x')); }).substr(0, 8), "da010078");
  EXPECT_EQ(Written([](auto& w) { w.Str(std::string(65536, 'x')); }).substr(0, 12), "db0001000078");
  EXPECT_EQ(Written([](auto& w) { w.Array(15); }), "9f");
  EXPECT_EQ(Written([](auto& w) { w.Array(16); }), "dc0010");
  EXPECT_EQ(Written([](auto& w) { w.Array(65536); }), "dd00010000");
  EXPECT_EQ(Written([](auto& w) { w.Map(15); }), "8f");
  EXPECT_EQ(Written([](auto& w) { w.Map(16); }), "de0010");
  EXPECT_EQ(Written([](auto& w) { w.Map(65536); }), "df00010000");
  EXPECT_EQ(Written([](auto& w) { w.Nil(); }), "c0");
  EXPECT_EQ(Written([](auto& w) { w.Double(1.5); }), "cb3ff8000000000000");
}

TEST(MsgpackTest, WhatWasWrittenIsRead) {
  std::string out;
  MsgpackWriter writer(out);
  const int64_t integers[] = {0, 127, 128, 70000, 1ll << 40, -1, -32, -33, -40000, INT64_MIN};
  writer.Array(std::size(integers));
  for (const int64_t value : integers) writer.Int(value);
  writer.Str("text");
  writer.Nil();
  writer.Double(-2.25);

  MsgpackReader reader(out);
  ASSERT_EQ(reader.Array(), std::size(integers));
  for (const int64_t value : integers) EXPECT_EQ(reader.Integer(), static_cast<uint64_t>(value));
  EXPECT_EQ(reader.Str(), "text");
  EXPECT_TRUE(reader.Nil());
  EXPECT_EQ(reader.Double(), -2.25);
  EXPECT_TRUE(reader.at_end());
  EXPECT_FALSE(reader.failed());
}

TEST(MsgpackTest, AnyTakesOneWholeValueOfEveryKind) {
  // nil, true, float, bin 8, bin 16, an array of a map, text.
  const std::string packed = absl::HexStringToBytes(
      "c0c3ca00000000c403616263c500010091"
      "81a16b02a178");
  // bin 16 has one byte, 00; then [{"k": 2}], "x".
  MsgpackReader reader(packed);
  const char* expected[] = {"c0",       "c3",         "ca00000000", "c403616263",
                            "c5000100", "9181a16b02", "a178"};
  for (const char* value : expected) EXPECT_EQ(Hex(std::string(reader.Any())), value);
  EXPECT_TRUE(reader.at_end());
  EXPECT_FALSE(reader.failed());
}

TEST(MsgpackTest, WhatIsCutOffOrOfAnotherKindFails) {
  for (const char* packed : {"", "cd01", "d9", "d903ab", "91", "81a16b", "c4", "cb00", "c1",
                             "d40000", "ddffffffff", "dfffffffff"}) {
    MsgpackReader reader("");
    const std::string bytes = absl::HexStringToBytes(packed);
    reader = MsgpackReader(bytes);
    EXPECT_EQ(reader.Any(), "") << packed;
    EXPECT_TRUE(reader.failed()) << packed;
    EXPECT_EQ(reader.Integer(), 0u);
  }
  MsgpackReader reader("\xa1x");
  EXPECT_EQ(reader.Integer(), 0u);
  EXPECT_TRUE(reader.failed());
}

TEST(MsgpackTest, NestingHasAnEnd) {
  const auto nested = [](size_t depth) { return std::string(depth, '\x91') + '\x00'; };
  MsgpackReader fits("");
  const std::string most = nested(MsgpackReader::kMaxDepth);
  fits = MsgpackReader(most);
  EXPECT_EQ(fits.Any().size(), most.size());
  const std::string more = nested(MsgpackReader::kMaxDepth + 1);
  MsgpackReader deep(more);
  deep.Any();
  EXPECT_TRUE(deep.failed());
}

TEST(MsgpackTest, RandomBytesEndSomehow) {
  std::mt19937_64 random(20261121);
  for (int i = 0; i < 20'000; ++i) {
    std::string bytes(random() % 40, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random());
    MsgpackReader reader(bytes);
    while (!reader.at_end() && !reader.failed()) reader.Any();
  }
}

}  // namespace
}  // namespace kvd
