// The JSON form: what is taken, what is refused, and that the message names the line.

#include "bench/trace.h"

#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <fstream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "bench/compact_trace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

constexpr char kLine[] =
    R"({"timestamp": 5, "input_length": 700, "output_length": 9, "hash_ids": [1, 2]})";

std::string Gzip(const std::string& bytes) {
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, 6, Z_DEFLATED, MAX_WBITS + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string result(deflateBound(&stream, bytes.size()) + 64, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(result.data());
  stream.avail_out = static_cast<uInt>(result.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  result.resize(stream.total_out);
  deflateEnd(&stream);
  return result;
}

std::string Zstd(const std::string& bytes) {
  std::string result(ZSTD_compressBound(bytes.size()), '\0');
  const size_t size =
      ZSTD_compress(result.data(), result.size(), bytes.data(), bytes.size(), /*level=*/3);
  EXPECT_FALSE(ZSTD_isError(size));
  result.resize(size);
  return result;
}

absl::StatusOr<std::vector<TraceRequest>> ReadAll(TraceReader& reader) {
  std::vector<TraceRequest> requests;
  TraceRequest request;
  for (;;) {
    absl::StatusOr<bool> more = reader.Next(request);
    if (!more.ok()) return more.status();
    if (!*more) return requests;
    requests.push_back(request);
  }
}

absl::StatusOr<std::vector<TraceRequest>> Parse(std::string bytes) {
  auto reader = TraceReader::FromBytes(std::move(bytes));
  if (!reader.ok()) return reader.status();
  return ReadAll(**reader);
}

std::string Fields(const std::string& timestamp, const std::string& input,
                   const std::string& output, const std::string& ids) {
  return absl::StrCat("{\"timestamp\": ", timestamp, ", \"input_length\": ", input,
                      ", \"output_length\": ", output, ", \"hash_ids\": ", ids, "}");
}

std::string LargeTrace() {
  std::string text;
  TraceRequest request{.timestamp_ms = 0, .input_length = 1000, .output_length = 1};
  for (uint64_t i = 0; i < 3000; ++i) {
    request.timestamp_ms = i * 7;
    request.hash_ids = {i, i * i, i * 977};
    AppendJsonLine(request, text);
  }
  return text;
}

TEST(TraceTest, ALineBecomesARequest) {
  auto requests = Parse(absl::StrCat(kLine, "\n"));

  ASSERT_TRUE(requests.ok()) << requests.status();
  EXPECT_THAT(*requests, ElementsAre(TraceRequest{5, 700, 9, {1, 2}}));
}

TEST(TraceTest, TheLargestValuesAreKept) {
  const std::string max64 = "18446744073709551615", max32 = "4294967295";
  auto requests = Parse(Fields(max64, max32, max32, absl::StrCat("[", max64, "]")));

  ASSERT_TRUE(requests.ok()) << requests.status();
  EXPECT_THAT(*requests,
              ElementsAre(TraceRequest{UINT64_MAX, UINT32_MAX, UINT32_MAX, {UINT64_MAX}}));
}

TEST(TraceTest, OtherFieldsAreIgnoredWhateverTheyHold) {
  auto requests = Parse(
      R"({"hash_ids": [3], "user": {"timestamp": "x", "hash_ids": {"a": [null]}},)"
      R"( "tags": [-1, [2]])"
      R"(, "timestamp": 1, "weight": -1.5, "input_length": 2, "output_length": 3, "more": null})");

  ASSERT_TRUE(requests.ok()) << requests.status();
  EXPECT_THAT(*requests, ElementsAre(TraceRequest{1, 2, 3, {3}}));
}

TEST(TraceTest, EmptyLinesAreSkippedAndTheLastNeedsNoNewline) {
  auto requests = Parse(absl::StrCat("\n", kLine, "\r\n  \n\n", kLine));

  ASSERT_TRUE(requests.ok()) << requests.status();
  EXPECT_EQ(requests->size(), 2u);
}

TEST(TraceTest, ARequestMayHaveNoBlocks) {
  auto requests = Parse(Fields("0", "0", "0", "[]"));

  ASSERT_TRUE(requests.ok()) << requests.status();
  EXPECT_THAT(requests->at(0).hash_ids, IsEmpty());
}

TEST(TraceTest, CompressionIsToldByContent) {
  const std::string text = LargeTrace();
  auto plain = Parse(text), gzip = Parse(Gzip(text)), zstd = Parse(Zstd(text));
  auto members = Parse(Gzip(text.substr(0, 1000)) + Gzip(text.substr(1000)));
  auto frames = Parse(Zstd(text.substr(0, 1000)) + Zstd(text.substr(1000)));

  ASSERT_TRUE(plain.ok() && gzip.ok() && zstd.ok() && members.ok() && frames.ok());
  EXPECT_EQ(plain->size(), 3000u);
  EXPECT_EQ(*gzip, *plain);
  EXPECT_EQ(*zstd, *plain);
  EXPECT_EQ(*members, *plain);
  EXPECT_EQ(*frames, *plain);
}

TEST(TraceTest, AFileIsReadFromItsPathUnderAnyName) {
  const std::string path = absl::StrCat(testing::TempDir(), "trace_test.", getpid(), ".jsonl");
  std::ofstream(path, std::ios::binary) << Zstd(LargeTrace());
  auto reader = TraceReader::Open(path);
  unlink(path.c_str());
  ASSERT_TRUE(reader.ok()) << reader.status();

  auto requests = ReadAll(**reader);

  ASSERT_TRUE(requests.ok()) << requests.status();
  EXPECT_EQ(requests->size(), 3000u);
  EXPECT_EQ((*reader)->fraction(), 1.0);
  EXPECT_EQ((*reader)->request_count(), std::nullopt);
}

TEST(TraceTest, APipeIsReadAndItsShareIsUnknown) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const std::string text = Gzip(absl::StrCat(kLine, "\n"));
  ASSERT_EQ(write(ends[1], text.data(), text.size()), static_cast<ssize_t>(text.size()));
  close(ends[1]);
  auto reader = TraceReader::Open(absl::StrCat("/dev/fd/", ends[0]));
  ASSERT_TRUE(reader.ok()) << reader.status();

  EXPECT_EQ(ReadAll(**reader)->size(), 1u);
  EXPECT_LT((*reader)->fraction(), 0);
  close(ends[0]);
}

TEST(TraceTest, AMissingFileIsNotFound) {
  EXPECT_EQ(TraceReader::Open("/nonexistent/trace").status().code(), absl::StatusCode::kNotFound);
}

TEST(TraceTest, ADirectoryIsAnError) { EXPECT_FALSE(TraceReader::Open("/").ok()); }

TEST(TraceTest, NotASingleByteIsAnError) {
  EXPECT_EQ(Parse("").status().code(), absl::StatusCode::kInvalidArgument);
}

struct BadLine {
  std::string line;
  std::string complaint;
};

class BadLineTest : public testing::TestWithParam<BadLine> {};

TEST_P(BadLineTest, IsRefusedByItsNumber) {
  auto reader = TraceReader::FromBytes(absl::StrCat(kLine, "\n\n", GetParam().line, "\n", kLine));
  ASSERT_TRUE(reader.ok()) << reader.status();
  TraceRequest request;
  ASSERT_TRUE((*reader)->Next(request).value());

  const absl::Status status = (*reader)->Next(request).status();

  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), StartsWith("line 3: "));
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().complaint));
  EXPECT_EQ((*reader)->Next(request).status(), status) << "an error stays";
}

INSTANTIATE_TEST_SUITE_P(
    All, BadLineTest,
    testing::Values(
        BadLine{"nonsense", "not valid JSON"}, BadLine{"{", "not valid JSON"},
        BadLine{std::string(kLine) + "x", "not valid JSON"},
        BadLine{std::string(kLine) + kLine, "not valid JSON"},
        BadLine{std::string("{\"a\": \"\xff\"}"), "not valid JSON"},
        BadLine{std::string(100000, '['), "not a JSON object"},
        BadLine{"{\"x\": " + std::string(100000, '['), "not valid JSON"},
        BadLine{"17", "not a JSON object"}, BadLine{"[1]", "not a JSON object"},
        BadLine{"null", "not a JSON object"}, BadLine{"{}", "timestamp is missing"},
        BadLine{R"({"timestamp": 1, "input_length": 1, "output_length": 1})",
                "hash_ids is missing"},
        BadLine{R"({"timestamp": 1, "output_length": 1, "hash_ids": []})",
                "input_length is missing"},
        BadLine{R"({"timestamp": 1, "input_length": 1, "hash_ids": []})",
                "output_length is missing"},
        BadLine{R"({"x": {"timestamp": 1}, "input_length": 1, "output_length": 1, "hash_ids": []})",
                "timestamp is missing"},
        BadLine{R"({"timestamp": 1, "timestamp": 2})", "timestamp appears twice"},
        BadLine{Fields("-1", "1", "1", "[]"), "timestamp is not"},
        BadLine{Fields("1", "-1", "1", "[]"), "input_length is not"},
        BadLine{Fields("1", "1", "\"1\"", "[]"), "output_length is not"},
        BadLine{Fields("1.5", "1", "1", "[]"), "timestamp is not"},
        BadLine{Fields("1", "4294967296", "1", "[]"), "input_length is not"},
        BadLine{Fields("18446744073709551616", "1", "1", "[]"), "timestamp is not"},
        BadLine{Fields("1e999", "1", "1", "[]"), "not valid JSON"},
        BadLine{Fields("null", "1", "1", "[]"), "timestamp is not"},
        BadLine{Fields("[1]", "1", "1", "[]"), "timestamp is not"},
        BadLine{Fields("{}", "1", "1", "[]"), "timestamp is not"},
        BadLine{Fields("true", "1", "1", "[]"), "timestamp is not"},
        BadLine{Fields("1", "1", "1", "7"), "hash_ids is not a list"},
        BadLine{Fields("1", "1", "1", "null"), "hash_ids is not a list"},
        BadLine{Fields("1", "1", "1", "{\"0\": 1}"), "hash_ids is not a list"},
        BadLine{Fields("1", "1", "1", "[-1]"), "hash_ids holds"},
        BadLine{Fields("1", "1", "1", "[1, 2.0]"), "hash_ids holds"},
        BadLine{Fields("1", "1", "1", "[\"1\"]"), "hash_ids holds"},
        BadLine{Fields("1", "1", "1", "[[1]]"), "hash_ids holds"},
        BadLine{Fields("1", "1", "1", "[{}]"), "hash_ids holds"},
        BadLine{Fields("1", "1", "1", "[18446744073709551616]"), "hash_ids holds"}));

TEST(TraceTest, TheNumberOfBlocksHasABound) {
  std::string ids = "[0";
  for (size_t i = 1; i < kTraceBlocksMax; ++i) ids += ",0";

  EXPECT_TRUE(Parse(Fields("1", "1", "1", ids + "]")).ok());
  EXPECT_THAT(std::string(Parse(Fields("1", "1", "1", ids + ",0]")).status().message()),
              HasSubstr("line 1: hash_ids has more than 1048576 entries"));
}

TEST(TraceTest, TheLengthOfALineHasABound) {
  const std::string blanks(kTraceLineBytesMax - sizeof(kLine), ' ');

  EXPECT_TRUE(Parse(absl::StrCat(kLine, blanks, "\n")).ok());
  EXPECT_THAT(std::string(Parse(absl::StrCat(kLine, blanks, "  \n")).status().message()),
              StartsWith("line 1: longer than"));
  EXPECT_THAT(std::string(Parse(absl::StrCat("\n", kLine, blanks, blanks)).status().message()),
              StartsWith("line 2: longer than"));
}

TEST(TraceTest, TruncatedCompressionIsAnErrorAtEveryLength) {
  const std::string text = absl::StrCat(kLine, "\n", kLine, "\n");
  for (const std::string& whole : {Gzip(text), Zstd(text)}) {
    for (size_t size = 0; size < whole.size(); ++size) {
      EXPECT_EQ(Parse(whole.substr(0, size)).status().code(), absl::StatusCode::kInvalidArgument)
          << size << " of " << whole.size();
    }
  }
}

TEST(TraceTest, TruncatedCompressionNamesTheLineReached) {
  const std::string text = LargeTrace();
  for (const std::string& whole : {Gzip(text), Zstd(text)}) {
    const absl::Status status = Parse(whole.substr(0, whole.size() - 3)).status();
    EXPECT_THAT(std::string(status.message()), StartsWith("line "));
    EXPECT_THAT(std::string(status.message()), HasSubstr("end early"));
  }
}

TEST(TraceTest, BytesAfterCompressedDataAreAnError) {
  EXPECT_FALSE(Parse(Gzip(kLine) + "junk").ok());
  EXPECT_FALSE(Parse(Zstd(kLine) + "junk").ok());
}

TEST(TraceTest, DamagedGzipNeverYieldsOtherRequests) {
  const std::string text = absl::StrCat(kLine, "\n", kLine, "\n");
  const auto expected = Parse(text);
  const std::string whole = Gzip(text);
  for (size_t i = 0; i < whole.size(); ++i) {
    std::string damaged = whole;
    damaged[i] ^= 0x10;
    const auto requests = Parse(damaged);
    if (requests.ok()) {  // A header has bytes of no consequence.
      EXPECT_EQ(*requests, *expected) << "byte " << i;
    }
  }
}

TEST(TraceTest, AJsonLineIsSpacedAsPublished) {
  std::string text;
  AppendJsonLine({5, 700, 9, {1, 2}}, text);
  EXPECT_EQ(text, absl::StrCat(kLine, "\n"));
}

}  // namespace
}  // namespace kvd
