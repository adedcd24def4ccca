#include "daemon/service.h"

#include <grpcpp/alarm.h>
#include <grpcpp/grpcpp.h>
#include <sched.h>

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/methods.h"
#include "proto/kvd.grpc.pb.h"

namespace kvd {
namespace {

// How many arrivals are served between two slices of long calls.
constexpr int kArrivalsPerSlice = 16;
// A deadline beyond this is none.
constexpr auto kLongestCall = std::chrono::milliseconds(std::chrono::hours(2));

grpc::Status ToGrpc(const absl::Status& status) {
  return {static_cast<grpc::StatusCode>(status.code()), std::string(status.message())};
}

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

  // Whether its answer gives something that an unheard one must take back.
  static constexpr bool kGives =
      requires(Control & control, const Request& request, const typename Method::State& state) {
    Method::Unheard(control, request, state);
  };

  Call(Impl& impl, Post post) : impl_(impl), post_(post), writer_(&context_) {
    Tag* tag = this;
    (impl_.service_.*post_)(&context_, &request_, &writer_, impl_.queue_.get(), impl_.queue_.get(),
                            tag);
  }

  void OnEvent(bool ok) override {
    if (answered_) {
      --impl_.calls_;
      --*domain_calls_;
      if (!ok) TakeBack();
      delete this;
      return;
    }
    if (!ok) {  // Shut down before a call came.
      delete this;
      return;
    }
    new Call(impl_, post_);
    ++impl_.calls_;
    if constexpr (requires(Request r) { r.session(); }) {
      domain_calls_ = &impl_.control_.CallsUnderWay(request_.session());
    } else {
      domain_calls_ = &impl_.control_.CallsUnderWay({});
    }
    ++*domain_calls_;
    if (*domain_calls_ > impl_.options_.max_domain_calls) {
      Answer(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED,
                          "calls: this user has as many under way as one may"));
      return;
    }
    if (impl_.calls_ > impl_.options_.max_calls) {
      Answer(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED,
                          "calls: this daemon has as many under way as it may"));
      return;
    }
    if constexpr (requires(typename Method::State s) { s.resumable; }) state_.resumable = this;
    const auto now = std::chrono::system_clock::now();
    if (context_.deadline() < now) {
      Answer(grpc::Status(grpc::StatusCode::DEADLINE_EXCEEDED, "arrived after its deadline"));
      return;
    }
    if constexpr (requires(typename Method::State s) { s.remaining_ms; }) {
      const auto left =
          std::chrono::duration_cast<std::chrono::milliseconds>(context_.deadline() - now);
      state_.remaining_ms = left > kLongestCall ? impl_.options_.endless_call_ms
                                                : static_cast<uint32_t>(left.count());
    }
    Resume();
  }

  void Resume() override {
    const bool late = std::exchange(resumed_, true);
    const absl::StatusOr<Step> step = Method::Run(impl_.control_, request_, state_, reply_);
    if (!step.ok()) {
      Answer(ToGrpc(step.status()));
    } else if (*step == Step::kMore) {
      impl_.slices_.push_back(this);
    } else if (*step == Step::kDone) {
      // One that took its time may have outlived its caller, who would not know what it was given.
      if (kGives && late && context_.deadline() < std::chrono::system_clock::now()) {
        TakeBack();
        Answer(grpc::Status(grpc::StatusCode::DEADLINE_EXCEEDED, "answered after its deadline"));
      } else {
        Answer(grpc::Status::OK);
      }
    }
  }

 private:
  void Answer(const grpc::Status& status) {
    answered_ = true;
    Tag* tag = this;
    writer_.Finish(reply_, status, tag);
  }

  void TakeBack() {
    if constexpr (kGives) {
      if (!std::exchange(taken_back_, true)) Method::Unheard(impl_.control_, request_, state_);
    }
  }

  Impl& impl_;
  const Post post_;
  grpc::ServerContext context_;
  Request request_;
  Reply reply_;
  typename Method::State state_;
  grpc::ServerAsyncResponseWriter<Reply> writer_;
  uint32_t* domain_calls_ = nullptr;  // Where this one is counted, from its arrival on.
  bool answered_ = false;
  bool resumed_ = false;
  bool taken_back_ = false;
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
  builder.SetResourceQuota(grpc::ResourceQuota("engine").Resize(options_.max_message_memory));
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
      sched_yield();  // To those whose calls would be served first, had they a CPU to make them on.
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
