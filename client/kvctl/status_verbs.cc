// status, tiers, version: what a daemon is and how it does.

#include <cmath>

#include "absl/strings/str_cat.h"
#include "client/kvctl/summary.h"
#include "client/kvctl/table.h"
#include "client/kvctl/units.h"
#include "client/kvctl/verbs.h"

namespace kvd::kvctl {
namespace {

using v1::Admin;

// "65,536 of 131,072"
std::string Of(const std::string& part, const std::string& whole) {
  return absl::StrCat(part, " of ", whole);
}

double FillOf(const v1::TierStatus& tier) {
  return tier.capacity_bytes() > 0 ? static_cast<double>(tier.reserved_bytes()) /
                                         static_cast<double>(tier.capacity_bytes())
                                   : 0;
}

Tone ToneOfState(const std::string& state) { return state == "online" ? Tone::kGood : Tone::kWarn; }

Tree StatusTree(const v1::StatusReply& status) {
  Tree tree = ToTree(status);
  const double ratio = HitRatio(status);
  tree["hit_ratio"] = std::isnan(ratio) ? 0.0 : ratio;
  tree["healthy"] = status.problems().empty();
  return tree;
}

void PrintHead(Call& call, const v1::StatusReply& s) {
  const Health health = HealthOf(s);
  call.out() << Paint(absl::StrCat("kvd ", Printable(s.version())), Tone::kBold, call.color())
             << "   pid " << s.pid() << "   up " << Age(s.uptime_ms()) << "   "
             << Printable(s.endpoint()) << "   " << Paint(health.word, health.tone, call.color())
             << "\n";
  for (const v1::Problem& problem : s.problems()) {
    const std::string word = problem.severity() == "error" ? "ERROR" : "WARN";
    call.out() << "  " << Paint(word, ToneOf(problem), call.color()) << " "
               << Printable(problem.code()) << " " << Printable(problem.message()) << "\n";
  }
  if (s.draining()) {
    call.out() << "  " << Paint("DRAINING", Tone::kWarn, call.color())
               << " no new leases, holds and reservations; `kvctl undrain` takes it back\n";
  }
}

void PrintTierUse(Call& call, const v1::StatusReply& status, const v1::TiersReply& tiers) {
  Table table({{"TIER"},
               {"STATE"},
               {"USED", Align::kRight},
               {"CAPACITY", Align::kRight},
               {"FULL", Align::kRight},
               {"BLOCKS", Align::kRight},
               {"HIT SHARE", Align::kRight},
               {"EVICTED", Align::kRight}});
  for (const v1::TierStatus& tier : tiers.tiers()) {
    const v1::TierTraffic* traffic = TrafficOf(status, tier.name());
    table.Row({Printable(tier.name()),
               {Printable(tier.state()), ToneOfState(tier.state())},
               Size(tier.reserved_bytes()),
               Size(tier.capacity_bytes()),
               Percent(FillOf(tier)),
               Count(tier.blocks()),
               Percent(ShareOf(status, tier.name())),
               traffic == nullptr ? "-" : Count(traffic->evicted_blocks())});
  }
  table.Print(call.out(), call.color());
}

void PrintLatencies(Call& call, const v1::StatusReply& status) {
  if (status.latencies().empty()) return;
  Table table(
      {{"OPERATION"}, {"CALLS", Align::kRight}, {"P50", Align::kRight}, {"P99", Align::kRight}});
  for (const v1::OpLatency& latency : status.latencies()) {
    table.Row({Printable(latency.op()), Count(latency.calls()), Micros(latency.p50_us()),
               Micros(latency.p99_us())});
  }
  call.out() << "\n";
  table.Print(call.out(), call.color());
}

void PrintDomains(Call& call, const v1::StatusReply& status) {
  if (status.domains().empty()) return;
  Table table({{"DOMAIN"},
               {"SESSIONS", Align::kRight},
               {"LOOKUPS", Align::kRight},
               {"HIT", Align::kRight},
               {"USED", Align::kRight},
               {"LEASES", Align::kRight},
               {"PINS", Align::kRight},
               {"HELD", Align::kRight},
               {"COMMITTED", Align::kRight},
               {"NO ROOM", Align::kRight}});
  for (const v1::DomainUse& use : status.domains()) {
    const double hit = static_cast<double>(use.hit_blocks()) /
                       static_cast<double>(use.lookup_blocks());  // 0/0 is "-".
    table.Row({Printable(use.domain()), Count(use.sessions()), Count(use.lookups()), Percent(hit),
               Size(use.used_bytes()), Count(use.leases()), Count(use.pins()),
               Size(use.held_bytes()), Count(use.committed_blocks()),
               Count(use.rejected_blocks())});
  }
  call.out() << "\n";
  table.Print(call.out(), call.color());
}

void PrintCounts(Call& call, const v1::StatusReply& s) {
  const std::pair<const char*, std::string> lines[] = {
      {"blocks", absl::StrCat(Of(Count(s.blocks()), Count(s.blocks_capacity())), "   stubs ",
                              Count(s.stubs()), "   policy ", Printable(s.policy()))},
      {"hit ratio", absl::StrCat(Percent(HitRatio(s)), " of the blocks asked for since start (",
                                 Count(CounterOf(s, "lookups")), " lookups)")},
      {"sessions", absl::StrCat(Count(s.sessions()), "   namespaces ", Count(s.namespaces()),
                                "   leases ", Count(s.leases()), "   pins ", Count(s.pins()),
                                "   reservations ", Count(s.reservations()))},
      {"holds", absl::StrCat(Count(s.holds()), " (", Size(s.held_bytes()), ")   quarantined ",
                             Size(s.quarantined_bytes()))},
      {"memory", absl::StrCat(Printable(s.page_kind()), " pages, ",
                              Size(s.memory_beside_arena_bytes()), " beside the arena")},
      {"endpoints", absl::StrCat("metrics ", s.metrics().empty() ? "off" : Printable(s.metrics()),
                                 "   tcp ", s.tcp().empty() ? "off" : Printable(s.tcp()))},
      {"copy loops", Printable(s.copy_loops())}};
  call.out() << "\n";
  for (const auto& [name, value] : lines) {
    call.out() << Paint(absl::StrCat(name, std::string(12 - std::string(name).size(), ' ')),
                        Tone::kDim, call.color())
               << value << "\n";
  }
}

absl::StatusOr<ExitCode> Status(Call& call) {
  const absl::StatusOr<v1::StatusReply> status = call.daemon.Ask(&Admin::Stub::Status);
  if (!status.ok()) return status.status();
  const ExitCode code = status->problems().empty() ? kOk : kDegraded;
  if (call.Printed(StatusTree(*status))) return code;
  const absl::StatusOr<v1::TiersReply> tiers = call.daemon.Ask(&Admin::Stub::Tiers);
  if (!tiers.ok()) return tiers.status();
  PrintHead(call, *status);
  call.out() << "\n";
  PrintTierUse(call, *status, *tiers);
  PrintLatencies(call, *status);
  PrintDomains(call, *status);
  PrintCounts(call, *status);
  return code;
}

absl::StatusOr<ExitCode> Tiers(Call& call) {
  const absl::StatusOr<v1::TiersReply> tiers = call.daemon.Ask(&Admin::Stub::Tiers);
  if (!tiers.ok()) return tiers.status();
  if (call.Printed(ToTree(*tiers))) return kOk;
  Table table({{"TIER"},
               {"STATE"},
               {"USED", Align::kRight},
               {"CAPACITY", Align::kRight},
               {"FULL", Align::kRight},
               {"BLOCKS", Align::kRight},
               {"REGIONS FREE", Align::kRight},
               {"REGION", Align::kRight}});
  for (const v1::TierStatus& tier : tiers->tiers()) {
    table.Row({Printable(tier.name()),
               {Printable(tier.state()), ToneOfState(tier.state())},
               Size(tier.reserved_bytes()),
               Size(tier.capacity_bytes()),
               Percent(FillOf(tier)),
               Count(tier.blocks()),
               Of(Count(tier.regions_free()), Count(tier.regions())),
               Size(tier.region_bytes())});
  }
  table.Print(call.out(), call.color());
  return kOk;
}

absl::StatusOr<ExitCode> Version(Call& call, bool client_only) {
  Tree tree = {{"client", {{"version", KVD_VERSION}}}, {"daemon", nullptr}};
  absl::Status reached = absl::OkStatus();
  if (!client_only) {
    const absl::StatusOr<v1::StatusReply> status = call.daemon.Ask(&Admin::Stub::Status);
    reached = status.status();
    if (status.ok()) {
      tree["daemon"] = {{"version", status->version()},
                        {"protocol_version", status->protocol_version()},
                        {"endpoint", status->endpoint()}};
    }
  }
  if (!call.Printed(tree)) {
    call.out() << "kvctl " << KVD_VERSION << "\n";
    if (!tree["daemon"].is_null()) {
      call.out() << "kvd   " << Printable(tree["daemon"]["version"].get<std::string>())
                 << "   protocol " << tree["daemon"]["protocol_version"] << "   "
                 << Printable(tree["daemon"]["endpoint"].get<std::string>()) << "\n";
    }
  }
  if (!reached.ok()) return reached;  // After what is known without it.
  return kOk;
}

}  // namespace

void AddStatusVerbs(CommandLine& line) {
  line.Add(line.app(), "status", "One page about the whole daemon; exit 3 if it has problems",
           "kvctl status\nkvctl status --watch=5\nkvctl status -o json | jq .hit_ratio",
           Repeat::kYes, Status);
  line.Add(line.app(), "tiers", "Capacity and use of each tier", "kvctl tiers\nkvctl tiers -o yaml",
           Repeat::kYes, Tiers);
  auto client_only = std::make_shared<bool>(false);
  line.Add(line.app(), "version", "The version of this program and of the daemon",
           "kvctl version\nkvctl version --client", Repeat::kNo,
           [client_only](Call& call) { return Version(call, *client_only); })
      ->add_flag("--client", *client_only, "Of this program only; asks no daemon");
}

}  // namespace kvd::kvctl
