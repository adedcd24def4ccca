// What keeps our promises, as switches, so that a test can take one away and see that the harness
// notices. In every program that ships each of them is the constant `true`: there is nothing to
// turn off. Only the programs of tests/sim/controls_test.cc are built with KVD_CONTROLS.
//
// Threads: any.

#pragma once

#include <cstdint>

namespace kvd {

enum class Safety : uint8_t {
  kChecksum,         // What is read from NVMe is summed.
  kDataBeforeIndex,  // A row says what media hold, and a start compares the two.
  kNoReuseUnderHold,
  kKeyInHeader,  // A record is compared with what was asked for.
  kQuarantine,   // Damaged room is not used again while somebody reads it.
  kAncestors,    // A block takes its ancestors with it to NVMe.
  kEpoch,        // What was purged stays dead after a restart.
};

#ifdef KVD_CONTROLS
// False for the one that the environment variable KVD_CONTROL names.
bool SafetyOn(Safety safety);
#else
constexpr bool SafetyOn(Safety) { return true; }
#endif

}  // namespace kvd
