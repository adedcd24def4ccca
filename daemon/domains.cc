#include "daemon/domains.h"

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace kvd {
namespace {

template <typename List, typename Value>
bool Contains(const List& list, const Value& value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

}  // namespace

void Domains::SetRules(DomainRules rules) {
  absl::MutexLock lock(&mu_);
  rules_ = std::move(rules);
}

std::optional<DomainId> Domains::OfUser(uid_t uid, absl::Span<const gid_t> groups) {
  absl::MutexLock lock(&mu_);
  for (const DomainRule& rule : rules_.domains) {
    if (Contains(rule.users, uid)) return Number(rule.name);
  }
  for (const DomainRule& rule : rules_.domains) {
    for (const gid_t group : rule.groups) {
      if (Contains(groups, group)) return Number(rule.name);
    }
  }
  if (rules_.unlisted == Unlisted::kRefuse) return std::nullopt;
  return Number(absl::StrCat("uid:", uid));
}

std::optional<DomainId> Domains::OfIdentity(std::string_view identity) {
  if (identity.empty() || identity.size() > kMaxIdentityBytes) return std::nullopt;
  absl::MutexLock lock(&mu_);
  for (const DomainRule& rule : rules_.domains) {
    if (Contains(rule.identities, identity)) return Number(rule.name);
  }
  if (rules_.unlisted == Unlisted::kRefuse) return std::nullopt;
  // Names go into logs and tables; escaping keeps what differs apart.
  const absl::string_view bytes(identity.data(), identity.size());
  return Number(absl::StrCat("certificate:", absl::CEscape(bytes)));
}

std::optional<DomainId> Domains::Named(const std::string& name) {
  absl::MutexLock lock(&mu_);
  return Number(name);
}

std::string Domains::Name(DomainId domain) const {
  absl::MutexLock lock(&mu_);
  if (domain == 0 || domain > names_.size()) return absl::StrCat("domain:", domain);
  return names_[domain - 1];
}

std::optional<DomainId> Domains::Number(const std::string& name) {
  if (const auto it = numbers_.find(name); it != numbers_.end()) return it->second;
  if (names_.size() >= kMaxDomains) return std::nullopt;
  names_.push_back(name);
  const auto number = static_cast<DomainId>(names_.size());
  numbers_.emplace(name, number);
  return number;
}

}  // namespace kvd
