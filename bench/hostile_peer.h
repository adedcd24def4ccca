// The processes that `hostile` starts, by the hidden subcommand hostile-peer: well-behaved clients,
// who measure and check, and attackers. Each runs until it is killed.
//
// Threads: one, and what gRPC starts.

#pragma once

#include <string>

#include "absl/status/status.h"
#include "bench/hostile_board.h"

namespace kvd {

// Bytes of the one part of a block of the well-behaved clients; attackers know them and their keys.
inline constexpr uint32_t kHostilePartBytes = 16 << 10;
inline constexpr uint32_t kHostileChainBlocks = 256;

// The keys of chain `chain` of client `client`.
std::string HostileKeys(uint32_t client, uint64_t chain, uint32_t blocks);

// An engine under ordinary load: 200 rounds a second of four leased lookups of 256 blocks, a get of
// 16, and a put of 4 new blocks that it reads back. It compares every byte that it gets.
absl::Status BehaveWell(const std::string& endpoint, uint32_t index, HostileBoard& board);

// Attackers. They keep what the limits of `bench/README.md` say, and never succeed by intent.
absl::Status ChurnSessions(const std::string& endpoint, HostileBoard& board);
absl::Status CallMalformed(const std::string& endpoint, HostileBoard& board);
absl::Status ReadSlowly(const std::string& endpoint, HostileBoard& board);
absl::Status SendOversized(const std::string& endpoint, HostileBoard& board);
absl::Status ExhaustDescriptors(const std::string& endpoint, HostileBoard& board);

}  // namespace kvd
