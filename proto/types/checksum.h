// CRC32C (Castagnoli), the sum that every stored part carries. A sum is a property of the bytes in
// order, whatever loop took it, so a sum taken by one process is checked by another.
//
// Threads: all functions are pure.

#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"

namespace kvd {

// The reference: one byte at a time from a table. Tests compare every other loop with it.
uint32_t Crc32cPortable(absl::Span<const std::byte> bytes);

// The fastest single-threaded way on this CPU (folding, CRC instruction, table).
uint32_t Crc32c(absl::Span<const std::byte> bytes);

// Continues `crc`, the sum of the bytes before, over `bytes`. Crc32cExtend(0, b) == Crc32c(b).
uint32_t Crc32cExtend(uint32_t crc, absl::Span<const std::byte> bytes);

// The sum of a followed by b, from the sums of both and the length of b in bytes. O(log length).
uint32_t Crc32cConcat(uint32_t crc_a, uint32_t crc_b, uint64_t length_b);

}  // namespace kvd
