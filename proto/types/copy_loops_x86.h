// What copy_loops.h offers on x86-64. Built for any x86-64, chosen by what the CPU can do when run.

#pragma once

#include <vector>

#include "proto/types/copy_loops.h"

namespace kvd::x86 {

// Appends what this CPU can run, the most promising first and "plain" last. Nothing on another
// architecture, or without the CRC instruction.
void AppendLoops(std::vector<CopyLoop>& copies, std::vector<SumLoop>& sums);

}  // namespace kvd::x86
