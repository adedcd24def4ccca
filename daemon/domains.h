// Which tenant a peer belongs to: rules of the configuration over what the kernel or a certificate
// says about the peer, never over what the peer says about itself.
//
// A domain is a name. It gets a number when somebody first belongs to it, keeps that number for
// this run of the daemon whatever rules come later, and no two names share one. Numbers start
// at 1 and are dense.
//
// Threads: safe from any; a mutex, so not for the path of a call. Sessions ask once, when they
// open.

#pragma once

#include <sys/types.h>

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "proto/types/block.h"

namespace kvd {

struct DomainRule {
  std::string name;
  std::vector<uid_t> users;
  std::vector<gid_t> groups;
  std::vector<std::string> identities;  // Of certificates, whole.

  friend bool operator==(const DomainRule& a, const DomainRule& b) = default;
};

// What becomes of peers that no rule names.
enum class Unlisted {
  kOwn,     // Each user id and each identity is a domain of its own.
  kRefuse,  // They get no session.
};

struct DomainRules {
  std::vector<DomainRule> domains;
  Unlisted unlisted = Unlisted::kOwn;

  friend bool operator==(const DomainRules& a, const DomainRules& b) = default;
};

class Domains {
 public:
  // The most that one run numbers: whoever would need one more is refused.
  static constexpr size_t kMaxDomains = 65536;
  // The longest identity that may be a domain of its own, in bytes.
  static constexpr size_t kMaxIdentityBytes = 256;

  explicit Domains(DomainRules rules = {}) : rules_(std::move(rules)) {}

  // From now on; sessions that are open keep the domain they have. Requires: names are unique, and
  // no user, group or identity is in two of them (ReadConfig sees to both).
  void SetRules(DomainRules rules);

  // The domain of a local process: the rule that names its user, else the first that names one of
  // its groups (the primary one and the supplementary ones), else "uid:UID". nullopt: refused.
  std::optional<DomainId> OfUser(uid_t uid, absl::Span<const gid_t> groups);

  // The domain of who showed a certificate with this identity: the rule that names it, else
  // "certificate:IDENTITY". nullopt: refused, as is an empty or an overlong identity.
  std::optional<DomainId> OfIdentity(std::string_view identity);

  // The domain of that name, whoever belongs to it now. nullopt: there are as many as may be.
  std::optional<DomainId> Named(const std::string& name);

  // What to print. "domain:N" for a number that was never given out.
  std::string Name(DomainId domain) const;

 private:
  std::optional<DomainId> Number(const std::string& name) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  mutable absl::Mutex mu_;
  DomainRules rules_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<std::string, DomainId> numbers_ ABSL_GUARDED_BY(mu_);
  std::vector<std::string> names_ ABSL_GUARDED_BY(mu_);  // Of domain 1, 2, ...
};

}  // namespace kvd
