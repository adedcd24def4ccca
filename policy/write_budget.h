// How much may be written to NVMe: a bucket that fills with the budget's rate, because a drive's
// endurance is a number of bytes a day.
//
// The bucket holds a minute of the rate, so that a burst cannot spend the day's share at once, but
// never less than kLeastBurst, or a small budget could never afford a block. What is taken may go
// once below zero: a chain is admitted whole or not at all, and the debt is paid before the next.
//
// Threads: one. No clock: time is an argument and never goes back.

#pragma once

#include <cstdint>

#include "proto/types/clock.h"

namespace kvd {

class WriteBudget {
 public:
  static constexpr uint64_t kLeastBurst = 64u << 20;  // Bytes.

  // Bytes a day; 0: no limit. The bucket is full at `now`.
  WriteBudget(uint64_t bytes_per_day, Nanos now);

  // Whether `bytes` may be written now; then they are charged. Counted either way.
  bool Take(uint64_t bytes, Nanos now);

  uint64_t bytes_per_day() const { return bytes_per_day_; }
  uint64_t burst_bytes() const { return burst_; }
  // What may be taken at `now`; below zero: the debt. INT64_MAX without a limit.
  int64_t available(Nanos now);
  uint64_t taken_bytes() const { return taken_; }      // Since the start.
  uint64_t refused_bytes() const { return refused_; }  // Since the start.

 private:
  void Fill(Nanos now);

  const uint64_t bytes_per_day_;
  const uint64_t burst_;
  Nanos filled_at_;
  int64_t level_;  // Bytes.
  // What the last filling left over, in bytes times nanoseconds of a day: rounding loses nothing.
  uint64_t remainder_ = 0;
  uint64_t taken_ = 0;
  uint64_t refused_ = 0;
};

}  // namespace kvd
