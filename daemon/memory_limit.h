// How much memory this process may have: the machine's, or less where a cgroup (version 1 or 2) or
// one above it says so.
//
// Threads: a pure function of the files of the system.

#pragma once

#include <cstdint>
#include <string>

namespace kvd {

struct MemoryLimit {
  uint64_t bytes = UINT64_MAX;
  std::string of = "this machine";  // Whose limit it is, for messages.
};

// Reads /proc/meminfo, /proc/self/cgroup and /sys/fs/cgroup, all below `root` (for tests). What
// cannot be read limits nothing.
MemoryLimit FindMemoryLimit(const std::string& root = "");

}  // namespace kvd
