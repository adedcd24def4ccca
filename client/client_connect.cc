// Connecting, the namespaces of a session, and what is owed to the daemon.

#include <grpcpp/create_channel.h>
#include <grpcpp/support/channel_arguments.h>

#include <algorithm>
#include <system_error>

#include "absl/time/clock.h"
#include "client/client_impl.h"
#include "client/finished_sessions.h"
#include "proto/types/limits.h"

namespace kvd {
namespace {

using v1::Engine;

constexpr absl::Duration kMaxTimeout = absl::Hours(1);
constexpr absl::Duration kFarewell = absl::Milliseconds(100);       // Of the last Release.
constexpr absl::Duration kFlushTimeout = absl::Milliseconds(1000);  // Of one in the background.
constexpr size_t kMaxNamespaces = 4096;                             // Of one client.
constexpr int kMaxReceiveBytes = 4 << 20;
constexpr int kConnectMs = 20'000;

// A new channel for each session, shared with nobody: one that outlived its daemon would refuse
// calls for as long as its backoff lasts, although the next daemon is there.
std::unique_ptr<Engine::Stub> MakeStub(const std::string& endpoint) {
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 50);
  // Despite its name: how long one attempt to connect may take. A daemon that is there answers even
  // when the machine is busy for longer than that backoff, and calls have deadlines of their own.
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kConnectMs);
  args.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  args.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  args.SetInt(GRPC_ARG_ENABLE_CHANNELZ, 0);  // Counts each call, for nobody.
  args.SetMaxReceiveMessageSize(kMaxReceiveBytes);
  args.SetMaxSendMessageSize(kMaxMessageBytes);
  return Engine::NewStub(
      grpc::CreateCustomChannel(endpoint, grpc::InsecureChannelCredentials(), args));
}

// What the path of `unix:PATH` is; empty when it is something else.
std::string PathOf(const std::string& endpoint) {
  constexpr std::string_view kScheme = "unix:";
  if (endpoint.rfind(kScheme, 0) != 0) return "";
  return endpoint.substr(kScheme.size());
}

// Calibration takes milliseconds and its outcome is a property of the machine, so all clients of a
// process share it. A client that names a loop has its own.
std::shared_ptr<const Copier> MakeCopier(const std::string& loop) {
  if (!loop.empty()) {
    Copier::Options options;
    options.loop = loop;
    return std::make_shared<const Copier>(options);
  }
  static const auto& calibrated =
      *new std::shared_ptr<const Copier>(std::make_shared<const Copier>());
  return calibrated;
}

}  // namespace

Client::Impl::Impl(ClientOptions options)
    : options_(std::move(options)),
      path_(PathOf(options_.endpoint)),
      remote_(ParseRemoteEndpoint(options_.endpoint)),
      copier_(MakeCopier(options_.copy_loop)) {
  try {
    flusher_ = std::thread([this] { FlushInBackground(); });
  } catch (const std::system_error&) {
    // Releases then ride on calls only.
  }
}

absl::Time Client::Impl::DeadlineOf(absl::Duration timeout) const {
  if (timeout <= absl::ZeroDuration()) timeout = options_.timeout;
  return absl::Now() + std::clamp(timeout, absl::ZeroDuration(), kMaxTimeout);
}

// The session to use, opened anew if need be: by one thread at a time, and not again within the
// reconnect interval, so that calls to a daemon that is away end at once.
absl::StatusOr<Client::Impl::LinkPtr> Client::Impl::Connected(absl::Time deadline) {
  if (LinkPtr link = CurrentLink(); link != nullptr && !link->session->ended()) return link;
  TurnLock turn(connecting_, deadline);
  if (!turn.held()) return absl::DeadlineExceededError("the daemon does not answer");
  if (LinkPtr link = CurrentLink(); link != nullptr && !link->session->ended()) return link;
  {
    absl::MutexLock lock(&mu_);
    if (shut_down_) return absl::CancelledError("the client is being destroyed");
    if (absl::Now() < next_attempt_) return last_failure_;
    if (link_ != nullptr) Retire(std::exchange(link_, nullptr));
  }

  std::vector<SessionToken> told;
  absl::StatusOr<std::unique_ptr<Session>> session =
      remote_.has_value() ? RemoteSession::Open(*remote_, options_.tls, deadline)
      : path_.empty()     ? absl::InvalidArgumentError(
                                "endpoint: must be unix:PATH, stream:unix:PATH or tcp:HOST:PORT")
                      : OpenSession(told, deadline);
  absl::MutexLock lock(&mu_);
  if (!session.ok()) {
    for (const SessionToken& token : told) FinishedSessions::OfThisProcess().Add(path_, token);
  }
  next_attempt_ = absl::Now() + options_.reconnect_interval;
  if (!session.ok()) return last_failure_ = session.status();
  last_failure_ = absl::UnavailableError("the session ended just after it was opened");
  auto link = std::make_shared<Link>();
  link->number = ++sessions_;
  link->session = *std::move(session);
  if (!remote_.has_value()) link->path = path_;
  link->told = std::move(told);
  RemoteSession* remote = link->session->remote();
  link->stub = remote != nullptr ? Engine::NewStub(remote->channel()) : MakeStub(options_.endpoint);
  if (link->number > 1) reconnects_.fetch_add(1, std::memory_order_relaxed);
  releases_.StartSession(link->number);
  link_ = link;
  return link;
}

Client::Impl::LinkPtr Client::Impl::CurrentLink() {
  absl::MutexLock lock(&mu_);
  return link_;
}

void Client::Impl::Retire(const LinkPtr& link) {
  link->session->End();
  releases_.EndSession(link->number);
}

// No call and no chain reads under it any more.
Link::~Link() {
  if (path.empty()) return;
  FinishedSessions& finished = FinishedSessions::OfThisProcess();
  finished.Add(path, session->token());
  if (heard.load(std::memory_order_relaxed)) return;
  for (const SessionToken& token : told) finished.Add(path, token);
}

// Opens a session, and appends to `told` what the daemon hears on that occasion: which sessions of
// this process are finished. A hello has room for one; of the others it hears from sessions that do
// no more.
absl::StatusOr<std::unique_ptr<Session>> Client::Impl::OpenSession(std::vector<SessionToken>& told,
                                                                   absl::Time deadline) {
  constexpr size_t kTellings = 8;
  FinishedSessions& sessions = FinishedSessions::OfThisProcess();
  SessionToken finished = sessions.Take(path_);
  for (size_t i = 1; i < kTellings && finished != SessionToken{}; ++i) {
    const SessionToken next = sessions.Take(path_);
    if (next == SessionToken{}) break;
    told.push_back(next);
    absl::StatusOr<std::unique_ptr<Session>> telling =
        Session::Open(path_ + ".session", next, deadline);
    if (!telling.ok()) break;  // The next one says why.
    told.push_back((*telling)->token());
  }
  if (finished != SessionToken{}) told.push_back(finished);
  return Session::Open(path_ + ".session", finished, deadline);
}

void Client::Impl::Shutdown() {
  {
    absl::MutexLock lock(&mu_);
    shut_down_ = true;
  }
  late_.Stop();
  releases_.Stop();
  if (flusher_.joinable()) flusher_.join();
  LinkPtr link = CurrentLink();
  if (link == nullptr) return;
  if (!link->session->ended()) SendOwed(*link, absl::Now() + kFarewell).IgnoreError();
  releases_.EndSession(link->number);
  link->session->End();  // Chains may keep the link, but the session is over.
  absl::MutexLock lock(&mu_);
  link_ = nullptr;
}

// ---- the end of a call --------------------------------------------------------------------------

void Client::Impl::NoteEnd(Link& link, const absl::Status& status, Owed owed) {
  calls_.fetch_add(1, std::memory_order_relaxed);
  if (status.ok()) {
    link.heard.store(true, std::memory_order_relaxed);
    return;
  }
  failed_calls_.fetch_add(1, std::memory_order_relaxed);
  if (absl::IsUnauthenticated(status) || (absl::IsUnavailable(status) && !IsDraining(status))) {
    link.session->End();
  }
  releases_.GiveBack(link.number, std::move(owed));  // It may not have heard them.
}

bool Client::Impl::OutcomeUnknown(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kCancelled:
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kInternal:
      return true;
    case absl::StatusCode::kUnavailable:
      return !IsDraining(status);
    default:
      return false;
  }
}

absl::StatusOr<const KnownNamespace*> Client::Impl::Find(const Namespace& ns) {
  absl::MutexLock lock(&mu_);
  if (ns.index >= namespaces_.size()) {
    return absl::InvalidArgumentError("namespace: not registered by this client");
  }
  return &namespaces_[ns.index];
}

absl::StatusOr<const KnownNamespace*> Client::Impl::Remember(
    const NamespaceDescriptor& descriptor) {
  const std::string canonical = descriptor.Canonical();
  absl::MutexLock lock(&mu_);
  for (const KnownNamespace& known : namespaces_) {
    if (known.canonical == canonical) return &known;
  }
  if (namespaces_.size() >= kMaxNamespaces) {
    return absl::ResourceExhaustedError("namespace: this client knows 4,096 already");
  }
  KnownNamespace& known = namespaces_.emplace_back();
  known.descriptor = descriptor;
  known.canonical = canonical;
  known.value.index = static_cast<uint32_t>(namespaces_.size() - 1);
  known.value.hash_bytes = descriptor.hash_bytes;
  for (size_t group = 0; group < descriptor.groups.size(); ++group) {
    for (uint32_t shard = 0; shard < descriptor.groups[group].shards; ++shard) {
      known.value.parts.push_back({static_cast<uint8_t>(group), static_cast<uint8_t>(shard)});
      known.value.part_bytes.push_back(descriptor.groups[group].part_bytes);
    }
  }
  known.all = SelectAll(known);
  return &known;
}

// The daemon's number of a namespace, which it gives anew in each session.
absl::StatusOr<uint32_t> Client::Impl::NamespaceId(Link& link, const KnownNamespace& ns,
                                                   absl::Time deadline) {
  const uint32_t index = ns.value.index;
  {
    absl::MutexLock lock(&link.mu);
    if (index < link.namespace_ids.size() && link.namespace_ids[index].has_value()) {
      return *link.namespace_ids[index];
    }
  }
  v1::RegisterNamespaceRequest request;
  *request.mutable_describes() = ToProto(ns.descriptor);
  v1::RegisterNamespaceReply reply;
  absl::Status status = Call(link, &Engine::Stub::RegisterNamespace, request, &reply, deadline);
  if (!status.ok()) return status;
  absl::MutexLock lock(&link.mu);
  if (link.namespace_ids.size() <= index) link.namespace_ids.resize(index + 1);
  link.namespace_ids[index] = reply.namespace_id();
  return reply.namespace_id();
}

absl::StatusOr<Namespace> Client::Impl::RegisterNamespace(const NamespaceDescriptor& descriptor,
                                                          absl::Duration timeout) {
  const absl::Time deadline = DeadlineOf(timeout);
  if (absl::Status status = descriptor.Validate(); !status.ok()) return status;
  absl::StatusOr<const KnownNamespace*> known = Remember(descriptor);
  if (!known.ok()) return known.status();
  absl::StatusOr<LinkPtr> link = Connected(deadline);
  if (!link.ok()) return link.status();
  absl::StatusOr<uint32_t> id = NamespaceId(**link, **known, deadline);
  if (!id.ok()) return id.status();
  return (*known)->value;
}

// ---- what is owed -------------------------------------------------------------------------------

// Sends releases and aborts until none is left or a call fails.
absl::Status Client::Impl::SendOwed(Link& link, absl::Time deadline) {
  for (uint64_t reservation_id : releases_.TakeAborts(link.number)) {
    v1::AbortRequest request;
    request.set_reservation_id(reservation_id);
    v1::AbortReply reply;
    // Best effort: what is lost here runs out by itself.
    Call(link, &Engine::Stub::Abort, request, &reply, deadline).IgnoreError();
  }
  while (!releases_.empty()) {
    v1::ReleaseRequest request;
    v1::ReleaseReply reply;
    absl::Status status = Call(link, &Engine::Stub::Release, request, &reply, deadline);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Client::Impl::Flush(absl::Duration timeout) {
  const absl::Time deadline = DeadlineOf(timeout);
  if (releases_.empty()) return absl::OkStatus();
  LinkPtr link = CurrentLink();  // What is owed is owed in this session; another has no use for it.
  if (link == nullptr || link->session->ended()) return absl::OkStatus();
  return SendOwed(*link, deadline);
}

void Client::Impl::FlushInBackground() {
  while (releases_.WaitUntilDue()) {
    LinkPtr link = CurrentLink();
    if (link == nullptr) continue;
    if (link->session->ended()) {
      releases_.EndSession(link->number);  // Nobody to tell: the daemon has ended it all.
      continue;
    }
    SendOwed(*link, absl::Now() + std::min(options_.timeout, kFlushTimeout)).IgnoreError();
  }
}

// ---- counters -----------------------------------------------------------------------------------

ClientStats Client::Impl::stats() const {
  ClientStats stats;
  stats.calls = calls_.load(std::memory_order_relaxed);
  stats.failed_calls = failed_calls_.load(std::memory_order_relaxed);
  stats.reconnects = reconnects_.load(std::memory_order_relaxed);
  stats.damaged_parts = damaged_parts_.load(std::memory_order_relaxed);
  stats.bad_extents = bad_extents_.load(std::memory_order_relaxed);
  stats.dropped_releases = releases_.dropped();
  stats.own_bytes = own_bytes_.load(std::memory_order_relaxed);
  return stats;
}

}  // namespace kvd
