#include "daemon/gateway.h"

#include <grpc/grpc_security.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/server_posix.h>
#include <sys/resource.h>

#include <atomic>
#include <charconv>
#include <chrono>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "daemon/control_call.h"
#include "daemon/gateway_transfer.h"
#include "daemon/gateway_watch.h"
#include "daemon/grpc_status.h"
#include "daemon/reflection.h"
#include "proto/kvd.grpc.pb.h"
#include "proto/stream.grpc.pb.h"
#include "proto/types/limits.h"
#include "proto/types/status.h"

namespace kvd {
namespace {

using Use = GatewaySessions::Use;

constexpr int kHandshakeMs = 10'000;
constexpr int kIdleMs = 5 * 60 * 1000;  // A connection without calls, and so without a session.
constexpr int kStreamsPerConnection = 64;

// Streams sum and encrypt for as long as anybody reads; engines on this node wait for microseconds
// of the control thread, which may not be allowed to raise its own priority. So where CPUs are
// short a thread of ours has a third of an engine's share (the kernel's weights: 335 to 1,024), and
// where they are not it loses nothing. All that the control thread could wait for of a thread that
// was put aside is the inbox's mutex, held to append an entry. Once for each thread.
void YieldToEngines() {
  thread_local bool done = false;
  if (!std::exchange(done, true)) setpriority(PRIO_PROCESS, 0, 5);
}

// Who is calling, as the gateway tells from the connection.
class Callers {
 public:
  Callers(const GatewayListener& listener, Domains& domains, StrangerCounts* strangers)
      : listener_(listener), domains_(domains), strangers_(strangers) {}

  absl::StatusOr<DomainId> Identify(const grpc::ServerContextBase& call) const {
    const std::string peer = call.peer();
    constexpr std::string_view kDescriptor = "fd:";
    if (peer.rfind(kDescriptor, 0) == 0) return OfDescriptor(peer.substr(kDescriptor.size()));
    return OfCertificate(*call.auth_context());
  }

  void CountStranger(Stranger why) const {
    if (strangers_ != nullptr) strangers_->Count(why);
  }

 private:
  absl::StatusOr<DomainId> OfDescriptor(const std::string& number) const {
    int fd = -1;
    std::from_chars(number.data(), number.data() + number.size(), fd);
    const std::optional<GatewayListener::Peer> peer = listener_.OfDescriptor(fd);
    if (!peer.has_value()) return absl::UnauthenticatedError("the connection has gone");
    if (peer->domain.has_value()) return *peer->domain;
    CountStranger(Stranger::kUser);
    return absl::PermissionDeniedError(absl::StrCat(
        "user ", peer->uid, " belongs to no domain of this daemon: see [[domain]] in its config"));
  }

  // The SPIFFE id, else the first DNS name, else the common name.
  absl::StatusOr<DomainId> OfCertificate(const grpc::AuthContext& context) const {
    std::string identity;
    for (const char* property : {GRPC_PEER_SPIFFE_ID_PROPERTY_NAME, GRPC_PEER_DNS_PROPERTY_NAME,
                                 GRPC_X509_CN_PROPERTY_NAME}) {
      const std::vector<grpc::string_ref> values = context.FindPropertyValues(property);
      if (values.empty() || values.front().empty()) continue;
      identity.assign(values.front().data(), values.front().size());
      break;
    }
    if (!context.IsPeerAuthenticated() || identity.empty()) {
      CountStranger(Stranger::kCertificate);
      return absl::UnauthenticatedError(
          "the certificate has no identity: neither a SPIFFE id, nor a DNS name, nor a common "
          "name");
    }
    if (const auto domain = domains_.OfIdentity(identity); domain.has_value()) {
      return *domain;
    }
    CountStranger(Stranger::kIdentity);
    return absl::PermissionDeniedError(
        absl::StrCat("the identity ", identity,
                     " belongs to no domain of this daemon: see [[domain]] in its config"));
  }

  const GatewayListener& listener_;
  Domains& domains_;
  StrangerCounts* const strangers_;
};

struct Shared {
  Inbox& inbox;
  EventRing& events;  // WaitFor() only.
  CopierPool& copiers;
  const Copier& copier;
  const Callers& callers;
  GatewaySessions& sessions;
  GatewayMetrics* metrics;  // May be null.
  bool count_operations;
};

// Runs a call and answers with what came of it, counted.
template <typename Body>
grpc::Status Answer(const Shared& shared, grpc::ServerContext& call, Op op, Body body) {
  YieldToEngines();
  const SystemClock clock;
  const Nanos arrived = clock.Now();
  const grpc::Status status = body();
  // Our own word, not that of a connection which broke: the session goes on.
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE) {
    call.AddTrailingMetadata(kDrainingKey, "1");
  }
  if (shared.metrics != nullptr) {
    const Nanos took = clock.Now() - arrived;
    shared.metrics->Answered(op, status.error_code(), shared.count_operations ? &took : nullptr);
  }
  return status;
}

absl::StatusOr<GatewaySessionPtr> FindSession(const Shared& shared, std::string_view token,
                                              DomainId domain) {
  absl::StatusOr<GatewaySessionPtr> session = shared.sessions.Find(token, domain);
  if (!session.ok()) shared.callers.CountStranger(Stranger::kSession);
  return session;
}

// A call that may go on, and where it counts.
struct Guest {
  DomainId domain = 0;
  GatewaySessions::Place place;
};

absl::StatusOr<Guest> LetIn(const Shared& shared, const grpc::ServerContextBase& call, Use use) {
  absl::StatusOr<DomainId> domain = shared.callers.Identify(call);
  if (!domain.ok()) return domain.status();
  absl::StatusOr<GatewaySessions::Place> place = shared.sessions.Enter(use, *domain);
  if (!place.ok()) return place.status();
  return Guest{*domain, *std::move(place)};
}

// A reader or writer that stops would keep its thread, and what it holds, for ever.
absl::Status CheckDeadline(const grpc::ServerContext& call) {
  const auto longest = std::chrono::milliseconds(kMaxStreamMs) + std::chrono::minutes(1);
  if (call.deadline() <= std::chrono::system_clock::now() + longest) return absl::OkStatus();
  return InvalidField("deadline", "a stream must have one, at most an hour away");
}

// The open call that is a session's life.
class OpenSessionCall final : public grpc::ServerWriteReactor<v1::OpenSessionReply> {
 public:
  OpenSessionCall(const Shared& shared, const grpc::CallbackServerContext& call,
                  const v1::OpenSessionRequest& request)
      : shared_(shared) {
    if (absl::Status status = Open(call, request); !status.ok()) {
      finished_ = true;
      Finish(ToGrpc(status));
      return;
    }
    reply_.set_session(session_->token());
    reply_.set_version(kProtocolVersion);
    StartWrite(&reply_);
  }

  void OnWriteDone(bool ok) override {
    if (!ok) FinishOnce();
  }
  void OnCancel() override { FinishOnce(); }
  void OnDone() override {
    if (session_ != nullptr) shared_.sessions.End(*session_);
    delete this;
  }

 private:
  absl::Status Open(const grpc::CallbackServerContext& call,
                    const v1::OpenSessionRequest& request) {
    if (request.version_min() > kProtocolVersion ||
        (request.version_max() != 0 && request.version_max() < kProtocolVersionMin)) {
      return absl::FailedPreconditionError(absl::StrCat(
          "version_min: this daemon speaks ", kProtocolVersionMin, " to ", kProtocolVersion));
    }
    absl::StatusOr<Guest> guest = LetIn(shared_, call, Use::kSession);
    if (!guest.ok()) return guest.status();
    place_.emplace(std::move(guest->place));
    absl::StatusOr<GatewaySessionPtr> session = shared_.sessions.Open(guest->domain);
    if (!session.ok()) return session.status();
    session_ = *std::move(session);
    return absl::OkStatus();
  }

  void FinishOnce() {
    if (finished_.exchange(true)) return;
    // Its promises end now, whoever else still has the session.
    if (session_ != nullptr) shared_.sessions.End(*session_);
    Finish(grpc::Status::CANCELLED);
  }

  const Shared& shared_;
  std::optional<GatewaySessions::Place> place_;
  GatewaySessionPtr session_;
  v1::OpenSessionReply reply_;
  std::atomic<bool> finished_{false};
};

class EngineService final : public v1::Engine::WithCallbackMethod_OpenSession<v1::Engine::Service> {
 public:
  explicit EngineService(const Shared& shared) : shared_(shared) {}

  grpc::ServerWriteReactor<v1::OpenSessionReply>* OpenSession(
      grpc::CallbackServerContext* call, const v1::OpenSessionRequest* request) override {
    return new OpenSessionCall(shared_, *call, *request);
  }

  grpc::Status RegisterNamespace(grpc::ServerContext* call,
                                 const v1::RegisterNamespaceRequest* request,
                                 v1::RegisterNamespaceReply* reply) override {
    return Run<RegisterNamespaceMethod>(*call, Op::kRegisterNamespace, *request, *reply);
  }
  grpc::Status Lookup(grpc::ServerContext* call, const v1::LookupRequest* request,
                      v1::LookupReply* reply) override {
    if (request->extent_blocks() != 0) {
      return Refuse(*call, Op::kLookup,
                    InvalidField("extent_blocks",
                                 "must be 0: a session without shared memory has no use for "
                                 "extents; kvd.v1.Transfer/Get streams the bytes"));
    }
    return Run<LookupMethod>(*call, Op::kLookup, *request, *reply);
  }
  grpc::Status Load(grpc::ServerContext* call, const v1::LoadRequest*, v1::LoadReply*) override {
    return Refuse(*call, Op::kLoad,
                  absl::FailedPreconditionError(
                      "Load gives extents of shared memory, which this session does not have; "
                      "kvd.v1.Transfer/Get streams the bytes"));
  }
  grpc::Status Release(grpc::ServerContext* call, const v1::ReleaseRequest* request,
                       v1::ReleaseReply* reply) override {
    return Run<ReleaseMethod>(*call, Op::kRelease, *request, *reply);
  }
  grpc::Status Reserve(grpc::ServerContext* call, const v1::ReserveRequest* request,
                       v1::ReserveReply* reply) override {
    return Run<ReserveMethod>(*call, Op::kReserve, *request, *reply);
  }
  grpc::Status Commit(grpc::ServerContext* call, const v1::CommitRequest* request,
                      v1::CommitReply* reply) override {
    if (request->reservation_id() == 0) {
      return Refuse(*call, Op::kCommit,
                    InvalidField("reservation_id",
                                 "missing: a session without shared memory has no staging to put "
                                 "from; kvd.v1.Transfer/Put streams the bytes"));
    }
    return Run<CommitMethod>(*call, Op::kCommit, *request, *reply);
  }
  grpc::Status Abort(grpc::ServerContext* call, const v1::AbortRequest* request,
                     v1::AbortReply* reply) override {
    return Run<AbortMethod>(*call, Op::kAbort, *request, *reply);
  }
  grpc::Status Pin(grpc::ServerContext* call, const v1::PinRequest* request,
                   v1::PinReply* reply) override {
    return Run<PinMethod>(*call, Op::kPin, *request, *reply);
  }
  grpc::Status Unpin(grpc::ServerContext* call, const v1::UnpinRequest* request,
                     v1::UnpinReply* reply) override {
    return Run<UnpinMethod>(*call, Op::kUnpin, *request, *reply);
  }
  grpc::Status Prefetch(grpc::ServerContext* call, const v1::PrefetchRequest* request,
                        v1::PrefetchReply* reply) override {
    return Run<UnimplementedMethod<v1::PrefetchRequest, v1::PrefetchReply>>(*call, Op::kOther,
                                                                            *request, *reply);
  }
  grpc::Status Hint(grpc::ServerContext* call, const v1::HintRequest* request,
                    v1::HintReply* reply) override {
    return Run<HintMethod>(*call, Op::kOther, *request, *reply);
  }
  grpc::Status Retain(grpc::ServerContext* call, const v1::RetainRequest* request,
                      v1::RetainReply* reply) override {
    return Run<UnimplementedMethod<v1::RetainRequest, v1::RetainReply>>(*call, Op::kOther, *request,
                                                                        *reply);
  }
  grpc::Status Watch(grpc::ServerContext* call, const v1::WatchRequest* request,
                     grpc::ServerWriter<v1::WatchEvent>* writer) override {
    return Answer(shared_, *call, Op::kOther, [&] {
      if (absl::Status status = CheckDeadline(*call); !status.ok()) return ToGrpc(status);
      const absl::StatusOr<Guest> guest = LetIn(shared_, *call, Use::kStream);
      if (!guest.ok()) return ToGrpc(guest.status());
      const auto session = FindSession(shared_, request->session(), guest->domain);
      if (!session.ok()) return ToGrpc(session.status());
      return StreamWatch(shared_.inbox, shared_.events, *call, **session, *request, *writer);
    });
  }

 private:
  template <typename Method>
  grpc::Status Run(grpc::ServerContext& call, Op op, const typename Method::Request& request,
                   typename Method::Reply& reply) {
    return Answer(shared_, call, op, [&] { return Do<Method>(call, op, request, reply); });
  }

  grpc::Status Refuse(grpc::ServerContext& call, Op op, const absl::Status& status) {
    return Answer(shared_, call, op, [&] { return ToGrpc(status); });
  }

  template <typename Method>
  grpc::Status Do(grpc::ServerContext& call, Op op, const typename Method::Request& request,
                  typename Method::Reply& reply) {
    const absl::StatusOr<Guest> guest = LetIn(shared_, call, Use::kCall);
    if (!guest.ok()) return ToGrpc(guest.status());
    const auto session = FindSession(shared_, request.session(), guest->domain);
    if (!session.ok()) return ToGrpc(session.status());
    if (call.deadline() < std::chrono::system_clock::now()) {
      if (shared_.metrics != nullptr) shared_.metrics->Late(op);
      return ToGrpc(absl::DeadlineExceededError("arrived after its deadline"));
    }
    ControlCall<Method> running(shared_.inbox, request, call.deadline());
    const absl::Status status = running.Run(reply);
    // Best effort: an answer that is lost from here on runs out by itself, or with its session.
    if (status.ok() && call.IsCancelled()) running.Unheard();
    return ToGrpc(status);
  }

  const Shared& shared_;
};

class TransferService final : public v1::Transfer::Service {
 public:
  explicit TransferService(const Shared& shared) : shared_(shared) {}

  grpc::Status Get(grpc::ServerContext* call, const v1::GetRequest* request,
                   grpc::ServerWriter<v1::GetChunk>* writer) override {
    return Stream(*call, Op::kGet, [&](const Guest& guest) {
      const auto session = FindSession(shared_, request->session(), guest.domain);
      if (!session.ok()) return ToGrpc(session.status());
      return StreamGet(ContextOf(*call, *session), *request, *writer);
    });
  }

  grpc::Status Put(grpc::ServerContext* call, grpc::ServerReader<v1::PutChunk>* reader,
                   v1::PutReply* reply) override {
    return Stream(*call, Op::kPut, [&](const Guest& guest) {
      v1::PutChunk first;
      if (!reader->Read(&first) || !first.has_start()) {
        return ToGrpc(InvalidField("start", "must come first, and once"));
      }
      const auto session = FindSession(shared_, first.start().session(), guest.domain);
      if (!session.ok()) return ToGrpc(session.status());
      return StreamPut(ContextOf(*call, *session), first.start(), *reader, *reply);
    });
  }

 private:
  // A stream counts from before its first message, because its thread is taken from then on.
  template <typename Body>
  grpc::Status Stream(grpc::ServerContext& call, Op op, Body body) {
    return Answer(shared_, call, op, [&] {
      if (absl::Status status = CheckDeadline(call); !status.ok()) return ToGrpc(status);
      const absl::StatusOr<Guest> guest = LetIn(shared_, call, Use::kStream);
      if (!guest.ok()) return ToGrpc(guest.status());
      return body(*guest);
    });
  }

  StreamContext ContextOf(grpc::ServerContext& call, GatewaySessionPtr session) const {
    return {shared_.inbox, shared_.copiers, shared_.copier, call, std::move(session)};
  }

  const Shared& shared_;
};

// Credentials that are asked for anew at each handshake. gRPC's C++ interface has only those that
// never change; its C interface has these.
class TlsCredentials final : public grpc::ServerCredentials {
 public:
  explicit TlsCredentials(const TlsSource& source)
      : source_(source),
        credentials_(grpc_ssl_server_credentials_create_with_options(
            grpc_ssl_server_credentials_create_options_using_config_fetcher(
                GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY, &Fetch, this))) {}
  ~TlsCredentials() override { grpc_server_credentials_release(credentials_); }

  void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {}

 private:
  // gRPC has a lock around it.
  static grpc_ssl_certificate_config_reload_status Fetch(
      void* self, grpc_ssl_server_certificate_config** config) {
    auto& credentials = *static_cast<TlsCredentials*>(self);
    const std::optional<TlsIdentity> tls = credentials.source_.NewerThan(credentials.version_);
    if (!tls.has_value()) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    const grpc_ssl_pem_key_cert_pair pair{tls->key.c_str(), tls->certificate.c_str()};
    *config = grpc_ssl_server_certificate_config_create(tls->client_ca.c_str(), &pair, 1);
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
  }
  int AddPortToServer(const std::string& address, grpc_server* server) override {
    return grpc_server_add_http2_port(server, address.c_str(), credentials_);
  }

  const TlsSource& source_;
  grpc_server_credentials* const credentials_;
  uint64_t version_ = 0;
};

}  // namespace

class Gateway::Impl {
 public:
  Impl(Inbox& inbox, EventRing& events, CopierPool& copiers, const Copier& copier, Domains& domains,
       Options options, std::unique_ptr<GatewayListener> listener)
      : options_(std::move(options)),
        listener_(std::move(listener)),
        callers_(*listener_, domains, options_.strangers),
        sessions_(inbox, options_.bounds),
        shared_{inbox,    events,    copiers,          copier,
                callers_, sessions_, options_.metrics, options_.count_operations},
        engine_(shared_),
        transfer_(shared_) {}

  absl::Status Start();
  void Serve();
  void Stop();
  const std::string& tcp_address() const { return listener_->tcp_address(); }

 private:
  const Options options_;
  const std::unique_ptr<GatewayListener> listener_;
  const Callers callers_;
  GatewaySessions sessions_;
  const Shared shared_;
  EngineService engine_;
  TransferService transfer_;
  Reflection reflection_{{std::string(v1::Engine::service_full_name()),
                          std::string(v1::Transfer::service_full_name()), "grpc.health.v1.Health",
                          "grpc.reflection.v1alpha.ServerReflection"}};
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> tls_acceptor_;
  std::unique_ptr<grpc::Server> server_;
};

absl::Status Gateway::Impl::Start() {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  builder.RegisterService(&engine_);
  builder.RegisterService(&transfer_);
  builder.RegisterService(&reflection_);
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.SetMaxSendMessageSize(kMaxMessageBytes);
  builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::NUM_CQS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::MIN_POLLERS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::MAX_POLLERS, 2);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kStreamsPerConnection);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, kHandshakeMs);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, kIdleMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, options_.keepalive_ms);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, options_.keepalive_ms / 2);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5'000);
  grpc::ResourceQuota quota("gateway");
  quota.Resize(options_.max_message_memory);
  // Those that work, those that wait for calls, and some that tell the rest that it is too many.
  quota.SetMaxThreads(
      static_cast<int>(options_.bounds.max_calls + options_.bounds.max_streams + 16));
  builder.SetResourceQuota(quota);
  if (options_.tls != nullptr) {
    tls_acceptor_ = builder.experimental().AddExternalConnectionAcceptor(
        grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD,
        std::make_shared<TlsCredentials>(*options_.tls));
  }
  server_ = builder.BuildAndStart();
  if (server_ == nullptr) {
    return absl::InternalError("the gateway's server did not start; gRPC's own log says why");
  }
  server_->GetHealthCheckService()->SetServingStatus(v1::Engine::service_full_name(), true);
  server_->GetHealthCheckService()->SetServingStatus(v1::Transfer::service_full_name(), true);
  return absl::OkStatus();
}

void Gateway::Impl::Serve() {
  listener_->Run([this](int fd) { grpc::AddInsecureChannelFromFd(server_.get(), fd); },
                 [this](int fd) {
                   grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters params;
                   params.fd = fd;
                   tls_acceptor_->HandleNewConnection(&params);
                 });
}

void Gateway::Impl::Stop() {
  listener_->Stop();
  server_->Shutdown(std::chrono::system_clock::now());
  server_->Wait();
}

Gateway::Gateway(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Gateway::~Gateway() { Stop(); }

absl::StatusOr<std::unique_ptr<Gateway>> Gateway::Start(Inbox& inbox, EventRing& events,
                                                        CopierPool& copiers, const Copier& copier,
                                                        Domains& domains, Options options) {
  auto listener = GatewayListener::Open({.path = options.path,
                                         .listener = options.listener,
                                         .tcp = options.tcp,
                                         .max_connections = options.max_connections},
                                        domains);
  if (!listener.ok()) return listener.status();
  auto impl = std::make_unique<Impl>(inbox, events, copiers, copier, domains, std::move(options),
                                     *std::move(listener));
  if (absl::Status status = impl->Start(); !status.ok()) return status;
  return std::unique_ptr<Gateway>(new Gateway(std::move(impl)));
}

void Gateway::Serve() { impl_->Serve(); }
void Gateway::Stop() { impl_->Stop(); }
const std::string& Gateway::tcp_address() const { return impl_->tcp_address(); }

}  // namespace kvd
