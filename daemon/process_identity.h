// Processes as a later run of the daemon can tell them apart: numbers are used again, a number
// together with a start time is not, within one boot and one PID namespace.
//
// Threads: pure functions of the system.

#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <optional>

namespace kvd {

// When the process began, in ticks since the boot. Empty: there is none of that number that we may
// see.
std::optional<uint64_t> ProcessStart(pid_t pid);

// For one that we may not see, but whose end its socket's descriptor tells: in another PID
// namespace.
inline constexpr uint64_t kUnknownStart = UINT64_MAX;

// This boot and this PID namespace.
std::array<uint8_t, 32> MachineIdentity();

}  // namespace kvd
