// Who uses the gateway: its sessions, and how much of it each domain uses now.
//
// A session of the gateway is one of the control thread's like any other: its token names it, its
// leases and reservations end with it. It has no memory in common with its client, so what it holds
// is read by the gateway alone, and its holds end when the last of the gateway's calls has let go.
//
// Threads: everything is safe from any thread.

#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "daemon/inbox.h"
#include "proto/types/block.h"
#include "proto/types/session_wire.h"

namespace kvd {

// Known to the control thread as long as this lives, and to callers until GatewaySessions::End().
class GatewaySession {
 public:
  GatewaySession(Inbox& inbox, uint32_t serial, DomainId domain, SessionToken token);
  ~GatewaySession();  // Nobody reads under its holds any more.
  GatewaySession(const GatewaySession&) = delete;

  uint32_t serial() const { return serial_; }
  DomainId domain() const { return domain_; }
  const std::string& token() const { return token_; }
  // Whether End() was called: who streams for it stops at the next chunk.
  bool ended() const { return ended_.load(std::memory_order_relaxed); }

 private:
  friend class GatewaySessions;
  Inbox& inbox_;
  const uint32_t serial_;
  const DomainId domain_;
  const std::string token_;
  std::atomic<bool> ended_{false};  // A stop flag.
};
using GatewaySessionPtr = std::shared_ptr<GatewaySession>;

class GatewaySessions {
 public:
  // A domain gets at most half of anything, so that none keeps the others out.
  struct Options {
    uint32_t max_sessions = 256;
    uint32_t max_calls = 32;    // Under way, of those that answer with one message.
    uint32_t max_streams = 16;  // Get and Put under way. Each has a thread, and up to 16 MiB.
  };
  enum class Use : uint8_t { kSession, kCall, kStream };

  // A place among what is bounded, given back when this goes.
  class Place {
   public:
    Place(GatewaySessions& sessions, Use use, DomainId domain)
        : sessions_(&sessions), use_(use), domain_(domain) {}
    Place(Place&& other) noexcept
        : sessions_(std::exchange(other.sessions_, nullptr)),
          use_(other.use_),
          domain_(other.domain_) {}
    ~Place() {
      if (sessions_ != nullptr) sessions_->Leave(use_, domain_);
    }
    Place& operator=(Place&&) = delete;

   private:
    GatewaySessions* sessions_;
    Use use_;
    DomainId domain_;
  };

  GatewaySessions(Inbox& inbox, const Options& options) : inbox_(inbox), options_(options) {}

  // Opens a session of `domain`; the control thread knows it before anybody can name it.
  absl::StatusOr<GatewaySessionPtr> Open(DomainId domain);
  // Ends it for callers: leases, reservations and pending streams go at once.
  void End(GatewaySession& session);
  // The session that `token` names, for a caller of `domain`. kUnauthenticated: there is none.
  absl::StatusOr<GatewaySessionPtr> Find(std::string_view token, DomainId domain);

  // kResourceExhausted names the bound.
  absl::StatusOr<Place> Enter(Use use, DomainId domain);
  // Now, of all domains.
  uint32_t InUse(Use use) const;

 private:
  static constexpr int kUses = 3;
  // The gateway's serial numbers begin here; those of the session socket stay below.
  static constexpr uint32_t kFirstSerial = 1u << 31;

  void Leave(Use use, DomainId domain);
  uint32_t MostOf(Use use) const;

  Inbox& inbox_;
  const Options options_;
  mutable absl::Mutex mu_;
  uint32_t next_serial_ ABSL_GUARDED_BY(mu_) = kFirstSerial;
  absl::flat_hash_map<std::string, GatewaySessionPtr> by_token_ ABSL_GUARDED_BY(mu_);
  uint32_t in_use_[kUses] ABSL_GUARDED_BY(mu_) = {};
  std::map<std::pair<Use, DomainId>, uint32_t> of_domain_ ABSL_GUARDED_BY(mu_);  // None is zero.
};

}  // namespace kvd
