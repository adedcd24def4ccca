#include "daemon/process_identity.h"

#include <sys/stat.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace kvd {
namespace {

constexpr size_t kStartField = 19;  // Of /proc/PID/stat, counted from 0 behind the name.

std::string ReadAll(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

std::optional<uint64_t> ProcessStart(pid_t pid) {
  if (pid <= 0) return std::nullopt;
  const std::string stat = ReadAll(absl::StrCat("/proc/", pid, "/stat"));
  const size_t name_end = stat.rfind(')');  // Names may have blanks and parentheses.
  if (name_end == std::string::npos || name_end + 2 > stat.size()) return std::nullopt;
  const std::vector<absl::string_view> fields =
      absl::StrSplit(absl::string_view(stat).substr(name_end + 2), ' ');
  uint64_t started = 0;
  if (fields.size() <= kStartField || !absl::SimpleAtoi(fields[kStartField], &started)) {
    return std::nullopt;
  }
  return started;
}

std::array<uint8_t, 32> MachineIdentity() {
  std::array<uint8_t, 32> identity{};
  // "c2a4…-…": 36 characters, of which the first 24 tell boots apart.
  const std::string boot = ReadAll("/proc/sys/kernel/random/boot_id");
  std::memcpy(identity.data(), boot.data(), boot.size() < 24 ? boot.size() : 24);
  struct stat info;
  if (stat("/proc/self/ns/pid", &info) == 0) {
    const uint64_t inode = info.st_ino;
    std::memcpy(identity.data() + 24, &inode, sizeof inode);
  }
  return identity;
}

}  // namespace kvd
