// Payload bytes as a function of what they belong to, so that any reader can check every byte of a
// part without a stored expectation.
//
// A part is a sequence of 64-bit words, word i being a one-to-one function of a base and i. The
// base is mixed from key, group and shard. So no two words of a part are equal, and a part of
// another key, group or shard, moved bytes or a write that stopped early are all seen.
//
// Threads: all functions are pure.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "absl/types/span.h"

namespace kvd {

inline constexpr size_t kPayloadMatches = static_cast<size_t>(-1);

// Fills `target` with the bytes of the part (key, group, shard) from byte `offset` on.
// Requires: offset is a multiple of 8.
void FillPayload(absl::Span<const std::byte> key, uint32_t group, uint32_t shard,
                 absl::Span<std::byte> target, uint64_t offset = 0);

// The index in `bytes` of the first that differs from what FillPayload() writes, or
// kPayloadMatches. Requires: offset is a multiple of 8.
size_t CheckPayload(absl::Span<const std::byte> key, uint32_t group, uint32_t shard,
                    absl::Span<const std::byte> bytes, uint64_t offset = 0);

// A key for a block of a trace. Different ids have different keys under one seed; other seeds give
// other keys.
std::array<std::byte, 32> KeyOf(uint64_t hash_id, uint64_t seed);

// One way to compute the above. The functions take the widest that this CPU can run; tests compare
// all of them.
struct PayloadLoop {
  std::string_view name;
  void (*fill)(uint64_t first, std::byte* target, size_t words);
  bool (*check)(uint64_t first, const std::byte* bytes, size_t words);
};

// Those that this CPU can run, the widest last.
absl::Span<const PayloadLoop> PayloadLoops();

}  // namespace kvd
