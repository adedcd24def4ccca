// Rewrites a trace in another form; nothing of its requests is lost.
//
// Threads: any; blocks on files.

#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace kvd {

enum class TraceFormat : uint8_t {
  kCompact,    // .kvtrace, see bench/compact_trace.h.
  kJsonLines,  // Plain, in the spacing of the published traces.
};

struct ConvertOptions {
  std::string input;   // As TraceReader::Open() takes it.
  std::string output;  // "-" is standard output.
  TraceFormat format = TraceFormat::kCompact;
  // Tokens per block to note in a compact file; 0: what the input says, if anything.
  uint32_t block_tokens = 0;
};

struct ConvertSummary {
  uint64_t requests = 0;
  uint64_t references = 0;
  uint64_t output_bytes = 0;
};

// Errors are those of TraceReader and of the file system. `output` appears whole or not at all: it
// is written beside its place and renamed; what was there stays after an error. A pipe or a device
// is written in place.
absl::StatusOr<ConvertSummary> ConvertTrace(const ConvertOptions& options);

}  // namespace kvd
