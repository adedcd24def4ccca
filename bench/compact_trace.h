// The compact form of a trace (.kvtrace): lossless for every field, about a thirtieth of the JSON.
// bench/traces/README.md has the layout, byte by byte.
//
// It rests on two habits of such traces: a request mostly continues a chain that was seen before,
// so one number names all of it, and blocks are numbered in order of appearance, so new ones need
// no number at all. A trace without these habits is kept just as well, only larger.
//
// Every byte is under a checksum that is examined before the requests that it covers are handed
// out: a damaged or truncated file is an error and yields no wrong request.
//
// Threads: one at a time.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bench/byte_source.h"
#include "bench/trace.h"

namespace kvd {

inline constexpr std::string_view kCompactTraceMagic = "\x89kvtrace";

// The most distinct blocks of one trace, a bound on the memory of writer and reader (1 GiB).
inline constexpr size_t kCompactTraceDistinctMax = 1u << 26;

// A block as both sides remember it. The first request that shows a block settles its predecessor,
// so walking up from a block spells the prefix that ends in it.
struct CompactTraceBlock {
  uint64_t id = 0;
  uint32_t parent = 0;  // Position of the predecessor in order of appearance; see kNoParent.
  uint32_t depth = 0;   // Blocks of the prefix that ends here; 1 for a first block.

  static constexpr uint32_t kNoParent = UINT32_MAX;
};

class CompactTraceWriter {
 public:
  struct Options {
    uint32_t block_tokens = 0;  // For the reader's information; 0: unknown.
    bool compress = true;       // False leaves Zstandard out.
  };

  explicit CompactTraceWriter(Options options) : options_(options) {}
  CompactTraceWriter() : CompactTraceWriter(Options{}) {}

  // kInvalidArgument when a request has more than kTraceBlocksMax blocks, kResourceExhausted past
  // kCompactTraceDistinctMax; such a request leaves the writer as it was.
  absl::Status Add(const TraceRequest& request);

  // The whole file. Requires: called once, after the last Add().
  std::string Finish();

 private:
  // Writes the blocks from `depth` on, of which some are known or out of order, one by one.
  void AddTail(const TraceRequest& request, size_t depth, uint32_t parent);
  uint32_t Remember(uint64_t id, uint32_t parent);
  void EndChunk();

  const Options options_;
  std::string chunks_;  // Complete ones, each with its checksum.
  std::string chunk_;   // The one being written.
  uint32_t crc_ = 0;    // Of the last complete chunk; the next one's continues it.
  uint64_t count_ = 0;  // Requests.
  uint64_t timestamp_ms_ = 0;
  uint64_t next_id_ = 0;                   // One more than the id last remembered.
  std::vector<CompactTraceBlock> blocks_;  // In order of appearance.
  absl::flat_hash_map<uint64_t, uint32_t> position_;
};

class CompactTraceReader final : public TraceReader {
 public:
  // Reads the header. Requires: `source` begins with kCompactTraceMagic.
  static absl::StatusOr<std::unique_ptr<TraceReader>> Open(std::unique_ptr<ByteSource> source);

  absl::StatusOr<bool> Next(TraceRequest& request) override;
  std::optional<uint64_t> request_count() const override { return count_; }
  std::optional<uint32_t> block_tokens() const override {
    return block_tokens_ == 0 ? std::nullopt : std::make_optional(block_tokens_);
  }
  double fraction() const override {
    return count_ == 0 ? 1 : static_cast<double>(read_) / static_cast<double>(count_);
  }

 private:
  explicit CompactTraceReader(std::unique_ptr<ByteSource> source) : source_(std::move(source)) {}

  absl::Status ReadHeader();
  // Makes the next chunk the current one, or ends the trace.
  absl::Status ReadChunk();
  absl::Status ReadRequest(TraceRequest& request);
  absl::Status ReadTail(TraceRequest& request, uint64_t size, uint32_t parent);
  absl::StatusOr<uint32_t> Remember(uint64_t id, uint32_t parent);
  bool ReadVarint(uint64_t& value);

  const std::unique_ptr<ByteSource> source_;
  absl::Status status_;  // The error that ended the trace.
  bool ended_ = false;
  uint64_t count_ = 0;  // Requests, as the header says.
  uint32_t block_tokens_ = 0;
  uint64_t read_ = 0;  // Requests read.
  uint32_t crc_ = 0;
  std::string chunk_;
  size_t offset_ = 0;  // Of the next request in chunk_.
  uint64_t timestamp_ms_ = 0;
  uint64_t next_id_ = 0;
  std::vector<CompactTraceBlock> blocks_;
};

}  // namespace kvd
