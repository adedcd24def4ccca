// What doctor looks at on this machine, as plain values: gathered here, judged in doctor.h.
//
// Nothing here needs root or changes anything. What cannot be read stays empty.

#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace kvd::kvctl {

struct SocketFacts {
  std::string path;
  bool exists = false;
  bool is_socket = false;
  mode_t mode = 0;  // Permission bits.
  uid_t uid = 0;
  gid_t gid = 0;
};

struct ProcessFacts {
  uint32_t pid = 0;
  std::vector<std::string> words;  // argv.
};

struct MachineFacts {
  uid_t uid = 0;  // Ours.

  long cpus = 0;
  std::vector<std::string> copy_loops;  // That this CPU runs, the most promising first.

  uint64_t huge_pages = 0;  // Of 2 MiB, reserved.
  uint64_t huge_pages_free = 0;
  std::string shmem_huge;  // "never", "advise", "always", ...; empty: no such file.

  // Limits, of the daemon where its pid was given and can be looked at, else of this process.
  bool limits_are_of_daemon = false;
  std::optional<uint64_t> memlock_bytes;  // Nothing: unlimited.
  std::optional<uint64_t> descriptors;    // The hard limit: the daemon raises the soft one.

  int io_uring_error = 0;       // errno of setting up a ring; 0: it can be.
  std::string io_uring_switch;  // kernel.io_uring_disabled; empty: an older kernel.
  int seals_error = 0;          // errno of sealing a memfd as the arena is; 0: it can be.
  bool seals_hold = false;      // A sealed memfd could not be mapped writable any more.
  std::string ptrace_scope;     // kernel.yama.ptrace_scope; empty: no Yama.

  absl::Time now;
  bool clock_is_set = false;  // By NTP or the like.
  std::string clock_source;   // "tsc", "kvm-clock", ...

  uint64_t memory_bytes = 0;
  uint64_t memory_available_bytes = 0;
  std::optional<uint64_t> cgroup_limit_bytes;  // The tightest above the daemon (or us).

  std::string directory;  // Of the socket.
  bool directory_exists = false;
  mode_t directory_mode = 0;  // With the sticky bit.
  std::string file_system;    // "tmpfs", "ext4", "nfs", ...; "0x..." for one that we do not name.
  SocketFacts engines;        // PATH
  SocketFacts sessions;       // PATH.session
  SocketFacts operators;      // PATH.admin

  std::vector<ProcessFacts> inference_engines;  // By their command lines; at most 64.
};

// `path` is the daemon's socket; `daemon_pid` 0: no daemon. `root`: where /proc and /sys are found,
// "" but in tests.
MachineFacts LookAtMachine(const std::string& path, uint32_t daemon_pid,
                           const std::string& root = "");

}  // namespace kvd::kvctl
