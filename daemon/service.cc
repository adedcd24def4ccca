#include "daemon/service.h"

#include <grpcpp/alarm.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/kvd.grpc.pb.h"

namespace kvd {
namespace {

// How many arrivals are served between two slices of long calls.
constexpr int kArrivalsPerSlice = 16;

grpc::Status ToGrpc(const absl::Status& status) {
  return {static_cast<grpc::StatusCode>(status.code()), std::string(status.message())};
}

absl::Status Invalid(absl::string_view field, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", why));
}

// --- messages to structs
// ---------------------------------------------------------------------------

void ReadReleases(const v1::Releases& from, ReleaseList& to) {
  to.holds = {from.hold_ids().data(), static_cast<size_t>(from.hold_ids_size())};
  to.leases = {from.lease_ids().data(), static_cast<size_t>(from.lease_ids_size())};
  for (const v1::Damage& damage : from.damaged()) {
    to.damaged.push_back(
        {damage.hold_id(), {damage.extents().data(), static_cast<size_t>(damage.extents_size())}});
  }
}

template <typename Request>
void ReadHeader(const Request& from, CallHeader& to) {
  to.session = from.session();
  to.ns = from.namespace_id();
  to.keys = from.keys();
  to.parts = from.parts();
  ReadReleases(from.releases(), to.releases);
}

// Bytes that are stored beside the payload: per block or none at all, each bounded.
absl::Status CheckAnnounce(const google::protobuf::RepeatedPtrField<std::string>& announce,
                           size_t key_bytes) {
  if (announce.empty()) return absl::OkStatus();
  for (int i = 0; i < announce.size(); ++i) {
    if (announce[i].size() > kMaxAnnounceBytes) {
      return Invalid(absl::StrCat("announce[", i, "]"), "more than 16 KiB");
    }
  }
  if (static_cast<size_t>(announce.size()) > key_bytes / kMinHashBytes) {
    return Invalid("announce", "more entries than keys");
  }
  return absl::UnimplementedError("announce: KV events are not in this version");
}

NamespaceDescriptor ReadDescriptor(const v1::NamespaceDescriptor& from) {
  NamespaceDescriptor to{.model = from.model(),
                         .weights_revision = from.weights_revision(),
                         .kv_dtype = from.kv_dtype(),
                         .quantization = from.quantization(),
                         .page_layout = from.page_layout(),
                         .engine_family = from.engine_family(),
                         .draft_model = from.draft_model(),
                         .hash_algorithm = from.hash_algorithm(),
                         .hash_seed = from.hash_seed(),
                         .hash_bytes = from.hash_bytes(),
                         .tensor_parallel = from.tensor_parallel(),
                         .pipeline_parallel = from.pipeline_parallel(),
                         .context_parallel = from.context_parallel()};
  for (const v1::Group& group : from.groups()) {
    to.groups.push_back({.kind = static_cast<GroupKind>(group.kind()),
                         .window_tokens = group.window_tokens(),
                         .shards = group.shards(),
                         .block_tokens = group.block_tokens(),
                         .part_bytes = group.part_bytes()});
  }
  for (const auto& [key, value] : from.extra()) to.extra[key] = value;
  return to;
}

// --- one handler a method
// --------------------------------------------------------------------------
//
// Run(control, request, state, reply) is called until it does not answer kMore or kWait. `state` is
// the plain struct; the first call finds it fresh.

struct OpenSessionMethod {
  using Request = v1::OpenSessionRequest;
  using Reply = v1::OpenSessionReply;
  struct State {};
  static absl::StatusOr<Step> Run(Control&, const Request&, State&, Reply&) {
    return absl::UnimplementedError("sessions without shared memory are not in this version");
  }
};

struct RegisterNamespaceMethod {
  using Request = v1::RegisterNamespaceRequest;
  using Reply = v1::RegisterNamespaceReply;
  struct State {};
  static absl::StatusOr<Step> Run(Control& control, const Request& request, State&, Reply& reply) {
    const auto registered =
        control.RegisterNamespace(request.session(), ReadDescriptor(request.describes()));
    if (!registered.ok()) return registered.status();
    reply.set_namespace_id(registered->id);
    reply.set_fingerprint(registered->fingerprint.data(), registered->fingerprint.size());
    reply.set_created(registered->created);
    return Step::kDone;
  }
};

struct LookupMethod {
  using Request = v1::LookupRequest;
  using Reply = v1::LookupReply;
  struct State : LookupCall {
    bool read = false;
  };
  static absl::StatusOr<Step> Run(Control& control, const Request& request, State& call,
                                  Reply& reply) {
    if (!std::exchange(call.read, true)) {
      ReadHeader(request, call.header);
      call.header.parent = request.parent();
      call.lease_ms = request.lease_ms();
      call.extent_blocks = request.extent_blocks();
    }
    const absl::StatusOr<Step> step = control.Lookup(call);
    if (!step.ok() || *step != Step::kDone) return step;
    reply.set_hit_blocks(call.hit_blocks);
    reply.set_lease(static_cast<v1::LeaseOutcome>(call.lease));
    reply.set_lease_id(call.lease_id);
    reply.set_load_time_us(call.load_time_us);
    if (call.hit_blocks > 0) {
      v1::TierShare& share = *reply.add_tiers();
      share.set_tier(v1::TIER_DRAM);
      share.set_blocks(call.hit_blocks);
    }
    reply.set_extent_blocks(call.cursor.next);
    reply.set_extents(std::move(call.extents));
    reply.set_hold_id(call.cursor.hold);
    return Step::kDone;
  }
};

struct LoadMethod {
  using Request = v1::LoadRequest;
  using Reply = v1::LoadReply;
  struct State : LoadCall {
    bool read = false;
  };
  static absl::StatusOr<Step> Run(Control& control, const Request& request, State& call,
                                  Reply& reply) {
    if (!std::exchange(call.read, true)) {
      ReadHeader(request, call.header);
      call.range_offset = request.range_offset();
      call.range_bytes = request.range_bytes();
    }
    const absl::StatusOr<Step> step = control.Load(call);
    if (!step.ok() || *step != Step::kDone) return step;
    reply.set_blocks(call.cursor.next);
    reply.set_outcome(static_cast<v1::LoadOutcome>(call.cursor.outcome));
    reply.set_extents(std::move(call.extents));
    reply.set_hold_id(call.cursor.hold);
    reply.set_range_offset(call.range_offset);
    reply.set_range_bytes(call.range_bytes);
    return Step::kDone;
  }
};

struct ReleaseMethod {
  using Request = v1::ReleaseRequest;
  using Reply = v1::ReleaseReply;
  struct State {};
  static absl::StatusOr<Step> Run(Control& control, const Request& request, State&, Reply& reply) {
    ReleaseList releases;
    ReadReleases(request.releases(), releases);
    const absl::StatusOr<uint32_t> released = control.Release(request.session(), releases);
    if (!released.ok()) return released.status();
    reply.set_released(*released);
    return Step::kDone;
  }
};

struct ReserveMethod {
  using Request = v1::ReserveRequest;
  using Reply = v1::ReserveReply;
  struct State : ReserveCall {
    bool read = false;
  };
  static absl::StatusOr<Step> Run(Control& control, const Request& request, State& call,
                                  Reply& reply) {
    if (!std::exchange(call.read, true)) {
      ReadHeader(request, call.header);
      call.header.parent = request.parent();
      call.wait_ms = request.wait_ms();
      if (call.wait_ms > kMaxLeaseMs) return Invalid("wait_ms", "at most 600000");
      if (absl::Status status = CheckAnnounce(request.announce(), request.keys().size());
          !status.ok()) {
        return status;
      }
    }
    const absl::StatusOr<Step> step = control.Reserve(call);
    if (!step.ok() || *step != Step::kDone) return step;
    reply.set_reservation_id(call.reservation_id);
    reply.set_states(std::move(call.states));
    reply.set_granted(call.granted);
    reply.set_expires_ms(call.expires_ms);
    return Step::kDone;
  }
};

struct CommitMethod {
  using Request = v1::CommitRequest;
  using Reply = v1::CommitReply;
  struct State : CommitCall {
    bool read = false;
  };
  static absl::StatusOr<Step> Run(Control& control, const Request& request, State& call,
                                  Reply& reply) {
    if (!std::exchange(call.read, true)) {
      ReadHeader(request, call.header);
      call.header.parent = request.parent();
      call.reservation_id = request.reservation_id();
      call.first_block = request.first_block();
      call.blocks = request.blocks();
      call.staged = request.staged();
      if (absl::Status status = CheckAnnounce(request.announce(), request.keys().size());
          !status.ok()) {
        return status;
      }
      if (call.reservation_id != 0 && !request.keys().empty()) {
        return Invalid("keys", "a reservation has its own; name one or the other");
      }
    }
    const absl::StatusOr<Step> step = control.Commit(call);
    if (!step.ok() || *step != Step::kDone) return step;
    reply.set_results(std::move(call.results));
    reply.set_stored(call.stored);
    return Step::kDone;
  }
};

struct AbortMethod {
  using Request = v1::AbortRequest;
  using Reply = v1::AbortReply;
  struct State {};
  static absl::StatusOr<Step> Run(Control& control, const Request& request, State&, Reply&) {
    const absl::Status status = control.Abort(request.session(), request.reservation_id());
    if (!status.ok()) return status;
    return Step::kDone;
  }
};

struct PinMethod {
  using Request = v1::PinRequest;
  using Reply = v1::PinReply;
  struct State {};
  static absl::StatusOr<Step> Run(Control& control, const Request& request, State&, Reply& reply) {
    PinCall call{.key = request.key(),
                 .owner = request.owner(),
                 .budget_bytes = request.budget_bytes(),
                 .ttl_ms = request.ttl_ms()};
    call.header.session = request.session();
    call.header.ns = request.namespace_id();
    const absl::Status status = control.Pin(call);
    if (!status.ok()) return status;
    reply.set_pin_id(call.pin_id);
    reply.set_blocks(call.blocks);
    reply.set_bytes(call.bytes);
    return Step::kDone;
  }
};

struct UnpinMethod {
  using Request = v1::UnpinRequest;
  using Reply = v1::UnpinReply;
  struct State {};
  static absl::StatusOr<Step> Run(Control& control, const Request& request, State&, Reply&) {
    const absl::Status status = control.Unpin(request.session(), request.pin_id());
    if (!status.ok()) return status;
    return Step::kDone;
  }
};

struct HintMethod {
  using Request = v1::HintRequest;
  using Reply = v1::HintReply;
  struct State {};
  static absl::StatusOr<Step> Run(Control& control, const Request& request, State&, Reply&) {
    if (absl::Status status = control.CheckSession(request.session()); !status.ok()) return status;
    if (request.kind() == v1::HINT_UNSPECIFIED || !v1::HintKind_IsValid(request.kind())) {
      return Invalid("kind", absl::StrCat("unknown hint ", static_cast<int>(request.kind())));
    }
    return absl::UnimplementedError("hints are not in this version");
  }
};

template <typename RequestType, typename ReplyType>
struct UnimplementedMethod {
  using Request = RequestType;
  using Reply = ReplyType;
  struct State {};
  static absl::StatusOr<Step> Run(Control& control, const Request& request, State&, Reply&) {
    if (absl::Status status = control.CheckSession(request.session()); !status.ok()) return status;
    return absl::UnimplementedError("not in this version");
  }
};

// What the completion queue hands back.
class Tag {
 public:
  virtual ~Tag() = default;
  virtual void OnEvent(bool ok) = 0;
};

}  // namespace

class Service::Impl {
 public:
  Impl(Control& control, const Clock& clock, const Options& options)
      : control_(control), clock_(clock), options_(options), wake_tag_(*this) {}

  absl::Status Start();
  void Run();
  void Wake();
  void Shutdown();

 private:
  template <typename Method>
  class Call;
  class WatchCall;
  class WakeTag final : public Tag {
   public:
    explicit WakeTag(Impl& impl) : impl_(impl) {}
    // Pairs with the exchange in Wake(): what was posted before it is seen by the Poll() that
    // follows.
    void OnEvent(bool) override { impl_.waking_.store(false); }

   private:
    Impl& impl_;
  };

  void HandleEvent(void* tag, bool ok);

  Control& control_;
  const Clock& clock_;
  const Options options_;
  v1::Engine::AsyncService service_;
  std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  std::unique_ptr<grpc::Server> server_;

  // Control thread only.
  std::deque<Resumable*> slices_;  // Calls that want to go on.
  uint32_t calls_ = 0;             // Accepted and not answered.

  absl::Mutex mu_;
  bool closing_ ABSL_GUARDED_BY(mu_) = false;  // No alarm may be set any more.
  grpc::Alarm alarm_ ABSL_GUARDED_BY(mu_);
  std::atomic<bool> waking_{false};  // An alarm is on its way.
  WakeTag wake_tag_;
};

// One call of a method: posted, accepted, run in slices, answered.
template <typename Method>
class Service::Impl::Call final : public Tag, public Resumable {
 public:
  using Request = typename Method::Request;
  using Reply = typename Method::Reply;
  using Post = void (v1::Engine::AsyncService::*)(grpc::ServerContext*, Request*,
                                                  grpc::ServerAsyncResponseWriter<Reply>*,
                                                  grpc::CompletionQueue*,
                                                  grpc::ServerCompletionQueue*, void*);

  Call(Impl& impl, Post post) : impl_(impl), post_(post), writer_(&context_) {
    Tag* tag = this;
    (impl_.service_.*post_)(&context_, &request_, &writer_, impl_.queue_.get(), impl_.queue_.get(),
                            tag);
  }

  void OnEvent(bool ok) override {
    if (answered_) {
      --impl_.calls_;
      delete this;
      return;
    }
    if (!ok) {  // Shut down before a call came.
      delete this;
      return;
    }
    new Call(impl_, post_);
    ++impl_.calls_;
    if (impl_.calls_ > impl_.options_.max_calls) {
      Answer(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED,
                          "calls: this daemon has as many under way as it may"));
      return;
    }
    if constexpr (requires(typename Method::State s) { s.resumable; }) state_.resumable = this;
    if (context_.deadline() < std::chrono::system_clock::now()) {
      Answer(grpc::Status(grpc::StatusCode::DEADLINE_EXCEEDED, "arrived after its deadline"));
      return;
    }
    Resume();
  }

  void Resume() override {
    const absl::StatusOr<Step> step = Method::Run(impl_.control_, request_, state_, reply_);
    if (!step.ok()) {
      Answer(ToGrpc(step.status()));
    } else if (*step == Step::kMore) {
      impl_.slices_.push_back(this);
    } else if (*step == Step::kDone) {
      Answer(grpc::Status::OK);
    }
  }

 private:
  void Answer(const grpc::Status& status) {
    answered_ = true;
    Tag* tag = this;
    writer_.Finish(reply_, status, tag);
  }

  Impl& impl_;
  const Post post_;
  grpc::ServerContext context_;
  Request request_;
  Reply reply_;
  typename Method::State state_;
  grpc::ServerAsyncResponseWriter<Reply> writer_;
  bool answered_ = false;
};

// The one streaming method; not in this version.
class Service::Impl::WatchCall final : public Tag {
 public:
  explicit WatchCall(Impl& impl) : impl_(impl), writer_(&context_) {
    Tag* tag = this;
    impl_.service_.RequestWatch(&context_, &request_, &writer_, impl_.queue_.get(),
                                impl_.queue_.get(), tag);
  }
  void OnEvent(bool ok) override {
    if (answered_ || !ok) {
      delete this;
      return;
    }
    new WatchCall(impl_);
    answered_ = true;
    Tag* tag = this;
    writer_.Finish(ToGrpc(absl::UnimplementedError("events are not in this version")), tag);
  }

 private:
  Impl& impl_;
  grpc::ServerContext context_;
  v1::WatchRequest request_;
  grpc::ServerAsyncWriter<v1::WatchEvent> writer_;
  bool answered_ = false;
};

absl::Status Service::Impl::Start() {
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("unix:" + options_.path, grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service_);
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.SetMaxSendMessageSize(kMaxMessageBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options_.streams_per_connection);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  queue_ = builder.AddCompletionQueue();
  server_ = builder.BuildAndStart();
  if (server_ == nullptr) {
    return absl::UnavailableError(absl::StrCat("cannot listen at unix:", options_.path));
  }
  using Async = v1::Engine::AsyncService;
  new Call<OpenSessionMethod>(*this, &Async::RequestOpenSession);
  new Call<RegisterNamespaceMethod>(*this, &Async::RequestRegisterNamespace);
  new Call<LookupMethod>(*this, &Async::RequestLookup);
  new Call<LoadMethod>(*this, &Async::RequestLoad);
  new Call<ReleaseMethod>(*this, &Async::RequestRelease);
  new Call<ReserveMethod>(*this, &Async::RequestReserve);
  new Call<CommitMethod>(*this, &Async::RequestCommit);
  new Call<AbortMethod>(*this, &Async::RequestAbort);
  new Call<PinMethod>(*this, &Async::RequestPin);
  new Call<UnpinMethod>(*this, &Async::RequestUnpin);
  new Call<UnimplementedMethod<v1::PrefetchRequest, v1::PrefetchReply>>(*this,
                                                                        &Async::RequestPrefetch);
  new Call<HintMethod>(*this, &Async::RequestHint);
  new Call<UnimplementedMethod<v1::RetainRequest, v1::RetainReply>>(*this, &Async::RequestRetain);
  new WatchCall(*this);
  return absl::OkStatus();
}

void Service::Impl::HandleEvent(void* tag, bool ok) {
  control_.Poll();  // A session is known before its first call is looked at.
  static_cast<Tag*>(tag)->OnEvent(ok);
}

void Service::Impl::Run() {
  void* tag = nullptr;
  bool ok = false;
  while (true) {
    control_.Poll();
    while (Resumable* ready = control_.NextReady()) ready->Resume();

    if (!slices_.empty()) {
      for (int i = 0; i < kArrivalsPerSlice; ++i) {
        const auto next = queue_->AsyncNext(&tag, &ok, gpr_time_0(GPR_CLOCK_MONOTONIC));
        if (next != grpc::CompletionQueue::GOT_EVENT) break;
        HandleEvent(tag, ok);
      }
      Resumable* slice = slices_.front();
      slices_.pop_front();
      slice->Resume();
      continue;
    }
    const Nanos deadline = control_.NextDeadline();
    if (deadline == INT64_MAX) {
      if (!queue_->Next(&tag, &ok)) return;
      HandleEvent(tag, ok);
      continue;
    }
    const Nanos wait = std::max<Nanos>(0, deadline - clock_.Now());
    const auto next = queue_->AsyncNext(
        &tag, &ok,
        gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_nanos(wait, GPR_TIMESPAN)));
    if (next == grpc::CompletionQueue::SHUTDOWN) return;
    if (next == grpc::CompletionQueue::GOT_EVENT) HandleEvent(tag, ok);
  }
}

void Service::Impl::Wake() {
  if (waking_.exchange(true)) return;
  absl::MutexLock lock(&mu_);
  if (closing_) return;
  Tag* tag = &wake_tag_;
  alarm_.Set(queue_.get(), gpr_inf_past(GPR_CLOCK_MONOTONIC), tag);
}

void Service::Impl::Shutdown() {
  server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(2));
  absl::MutexLock lock(&mu_);
  if (std::exchange(closing_, true)) return;
  queue_->Shutdown();
}

Service::Service(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Service::~Service() = default;

absl::StatusOr<std::unique_ptr<Service>> Service::Start(Control& control, const Clock& clock,
                                                        const Options& options) {
  auto impl = std::make_unique<Impl>(control, clock, options);
  if (absl::Status status = impl->Start(); !status.ok()) return status;
  return std::unique_ptr<Service>(new Service(std::move(impl)));
}

void Service::Run() { impl_->Run(); }
void Service::Wake() { impl_->Wake(); }
void Service::Shutdown() { impl_->Shutdown(); }

}  // namespace kvd
