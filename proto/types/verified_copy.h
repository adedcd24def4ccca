// Copies that verify: each takes the CRC32C of what it stores in the same pass.
//
// No loop is best everywhere: four pages at once with non-temporal stores win on one server CPU,
// one stream with prefetch on another. So a process calibrates the handful that its CPU can run
// (copy_loops.h) for some milliseconds at start, for each size class and use, and says which it
// took.
//
// Threads: everything in Copier is safe from any thread.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/types/span.h"
#include "proto/types/copy_loops.h"

namespace kvd {

// The choice of one process. Immutable after construction, which takes 10 to 40 ms when it
// calibrates; so a process makes one and shares it.
class Copier {
 public:
  struct Options {
    // The loops to use for every size instead of calibrating: names as in CopyLoops(), separated by
    // commas. Each counts for the uses that have it; a use that none fits is calibrated. An unknown
    // name, or one that this CPU cannot run, is ignored, and description() says so.
    std::string loop;
    // Memory that the calibration maps, touches and gives back. It drops the blocks from the caches
    // before each trial, so this need not be larger than they are. Below 1 MiB nothing is measured
    // and the most promising loops are taken.
    size_t calibration_bytes = 8u << 20;
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
  static constexpr int kUses = 2;
  static constexpr int kSizeClasses = 3;  // Below 64 KiB, below 1 MiB, larger.
  static int SizeClass(size_t size);
  const CopyLoop& Choice(CopyUse use, size_t size) const {
    return *choice_[static_cast<int>(use)][SizeClass(size)];
  }

  // Constant after construction, never null.
  const CopyLoop* choice_[kUses][kSizeClasses];
  const SumLoop* sum_;
  std::string description_;
};

}  // namespace kvd
