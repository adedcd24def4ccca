// An admission policy that asks the write budget last: what it wants and the budget does not bear
// is declined, with the ancestors that it would have taken along.
//
// Threads: one; the numbers are read by any.

#pragma once

#include <memory>
#include <string_view>
#include <utility>

#include "policy/admission.h"
#include "policy/write_budget.h"
#include "proto/types/shared_count.h"

namespace kvd {

class BudgetedAdmission final : public AdmissionPolicy {
 public:
  struct Counts {
    SharedCount admitted_blocks;  // With ancestors.
    SharedCount admitted_bytes;
    SharedCount declined_blocks;     // The policy did not want them.
    SharedCount over_budget_blocks;  // It did, and the budget was spent.
    SharedCount over_budget_bytes;
  };

  // `bytes_per_day` 0: no limit.
  BudgetedAdmission(std::unique_ptr<AdmissionPolicy> wants, uint64_t bytes_per_day, Nanos now)
      : wants_(std::move(wants)), budget_(bytes_per_day, now) {}

  std::string_view name() const override { return wants_->name(); }
  bool Admit(const Candidate& candidate, Nanos now) override {
    if (!wants_->Admit(candidate, now)) {
      ++counts_.declined_blocks;
      return false;
    }
    if (!budget_.Take(candidate.bytes, now)) {
      ++counts_.over_budget_blocks;
      counts_.over_budget_bytes += candidate.bytes;
      return false;
    }
    counts_.admitted_blocks += candidate.blocks;
    counts_.admitted_bytes += candidate.bytes;
    return true;
  }
  void Stored(const ChainHash& key, NamespaceId ns) override { wants_->Stored(key, ns); }
  void Left(const ChainHash& key, NamespaceId ns, uint32_t uses) override {
    wants_->Left(key, ns, uses);
  }

  const Counts& counts() const { return counts_; }
  uint64_t bytes_per_day() const { return budget_.bytes_per_day(); }
  // What may be written at `now`; below zero: the debt. INT64_MAX without a limit. Control thread.
  int64_t available(Nanos now) { return budget_.available(now); }

 private:
  const std::unique_ptr<AdmissionPolicy> wants_;
  WriteBudget budget_;
  Counts counts_;
};

}  // namespace kvd
