// What status and top both say of a daemon, worked out in one place.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "client/kvctl/table.h"
#include "proto/admin.grpc.pb.h"

namespace kvd::kvctl {

// Zero where the daemon has no such counter.
uint64_t CounterOf(const v1::StatusReply& status, std::string_view name);
// Blocks found of those asked for, since start. Not a number: nothing was asked.
double HitRatio(const v1::StatusReply& status);

struct Health {
  std::string word;  // "HEALTHY", "DRAINING", "WARNING (2)", "ERROR (1)"
  Tone tone = Tone::kGood;
};
Health HealthOf(const v1::StatusReply& status);
Tone ToneOf(const v1::Problem& problem);

// The share of a tier in all blocks that were asked for; not a number where the daemon does not
// say.
double ShareOf(const v1::StatusReply& status, std::string_view tier);
const v1::TierTraffic* TrafficOf(const v1::StatusReply& status, std::string_view tier);

}  // namespace kvd::kvctl
