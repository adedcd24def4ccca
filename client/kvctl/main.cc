// kvctl: how people look at a daemon. Small for now: status and tiers.

#include <grpcpp/grpcpp.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "proto/admin.grpc.pb.h"
#include "proto/types/endpoint.h"

namespace kvd {
namespace {

// Exit statuses that scripts may rely on.
enum Exit : int { kOk = 0, kError = 1, kUsage = 2, kUnreachable = 4 };

constexpr int kSchemaVersion = 1;  // Of the JSON; grows when a key changes its meaning or goes.
constexpr auto kPatience = std::chrono::seconds(10);

struct Options {
  std::string endpoint;
  std::string output = "table";
};

std::string Size(uint64_t bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  for (; value >= 1024 && unit < 4; ++unit) value /= 1024;
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
  return text;
}

std::string Uptime(uint64_t ms) {
  const uint64_t s = ms / 1000;
  char text[32];
  std::snprintf(
      text, sizeof text, "%llud %02lluh %02llum %02llus",
      static_cast<unsigned long long>(s / 86400), static_cast<unsigned long long>(s / 3600 % 24),
      static_cast<unsigned long long>(s / 60 % 60), static_cast<unsigned long long>(s % 60));
  return text;
}

double Ratio(const v1::StatusReply& status) {
  double asked = 0;
  double hit = 0;
  for (const v1::Counter& counter : status.counters()) {
    if (counter.name() == "lookup_blocks") asked = static_cast<double>(counter.value());
    if (counter.name() == "lookup_hit_blocks") hit = static_cast<double>(counter.value());
  }
  return asked > 0 ? hit / asked : 0;
}

nlohmann::ordered_json StatusJson(const v1::StatusReply& status) {
  nlohmann::ordered_json counters = nlohmann::ordered_json::object();
  for (const v1::Counter& counter : status.counters()) counters[counter.name()] = counter.value();
  return {{"schema_version", kSchemaVersion},
          {"version", status.version()},
          {"protocol_version", status.protocol_version()},
          {"pid", status.pid()},
          {"uptime_ms", status.uptime_ms()},
          {"endpoint", status.endpoint()},
          {"policy", status.policy()},
          {"page_kind", status.page_kind()},
          {"copy_loops", status.copy_loops()},
          {"blocks", status.blocks()},
          {"blocks_capacity", status.blocks_capacity()},
          {"stubs", status.stubs()},
          {"sessions", status.sessions()},
          {"namespaces", status.namespaces()},
          {"leases", status.leases()},
          {"pins", status.pins()},
          {"holds", status.holds()},
          {"held_bytes", status.held_bytes()},
          {"reservations", status.reservations()},
          {"quarantined_bytes", status.quarantined_bytes()},
          {"memory_beside_arena_bytes", status.memory_beside_arena_bytes()},
          {"hit_ratio", Ratio(status)},
          {"counters", std::move(counters)}};
}

void PrintStatus(const v1::StatusReply& s) {
  std::printf("kvd %s   pid %u   up %s   %s\n", s.version().c_str(), s.pid(),
              Uptime(s.uptime_ms()).c_str(), s.endpoint().c_str());
  std::printf("blocks      %llu of %llu   stubs %llu   hit ratio %.4f   policy %s\n",
              static_cast<unsigned long long>(s.blocks()),
              static_cast<unsigned long long>(s.blocks_capacity()),
              static_cast<unsigned long long>(s.stubs()), Ratio(s), s.policy().c_str());
  std::printf(
      "sessions    %llu   namespaces %llu   leases %llu   pins %llu   reservations %llu\n",
      static_cast<unsigned long long>(s.sessions()),
      static_cast<unsigned long long>(s.namespaces()), static_cast<unsigned long long>(s.leases()),
      static_cast<unsigned long long>(s.pins()), static_cast<unsigned long long>(s.reservations()));
  std::printf("holds       %llu (%s)   quarantined %s   memory beside the arena %s\n",
              static_cast<unsigned long long>(s.holds()), Size(s.held_bytes()).c_str(),
              Size(s.quarantined_bytes()).c_str(), Size(s.memory_beside_arena_bytes()).c_str());
  std::printf("pages       %s\ncopy loops  %s\n", s.page_kind().c_str(), s.copy_loops().c_str());
}

nlohmann::ordered_json TiersJson(const v1::TiersReply& reply) {
  nlohmann::ordered_json tiers = nlohmann::ordered_json::array();
  for (const v1::TierStatus& tier : reply.tiers()) {
    tiers.push_back({{"name", tier.name()},
                     {"state", tier.state()},
                     {"capacity_bytes", tier.capacity_bytes()},
                     {"reserved_bytes", tier.reserved_bytes()},
                     {"blocks", tier.blocks()},
                     {"regions", tier.regions()},
                     {"regions_free", tier.regions_free()},
                     {"region_bytes", tier.region_bytes()}});
  }
  return {{"schema_version", kSchemaVersion}, {"tiers", std::move(tiers)}};
}

void PrintTiers(const v1::TiersReply& reply) {
  std::printf("%-6s %-8s %12s %12s %10s %16s\n", "tier", "state", "used", "capacity", "blocks",
              "regions free");
  for (const v1::TierStatus& tier : reply.tiers()) {
    const std::string regions = std::to_string(tier.regions_free()) + " of " +
                                std::to_string(tier.regions()) + " x " + Size(tier.region_bytes());
    std::printf("%-6s %-8s %12s %12s %10llu   %s\n", tier.name().c_str(), tier.state().c_str(),
                Size(tier.reserved_bytes()).c_str(), Size(tier.capacity_bytes()).c_str(),
                static_cast<unsigned long long>(tier.blocks()), regions.c_str());
  }
}

int Fail(const Options& options, const grpc::Status& status) {
  const bool away = status.error_code() == grpc::StatusCode::UNAVAILABLE;
  std::cerr << "kvctl: " << options.endpoint << ": "
            << (away ? "no daemon answers there" : status.error_message()) << "\n";
  return away ? kUnreachable : kError;
}

int Run(const Options& options, bool tiers) {
  if (options.endpoint.rfind("unix:", 0) != 0) {
    std::cerr << "kvctl: --endpoint must be unix:PATH, as the daemon's --listen\n";
    return kUsage;
  }
  const auto stub = v1::Admin::NewStub(
      grpc::CreateChannel(options.endpoint + ".admin", grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kPatience);
  const bool json = options.output == "json";
  if (tiers) {
    v1::TiersReply reply;
    const grpc::Status status = stub->Tiers(&context, {}, &reply);
    if (!status.ok()) return Fail(options, status);
    if (json) {
      std::cout << TiersJson(reply).dump(2) << "\n";
    } else {
      PrintTiers(reply);
    }
    return kOk;
  }
  v1::StatusReply reply;
  const grpc::Status status = stub->Status(&context, {}, &reply);
  if (!status.ok()) return Fail(options, status);
  if (json) {
    std::cout << StatusJson(reply).dump(2) << "\n";
  } else {
    PrintStatus(reply);
  }
  return kOk;
}

}  // namespace
}  // namespace kvd

int main(int argc, char** argv) {
  kvd::Options options{.endpoint = kvd::DefaultEndpoint()};
  CLI::App app("kvctl: look at a kvd\n\nExample: kvctl --endpoint unix:/run/kvd/kvd.sock status");
  app.add_option("--endpoint", options.endpoint, "The daemon's --listen; also KVD_ENDPOINT")
      ->capture_default_str();
  app.require_subcommand(1);
  CLI::App* status = app.add_subcommand("status", "One page about the whole daemon");
  CLI::App* tiers = app.add_subcommand("tiers", "Capacity and use of each tier");
  for (CLI::App* verb : {status, tiers}) {
    verb->add_option("-o,--output", options.output, "table or json")
        ->check(CLI::IsMember({"table", "json"}))
        ->capture_default_str();
    verb->fallthrough();
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kvd::kOk : kvd::kUsage;
  }
  return kvd::Run(options, tiers->parsed());
}
