#include "daemon/gateway_sessions.h"

#include <sys/random.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/types/status.h"

namespace kvd {

GatewaySession::GatewaySession(Inbox& inbox, uint32_t serial, DomainId domain, SessionToken token)
    : inbox_(inbox), serial_(serial), domain_(domain), token_(token.begin(), token.end()) {}

GatewaySession::~GatewaySession() { inbox_.Post(ProcessExited{serial_}); }

absl::StatusOr<GatewaySessionPtr> GatewaySessions::Open(DomainId domain) {
  SessionToken token{};
  if (getrandom(token.data(), token.size(), 0) != static_cast<ssize_t>(token.size())) {
    return ErrnoStatus(errno, "getrandom");
  }
  uint32_t serial;
  {
    absl::MutexLock lock(&mu_);
    serial = next_serial_++;
  }
  auto session = std::make_shared<GatewaySession>(inbox_, serial, domain, token);
  inbox_.Post(SessionOpened{.serial = serial, .token = token, .domain = domain});
  absl::MutexLock lock(&mu_);
  by_token_[session->token()] = session;
  return session;
}

void GatewaySessions::End(GatewaySession& session) {
  GatewaySessionPtr last;  // Goes, if nobody else has it, after the lock.
  {
    absl::MutexLock lock(&mu_);
    if (session.ended_.exchange(true)) return;
    const auto it = by_token_.find(session.token());
    last = std::move(it->second);
    by_token_.erase(it);
  }
  inbox_.Post(SessionEnded{session.serial()});
}

absl::StatusOr<GatewaySessionPtr> GatewaySessions::Find(std::string_view token, DomainId domain) {
  absl::MutexLock lock(&mu_);
  const auto it = by_token_.find(absl::string_view(token.data(), token.size()));
  // A token that reached another tenant is no good to it, and tells it nothing.
  if (it == by_token_.end() || it->second->domain() != domain) {
    return absl::UnauthenticatedError(
        "session: unknown or ended; open one with OpenSession, and keep that call open");
  }
  return it->second;
}

uint32_t GatewaySessions::MostOf(Use use) const {
  switch (use) {
    case Use::kSession:
      return options_.max_sessions;
    case Use::kCall:
      return options_.max_calls;
    case Use::kStream:
      return options_.max_streams;
  }
  return 0;
}

absl::StatusOr<GatewaySessions::Place> GatewaySessions::Enter(Use use, DomainId domain) {
  static constexpr const char* kNames[] = {"sessions", "calls", "streams"};
  const char* name = kNames[static_cast<int>(use)];
  const uint32_t most = MostOf(use);
  absl::MutexLock lock(&mu_);
  uint32_t& all = in_use_[static_cast<int>(use)];
  if (all >= most) {
    return absl::ResourceExhaustedError(
        absl::StrCat(name, ": the gateway has as many as it may (", most, "); try again later"));
  }
  const auto it = of_domain_.find({use, domain});
  if (it != of_domain_.end() && it->second >= most / 2) {
    return absl::ResourceExhaustedError(
        absl::StrCat(name, ": your domain has as many as it may (", most / 2, ") at the gateway"));
  }
  ++all;
  ++of_domain_[{use, domain}];
  return Place(*this, use, domain);
}

void GatewaySessions::Leave(Use use, DomainId domain) {
  absl::MutexLock lock(&mu_);
  --in_use_[static_cast<int>(use)];
  const auto it = of_domain_.find({use, domain});
  if (--it->second == 0) of_domain_.erase(it);
}

uint32_t GatewaySessions::InUse(Use use) const {
  absl::MutexLock lock(&mu_);
  return in_use_[static_cast<int>(use)];
}

}  // namespace kvd
