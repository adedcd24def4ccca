// A call of the engine service that its caller need not sit out: it can do other work while the
// call is under way, and it can leave by its deadline although the answer may still come. What such
// a late answer gives (a hold, a lease, a reservation, a pin) would be nobody's: LateCalls waits
// for it in the background and gives it back.
//
// Threads: a PendingCall is used by one thread at a time. LateCalls is safe from any thread; it has
// a thread of its own, from the first late call on.

#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/support/async_unary_call.h>

#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/convert.h"
#include "proto/kvd.grpc.pb.h"

namespace kvd {

class PendingCallBase {
 public:
  PendingCallBase() = default;
  virtual ~PendingCallBase() = default;  // Requires: the call has ended.
  PendingCallBase(const PendingCallBase&) = delete;
  PendingCallBase& operator=(const PendingCallBase&) = delete;

  // Whether the call has ended, waiting until `until` for that. A time in the past only looks. For
  // the first `spin` of it the thread does not sleep.
  bool Await(absl::Time until, absl::Duration spin = absl::ZeroDuration());
  bool ended() const { return ended_; }
  void Cancel() { context_.TryCancel(); }
  // Ends it here at once, whatever the daemon does. No effect on one that has ended.
  void GiveUp();
  // How it ended. Requires: ended().
  absl::Status status() const { return EndOf(context_, status_); }

  // Says what became of a call that ended after its caller had left. Set by who makes it late.
  std::function<void(PendingCallBase&)> settle;

 protected:
  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;  // Of this call alone: whoever waits drives it.
  grpc::Status status_;
  bool ended_ = false;

 private:
  bool Ends(absl::Time by);  // Sleeps until it does, or until then.
};

template <typename Request, typename ReplyType>
class PendingCall final : public PendingCallBase {
 public:
  using Reply = ReplyType;
  using Method = std::unique_ptr<grpc::ClientAsyncResponseReader<Reply>> (v1::Engine::Stub::*)(
      grpc::ClientContext*, const Request&, grpc::CompletionQueue*);

  // Sends `request`, which is not needed afterwards. The call ends by `deadline`.
  PendingCall(v1::Engine::Stub& stub, Method method, const Request& request, absl::Time deadline) {
    context_.set_deadline(absl::ToChronoTime(deadline));
    reader_ = (stub.*method)(&context_, request, &queue_);
    reader_->Finish(&reply_, &status_, this);
  }

  ~PendingCall() override { GiveUp(); }  // While what it writes to is still there.

  // Requires: ended().
  Reply& reply() { return reply_; }

 private:
  Reply reply_;
  std::unique_ptr<grpc::ClientAsyncResponseReader<Reply>> reader_;
};

// Calls whose callers have left. Each ends by its own deadline and is then settled.
class LateCalls {
 public:
  static constexpr size_t kMaxLate = 256;

  ~LateCalls() { Stop(); }

  // False: there are too many, or no thread; the call is given up unsettled.
  bool Add(std::unique_ptr<PendingCallBase> call);
  // Gives up what is still under way, and ends the thread. Nothing may be added afterwards.
  void Stop();

 private:
  void Run();

  absl::Mutex mu_;
  std::deque<std::unique_ptr<PendingCallBase>> calls_ ABSL_GUARDED_BY(mu_);
  PendingCallBase* awaited_ ABSL_GUARDED_BY(mu_) = nullptr;  // By the thread.
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kvd
