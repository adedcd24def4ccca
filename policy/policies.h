// The eviction policies by name: the one list that daemon, simulator and error messages share.
//
// Threads: all functions are pure.

#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "policy/eviction.h"

namespace kvd {

// A policy for blocks numbered from 1 to `max_blocks`; null when there is none of that name.
std::unique_ptr<EvictionPolicy> MakePolicy(std::string_view name, uint32_t max_blocks);

// All names, separated by ", ", for an error message.
std::string_view PolicyNames();

}  // namespace kvd
