#include "daemon/damage_log.h"

#include <spdlog/spdlog.h>

#include <utility>

#include "absl/strings/str_cat.h"

namespace kvd {

void DamageLog::Write(const Quarantined& found) {
  const TierIndex tier = found.on_nvme ? TierIndex::kNvme : TierIndex::kDram;
  LineBudget& budget = budgets_[static_cast<size_t>(tier)];
  if (!budget.Take(found.time)) return;
  std::string line =
      absl::StrCat("damage.found number=", found.number, " tier=", found.on_nvme ? "nvme" : "dram",
                   " domain=", domain_name_(found.domain), " namespace=", found.ns,
                   " group=", found.id.group, " shard=", found.id.shard,
                   found.on_nvme ? " segment=" : " region=", found.region, " offset=", found.offset,
                   " length=", found.length, " found_by=", std::string(FinderName(found.found_by)),
                   " action=\"it is a miss, and is computed again\"");
  if (budget.suppressed > 0) {
    absl::StrAppend(&line, " suppressed=", std::exchange(budget.suppressed, 0));
  }
  logger_->error(line);
}

}  // namespace kvd
