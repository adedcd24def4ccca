// A daemon in this process that keeps the wire's contract for a few blocks, and can be told to
// break it. It exists to test the client alone: nothing is ever evicted, and prefixes are found one
// by one.
//
// Threads: everything is safe from any thread.

#pragma once

#include <grpcpp/server.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/session.h"
#include "proto/kvd.grpc.pb.h"
#include "proto/types/limits.h"
#include "proto/types/packed.h"
#include "proto/types/session_wire.h"
#include "proto/types/verified_copy.h"

namespace kvd {

// A folder that goes with its owner, for sockets.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

class FakeDaemon final : private v1::Engine::Service {
 public:
  // How it breaks its word; all may be changed at any time.
  struct Faults {
    std::atomic<bool> never_answers{false};  // Calls block until the daemon goes.
    std::atomic<bool> silent_socket{false};  // The session socket accepts and says nothing.
    std::atomic<bool> silent_copier{false};  // Fills are not answered.
    std::atomic<bool> extents_out_of_bounds{false};
    std::atomic<bool> short_regions{false};     // Files shorter than announced.
    std::atomic<bool> refuses_fills{false};     // Every fill: kGone.
    std::atomic<bool> wrong_sums{false};        // Fill replies with another sum.
    std::atomic<bool> half_the_extents{false};  // Fewer than announced.
    std::atomic<uint32_t> welcome_version{kProtocolVersion};
  };

  struct Seen {
    std::map<std::string, int> calls;  // By name of the RPC.
    std::set<uint64_t> released_holds;
    std::set<uint64_t> released_leases;
    std::map<uint64_t, std::vector<uint32_t>> damaged;
    std::set<uint64_t> aborted;
    int sessions = 0;
    std::vector<SessionToken> finished_sessions;
    int registered = 0;
    int fill_messages = 0;
  };

  // Serves at `path` and `path`.session until destroyed.
  FakeDaemon(const std::string& path, uint64_t region_bytes = 64u << 20);
  ~FakeDaemon() override;

  Faults& faults() { return faults_; }
  Seen seen() const;
  // Blocks until `condition` holds of what was seen. False: not by the deadline.
  bool WaitUntilSeen(const std::function<bool(const Seen&)>& condition,
                     absl::Duration timeout = absl::Seconds(10));

  // Flips one bit of the stored bytes of part `part` of `key`.
  void Damage(const std::string& key, uint32_t part);
  // Hangs up on all session sockets, while gRPC goes on.
  void HangUp();
  // No longer knows any session: calls are UNAUTHENTICATED, though the sockets stay open.
  void ForgetSessions();
  // Calls wait until Resume().
  void Pause();
  void Resume();
  uint64_t holds() const;  // Not yet released.

 private:
  struct Part {
    uint64_t offset = 0;
    uint32_t length = 0;  // 0: not there.
    uint32_t sum = 0;
    uint32_t filled = 0;  // Bytes, so far.
  };
  struct Block {
    std::vector<Part> parts;
  };
  struct Reservation {
    std::vector<std::string> keys;
    std::vector<bool> granted;
    std::vector<uint32_t> part_indexes;  // Of those that the caller brings.
    std::vector<uint32_t> part_bytes;    // Of each of them.
    std::vector<Part> filled;            // Block by block.
    size_t parts_of_block = 0;
  };
  struct FakeSession {
    UniqueFd socket;
    std::string token;
    UniqueFd fill_channel;
    Mapping staging;
    std::thread copier;
  };

  // The wire.
  using Context = grpc::ServerContext;
  grpc::Status RegisterNamespace(Context*, const v1::RegisterNamespaceRequest*,
                                 v1::RegisterNamespaceReply*) override;
  grpc::Status Lookup(Context*, const v1::LookupRequest*, v1::LookupReply*) override;
  grpc::Status Load(Context*, const v1::LoadRequest*, v1::LoadReply*) override;
  grpc::Status Release(Context*, const v1::ReleaseRequest*, v1::ReleaseReply*) override;
  grpc::Status Reserve(Context*, const v1::ReserveRequest*, v1::ReserveReply*) override;
  grpc::Status Commit(Context*, const v1::CommitRequest*, v1::CommitReply*) override;
  grpc::Status Abort(Context*, const v1::AbortRequest*, v1::AbortReply*) override;
  grpc::Status Pin(Context*, const v1::PinRequest*, v1::PinReply*) override;
  grpc::Status Unpin(Context*, const v1::UnpinRequest*, v1::UnpinReply*) override;

  // Counts the call, obeys Pause() and never_answers, and finds the session.
  grpc::Status Enter(const char* name, const std::string& session);
  void TakeReleases(const v1::Releases& releases) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::string Extents(uint32_t namespace_id, const std::vector<std::string>& keys, uint32_t blocks,
                      const std::string& parts) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::vector<std::string> Split(uint32_t namespace_id, const std::string& keys) const
      ABSL_SHARED_LOCKS_REQUIRED(mu_);
  std::vector<uint32_t> PartIndexes(uint32_t namespace_id, const std::string& parts) const
      ABSL_SHARED_LOCKS_REQUIRED(mu_);
  uint64_t Allocate(uint32_t length) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  void Accept();
  void Serve(FakeSession& session);
  void CopyFills(FakeSession& session);
  FillReply FillOne(FakeSession& session, const FillRequest& fill);

  const uint64_t region_bytes_;
  const std::string path_;
  Copier copier_;
  UniqueFd listener_;
  UniqueFd arena_fd_;
  UniqueFd short_fd_;
  Mapping arena_;
  Faults faults_;
  std::atomic<bool> stopping_{false};

  mutable absl::Mutex mu_;
  Seen seen_ ABSL_GUARDED_BY(mu_);
  bool paused_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::unique_ptr<FakeSession>> sessions_ ABSL_GUARDED_BY(mu_);
  std::vector<std::thread> session_threads_ ABSL_GUARDED_BY(mu_);
  std::vector<v1::NamespaceDescriptor> namespaces_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, Block> blocks_ ABSL_GUARDED_BY(mu_);
  std::map<uint64_t, Reservation> reservations_ ABSL_GUARDED_BY(mu_);
  std::set<uint64_t> holds_ ABSL_GUARDED_BY(mu_);
  uint64_t next_offset_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t next_id_ ABSL_GUARDED_BY(mu_) = 1;

  std::unique_ptr<grpc::Server> server_;
  std::thread acceptor_;
};

}  // namespace kvd
