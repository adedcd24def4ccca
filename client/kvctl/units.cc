#include "client/kvctl/units.h"

#include <algorithm>
#include <cctype>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <limits>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "proto/types/view.h"

namespace kvd::kvctl {
namespace {

// The length of the UTF-8 character that `text` begins with; 0: it begins with none.
size_t CharacterLength(std::string_view text) {
  const auto first = static_cast<unsigned char>(text[0]);
  const size_t length = first < 0x80 ? 1 : first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (length == 1) return 1;
  if (first < 0xc2 || first > 0xf4 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((static_cast<unsigned char>(text[i]) & 0xc0) != 0x80) return 0;
  }
  return length;
}

}  // namespace

std::string Size(uint64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  auto value = static_cast<double>(bytes);
  int unit = 0;
  for (; value >= 1024 && unit < 5; ++unit) value /= 1024;
  return absl::StrFormat("%.*f %s", unit == 0 ? 0 : 1, value, kUnits[unit]);
}

std::string Count(uint64_t value) {
  const std::string digits = absl::StrCat(value);
  std::string grouped;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) grouped += ',';
    grouped += digits[i];
  }
  return grouped;
}

std::string Rate(double per_second) {
  if (!(per_second > 0)) return "0";
  if (per_second < 9.95) return absl::StrFormat("%.1f", per_second);
  return Count(static_cast<uint64_t>(std::llround(per_second)));
}

std::string Percent(double ratio) {
  return std::isfinite(ratio) ? absl::StrFormat("%.1f%%", ratio * 100) : "-";
}

std::string Micros(double us) {
  if (!(us > 0)) return "-";
  if (us < 9.95) return absl::StrFormat("%.1f us", us);
  if (us < 999.5) return absl::StrFormat("%.0f us", us);
  if (us < 999.5e3) return absl::StrFormat("%.1f ms", us / 1e3);
  return absl::StrFormat("%.1f s", us / 1e6);
}

std::string Age(uint64_t ms) {
  const uint64_t s = ms / 1000;
  if (ms < 1000) return absl::StrCat(ms, " ms");
  if (s < 60) return absl::StrFormat("%d.%d s", s, ms / 100 % 10);
  if (s < 3600) return absl::StrFormat("%dm %02ds", s / 60, s % 60);
  if (s < 86400) return absl::StrFormat("%dh %02dm", s / 3600, s / 60 % 60);
  return absl::StrFormat("%dd %02dh", s / 86400, s / 3600 % 24);
}

std::string Clock(uint64_t unix_ms) {
  return absl::FormatTime("%Y-%m-%d %H:%M:%E3S",
                          absl::FromUnixMillis(static_cast<int64_t>(unix_ms)),
                          absl::LocalTimeZone());
}

std::string Hex(std::string_view bytes) { return absl::BytesToHexString(View(bytes)); }

std::string ShortHex(std::string_view bytes) { return Hex(bytes.substr(0, 8)); }

std::string HexId(uint64_t id) { return absl::StrFormat("%016x", id); }

std::string Printable(std::string_view text) {
  std::string safe;
  while (!text.empty()) {
    const size_t length = CharacterLength(text);
    const auto first = static_cast<unsigned char>(text[0]);
    // U+0080 to U+009F are control characters, too.
    const bool control = first < 0x20 || first == 0x7f ||
                         (first == 0xc2 && static_cast<unsigned char>(text[1]) < 0xa0);
    if (length == 0 || control) {
      safe += '?';
    } else {
      safe += text.substr(0, length);
    }
    text.remove_prefix(std::max<size_t>(1, length));
  }
  return safe;
}

size_t Width(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xc0) != 0x80;
  }));
}

bool KeyPrefix::Matches(std::string_view key) const {
  if (key.substr(0, bytes.size()) != bytes) return false;
  if (half < 0) return true;
  return key.size() > bytes.size() && static_cast<unsigned char>(key[bytes.size()]) >> 4 == half;
}

absl::StatusOr<KeyPrefix> ParseKeyPrefix(std::string_view text) {
  const auto digit = [](char c) { return std::isxdigit(static_cast<unsigned char>(c)) != 0; };
  if (!std::all_of(text.begin(), text.end(), digit)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "'", Printable(text), "' is no key: write the first digits, or all, of its hex form"));
  }
  if (text.size() > 64) {
    return absl::InvalidArgumentError("a key has at most 64 hex digits (32 bytes)");
  }
  const size_t whole = text.size() / 2 * 2;
  KeyPrefix prefix{.bytes = absl::HexStringToBytes(View(text.substr(0, whole)))};
  if (text.size() > whole) {
    const char last = text.back();
    prefix.half =
        last <= '9' ? last - '0' : std::tolower(static_cast<unsigned char>(last)) - 'a' + 10;
  }
  return prefix;
}

absl::StatusOr<uint64_t> ParseId(std::string_view text) {
  uint64_t id = 0;
  if (text.size() > 18 || !absl::SimpleHexAtoi(View(text), &id)) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", Printable(text), "' is no id: write it as `kvctl leases` does, in hex"));
  }
  return id;
}

absl::StatusOr<uint64_t> ParseSize(std::string_view text) {
  const absl::Status wrong = absl::InvalidArgumentError(absl::StrCat(
      "'", Printable(text), "' is no size: write 4096 (bytes), 512KiB, 64MiB, 4GiB or 1TiB"));
  const size_t digits = std::min(text.find_first_not_of("0123456789"), text.size());
  uint64_t value = 0;
  if (!absl::SimpleAtoi(View(text.substr(0, digits)), &value)) return wrong;
  const std::string_view unit = text.substr(digits);
  constexpr std::string_view kUnits[] = {"", "KiB", "MiB", "GiB", "TiB"};
  for (int i = 0; i < 5; ++i) {
    if (unit != kUnits[i]) continue;
    if (value > std::numeric_limits<uint64_t>::max() >> (10 * i)) return wrong;
    return value << (10 * i);
  }
  return wrong;
}

absl::StatusOr<absl::Duration> ParseTime(std::string_view text) {
  absl::Duration time;
  int64_t days = 0;
  const bool in_days = !text.empty() && text.back() == 'd' &&
                       absl::SimpleAtoi(View(text.substr(0, text.size() - 1)), &days);
  if (in_days) {
    time = absl::Hours(24) * days;
  } else if (!absl::ParseDuration(View(text), &time)) {
    time = absl::ZeroDuration();
  }
  if (time <= absl::ZeroDuration() || time > absl::Hours(24 * 3650)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "'", Printable(text), "' is no length of time: write 500ms, 90s, 10m, 1h30m or 7d"));
  }
  return time;
}

}  // namespace kvd::kvctl
