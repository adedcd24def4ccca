#include "bench/commands.h"

#include <iostream>

#include "CLI/CLI.hpp"

namespace kvd {

void FinishCommand(const absl::Status& status) {
  if (status.ok()) return;
  std::cerr << "kvd-bench: " << status.message() << std::endl;
  throw CLI::RuntimeError(1);
}

}  // namespace kvd
