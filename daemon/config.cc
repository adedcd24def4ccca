#include "daemon/config.h"

#include <grp.h>
#include <sys/un.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <map>
#include <thread>

#include "policy/policies.h"
#include "proto/types/endpoint.h"

namespace kvd {
namespace {

// The longest suffix that is added to the path.
constexpr size_t kSuffixBytes = sizeof(".session");

std::string CheckListen(const std::string& listen) {
  if (listen.rfind("unix:/", 0) != 0) return "must be unix: and an absolute path";
  if (listen.size() - 5 + kSuffixBytes > sizeof(sockaddr_un{}.sun_path)) {
    return "the path is too long for a Unix socket (98 bytes at most)";
  }
  return "";
}

std::string CheckPolicy(const std::string& name) {
  if (MakePolicy(name, 1) != nullptr) return "";
  return "no policy " + name + "; known: " + std::string(PolicyNames());
}

std::string CheckMode(const std::string& mode) {
  char* end = nullptr;
  const unsigned long value = std::strtoul(mode.c_str(), &end, 8);
  if (mode.empty() || *end != '\0' || value > 0777) return "must be octal, such as 0660";
  return "";
}

}  // namespace

std::variant<Config, int> ReadConfig(int argc, char** argv) {
  Config config{.listen = DefaultEndpoint()};
  std::string mode = "0600";
  CLI::App app("kvd: the KV-cache storage daemon of one node");
  app.set_version_flag("--version", "kvd " KVD_VERSION);
  app.add_option("--listen", config.listen, "Where engines connect: unix:PATH")
      ->check(CLI::Validator(CheckListen, ""))
      ->capture_default_str();
  app.add_option("--dram", config.dram_bytes,
                 "Shared memory for blocks: 1GiB, 512MiB, or bytes; taken at start")
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(uint64_t{1} << 20, uint64_t{1} << 46).description(""))
      ->default_str("1GiB");
  app.add_option("--blocks", config.max_blocks,
                 "The most blocks it keeps; a full index evicts [one for each 32 KiB of --dram]")
      ->check(CLI::Range(1u, 1u << 29).description(""));
  app.add_option("--policy", config.policy, "Eviction policy")
      ->check(CLI::Validator(CheckPolicy, ""))
      ->capture_default_str();
  app.add_option("--socket-mode", mode, "Mode of the engine sockets")
      ->check(CLI::Validator(CheckMode, ""))
      ->capture_default_str();
  app.add_option("--socket-group", config.socket_group, "Group of the engine sockets");
  app.add_option("--copy-loop", config.copy_loop, "Copy loop to use instead of calibrating");
  app.add_option("--copiers", config.copiers, "Threads that copy [one for each eight CPUs]")
      ->check(CLI::Range(1u, 64u).description(""));
  app.add_option("--log-level", config.log_level, "Least level that is logged")
      ->check(CLI::IsMember({"debug", "info", "warn", "error"}))
      ->capture_default_str();
  app.add_option("--metrics", config.metrics, "Where Prometheus scrapes: HOST:PORT");
  app.add_flag("--metrics-beyond-loopback", config.metrics_beyond_loopback,
               "--metrics may be an address that other hosts reach");
  app.add_flag("!--no-operation-metrics", config.op_metrics, "Do not count and time single calls");
  app.add_option("--tcp", config.tcp, "Where clients without shared memory connect: HOST:PORT");
  app.add_option("--tls-certificate", config.tls_certificate, "Certificate of --tcp, a PEM file");
  app.add_option("--tls-key", config.tls_key, "Key of --tcp, a PEM file");
  app.add_option("--tls-client-ca", config.tls_client_ca,
                 "Who may sign the certificates of clients, a PEM file");
  app.add_option("--drain-timeout", config.drain_timeout_ms,
                 "How long a drain waits for holds and moves: 30s, 500ms")
      ->transform(CLI::AsNumberWithUnit(
          std::map<std::string, uint64_t>{{"ms", 1}, {"s", 1000}, {"min", 60'000}},
          CLI::AsNumberWithUnit::UNIT_REQUIRED))
      ->default_str("30s");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  config.socket_mode = static_cast<uint32_t>(std::strtoul(mode.c_str(), nullptr, 8));
  if (!config.socket_group.empty() && getgrnam(config.socket_group.c_str()) == nullptr) {
    std::cerr << "--socket-group: no group " << config.socket_group << "\n";
    return 2;
  }
  if (config.max_blocks == 0) {
    config.max_blocks = static_cast<uint32_t>(
        std::clamp<uint64_t>(config.dram_bytes / (32u << 10), 65536, 1u << 29));
  }
  if (config.copiers == 0) config.copiers = std::max(1u, std::thread::hardware_concurrency() / 8);
  return config;
}

}  // namespace kvd
