// What a measurement must know of the machine: where threads run, whose CPU time was used, and
// whether somebody else disturbed it. Linux only.
//
// Threads: one at a time.

#pragma once

#include <sys/types.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "proto/types/clock.h"

namespace kvd {

// The CPUs that this process could use when it first asked.
const std::vector<int>& AllowedCpus();

// Every thread of the process, those that it starts later included, runs on these CPUs only. What
// cannot be pinned (an ended thread, a forbidden CPU) stays where it is.
void PinProcess(pid_t process, const std::vector<int>& cpus);

// CPU seconds that a process, living or not yet waited for, has used so far; 0 when it is gone.
double CpuSecondsOf(pid_t process);
double CpuSecondsOfThisThread();

// How many CPUs' worth of work everybody else did since construction: of this machine's busy time,
// what neither this process nor one of `own` used. Rounded down by the grain of the kernel's
// counters (two ticks), so that a short quiet time is not called disturbed.
class ForeignLoad {
 public:
  explicit ForeignLoad(std::vector<pid_t> own);
  double cpus() const;

 private:
  double Own() const;

  const std::vector<pid_t> own_;
  const Nanos start_;
  const double busy_at_start_;
  const double own_at_start_;
};

}  // namespace kvd
