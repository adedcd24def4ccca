// A progress bar on a terminal, for a person who waits. It draws one line over and over, at most
// ten times a second, and wipes it at the end, so that the result begins on a clean line:
//
//   replay  [######--------------]  31.4 %  3,780 of 12,031  1,204/s  ETA 0:07
//
// Threads: Add() is safe from any thread and costs a clock reading; the others from one thread.

#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "proto/types/clock.h"

namespace kvd {

class ProgressBar {
 public:
  struct Options {
    std::string label;
    uint64_t total = 0;  // Steps; 0: unknown, so no bar and no ETA.
    bool enabled = true;
    size_t columns = 80;                          // Of the terminal. What does not fit is cut.
    std::function<void(std::string_view)> write;  // Requires: set, when enabled.
  };

  // A bar on standard error; silent where that is no terminal, or when `quiet`.
  static Options OnStandardError(std::string label, uint64_t total, bool quiet);

  // `clock` outlives the bar.
  ProgressBar(const Clock& clock, Options options);
  ~ProgressBar() { Finish(); }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // `steps` more are done. Draws when the last drawing is 100 ms old.
  void Add(uint64_t steps = 1);

  // Wipes the line. Requires: no Add() runs or follows.
  void Finish();

 private:
  std::string Line(uint64_t done, Nanos now) const;

  const Clock& clock_;
  const Options options_;
  const Nanos start_;
  std::atomic<uint64_t> done_{0};
  // Whoever moves it draws; until then nobody else does. Orders nothing: a line stands alone.
  std::atomic<Nanos> next_draw_;
  std::atomic<bool> drawn_{false};
};

}  // namespace kvd
