// The inside of Client, for the files that carry out its calls: client_connect.cc (sessions, calls
// and what goes on in the background), client_read.cc, client_put.cc, client_pin.cc. Nothing else
// includes it.
//
// Threads and errors: as client.h says. No lock is held across a call or a copy, except the Turns.

#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "client/client.h"
#include "client/convert.h"
#include "client/release_queue.h"
#include "client/remote.h"
#include "client/selection.h"
#include "client/session.h"
#include "client/staging.h"
#include "client/turn.h"
#include "proto/kvd.grpc.pb.h"
#include "proto/stream.grpc.pb.h"
#include "proto/types/session_wire.h"
#include "proto/types/verified_copy.h"

namespace kvd {

// One session: its socket, its own channel, and what the daemon told on them. Shared by the calls
// and chains that use it; gone when the last of them is, so the memory they read stays mapped.
struct Link {
  uint64_t number = 0;  // Of the sessions of this client, from 1.
  std::unique_ptr<Session> session;
  std::unique_ptr<v1::Engine::Stub> stub;

  Turn opening_staging;
  absl::Mutex mu;
  std::vector<std::optional<uint32_t>> namespace_ids ABSL_GUARDED_BY(mu);  // By Namespace::index.
  std::unique_ptr<Staging> staging ABSL_GUARDED_BY(mu);                    // Set once.
};

class Client::Impl {
 public:
  explicit Impl(ClientOptions options);

  void Shutdown();

  absl::StatusOr<Namespace> RegisterNamespace(const NamespaceDescriptor& descriptor,
                                              absl::Duration timeout);
  LookupResult Lookup(const Namespace& ns, std::string_view keys, const LookupOptions& options);
  LoadResult Load(const Namespace& ns, std::string_view keys, const LoadOptions& options,
                  const std::shared_ptr<Impl>& self);
  GetResult Get(const Namespace& ns, std::string_view keys,
                absl::Span<const absl::Span<std::byte>> targets, const GetOptions& options);
  PutResult Put(const Namespace& ns, std::string_view keys,
                absl::Span<const absl::Span<const std::byte>> sources, const PutOptions& options);
  absl::Status Flush(absl::Duration timeout);
  absl::Status Connect(absl::Duration timeout) { return Connected(DeadlineOf(timeout)).status(); }
  absl::StatusOr<PinResult> Pin(const Namespace& ns, std::string_view key,
                                const PinOptions& options);
  absl::Status Unpin(uint64_t pin_id, absl::Duration timeout);

  ReleaseQueue& releases() { return releases_; }
  const Copier& copier() const { return *copier_; }
  void CountDamaged() { damaged_parts_.fetch_add(1, std::memory_order_relaxed); }
  ClientStats stats() const;

 private:
  using LinkPtr = std::shared_ptr<Link>;
  // A put whose arguments are good.
  struct PutCall {
    const KnownNamespace& ns;
    std::string_view keys;
    uint32_t blocks;
    const Selection& parts;
    absl::Span<const absl::Span<const std::byte>> sources;
    const PutOptions& options;
    uint64_t total_bytes;
    absl::Time deadline;
  };

  absl::Time DeadlineOf(absl::Duration timeout) const;
  absl::StatusOr<LinkPtr> Connected(absl::Time deadline);
  LinkPtr CurrentLink();
  void Retire(const LinkPtr& link) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  SessionToken FinishedSession();

  absl::StatusOr<const KnownNamespace*> Find(const Namespace& ns);
  absl::StatusOr<const KnownNamespace*> Remember(const NamespaceDescriptor& descriptor);
  absl::StatusOr<uint32_t> NamespaceId(Link& link, const KnownNamespace& ns, absl::Time deadline);
  absl::StatusOr<Staging*> StagingOf(Link& link, absl::Time deadline);

  // One call, which takes along what is owed. kUnauthenticated and kUnavailable end the session.
  template <typename Request, typename Reply>
  absl::Status Call(Link& link,
                    grpc::Status (v1::Engine::Stub::*method)(grpc::ClientContext*, const Request&,
                                                             Reply*),
                    Request& request, Reply* reply, absl::Time deadline);

  absl::StatusOr<PutCall> CheckPut(const KnownNamespace& ns, std::string_view keys,
                                   const Selection& parts,
                                   absl::Span<const absl::Span<const std::byte>> sources,
                                   const PutOptions& options, absl::Time deadline) const;
  PutResult PutInOneCall(Link& link, Staging& staging, uint32_t namespace_id, const PutCall& put);
  PutResult PutReserved(Link& link, Staging& staging, uint32_t namespace_id, const PutCall& put);
  absl::Status FillGranted(Link& link, Staging& staging, const PutCall& put,
                           const v1::ReserveReply& reserved);

  // Of sessions without shared memory; in remote.cc.
  GetResult GetStreamed(Link& link, const v1::GetRequest& request, const Selection& parts,
                        absl::Span<const absl::Span<std::byte>> targets, absl::Time deadline);
  PutResult PutStreamed(Link& link, uint32_t namespace_id, const PutCall& put);
  void SendParts(grpc::ClientWriter<v1::PutChunk>& writer, v1::PutStart start,
                 const std::string& states, const PutCall& put);
  void CountCall(Link& link, const absl::Status& status);

  void FlushInBackground();
  absl::Status SendOwed(Link& link, absl::Time deadline);

  // Constant after construction.
  const ClientOptions options_;
  const std::string path_;
  const std::optional<RemoteEndpoint> remote_;  // Instead of path_.
  const std::shared_ptr<const Copier> copier_;
  std::thread flusher_;  // Joined by Shutdown().

  ReleaseQueue releases_;
  Turn connecting_;
  absl::Mutex mu_;
  LinkPtr link_ ABSL_GUARDED_BY(mu_);
  std::deque<KnownNamespace> namespaces_ ABSL_GUARDED_BY(mu_);  // Elements never move or change.
  std::deque<std::pair<SessionToken, std::weak_ptr<Link>>> finished_ ABSL_GUARDED_BY(mu_);
  uint64_t sessions_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Time next_attempt_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  absl::Status last_failure_ ABSL_GUARDED_BY(mu_);
  bool shut_down_ ABSL_GUARDED_BY(mu_) = false;

  std::atomic<uint64_t> calls_{0};
  std::atomic<uint64_t> failed_calls_{0};
  std::atomic<uint64_t> reconnects_{0};
  std::atomic<uint64_t> damaged_parts_{0};
  std::atomic<uint64_t> bad_extents_{0};
};

template <typename Request, typename Reply>
absl::Status Client::Impl::Call(Link& link,
                                grpc::Status (v1::Engine::Stub::*method)(grpc::ClientContext*,
                                                                         const Request&, Reply*),
                                Request& request, Reply* reply, absl::Time deadline) {
  constexpr bool kTakesReleases = requires { request.mutable_releases(); };
  request.set_session(link.session->token().data(), link.session->token().size());
  Owed owed;
  if constexpr (kTakesReleases) {
    owed = releases_.Take(link.number);
    if (!owed.empty()) *request.mutable_releases() = ToProto(owed);
  }
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(deadline));
  absl::Status status = ToAbsl((link.stub.get()->*method)(&context, request, reply));
  calls_.fetch_add(1, std::memory_order_relaxed);
  if (status.ok()) return status;

  failed_calls_.fetch_add(1, std::memory_order_relaxed);
  // A draining daemon says no and the session goes on. Otherwise its connection broke.
  const bool drains = context.GetServerTrailingMetadata().count(kDrainingKey) > 0;
  if (drains) status.SetPayload(kDrainingKey, absl::Cord());
  if (absl::IsUnauthenticated(status) || (absl::IsUnavailable(status) && !drains)) {
    link.session->End();
  }
  releases_.GiveBack(link.number, std::move(owed));  // It may not have heard them.
  return status;
}

}  // namespace kvd
