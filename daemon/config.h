// The daemon's configuration: one file, and flags that win over it. It is read and checked here and
// nowhere else, as is the environment. options.h has the table of what can be said.
//
// Threads: pure functions of files, environment and the system's accounts.
// Errors: all that are found, each with FILE:LINE:COLUMN and the field, or with the flag.

#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "daemon/domains.h"
#include "daemon/memory_limit.h"

namespace kvd {

// One device of the NVMe tier.
struct NvmeConfig {
  std::string path;  // A file or a block device.
  uint64_t capacity_bytes = 0;

  friend bool operator==(const NvmeConfig& a, const NvmeConfig& b) = default;
};

struct Config {
  std::string listen;  // "unix:PATH"; sessions at PATH.session, operators at PATH.admin.
  uint64_t dram_bytes = 1u << 30;
  uint32_t max_blocks = 0;  // 0: one for each 32 KiB of DRAM and 256 KiB of NVMe; at least 65,536.
  std::string policy = "lru";
  uint32_t socket_mode = 0600;  // Of the two engine sockets; the admin socket is always 0600.
  std::string socket_group;     // Empty: the daemon's.
  std::string copy_loop;        // Empty: calibrate.
  uint32_t copiers = 0;         // 0: one for each eight CPUs, at least one.
  std::string log_level = "info";

  // "HOST:PORT", empty: off. Port 0 takes a free one, which the ready line names.
  std::string metrics;
  bool metrics_beyond_loopback = false;  // `metrics` may be an address that others reach.
  bool op_metrics = true;                // Counting and timing on the path of a call.

  // Clients without shared memory: "HOST:PORT", empty: off. Never without the three files.
  std::string tcp;
  std::string tls_certificate;  // Paths of PEM files.
  std::string tls_key;
  std::string tls_client_ca;  // Whoever has a certificate of these may connect.

  // What outlives the process. Empty: nothing does.
  std::string data;
  std::string arena_directory = "/dev/shm";  // Where the arena's memory has its names.
  std::vector<NvmeConfig> nvme;              // Empty: DRAM alone. Never without `data`.
  bool durable_sync = false;                 // A record is acknowledged after a sync.
  std::string admission = "second-touch";    // What NVMe takes of what leaves DRAM.
  uint64_t nvme_write_budget = 0;            // Bytes a day; 0: no limit.
  uint64_t scrub_bandwidth = 32u << 20;      // Bytes a second; 0: nobody looks.

  // KV events for routers, over ZeroMQ: "tcp://HOST:PORT" or "ipc:///PATH"; empty: off.
  std::string events;
  std::string events_replay;  // Where one asks for what one missed. Never without `events`.
  std::string events_topic;   // May have {model}.
  bool events_beyond_loopback = false;  // Both may be addresses that others reach.
  uint64_t announce_bytes = 64u << 20;  // For what engines announce their blocks by.

  uint64_t drain_timeout_ms = 15'000;  // How long a drain waits for holds and moves.
  DomainRules domains;
  std::string config_file;  // Empty: none.

  // Where the values are from, by the names that options have in the file.
  std::map<std::string, std::string> flags;    // What the command line said.
  std::map<std::string, std::string> sources;  // "file", "flag" or "environment"; else "default".

  std::string path() const { return listen.substr(5); }  // Without "unix:".
};

// What an operator sees of one option.
struct ConfigEntry {
  std::string name;
  std::string value;   // As in the file, without quotes; empty: not set.
  std::string source;  // "default", "environment", "file" or "flag".
  bool live = false;   // A reload can change it.
};
// All options in the order of the file, and "domain" with the names of the domains.
std::vector<ConfigEntry> ConfigEntries(const Config& config);

// "name=value ..." of all that is set, in one line for the log.
std::string DescribeConfig(const Config& config);

struct LoadedConfig {
  Config config;                      // Of use only without problems.
  std::vector<std::string> problems;  // In the order of the file, then of the flags.
};
// Reads `file` (empty: none) and lets `flags`, by the options' names, win over it.
LoadedConfig LoadConfig(const std::string& file, const std::map<std::string, std::string>& flags,
                        const MemoryLimit& memory);

// Either the configuration to serve with, or the exit status with which the program should end at
// once: after --help, --check-config and the like, or 2 after mistakes, which are on standard
// error.
std::variant<Config, int> ReadConfig(int argc, char** argv);

}  // namespace kvd
