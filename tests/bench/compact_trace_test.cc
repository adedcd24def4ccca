// The compact form loses nothing, whatever the trace, and damage never gets past it. The recorded
// trace that the repository carries is what it claims to be.

#include "bench/compact_trace.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "bench/convert.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvd {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

using Requests = std::vector<TraceRequest>;

constexpr char kRecorded[] = KVD_SOURCE_DIR "/bench/traces/mooncake_conversation.kvtrace";

std::string Encode(const Requests& requests, bool compress, uint32_t block_tokens = 0) {
  CompactTraceWriter writer({.block_tokens = block_tokens, .compress = compress});
  for (const TraceRequest& request : requests) EXPECT_TRUE(writer.Add(request).ok());
  return writer.Finish();
}

// What the reader hands out until the end or the first error.
struct Outcome {
  Requests requests;
  absl::Status status;
};

Outcome Drain(absl::StatusOr<std::unique_ptr<TraceReader>> reader) {
  Outcome outcome;
  outcome.status = reader.status();
  TraceRequest request;
  while (outcome.status.ok()) {
    absl::StatusOr<bool> more = (*reader)->Next(request);
    outcome.status = more.status();
    if (!more.ok() || !*more) break;
    outcome.requests.push_back(request);
  }
  return outcome;
}

Outcome Decode(std::string bytes) { return Drain(TraceReader::FromBytes(std::move(bytes))); }

Requests MustRead(const std::string& path) {
  Outcome outcome = Drain(TraceReader::Open(path));
  EXPECT_TRUE(outcome.status.ok()) << outcome.status;
  return std::move(outcome.requests);
}

bool IsPrefix(const Requests& part, const Requests& whole) {
  return part.size() <= whole.size() && std::equal(part.begin(), part.end(), whole.begin());
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

// A trace with each habit that the form exploits and each breach of it, mixed by `seed`.
Requests WeirdTrace(uint32_t seed) {
  std::mt19937_64 random(seed);
  const auto below = [&random](uint64_t n) { return random() % n; };
  Requests trace;
  std::vector<uint64_t> used = {0, UINT64_MAX};
  uint64_t next = below(3);
  const size_t count = below(60);
  for (size_t r = 0; r < count; ++r) {
    TraceRequest request;
    request.timestamp_ms = below(4) == 0 ? random() : below(100'000);
    request.input_length = static_cast<uint32_t>(below(5) == 0 ? random() : below(10'000));
    request.output_length = static_cast<uint32_t>(below(5) == 0 ? random() : below(1'000));
    if (!trace.empty() && below(3) > 0) {
      request.hash_ids = trace[below(trace.size())].hash_ids;
      request.hash_ids.resize(below(request.hash_ids.size() + 1));
    }
    const size_t more = below(8);
    for (size_t i = 0; i < more; ++i) {
      const uint64_t kind = below(10);
      uint64_t id = kind < 6 ? next : kind < 8 ? used[below(used.size())] : random() >> below(64);
      if (kind == 9 && !request.hash_ids.empty()) id = request.hash_ids.back();  // Repeated.
      request.hash_ids.push_back(id);
      used.push_back(id);
      next = id + 1;
    }
    trace.push_back(std::move(request));
  }
  return trace;
}

// Two conversations that share a head: small enough to damage at every byte.
Requests SmallTrace() {
  return {{0, 1500, 20, {0, 1, 2}},
          {3000, 2000, 7, {0, 1, 3, 4}},
          {3000, 2500, 900, {0, 1, 2, 5, 6}},
          {2999, 10, 1, {77, 5, 78}}};
}

TEST(CompactTraceTest, KeepsAnOrdinaryTrace) {
  const Outcome outcome = Decode(Encode(SmallTrace(), /*compress=*/true));
  EXPECT_TRUE(outcome.status.ok()) << outcome.status;
  EXPECT_EQ(outcome.requests, SmallTrace());
}

TEST(CompactTraceTest, KeepsTheOddOnes) {
  const Requests odd = {
      {UINT64_MAX, UINT32_MAX, UINT32_MAX, {UINT64_MAX, 0, UINT64_MAX}},
      {0, 0, 0, {}},
      {1, 1, 1, {5, 5, 5}},  // Repeated within a request.
      {1, 1, 1, {5, 5}},
      {2, 512, 1, {9, 5, 10, 11}},  // A known block after another predecessor.
      {2, 512, 1, {9, 5, 10, 12}},
      {2, 512, 1, {5, 10, 12}},
      {3, 100'000, 1, {1}},  // Fewer blocks than the tokens would need.
  };
  const Outcome outcome = Decode(Encode(odd, /*compress=*/false));
  EXPECT_TRUE(outcome.status.ok()) << outcome.status;
  EXPECT_EQ(outcome.requests, odd);
}

TEST(CompactTraceTest, KeepsRandomTraces) {
  for (uint32_t seed = 0; seed < 1500; ++seed) {
    const Requests trace = WeirdTrace(seed);
    const Outcome outcome = Decode(Encode(trace, /*compress=*/seed % 2 == 0));
    ASSERT_TRUE(outcome.status.ok()) << "seed " << seed << ": " << outcome.status;
    ASSERT_EQ(outcome.requests, trace) << "seed " << seed;
  }
}

TEST(CompactTraceTest, KeepsATraceOfManyChunks) {
  Requests trace;
  for (uint64_t i = 0; i < 40'000; ++i) trace.push_back({i * 31, 9999, 1, {i * i, i * i * i}});
  const std::string bytes = Encode(trace, /*compress=*/false);
  ASSERT_GT(bytes.size(), 500'000u);

  EXPECT_EQ(Decode(bytes).requests, trace);
}

TEST(CompactTraceTest, KeepsTheLongestRequestAndRefusesALongerOne) {
  TraceRequest longest{.input_length = 1};
  for (size_t i = 0; i < kTraceBlocksMax; ++i) longest.hash_ids.push_back(i * 0x9e3779b97f4a7c15);
  EXPECT_EQ(Decode(Encode({longest, longest}, true)).requests, Requests({longest, longest}));

  longest.hash_ids.push_back(1);
  CompactTraceWriter writer;
  EXPECT_EQ(writer.Add(longest).code(), absl::StatusCode::kInvalidArgument);
}

TEST(CompactTraceTest, AnEmptyTraceIsATrace) {
  const Outcome outcome = Decode(Encode({}, /*compress=*/true));
  EXPECT_TRUE(outcome.status.ok()) << outcome.status;
  EXPECT_THAT(outcome.requests, IsEmpty());
}

TEST(CompactTraceTest, TheHeaderTellsCountAndBlockTokens) {
  auto reader = TraceReader::FromBytes(Encode(SmallTrace(), true, /*block_tokens=*/512));
  ASSERT_TRUE(reader.ok());
  EXPECT_EQ((*reader)->request_count(), 4u);
  EXPECT_EQ((*reader)->block_tokens(), 512u);
  EXPECT_EQ((*reader)->fraction(), 0);
}

TEST(CompactTraceTest, EveryFlippedBitIsAnError) {
  const std::string whole = Encode(SmallTrace(), /*compress=*/false);
  for (size_t bit = 0; bit < 8 * whole.size(); ++bit) {
    std::string damaged = whole;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << bit % 8));
    const Outcome outcome = Decode(damaged);
    EXPECT_EQ(outcome.status.code(), absl::StatusCode::kInvalidArgument) << "bit " << bit;
    EXPECT_TRUE(IsPrefix(outcome.requests, SmallTrace())) << "bit " << bit;
  }
}

TEST(CompactTraceTest, EveryFlippedBitUnderCompressionIsAnErrorOrHarmless) {
  const std::string whole = Encode(SmallTrace(), /*compress=*/true);
  for (size_t bit = 0; bit < 8 * whole.size(); ++bit) {
    std::string damaged = whole;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << bit % 8));
    const Outcome outcome = Decode(damaged);
    // Zstandard ignores some bits of its header: then nothing is lost.
    if (outcome.status.ok()) {
      EXPECT_EQ(outcome.requests, SmallTrace()) << "bit " << bit;
    }
    EXPECT_TRUE(IsPrefix(outcome.requests, SmallTrace())) << "bit " << bit;
  }
}

TEST(CompactTraceTest, EveryTruncationIsAnError) {
  for (const bool compress : {false, true}) {
    const std::string whole = Encode(SmallTrace(), compress);
    for (size_t size = 0; size < whole.size(); ++size) {
      const Outcome outcome = Decode(whole.substr(0, size));
      EXPECT_EQ(outcome.status.code(), absl::StatusCode::kInvalidArgument) << size;
      EXPECT_TRUE(IsPrefix(outcome.requests, SmallTrace())) << size;
    }
  }
}

TEST(CompactTraceTest, BytesAfterTheEndAreAnError) {
  EXPECT_FALSE(Decode(Encode(SmallTrace(), false) + "x").status.ok());
  EXPECT_FALSE(Decode(Encode(SmallTrace(), true) + "x").status.ok());
}

TEST(CompactTraceTest, AnErrorNamesTheRequestAndStays) {
  std::string bytes = Encode(SmallTrace(), /*compress=*/false);
  bytes.resize(bytes.size() - 1);
  auto reader = TraceReader::FromBytes(bytes);
  ASSERT_TRUE(reader.ok());
  TraceRequest request;
  for (int i = 0; i < 4; ++i) ASSERT_TRUE((*reader)->Next(request).value());

  const absl::Status status = (*reader)->Next(request).status();

  EXPECT_THAT(std::string(status.message()), StartsWith("request 5: "));
  EXPECT_EQ((*reader)->Next(request).status(), status);
}

TEST(CompactTraceTest, AnUnknownVersionIsNamed) {
  std::string bytes = Encode(SmallTrace(), /*compress=*/false);
  bytes[kCompactTraceMagic.size()] = 9;
  EXPECT_THAT(std::string(Decode(bytes).status.message()), HasSubstr("version 9"));
}

// Checksums hold off damage, not malice: this signs what it damaged.
TEST(CompactTraceTest, HostileContentUnderGoodChecksumsIsHandled) {
  const std::string honest = Encode(SmallTrace(), /*compress=*/false);
  const size_t payload = kCompactTraceMagic.size() + 3 + 4 + 8;
  const size_t size = honest.size() - payload - 8;
  std::mt19937 random(1);
  for (int round = 0; round < 3'000; ++round) {
    std::string bytes = honest;
    const int flips = 1 + static_cast<int>(random() % 4);
    for (int i = 0; i < flips; ++i) bytes[payload + random() % size] = static_cast<char>(random());
    uint32_t crc = 0;
    for (const auto& [frame, length] :
         {std::pair(payload - 8, size), std::pair(payload + size, size_t{0})}) {
      crc = static_cast<uint32_t>(crc32_z(crc, reinterpret_cast<const Bytef*>(&bytes[frame]), 4));
      if (length > 0) {
        crc = static_cast<uint32_t>(
            crc32_z(crc, reinterpret_cast<const Bytef*>(&bytes[frame + 8]), length));
      }
      for (int i = 0; i < 4; ++i) bytes[frame + 4 + i] = static_cast<char>(crc >> (8 * i));
    }
    const Outcome outcome = Decode(bytes);  // Any answer will do that is no crash and has bounds.
    for (const TraceRequest& request : outcome.requests) {
      ASSERT_LE(request.hash_ids.size(), kTraceBlocksMax);
    }
  }
}

class ConvertTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_NE(mkdtemp(folder_.data()), nullptr); }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string TempPath(const std::string& name) const { return absl::StrCat(folder_, "/", name); }

  std::string folder_ = testing::TempDir() + "convert_test.XXXXXX";
};

TEST_F(ConvertTest, ThereAndBackIsTheSameText) {
  const std::string original = TempPath("a.jsonl"), compact = TempPath("b.kvtrace"),
                    back = TempPath("c.jsonl");
  std::string text;
  for (const TraceRequest& request : WeirdTrace(/*seed=*/7)) AppendJsonLine(request, text);
  std::ofstream(original, std::ios::binary) << text;

  ASSERT_TRUE(ConvertTrace({.input = original, .output = compact}).ok());
  ASSERT_TRUE(
      ConvertTrace({.input = compact, .output = back, .format = TraceFormat::kJsonLines}).ok());

  EXPECT_EQ(ReadFile(back), text);
}

TEST_F(ConvertTest, AFailureLeavesWhatWasThere) {
  const std::string input = TempPath("bad.jsonl");
  const std::string output = TempPath("kept.kvtrace");
  std::ofstream(input) << "nonsense\n";
  std::ofstream(output) << "precious";

  EXPECT_EQ(ConvertTrace({.input = input, .output = output}).status().code(),
            absl::StatusCode::kInvalidArgument);

  EXPECT_EQ(ReadFile(output), "precious");
}

TEST_F(ConvertTest, APipeIsWrittenInPlace) {
  const std::string input = TempPath("good.kvtrace"), pipe = TempPath("pipe");
  std::ofstream(input, std::ios::binary) << Encode(SmallTrace(), /*compress=*/true);
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  const int reader = open(pipe.c_str(), O_RDWR);  // So that neither end waits for the other.

  ASSERT_TRUE(ConvertTrace({.input = input, .output = pipe}).ok());

  std::string bytes(4096, '\0');
  bytes.resize(static_cast<size_t>(read(reader, bytes.data(), bytes.size())));
  close(reader);
  EXPECT_EQ(Decode(bytes).requests, SmallTrace());
}

TEST(RecordedTraceTest, HasTheCountsThatItsReadmeStates) {
  auto reader = TraceReader::Open(kRecorded);
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_EQ((*reader)->block_tokens(), 512u);
  EXPECT_EQ((*reader)->request_count(), 12'031u);

  const Requests requests = MustRead(kRecorded);

  uint64_t references = 0;
  absl::flat_hash_set<uint64_t> distinct;
  for (const TraceRequest& request : requests) {
    references += request.hash_ids.size();
    distinct.insert(request.hash_ids.begin(), request.hash_ids.end());
    EXPECT_EQ(request.hash_ids.size(), (request.input_length + 511) / 512);
  }
  EXPECT_EQ(requests.size(), 12'031u);
  EXPECT_EQ(references, 288'500u);
  EXPECT_EQ(distinct.size(), 182'790u);
}

TEST(RecordedTraceTest, EqualsTheOriginal) {
  const char* folder = std::getenv("KVD_TRACES");
  if (folder == nullptr) {
    GTEST_SKIP() << "KVD_TRACES names no folder with the original: only the counts were compared";
  }
  const Requests original = MustRead(absl::StrCat(folder, "/mooncake_conversation.jsonl.zst"));

  EXPECT_EQ(original.size(), 12'031u);
  EXPECT_TRUE(MustRead(kRecorded) == original);
}

}  // namespace
}  // namespace kvd
