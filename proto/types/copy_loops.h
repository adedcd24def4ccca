// The loops that copy and the loops that sum: the product's hottest code. A copy loop takes the
// CRC32C of what it stores from the registers that it stores, so the source is read once and what
// is summed is what was written, even if somebody changes the source meanwhile.
//
// Which loop is best depends on the CPU: Copier (verified_copy.h) finds out. This header is for it,
// for the tests and for benchmarks, whose floor is the best `copy` of all.
//
// Names say how: nt4-fold has non-temporal stores (st: ordinary ones, sum: none), four streams a
// page apart, and sums by carry-less folding of 512 bits (fold128: of 128 bits; crc32: by the CRC
// instruction). A number at the end is an unusual distance of the prefetch, in bytes.
//
// Threads: everything is safe from any thread.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "absl/types/span.h"

namespace kvd {

// Where the copied bytes are wanted next.
enum class CopyUse : uint8_t {
  kMemory,  // Not soon by this CPU: non-temporal stores are allowed.
  kCache,   // Soon, by another thread through the cache (staging): ordinary stores.
};

// One way to copy. `copy_sum` copies and returns the CRC32C of the bytes stored; `copy` only
// copies, in the same way. Any alignment, any length, no overlap. When they return, the stores are
// ordered before later ones of the calling thread, as after memcpy.
struct CopyLoop {
  std::string_view name;
  CopyUse use;
  uint32_t (*copy_sum)(std::byte* target, const std::byte* source, size_t size);
  void (*copy)(std::byte* target, const std::byte* source, size_t size);
};

// One way to sum in place. Continues `crc`, the CRC32C of the bytes before; 0 at the start.
struct SumLoop {
  std::string_view name;
  uint32_t (*sum)(uint32_t crc, const std::byte* source, size_t size);
};

// What this CPU can run, the most promising first; "plain" is always among them, for both uses. Of
// one use, no two have the same name. Valid for ever.
absl::Span<const CopyLoop> CopyLoops();
absl::Span<const SumLoop> SumLoops();

// Writes back and drops the bytes' lines from every cache, so that who measures finds them in
// memory. Does nothing where the CPU has no such instruction for us.
void DropFromCaches(absl::Span<const std::byte> bytes);

}  // namespace kvd
