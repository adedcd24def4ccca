#include "client/kvctl/summary.h"

#include <limits>

#include "absl/strings/str_cat.h"

namespace kvd::kvctl {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

double Share(uint64_t part, uint64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : kNone;
}

}  // namespace

uint64_t CounterOf(const v1::StatusReply& status, std::string_view name) {
  for (const v1::Counter& counter : status.counters()) {
    if (counter.name() == name) return counter.value();
  }
  return 0;
}

double HitRatio(const v1::StatusReply& status) {
  return Share(CounterOf(status, "lookup_hit_blocks"), CounterOf(status, "lookup_blocks"));
}

Health HealthOf(const v1::StatusReply& status) {
  int errors = 0;
  for (const v1::Problem& problem : status.problems()) errors += problem.severity() == "error";
  if (errors > 0) return {absl::StrCat("ERROR (", errors, ")"), Tone::kBad};
  if (status.problems_size() > 0) {
    return {absl::StrCat("WARNING (", status.problems_size(), ")"), Tone::kWarn};
  }
  if (status.draining()) return {"DRAINING", Tone::kWarn};
  return {"HEALTHY", Tone::kGood};
}

Tone ToneOf(const v1::Problem& problem) {
  return problem.severity() == "error" ? Tone::kBad : Tone::kWarn;
}

const v1::TierTraffic* TrafficOf(const v1::StatusReply& status, std::string_view tier) {
  for (const v1::TierTraffic& traffic : status.traffic()) {
    if (traffic.tier() == tier) return &traffic;
  }
  return nullptr;
}

double ShareOf(const v1::StatusReply& status, std::string_view tier) {
  const v1::TierTraffic* traffic = TrafficOf(status, tier);
  if (traffic == nullptr) return kNone;
  uint64_t asked = 0;
  for (const v1::TierTraffic& any : status.traffic()) asked += any.lookup_blocks();
  return Share(traffic->lookup_blocks(), asked);
}

}  // namespace kvd::kvctl
