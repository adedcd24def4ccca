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
#include "client/own_memory.h"
#include "client/pending_call.h"
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
  Link() = default;
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;
  ~Link();

  uint64_t number = 0;  // Of the sessions of this client, from 1.
  std::string path;     // Where its daemon listens; empty: without shared memory.
  std::unique_ptr<Session> session;
  std::unique_ptr<v1::Engine::Stub> stub;
  // Sessions that were called finished when this one was opened, and whether the daemon has heard
  // it: it has once it answered a call of this session. Else they are told again.
  std::vector<SessionToken> told;
  std::atomic<bool> heard{false};

  Turn opening_staging;
  absl::Mutex mu;
  std::vector<std::optional<uint32_t>> namespace_ids ABSL_GUARDED_BY(mu);  // By Namespace::index.
  std::unique_ptr<Staging> staging ABSL_GUARDED_BY(mu);                    // Set once.
  std::unique_ptr<OwnFills> own_fills ABSL_GUARDED_BY(mu);                 // Set once.
  absl::Status own_refused ABSL_GUARDED_BY(mu);  // By the daemon, for this session.
};

// The calls that give something.
using PendingLookup = PendingCall<v1::LookupRequest, v1::LookupReply>;
using PendingLoad = PendingCall<v1::LoadRequest, v1::LoadReply>;
using PendingReserve = PendingCall<v1::ReserveRequest, v1::ReserveReply>;
using PendingCommit = PendingCall<v1::CommitRequest, v1::CommitReply>;
using PendingPin = PendingCall<v1::PinRequest, v1::PinReply>;

class Client::Impl {
 public:
  // How long an answer is waited for in the background, after its caller has left.
  static constexpr absl::Duration kLateAnswer = absl::Seconds(2);

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
  absl::Status AdoptMemory(int fd, absl::Span<const std::byte> memory, absl::Duration timeout);
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

  // A get whose arguments are good, and how far it has come.
  struct GetProgress {
    const Selection& parts;
    absl::Span<const absl::Span<std::byte>> targets;  // Of `blocks`.
    uint32_t hash_bytes;
    absl::Time deadline;
    uint32_t blocks;           // Wanted, and there when they were looked up.
    std::vector<bool> usable;  // Of the parts of these.
    uint32_t copied = 0;       // Blocks.
    bool whole = true;         // No full part of these was missing or damaged.
    bool as_promised = true;   // Nor any other that should have been there.
    uint32_t damaged = 0;      // Parts.
    absl::Status status = {};
  };

  absl::Time DeadlineOf(absl::Duration timeout) const;
  absl::StatusOr<LinkPtr> Connected(absl::Time deadline);
  LinkPtr CurrentLink();
  void Retire(const LinkPtr& link) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<std::unique_ptr<Session>> OpenSession(std::vector<SessionToken>& told,
                                                       absl::Time deadline);

  absl::StatusOr<const KnownNamespace*> Find(const Namespace& ns);
  absl::StatusOr<const KnownNamespace*> Remember(const NamespaceDescriptor& descriptor);
  absl::StatusOr<uint32_t> NamespaceId(Link& link, const KnownNamespace& ns, absl::Time deadline);
  absl::StatusOr<Staging*> StagingOf(Link& link, absl::Time deadline);
  absl::StatusOr<OwnFills*> OwnFillsOf(Link& link, const OwnMemory& own, absl::Time deadline);
  std::shared_ptr<const OwnMemory> Own();

  // One call, which takes along what is owed. kUnauthenticated and kUnavailable end the session.
  template <typename Request, typename Reply>
  absl::Status Call(Link& link,
                    grpc::Status (v1::Engine::Stub::*method)(grpc::ClientContext*, const Request&,
                                                             Reply*),
                    Request& request, Reply* reply, absl::Time deadline);

  // A call in two steps, for what gives something: the caller can work between them, and when it
  // leaves by the deadline of Finish(), what a late answer gives is taken back. When none comes by
  // that of Start(), the session ends, and with it what the daemon may have given.
  template <typename Pending>
  struct Started {
    LinkPtr link;
    Owed owed;
    std::unique_ptr<Pending> call;
  };
  template <typename Pending, typename Request>
  Started<Pending> Start(const LinkPtr& link, typename Pending::Method method, Request& request,
                         absl::Time deadline);
  template <typename Pending, typename TakeBack>
  absl::Status Finish(Started<Pending>& started, typename Pending::Reply* reply,
                      absl::Time deadline, TakeBack take_back);
  // Both steps at once.
  template <typename Pending, typename Request, typename TakeBack>
  absl::Status CallToGet(const LinkPtr& link, typename Pending::Method method, Request& request,
                         typename Pending::Reply* reply, absl::Time deadline, TakeBack take_back);
  template <typename Pending, typename TakeBack>
  void Leave(const LinkPtr& link, std::unique_ptr<Pending> call, TakeBack take_back);
  template <typename Request>
  Owed Address(const Link& link, Request& request);
  void CopyExtents(Link& link, std::string_view packed, uint32_t blocks, uint64_t hold_id,
                   GetProgress& get);
  void LoadRest(const LinkPtr& link, uint32_t namespace_id, std::string_view keys,
                GetProgress& get);
  void GiveBackLate(const Link& link, const v1::LookupReply& reply);
  void NoteEnd(Link& link, const absl::Status& status, Owed owed);
  // Whether the daemon may still act on a call that ended like this.
  static bool OutcomeUnknown(const absl::Status& status);

  absl::StatusOr<PutCall> CheckPut(const KnownNamespace& ns, std::string_view keys,
                                   const Selection& parts,
                                   absl::Span<const absl::Span<const std::byte>> sources,
                                   const PutOptions& options, absl::Time deadline) const;
  PutResult PutInOneCall(Link& link, Staging& staging, uint32_t namespace_id, const PutCall& put);
  PutResult PutReserved(const LinkPtr& link, Staging& staging, uint32_t namespace_id,
                        const PutCall& put);
  PutResult PutFromOwn(const LinkPtr& link, OwnFills& fills, absl::Span<const uint64_t> offsets,
                       uint32_t namespace_id, const PutCall& put);
  static v1::ReserveRequest ReserveRequestOf(uint32_t namespace_id, const PutCall& put);
  absl::Status FillGranted(Link& link, Staging::Filling& filling, const PutCall& put,
                           const v1::ReserveReply& reserved, std::string& sums);

  // Of sessions without shared memory; in remote.cc.
  GetResult GetStreamed(Link& link, const v1::GetRequest& request, const Selection& parts,
                        absl::Span<const absl::Span<std::byte>> targets, absl::Time deadline);
  PutResult PutStreamed(Link& link, uint32_t namespace_id, const PutCall& put);
  void SendParts(grpc::ClientWriter<v1::PutChunk>& writer, v1::PutStart start,
                 const std::string& states, const PutCall& put);

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
  Turn adopting_;
  absl::Mutex mu_;
  LinkPtr link_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<const OwnMemory> own_ ABSL_GUARDED_BY(mu_);   // Set once.
  std::deque<KnownNamespace> namespaces_ ABSL_GUARDED_BY(mu_);  // Elements never move or change.
  uint64_t sessions_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Time next_attempt_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  absl::Status last_failure_ ABSL_GUARDED_BY(mu_);
  bool shut_down_ ABSL_GUARDED_BY(mu_) = false;

  LateCalls late_;
  std::atomic<bool> expects_new_{true};  // The last put found its first block missing. A guess.

  std::atomic<uint64_t> calls_{0};
  std::atomic<uint64_t> failed_calls_{0};
  std::atomic<uint64_t> reconnects_{0};
  std::atomic<uint64_t> damaged_parts_{0};
  std::atomic<uint64_t> bad_extents_{0};
  std::atomic<uint64_t> own_bytes_{0};
};

template <typename Request>
Owed Client::Impl::Address(const Link& link, Request& request) {
  request.set_session(link.session->token().data(), link.session->token().size());
  Owed owed;
  if constexpr (requires { request.mutable_releases(); }) {
    owed = releases_.Take(link.number);
    if (!owed.empty()) *request.mutable_releases() = ToProto(owed);
  }
  return owed;
}

template <typename Request, typename Reply>
absl::Status Client::Impl::Call(Link& link,
                                grpc::Status (v1::Engine::Stub::*method)(grpc::ClientContext*,
                                                                         const Request&, Reply*),
                                Request& request, Reply* reply, absl::Time deadline) {
  Owed owed = Address(link, request);
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(deadline));
  const absl::Status status = EndOf(context, (link.stub.get()->*method)(&context, request, reply));
  NoteEnd(link, status, std::move(owed));
  return status;
}

template <typename Pending, typename Request>
Client::Impl::Started<Pending> Client::Impl::Start(const LinkPtr& link,
                                                   typename Pending::Method method,
                                                   Request& request, absl::Time deadline) {
  Started<Pending> started;
  started.link = link;
  started.owed = Address(*link, request);
  started.call = std::make_unique<Pending>(*link->stub, method, request, deadline);
  return started;
}

template <typename Pending, typename TakeBack>
absl::Status Client::Impl::Finish(Started<Pending>& started, typename Pending::Reply* reply,
                                  absl::Time deadline, TakeBack take_back) {
  absl::Status status;
  if (started.call->Await(deadline, options_.spin)) {
    status = started.call->status();
    if (status.ok()) *reply = std::move(started.call->reply());
  } else {
    status = absl::DeadlineExceededError("the daemon did not answer in time");
    Leave(started.link, std::move(started.call), std::move(take_back));
  }
  NoteEnd(*started.link, status, std::move(started.owed));
  return status;
}

template <typename Pending, typename Request, typename TakeBack>
absl::Status Client::Impl::CallToGet(const LinkPtr& link, typename Pending::Method method,
                                     Request& request, typename Pending::Reply* reply,
                                     absl::Time deadline, TakeBack take_back) {
  Started<Pending> started = Start<Pending>(link, method, request, deadline + kLateAnswer);
  return Finish(started, reply, deadline, std::move(take_back));
}

template <typename Pending, typename TakeBack>
void Client::Impl::Leave(const LinkPtr& link, std::unique_ptr<Pending> call, TakeBack take_back) {
  call->settle = [link, take_back](PendingCallBase& late) {
    if (late.status().ok()) {
      take_back(*link, static_cast<Pending&>(late).reply());
    } else if (OutcomeUnknown(late.status())) {
      // What it gave, if it did, ends with the session.
      link->session->End();
    }
  };
  if (!late_.Add(std::move(call))) link->session->End();
}

}  // namespace kvd
