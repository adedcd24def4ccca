// What a daemon has found damaged, as an operator asks it: its quarantine, and a check of all that
// it stores (`kvctl verify`), now and to the end.
//
// Threads: one. Calls block, for some seconds at most.

#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvd {

class AdminCaller;

class DamageList {
 public:
  // One part of a block, in one tier.
  struct Entry {
    std::string key;
    uint32_t shard = 0;
    bool on_nvme = false;

    friend auto operator<=>(const Entry&, const Entry&) = default;
  };

  // Of the daemon that serves `endpoint`.
  explicit DamageList(const std::string& endpoint);
  ~DamageList();

  // Reads what was found since the last call.
  //   kDataLoss  the daemon's list has forgotten some of it: ask more often
  absl::Status Read();
  // Checks every stored byte of both tiers, again until nothing was skipped, and reads what that
  // found. Returns how many damaged parts it met.
  //   kUnavailable  something was skipped every time
  absl::StatusOr<uint64_t> VerifyAll();

  const std::set<Entry>& found() const { return found_; }  // By the daemon, as far as it was read.

 private:
  const std::unique_ptr<AdminCaller> daemon_;
  std::set<Entry> found_;
  uint64_t last_ = 0;  // The number of the last entry that was read.
};

}  // namespace kvd
