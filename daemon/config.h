// The daemon's options: read from the command line once, validated, and said in the log.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>

#include "daemon/domains.h"

namespace kvd {

struct Config {
  std::string listen;  // "unix:PATH"; sessions at PATH.session, operators at PATH.admin.
  uint64_t dram_bytes = 1u << 30;
  uint32_t max_blocks = 0;  // 0: one for each 32 KiB of DRAM, at least 65,536.
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

  uint64_t drain_timeout_ms = 30'000;  // How long a drain waits for holds and moves.
  DomainRules domains;
  std::string config_file;  // Empty: none.

  std::string path() const { return listen.substr(5); }  // Without "unix:".
};

// The configuration, or the exit status with which the program should end at once (after --help, or
// a mistake that was named on standard error).
std::variant<Config, int> ReadConfig(int argc, char** argv);

}  // namespace kvd
