// A line of the log for each part that was found damaged, ten a second of each tier at most. It
// says where the bytes were, for whoever has to find the memory module or the drive; `kvctl
// quarantine` has the key, which the log does not hold.
//
//   damage.found number=1 tier=nvme domain=uid:1000 namespace=1 group=0 shard=0 segment=7
//   offset=8192 length=2097152 found_by=scrubber action="it is a miss, and is computed again"
//
// Threads: one, the control thread. The logger must not block.

#pragma once

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "daemon/line_budget.h"
#include "daemon/quarantine.h"
#include "daemon/tier_index.h"
#include "proto/types/block.h"

namespace spdlog {
class logger;
}  // namespace spdlog

namespace kvd {

class DamageLog {
 public:
  DamageLog(std::shared_ptr<spdlog::logger> logger,
            std::function<std::string(DomainId)> domain_name)
      : logger_(std::move(logger)), domain_name_(std::move(domain_name)) {}

  void Write(const Quarantined& found);

 private:
  const std::shared_ptr<spdlog::logger> logger_;
  const std::function<std::string(DomainId)> domain_name_;
  std::array<LineBudget, kTiers> budgets_;
};

}  // namespace kvd
