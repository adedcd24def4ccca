// The scopes of a set of devices, and which of their changes are durable: a record is acknowledged
// only when the superblocks know its scope and its epoch.
//
// Threads: one, the control thread.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "tiers/nvme_tier.h"
#include "tiers/superblock.h"

namespace kvd {

class ScopeLedger {
 public:
  enum class Standing : uint8_t { kDurable, kOnItsWay, kFailed };

  ScopeLedger() = default;
  explicit ScopeLedger(std::vector<StoredScope> scopes) : scopes_(std::move(scopes)) {
    versions_.resize(scopes_.size());
    for (uint32_t i = 0; i < scopes_.size(); ++i) {
      numbers_.emplace(std::pair(scopes_[i].domain, scopes_[i].canonical), i + 1);
    }
  }

  const std::vector<StoredScope>& scopes() const { return scopes_; }
  bool Has(ScopeNumber scope) const { return scope >= 1 && scope <= scopes_.size(); }
  uint32_t Epoch(ScopeNumber scope) const { return scopes_[scope - 1].epoch; }
  std::optional<ScopeNumber> Find(const std::string& domain, const std::string& canonical) const {
    const auto found = numbers_.find(std::pair(domain, canonical));
    if (found == numbers_.end()) return std::nullopt;
    return found->second;
  }

  // Each makes a new version of the table, which is to be written.
  ScopeNumber Add(const std::string& domain, const std::string& canonical) {
    scopes_.push_back({domain, canonical, 1});
    versions_.push_back(++version_);
    const auto number = static_cast<ScopeNumber>(scopes_.size());
    numbers_.emplace(std::pair(domain, canonical), number);
    return number;
  }
  void Purge(ScopeNumber scope) {
    ++scopes_[scope - 1].epoch;
    versions_[scope - 1] = ++version_;
  }
  // The newest was not written, and is to be tried again as another version.
  void Again() {
    const uint64_t before = version_++;
    for (uint64_t& version : versions_) {
      if (version > durable_ && version <= before) version = version_;
    }
  }

  uint64_t version() const { return version_; }
  uint64_t durable() const { return durable_; }
  void Written(uint64_t version, bool ok) { (ok ? durable_ : failed_) = version; }

  // The version that `scope` needs now; for Standing().
  uint64_t Needs(ScopeNumber scope) const { return versions_[scope - 1]; }
  Standing StandingOf(uint64_t version) const {
    if (version <= durable_) return Standing::kDurable;
    return version <= failed_ ? Standing::kFailed : Standing::kOnItsWay;
  }

 private:
  std::vector<StoredScope> scopes_;
  std::vector<uint64_t> versions_;  // In which each was changed last.
  absl::flat_hash_map<std::pair<std::string, std::string>, ScopeNumber> numbers_;
  uint64_t version_ = 0;
  uint64_t durable_ = 0;
  uint64_t failed_ = 0;
};

}  // namespace kvd
