// The copy loops: the product's hottest code. Each takes the CRC32C of what it stores from the
// registers that it stores, so the source is read once and what is summed is what was written.
//
// No loop is best everywhere: four pages at once with non-temporal stores win on one server CPU,
// one stream with prefetch on another. A process calibrates the handful that its CPU can run for
// some milliseconds at start, for each size class and use, and says which it took.
//
// Threads: CopyLoops() and everything in Copier are safe from any thread.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/types/span.h"

namespace kvd {

// Where the copied bytes are wanted next.
enum class CopyUse : uint8_t {
  kMemory,  // Not soon by this CPU: non-temporal stores are allowed.
  kCache,   // Soon, by another thread through the cache (staging): ordinary stores.
};

// One way to copy. `copy_sum` copies and returns the CRC32C of the bytes stored; `copy` only
// copies. Any alignment, any length, no overlap.
struct CopyLoop {
  std::string_view name;
  CopyUse use;
  uint32_t (*copy_sum)(std::byte* target, const std::byte* source, size_t size);
  void (*copy)(std::byte* target, const std::byte* source, size_t size);
};

// The loops that this CPU can run; "plain" is always among them, for both uses.
absl::Span<const CopyLoop> CopyLoops();

// The choice of one process. Immutable after construction.
class Copier {
 public:
  struct Options {
    // Name of the loop to use for everything; empty: calibrate. An unknown name, or one that this
    // CPU cannot run, falls back to calibration and says so in description().
    std::string loop;
    // Memory the calibration may touch, in bytes. More than the last cache makes it honest.
    size_t calibration_bytes = 48u << 20;
  };

  Copier() : Copier(Options{}) {}
  explicit Copier(const Options& options);

  // Copies and returns the CRC32C of the bytes stored.
  // Requires: target.size() == source.size(); no overlap.
  uint32_t CopySum(absl::Span<std::byte> target, absl::Span<const std::byte> source,
                   CopyUse use) const;
  // Copies only. Same requirements.
  void Copy(absl::Span<std::byte> target, absl::Span<const std::byte> source, CopyUse use) const;
  // The CRC32C of bytes in place; nothing is copied.
  uint32_t Sum(absl::Span<const std::byte> bytes) const;

  // Which loop was taken for which size class and use, with measured GB/s, in one line for the log.
  const std::string& description() const { return description_; }

 private:
  static constexpr int kSizeClasses = 3;  // Below 64 KiB, below 1 MiB, larger.
  static int SizeClass(size_t size);

  const CopyLoop* choice_[2][kSizeClasses];  // By use, then size class. Never null.
  std::string description_;
};

}  // namespace kvd
