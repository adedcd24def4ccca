// Recorded request traces: who asked for which blocks, and when. A reader yields one request after
// the other and keeps none, so a trace may be longer than memory.
//
// The form of a file is told by its content, never by its name: JSON lines as in bench/traces/
// README.md, or our compact form (bench/compact_trace.h); each plain, .gz or .zst.
//
// Threads: one at a time. Reading blocks.
// Errors: kInvalidArgument when the content is wrong, and the message names the line ("line 17:
// ...") or the request of a compact file ("request 17: ..."); otherwise what the system said. After
// an error, and after the end, Next() says the same again.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace kvd {

struct TraceRequest {
  uint64_t timestamp_ms = 0;       // Arrival since the first request. Nothing says it must ascend.
  uint32_t input_length = 0;       // Prompt tokens.
  uint32_t output_length = 0;      // Generated tokens.
  std::vector<uint64_t> hash_ids;  // The prompt's blocks in order. May be empty.

  bool operator==(const TraceRequest&) const = default;
};

// What one request may be. A longer one is an error, not a reason to run out of memory.
inline constexpr size_t kTraceLineBytesMax = 32u << 20;
inline constexpr size_t kTraceBlocksMax = 1u << 20;

class TraceReader {
 public:
  // `path` "-" is standard input. Content without a single byte is an error.
  static absl::StatusOr<std::unique_ptr<TraceReader>> Open(const std::string& path);
  static absl::StatusOr<std::unique_ptr<TraceReader>> FromBytes(std::string bytes);

  virtual ~TraceReader() = default;

  // Fills `request` (its memory is used again) and returns true; false at the end. `request` holds
  // garbage after false and after an error.
  virtual absl::StatusOr<bool> Next(TraceRequest& request) = 0;

  // Requests in the whole trace and tokens per block, where the file says so.
  virtual std::optional<uint64_t> request_count() const { return std::nullopt; }
  virtual std::optional<uint32_t> block_tokens() const { return std::nullopt; }

  // How much of the trace was read, from 0 to 1; negative when unknown. For a progress bar.
  virtual double fraction() const = 0;
};

// Appends `request` as one JSON line with its newline, spaced as the published traces are.
void AppendJsonLine(const TraceRequest& request, std::string& target);

}  // namespace kvd
