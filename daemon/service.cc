#include "daemon/service.h"

#include <grpcpp/alarm.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/server_posix.h>
#include <sched.h>

#include <chrono>
#include <cstring>
#include <iterator>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "daemon/activation.h"
#include "daemon/call_log.h"
#include "daemon/grpc_status.h"
#include "daemon/methods.h"
#include "daemon/trace_context.h"
#include "proto/kvd.grpc.pb.h"
#include "proto/types/session_wire.h"

namespace kvd {
namespace {

// How many arrivals are served between two slices of long calls.
constexpr int kArrivalsPerSlice = 16;
// A deadline beyond this is none.
constexpr auto kLongestCall = std::chrono::milliseconds(std::chrono::hours(2));

// The trace context of a call that carries one, and only one.
std::optional<TraceContext> FindTrace(const grpc::ServerContext& context) {
  const auto [first, last] = context.client_metadata().equal_range("traceparent");
  if (first == last || std::next(first) != last) return std::nullopt;
  return ParseTraceparent({first->second.data(), first->second.size()});
}

// The methods that are refused are not parsed: gRPC keeps what came of a message that is none until
// the next call of its method, which may never come.
using AsyncEngine = v1::Engine::WithRawMethod_OpenSession<
    v1::Engine::WithRawMethod_Watch<v1::Engine::AsyncService>>;

// What the completion queue hands back.
class Tag {
 public:
  virtual ~Tag() = default;
  virtual void OnEvent(bool ok) = 0;
};

// A call that waits to come.
class Posted : public Tag {
 public:
  // Frees what gRPC has read into it of a message that turned out to be none, and left there: it
  // tells nobody, and waits for the next. Returns how many bytes that was on the wire.
  virtual size_t ForgetUnparsed() = 0;
};

}  // namespace

class Service::Impl {
 public:
  Impl(Control& control, const Clock& clock, const Options& options)
      : control_(control), clock_(clock), options_(options), wake_tag_(*this) {}
  ~Impl();

  absl::Status Start();
  void Run();
  void Wake();
  void Shutdown();
  size_t ForgetUnparsed();
  const ServiceMetrics& metrics() const { return metrics_; }

 private:
  template <typename Method>
  class Call;
  class RefusedStream;
  class WakeTag final : public Tag {
   public:
    explicit WakeTag(Impl& impl) : impl_(impl) {}
    // Pairs with the exchange in Wake(): what was posted before it is seen by the Poll() that
    // follows.
    void OnEvent(bool) override { impl_.waking_.store(false); }

   private:
    Impl& impl_;
  };

  // The first call of a method; each posts the one after it.
  template <typename Method>
  void PostFirst(Op op, typename Call<Method>::Post post) {
    posted_.push_back(nullptr);
    new Call<Method>(*this, op, post, posted_.size() - 1);
  }
  void HandleEvent(void* tag, bool ok);
  uint32_t BeginSessionCall(std::string_view session, std::optional<SessionToken>& counted);
  void EndSessionCall(const std::optional<SessionToken>& counted);

  Control& control_;
  const Clock& clock_;
  const Options options_;
  AsyncEngine service_;
  std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<Acceptor> acceptor_;

  // Control thread only.
  std::deque<Resumable*> slices_;  // Calls that want to go on.
  std::vector<Posted*> posted_;    // By slot, one a method; null: shut down.
  const Tag* arrived_ = nullptr;   // What is about to be handled: its message is one.
  // Calls under way, by what they name: no more entries than calls.
  absl::flat_hash_map<SessionToken, uint32_t> session_calls_;
  ServiceMetrics metrics_;

  absl::Mutex mu_;
  bool closing_ ABSL_GUARDED_BY(mu_) = false;  // No alarm may be set any more.
  grpc::Alarm alarm_ ABSL_GUARDED_BY(mu_);
  std::atomic<bool> waking_{false};  // An alarm is on its way.
  WakeTag wake_tag_;
};

// One call of a method: posted, accepted, run in slices, answered.
template <typename Method>
class Service::Impl::Call final : public Posted, public Resumable {
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

  // `slot`: where the call of this method that waits is known.
  Call(Impl& impl, Op op, Post post, size_t slot)
      : impl_(impl), op_(op), post_(post), slot_(slot), writer_(&context_) {
    impl_.posted_[slot_] = this;
    Tag* tag = this;
    (impl_.service_.*post_)(&context_, &request_, &writer_, impl_.queue_.get(), impl_.queue_.get(),
                            tag);
  }

  void OnEvent(bool ok) override {
    if (answered_) {
      --impl_.metrics_.calls;
      --*domain_calls_;
      impl_.EndSessionCall(session_);
      if (!ok) TakeBack();
      delete this;
      return;
    }
    if (!ok) {  // Shut down before a call came.
      impl_.posted_[slot_] = nullptr;
      delete this;
      return;
    }
    new Call(impl_, op_, post_, slot_);
    arrived_ = impl_.control_.polled_at();
    ++impl_.metrics_.calls;
    uint32_t session_calls = 0;
    if constexpr (requires(Request r) { r.session(); }) {
      domain_calls_ = &impl_.control_.CallsUnderWay(request_.session());
      session_calls = impl_.BeginSessionCall(request_.session(), session_);
    } else {
      domain_calls_ = &impl_.control_.CallsUnderWay({});
    }
    ++*domain_calls_;
    if (*domain_calls_ > impl_.options_.max_domain_calls) {
      ++impl_.metrics_.calls_refused;
      Answer(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED,
                          "calls: this user has as many under way as one may"));
      return;
    }
    if (session_calls > impl_.options_.max_session_calls) {
      ++impl_.metrics_.calls_refused;
      Answer(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED,
                          "calls: this session has as many under way as one may"));
      return;
    }
    if (impl_.metrics_.calls > impl_.options_.max_calls) {
      ++impl_.metrics_.calls_refused;
      Answer(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED,
                          "calls: this daemon has as many under way as it may"));
      return;
    }
    if constexpr (requires(typename Method::State s) { s.resumable; }) state_.resumable = this;
    const auto now = std::chrono::system_clock::now();
    if (context_.deadline() < now) {
      ++impl_.metrics_.ops[static_cast<size_t>(op_)].late;
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

  size_t ForgetUnparsed() override {
    const size_t bytes = request_.ByteSizeLong();
    if (bytes > 0) Request().Swap(&request_);
    return bytes;
  }

  void Resume() override {
    const bool late = std::exchange(resumed_, true);
    const absl::StatusOr<Step> step = Method::Run(impl_.control_, request_, state_, reply_);
    if (!step.ok()) {
      Answer(ToGrpc(step.status()));
    } else if (*step == Step::kMore) {
      impl_.slices_.push_back(this);
      ++impl_.metrics_.slices;
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
    // Our own word, not that of a connection which broke: the session goes on.
    if (status.error_code() == grpc::StatusCode::UNAVAILABLE) {
      context_.AddTrailingMetadata(kDrainingKey, "1");
    }
    Tag* tag = this;
    writer_.Finish(reply_, status, tag);
    // After the answer is on its way: the caller does not wait for our arithmetic.
    ServiceMetrics::OfOp& counts = impl_.metrics_.ops[static_cast<size_t>(op_)];
    ++counts.answers[static_cast<size_t>(status.error_code())];
    Nanos took = 0;
    if (impl_.options_.count_operations) {
      took = impl_.clock_.Now() - arrived_;
      counts.duration.Observe(static_cast<uint64_t>(took));
    }
    if (impl_.options_.log != nullptr &&
        impl_.options_.log->Wants(op_, status.error_code(), took)) {
      impl_.options_.log->Write({.op = op_,
                                 .code = status.error_code(),
                                 .took = took,
                                 .now = arrived_ + took,
                                 .error = status.error_message(),
                                 .trace = FindTrace(context_)});
    }
  }

  void TakeBack() {
    if constexpr (kGives) {
      if (!std::exchange(taken_back_, true)) Method::Unheard(impl_.control_, request_, state_);
    }
  }

  Impl& impl_;
  const Op op_;
  const Post post_;
  const size_t slot_;
  grpc::ServerContext context_;
  Request request_;
  Reply reply_;
  typename Method::State state_;
  grpc::ServerAsyncResponseWriter<Reply> writer_;
  Nanos arrived_ = 0;
  uint32_t* domain_calls_ = nullptr;     // Where this one is counted, from its arrival on.
  std::optional<SessionToken> session_;  // In whose count this call is.
  bool answered_ = false;
  bool resumed_ = false;
  bool taken_back_ = false;
};

// A method that answers with a stream, which this server does not have.
class Service::Impl::RefusedStream final : public Tag {
 public:
  using Post = void (AsyncEngine::*)(grpc::ServerContext*, grpc::ByteBuffer*,
                                     grpc::ServerAsyncWriter<grpc::ByteBuffer>*,
                                     grpc::CompletionQueue*, grpc::ServerCompletionQueue*, void*);

  RefusedStream(Impl& impl, Post post, const char* why)
      : impl_(impl), post_(post), why_(why), writer_(&context_) {
    Tag* tag = this;
    (impl_.service_.*post_)(&context_, &request_, &writer_, impl_.queue_.get(), impl_.queue_.get(),
                            tag);
  }
  void OnEvent(bool ok) override {
    if (answered_ || !ok) {
      delete this;
      return;
    }
    new RefusedStream(impl_, post_, why_);
    answered_ = true;
    Tag* tag = this;
    writer_.Finish(ToGrpc(absl::UnimplementedError(why_)), tag);
  }

 private:
  Impl& impl_;
  const Post post_;
  const char* const why_;
  grpc::ServerContext context_;
  grpc::ByteBuffer request_;
  grpc::ServerAsyncWriter<grpc::ByteBuffer> writer_;
  bool answered_ = false;
};

absl::Status Service::Impl::Start() {
  // Its queue and threads would poll our connections too, and wake us second. Other servers have
  // it.
  grpc::EnableDefaultHealthCheckService(false);
  grpc::ServerBuilder builder;
  builder.RegisterService(&service_);
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.SetMaxSendMessageSize(kMaxMessageBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options_.streams_per_connection);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // Pings that measure a network's delay, and counts of each call that nobody asks for: together
  // they cost a small call 3 of its 45 us.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  builder.AddChannelArgument(GRPC_ARG_ENABLE_CHANNELZ, 0);
  builder.SetResourceQuota(grpc::ResourceQuota("engine").Resize(options_.max_message_memory));
  queue_ = builder.AddCompletionQueue();
  server_ = builder.BuildAndStart();
  if (server_ == nullptr) {
    return absl::InternalError("gRPC does not start a server for engines");
  }
  using Async = v1::Engine::AsyncService;
  using Prefetch = UnimplementedMethod<v1::PrefetchRequest, v1::PrefetchReply>;
  using Retain = UnimplementedMethod<v1::RetainRequest, v1::RetainReply>;
  PostFirst<RegisterNamespaceMethod>(Op::kRegisterNamespace, &Async::RequestRegisterNamespace);
  PostFirst<LookupMethod>(Op::kLookup, &Async::RequestLookup);
  PostFirst<LoadMethod>(Op::kLoad, &Async::RequestLoad);
  PostFirst<ReleaseMethod>(Op::kRelease, &Async::RequestRelease);
  PostFirst<ReserveMethod>(Op::kReserve, &Async::RequestReserve);
  PostFirst<CommitMethod>(Op::kCommit, &Async::RequestCommit);
  PostFirst<AbortMethod>(Op::kAbort, &Async::RequestAbort);
  PostFirst<PinMethod>(Op::kPin, &Async::RequestPin);
  PostFirst<UnpinMethod>(Op::kUnpin, &Async::RequestUnpin);
  PostFirst<Prefetch>(Op::kOther, &Async::RequestPrefetch);
  PostFirst<HintMethod>(Op::kOther, &Async::RequestHint);
  PostFirst<Retain>(Op::kOther, &Async::RequestRetain);
  new RefusedStream(
      *this, &AsyncEngine::RequestOpenSession,
      "a session without shared memory is opened at PATH.stream; here, connect to PATH.session");
  new RefusedStream(*this, &AsyncEngine::RequestWatch,
                    "where blocks are is told at PATH.stream and over TCP; connect there");
  const auto adopt = [this](int fd) { grpc::AddInsecureChannelFromFd(server_.get(), fd); };
  absl::StatusOr<std::unique_ptr<Acceptor>> acceptor =
      options_.listener < 0 ? Acceptor::Listen(options_.path, adopt)
                            : Acceptor::Start(options_.listener, adopt);
  if (!acceptor.ok()) return acceptor.status();
  acceptor_ = *std::move(acceptor);
  return absl::OkStatus();
}

// How many there are with this one. What is no token is not counted: it names no session.
uint32_t Service::Impl::BeginSessionCall(std::string_view session,
                                         std::optional<SessionToken>& counted) {
  if (session.size() != sizeof(SessionToken)) return 0;
  std::memcpy(counted.emplace().data(), session.data(), session.size());
  return ++session_calls_[*counted];
}

void Service::Impl::EndSessionCall(const std::optional<SessionToken>& counted) {
  if (!counted.has_value()) return;
  const auto it = session_calls_.find(*counted);
  if (--it->second == 0) session_calls_.erase(it);
}

void Service::Impl::HandleEvent(void* tag, bool ok) {
  arrived_ = static_cast<Tag*>(tag);
  control_.Poll();  // A session is known before its first call is looked at.
  arrived_ = nullptr;
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
      --metrics_.slices;
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

size_t Service::Impl::ForgetUnparsed() {
  size_t bytes = 0;
  for (Posted* call : posted_) {
    if (call != nullptr && call != arrived_) bytes += call->ForgetUnparsed();
  }
  return bytes;
}

void Service::Impl::Wake() {
  if (waking_.exchange(true)) return;
  absl::MutexLock lock(&mu_);
  if (closing_) return;
  Tag* tag = &wake_tag_;
  alarm_.Set(queue_.get(), gpr_inf_past(GPR_CLOCK_MONOTONIC), tag);
}

void Service::Impl::Shutdown() {
  acceptor_.reset();
  server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(2));
  absl::MutexLock lock(&mu_);
  if (std::exchange(closing_, true)) return;
  queue_->Shutdown();
}

// One that never ran, as when a start fails further on, still has calls posted.
Service::Impl::~Impl() {
  if (server_ == nullptr) return;
  Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (queue_->Next(&tag, &ok)) static_cast<Tag*>(tag)->OnEvent(/*ok=*/false);
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
size_t Service::ForgetUnparsed() { return impl_->ForgetUnparsed(); }
const ServiceMetrics& Service::metrics() const { return impl_->metrics(); }

}  // namespace kvd
