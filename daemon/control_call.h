// One method of methods.h, run on the control thread for a thread that waits for the answer: the
// way of every other front end in. It goes in slices like a call of an engine; each slice is an
// entry of the inbox, so what has arrived meanwhile has its turn.
//
// Threads: constructed and run by the caller's. Run() returns only when the control thread is done
// with the call, so request and state may lie on the caller's stack; the control thread outlives
// all of them (the gateway stops before it).

#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <utility>

#include "absl/status/status.h"
#include "absl/synchronization/notification.h"
#include "daemon/control.h"
#include "daemon/inbox.h"
#include "daemon/methods.h"

namespace kvd {

template <typename Method>
class ControlCall final : public Resumable {
 public:
  using Request = typename Method::Request;
  using Reply = typename Method::Reply;
  // Looks, on the control thread, at what a call that succeeded has given.
  using Then = std::function<void(Control&, const typename Method::State&)>;

  // No wait goes on after `deadline`.
  ControlCall(Inbox& inbox, const Request& request, std::chrono::system_clock::time_point deadline)
      : inbox_(inbox), request_(request) {
    if constexpr (requires(typename Method::State s) { s.resumable; }) state_.resumable = this;
    if constexpr (requires(typename Method::State s) { s.remaining_ms; }) {
      const auto now = std::chrono::system_clock::now();
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
          std::clamp(deadline, now, now + std::chrono::hours(1)) - now);
      state_.remaining_ms = static_cast<uint32_t>(left.count());
    }
  }

  absl::Status Run(Reply& reply, Then then = nullptr) {
    reply_ = &reply;
    then_ = std::move(then);
    PostSlice();
    done_.WaitForNotification();
    return result_;
  }

  // Takes back what the answer gave, when it cannot be sent. Requires: Run() succeeded.
  void Unheard() {
    if constexpr (requires(Control & c) { Method::Unheard(c, request_, state_); }) {
      absl::Notification taken_back;
      inbox_.Post(Task{[&](Control& control) {
        Method::Unheard(control, request_, state_);
        taken_back.Notify();
      }});
      taken_back.WaitForNotification();
    }
  }

  const typename Method::State& state() const { return state_; }

 private:
  void PostSlice() {
    inbox_.Post(Task{[this](Control& control) {
      control_ = &control;
      Resume();
    }});
  }

  void Resume() override {
    const absl::StatusOr<Step> step = Method::Run(*control_, request_, state_, *reply_);
    if (step.ok() && *step == Step::kMore) return PostSlice();
    if (step.ok() && *step == Step::kWait) return;
    if (step.ok() && then_ != nullptr) then_(*control_, state_);
    result_ = step.status();
    done_.Notify();
  }

  Inbox& inbox_;
  const Request& request_;
  typename Method::State state_;
  Reply* reply_ = nullptr;
  Then then_;
  Control* control_ = nullptr;
  absl::Status result_;
  absl::Notification done_;
};

}  // namespace kvd
