// `kvd-bench micro`: each part of kvd beside the floor that this machine sets, in at most four
// minutes on two CPUs. README.md says what each row means.

#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "bench/micro_run.h"

namespace kvd {

// Starts the daemons and the servers that it compares with as processes of its own, and ends them.
// Rows come in the order of MicroRowSpecs(). What could not be measured has no value, and standard
// error says why. kInvalidArgument when options.only names no row.
// Requires: called on the main thread, before gRPC is used.
absl::StatusOr<std::vector<MicroRow>> Micro(const MicroOptions& options);

}  // namespace kvd
