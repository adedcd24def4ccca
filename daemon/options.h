// The one table of the daemon's options. From it come the flags, what the file may hold,
// --print-config, deploy/kvd.toml and the tables of the READMEs, so that none of them can tell
// another story.
//
// Threads: constant; all functions are pure.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/types/span.h"
#include "daemon/config.h"
#include "daemon/memory_limit.h"

namespace kvd {

// How a value is written: in quotes in the file unless said otherwise.
enum class OptionKind {
  kText,
  kSize,      // "64GiB", "80%", or an integer of bytes without quotes.
  kCount,     // An integer, without quotes.
  kDuration,  // "30s", "500ms".
  kSwitch,    // true or false, without quotes; the flag takes no value.
  kDevices,   // Tables in double brackets; as a text PATH:SIZE, with commas between several.
};

struct Option {
  std::string_view name;  // In the file; "socket.mode" is `mode` of the table [socket].
  std::string_view flag;
  std::string_view value;  // What stands for the value in help: "SIZE". Of a switch: what the flag
                           // sets it to.
  OptionKind kind = OptionKind::kText;
  bool live = false;           // A reload changes it; otherwise it takes a restart.
  bool essential = false;      // Also in the short table.
  std::string_view fallback;   // The default as in the file, without quotes. Empty: none, or
                               // computed; then `otherwise` says what happens.
  std::string_view otherwise;  // "one for each eight CPUs"
  std::string_view example;    // Without quotes; for options that have no `fallback`.
  std::string_view help;       // Sentences without the last full stop.

  // Takes a value. Returns what is wrong with it and what would be right, or nothing.
  std::string (*set)(std::string_view text, const MemoryLimit& memory, Config& config);
  // The value in force, as `set` takes it.
  std::string (*get)(const Config& config);
};

// In the order in which they stand in the file: those outside tables first.
absl::Span<const Option> Options();
const Option* FindOption(std::string_view name);  // Null: none of that name.

// What [[domain]] or [[tiers.nvme]] may hold, with a line on each.
struct TableKey {
  std::string_view name;
  std::string_view example;  // As TOML.
  std::string_view help;
};
absl::Span<const TableKey> DomainKeys();
absl::Span<const TableKey> NvmeKeys();

// What is wrong with the parts of a device, or nothing.
std::string CheckDevicePath(std::string_view path);
std::string ParseDeviceCapacity(std::string_view text, uint64_t* bytes);

// `text` as it stands in the file: with quotes, or without.
std::string TomlValue(const Option& option, std::string_view text);
std::string TomlString(std::string_view text);

// 1073741824 is "1GiB": the largest unit that divides it.
std::string FormatSize(uint64_t bytes);

// HOST:PORT with a numeric address (IPv6 in brackets) or "localhost". Not `ok`: anything else.
struct HostPort {
  bool ok = false;
  bool loopback = false;
};
HostPort ParseHostPort(std::string_view text);

// tcp://HOST:PORT as above, or ipc:// and an absolute path that a Unix socket takes, which counts
// as loopback.
HostPort ParseZmqEndpoint(std::string_view text);

}  // namespace kvd
