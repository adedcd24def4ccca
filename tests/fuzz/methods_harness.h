// Every method of the engine-facing service, driven by bytes: a program of small operations that
// name a method and bring its message. Some fields can be replaced by what would be right there (a
// living session, a known namespace, an open reservation, keys of a small family), because bytes
// alone would never get past the first check.
//
// Copiers are fake and time is manual. It aborts when a promise is broken: a count that does not
// add up, a stranded block, bytes that belong to another key, room under a hold that changed, and,
// at the end, when everybody has gone, anything that is left.
//
// Threads: one.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace kvd {

class MethodsHarness {
 public:
  MethodsHarness();
  ~MethodsHarness();

  void Run(const uint8_t* data, size_t size);
  // Ends all waits, sessions and processes, and checks that nothing is left.
  void Finish();

  // How far the programs got, for a test of the harness itself.
  struct Reached {
    uint64_t calls = 0;
    uint64_t answered_ok = 0;
    uint64_t waits = 0;
    uint64_t early_commits = 0;  // That waited for fills.
    uint64_t fills = 0;
    uint64_t pieces = 0;       // Fills of less than a part.
    uint64_t sums_differ = 0;  // Blocks that were not stored because of that.
    uint64_t stored = 0;
    uint64_t extents = 0;
    uint64_t damaged = 0;
  };
  const Reached& reached() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvd
