// The W3C trace context that a caller may send with a call (`traceparent`, as OpenTelemetry does),
// so that what the log says of the call can be found from the request that caused it.
//
// Threads: a pure function.

#pragma once

#include <optional>
#include <string_view>

namespace kvd {

// Views into the header.
struct TraceContext {
  std::string_view trace_id;   // 32 hexadecimal digits, not all zero.
  std::string_view parent_id;  // 16, not all zero: the span of the caller.
  bool sampled = false;
};

// Empty for what is not well formed: such a header is as none. Of a version to come, what this one
// knows is taken.
std::optional<TraceContext> ParseTraceparent(std::string_view header);

}  // namespace kvd
