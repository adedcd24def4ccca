// Numbers as people read and write them, and keys as hex.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace kvd::kvctl {

std::string Size(uint64_t bytes);     // "512 B", "1.5 GiB"
std::string Count(uint64_t value);    // "4,812"
std::string Rate(double per_second);  // "0", "0.4", "12", "4,812"
std::string Percent(double ratio);    // 0.676: "67.6%"; not a number: "-"
std::string Micros(double us);        // "61 us", "4.2 ms", "1.3 s"
std::string Age(uint64_t ms);         // "300 ms", "2.1 s", "4m 05s", "3h 12m", "3d 04h"
std::string Clock(uint64_t unix_ms);  // "2026-01-31 12:00:00.123", local time
std::string Hex(std::string_view bytes);
std::string ShortHex(
    std::string_view bytes);     // The first 16 digits, which name a block well enough.
std::string HexId(uint64_t id);  // 16 digits.

// Text that came from elsewhere, safe for a terminal: control characters and what is not UTF-8 are
// shown as "?". A client chooses the names of its models and owners.
std::string Printable(std::string_view text);
// Columns that `text` (UTF-8, without escapes) takes on a terminal.
size_t Width(std::string_view text);

// The start of a key. An odd number of digits is meant, too: the last is the high half of a byte.
struct KeyPrefix {
  std::string bytes;
  int half = -1;  // 0 to 15: that digit follows. -1: none.

  bool Matches(std::string_view key) const;
};

// All of these: kInvalidArgument, saying what would be right.
absl::StatusOr<KeyPrefix> ParseKeyPrefix(std::string_view text);
absl::StatusOr<uint64_t> ParseId(std::string_view text);          // Hex, as HexId() writes it.
absl::StatusOr<uint64_t> ParseSize(std::string_view text);        // "64MiB", "4GiB", "4096"
absl::StatusOr<absl::Duration> ParseTime(std::string_view text);  // "90s", "10m", "7d", "1h30m"

}  // namespace kvd::kvctl
