// What the processes of `hostile` share: which phase it is, what the well-behaved clients measured,
// what the attackers did. A file in memory that each of them maps.
//
// Threads and processes: the parent writes `phase`; each other field has one writer, named beside
// it. Everything that another process reads is a lock-free atomic.

#pragma once

#include <sys/mman.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace kvd {

inline constexpr uint32_t kHostileClients = 2;
inline constexpr uint32_t kMaxHostileSamples = 1u << 20;  // Of one client; later ones are dropped.

// What an attacker does; also its place in HostileBoard::attacks.
enum class Attack : uint32_t { kChurn, kMalformed, kSlow, kOversized, kDescriptors };
inline constexpr uint32_t kAttacks = 5;
inline constexpr const char* kAttackNames[kAttacks] = {
    "session_churn", "malformed_calls", "slow_readers", "oversized_messages", "descriptors"};

struct HostileBoard {
  // Values of `phase`; those from kFirstPhase on are recorded.
  static constexpr uint32_t kPaused = 0;   // Clients give back what they have, and wait.
  static constexpr uint32_t kRunning = 1;  // They work; nothing is recorded.
  static constexpr uint32_t kFirstPhase = 2;

  struct Sample {
    float us;
    uint32_t phase;
  };
  struct Client {  // Written by that client.
    std::atomic<uint32_t> paused;
    std::atomic<uint64_t> samples;  // Released after the sample; those below it are whole.
    std::atomic<uint64_t> gets;
    std::atomic<uint64_t> blocks_checked;
    std::atomic<uint64_t> wrong_blocks;
    std::atomic<uint64_t> missed_blocks;
    std::atomic<uint64_t> failed_calls;  // Refused or too late.
    Sample sample[kMaxHostileSamples];
  };

  std::atomic<uint32_t> phase;
  std::atomic<uint64_t> attacks[kAttacks];  // Written by that attacker: how often it did it.
  Client clients[kHostileClients];

  // Maps the board at `path`; `create`s a fresh one of zeros there first. Never unmapped.
  enum class How { kCreate, kOpen };
  static absl::StatusOr<HostileBoard*> Map(const std::string& path, How how);
};
static_assert(std::atomic<uint64_t>::is_always_lock_free);

}  // namespace kvd
