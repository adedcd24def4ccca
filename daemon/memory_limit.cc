#include "daemon/memory_limit.h"

#include <fstream>
#include <limits>
#include <string_view>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"

namespace kvd {
namespace {

// The number in a file of one line. "max", and a file that is not there, limit nothing.
uint64_t ReadLimit(const std::string& path) {
  std::ifstream file(path);
  uint64_t bytes = 0;
  return file >> bytes ? bytes : std::numeric_limits<uint64_t>::max();
}

void Lower(MemoryLimit& limit, uint64_t bytes, const std::string& of) {
  if (bytes < limit.bytes) limit = {.bytes = bytes, .of = of};
}

// `cgroup` and all above it, below each of the `mounts`. In a container the path may be that of the
// host while what is mounted begins at the container's own: then only the last of the walk exists.
void LowerByCgroup(MemoryLimit& limit, std::string cgroup, const std::vector<std::string>& mounts,
                   const char* file) {
  while (true) {
    for (const std::string& mount : mounts) {
      Lower(limit, ReadLimit(mount + cgroup + "/" + file),
            "the cgroup " + (cgroup.empty() ? "/" : cgroup));
    }
    if (cgroup.empty()) return;
    cgroup.erase(cgroup.rfind('/'));
  }
}

}  // namespace

MemoryLimit FindMemoryLimit(const std::string& root) {
  MemoryLimit limit;
  std::ifstream meminfo(root + "/proc/meminfo");
  std::string name;
  uint64_t kib = 0;
  std::string unit;
  while (meminfo >> name >> kib) {
    if (name == "MemTotal:") Lower(limit, kib * 1024, "this machine");
    std::getline(meminfo, unit);
  }

  // Lines of NUMBER:CONTROLLERS:PATH; version 2 has the number 0 and no controllers.
  std::ifstream cgroups(root + "/proc/self/cgroup");
  const std::string mount = root + "/sys/fs/cgroup";
  for (std::string line; std::getline(cgroups, line);) {
    const std::vector<std::string> fields = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (fields.size() != 3 || fields[2].empty() || fields[2][0] != '/') continue;
    const std::string path = fields[2] == "/" ? "" : fields[2];
    const std::vector<std::string> controllers = absl::StrSplit(fields[1], ',');
    if (fields[0] == "0" && fields[1].empty()) {
      LowerByCgroup(limit, path, {mount, mount + "/unified"}, "memory.max");
    }
    for (const std::string& controller : controllers) {
      if (controller != "memory") continue;
      LowerByCgroup(limit, path, {mount + "/memory", mount + "/" + fields[1]},
                    "memory.limit_in_bytes");
    }
  }
  return limit;
}

}  // namespace kvd
