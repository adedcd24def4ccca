// How many log lines of one kind there may be: some in each second, the rest counted, so that what
// goes wrong a thousand times does not fill the log.
//
// Threads: one.

#pragma once

#include <cstdint>

#include "proto/types/clock.h"

namespace kvd {

struct LineBudget {
  static constexpr uint32_t kLinesPerSecond = 10;

  // Whether there may be a line at `now`; counted if not.
  bool Take(Nanos now) {
    if (now - second >= kSecond) {
      second = now;
      lines = 0;
    }
    if (lines < kLinesPerSecond) {
      ++lines;
      return true;
    }
    ++suppressed;
    return false;
  }

  Nanos second = 0;  // Its start.
  uint32_t lines = 0;
  uint64_t suppressed = 0;  // Since somebody set it to zero: who writes the next line.
};

}  // namespace kvd
