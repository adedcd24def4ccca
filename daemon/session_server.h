// The session socket: who is there, who they are, and the descriptors they get. See
// proto/types/session_wire.h for the messages.
//
// The domain of a session is what the rules make of the user and groups of the peer as the kernel
// tells them (SO_PEERCRED, SO_PEERGROUPS); calls then name the session by an unguessable token.
// gRPC connections are not tied to credentials: their descriptors' numbers are used again while
// calls of the former connection are still queued, so "the peer of this call" can name the wrong
// tenant.
//
// When the socket closes, the session has ended; when the pidfd of the peer fires, nobody reads
// under its holds any more. The two are different events.
//
// Threads: one of its own. Forget() is safe from any thread.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "daemon/copier_pool.h"
#include "daemon/domains.h"
#include "daemon/inbox.h"
#include "daemon/metrics.h"
#include "proto/types/session_wire.h"
#include "tiers/region_directory.h"

namespace kvd {

class SessionServer {
 public:
  struct Options {
    std::string path;   // Of the socket.
    int listener = -1;  // Listens there already, and stays the caller's; -1: bind it.
    uint32_t max_sessions = 1024;
    uint32_t max_domain_sessions = 512;     // Of one domain, which must not keep others out.
    uint64_t max_staging_bytes = 2u << 30;  // Of all sessions together, made by the daemon.
    uint64_t max_domain_staging_bytes = 1u << 30;
    uint64_t max_own_staging_bytes = kMaxOwnStagingBytes;  // Of one session.
    // Of all sessions together: address space, of which a process has 128 TiB. A memfd of a
    // terabyte costs a client nothing, and without address space the daemon could not go on.
    uint64_t max_all_own_staging_bytes = 16 * kMaxOwnStagingBytes;
    uint64_t max_domain_own_staging_bytes = 8 * kMaxOwnStagingBytes;
    StrangerCounts* strangers = nullptr;  // Counts whom it refuses; outlives this. May be null.
  };

  // Binds the socket (replacing a stale file) unless it is given one, and starts the thread.
  // Collaborators must outlive this.
  static absl::StatusOr<std::unique_ptr<SessionServer>> Start(Inbox& inbox, CopierPool& copiers,
                                                              const RegionDirectory& regions,
                                                              Domains& domains,
                                                              const Options& options);
  ~SessionServer();  // Closes all sessions.

  // The control thread knows that this session is over: its pidfd is not needed any more.
  void Forget(uint32_t serial);

 private:
  struct Peer {
    uint32_t serial = 0;
    int socket = -1;  // -1: closed.
    int pidfd = -1;
    DomainId domain = 0;
    uid_t uid = 0;
    pid_t pid = 0;
    uint64_t started = 0;  // When the process began.
    bool greeted = false;
    uint32_t protocol = 0;           // As agreed.
    uint64_t staging_bytes = 0;      // Made by us; 0: none.
    uint64_t own_staging_bytes = 0;  // Brought by the client; 0: none.
  };
  // What the sessions of one domain, or of all, have now.
  struct Use {
    uint32_t sessions = 0;
    uint64_t staging_bytes = 0;
    uint64_t own_staging_bytes = 0;
  };

  SessionServer(Inbox& inbox, CopierPool& copiers, const RegionDirectory& regions, Domains& domains,
                const Options& options)
      : inbox_(inbox), copiers_(copiers), regions_(regions), domains_(domains), options_(options) {}

  void Run();
  void Accept();
  void Serve(Peer& peer);
  bool Greet(Peer& peer, const SessionHello& hello);
  bool GiveRegion(Peer& peer, const RegionRequest& request);
  bool GiveStaging(Peer& peer, const StagingRequest& request, int own_fd);
  void CloseSocket(Peer& peer);
  void Remove(uint32_t serial);
  bool Watch(int fd, uint64_t tag);
  Use UseOf(DomainId domain) const;
  bool StagingFits(const Peer& peer, uint64_t made, uint64_t own) const;
  void RefuseForWantOfDescriptors();

  Inbox& inbox_;
  CopierPool& copiers_;
  const RegionDirectory& regions_;
  Domains& domains_;
  const Options options_;
  int listener_ = -1;
  int epoll_ = -1;
  int wake_ = -1;
  std::thread thread_;
  int spare_ = -1;  // Given up to accept, and refuse, a connection when no descriptor is left.

  // The thread's own.
  absl::flat_hash_map<uint32_t, std::unique_ptr<Peer>> peers_;
  uint32_t next_serial_ = 1;
  Use use_;  // Of all.

  absl::Mutex mu_;
  std::vector<uint32_t> over_ ABSL_GUARDED_BY(mu_);
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace kvd
