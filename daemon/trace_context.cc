#include "daemon/trace_context.h"

#include <algorithm>
#include <cstddef>

namespace kvd {
namespace {

// VERSION-TRACE_ID-PARENT_ID-FLAGS, of fixed lengths.
constexpr size_t kVersion = 0;
constexpr size_t kTraceId = 3;
constexpr size_t kParentId = 36;
constexpr size_t kFlags = 53;
constexpr size_t kLength = 55;

bool IsHex(std::string_view text) {  // Lower case only.
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

bool IsZero(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c == '0'; });
}

// Of a digit that IsHex().
bool IsOdd(char digit) { return ((digit <= '9' ? digit - '0' : digit - 'a') & 1) != 0; }

}  // namespace

std::optional<TraceContext> ParseTraceparent(std::string_view header) {
  if (header.size() < kLength) return std::nullopt;
  const std::string_view version = header.substr(kVersion, 2);
  const std::string_view flags = header.substr(kFlags, 2);
  const TraceContext context{.trace_id = header.substr(kTraceId, 32),
                             .parent_id = header.substr(kParentId, 16),
                             .sampled = IsOdd(flags[1])};
  for (const size_t dash : {kTraceId - 1, kParentId - 1, kFlags - 1}) {
    if (header[dash] != '-') return std::nullopt;
  }
  if (!IsHex(version) || !IsHex(context.trace_id) || !IsHex(context.parent_id) || !IsHex(flags)) {
    return std::nullopt;
  }
  if (version == "ff" || IsZero(context.trace_id) || IsZero(context.parent_id)) return std::nullopt;
  // Only versions to come may have more, after another dash.
  if (header.size() > kLength && (version == "00" || header[kLength] != '-')) return std::nullopt;
  return context;
}

}  // namespace kvd
