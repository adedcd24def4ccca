#include "client/pending_call.h"

#include <algorithm>
#include <system_error>

namespace kvd {

void PendingCallBase::GiveUp() {
  if (ended_) return;
  context_.TryCancel();
  Await(absl::InfiniteFuture());
}

bool PendingCallBase::Await(absl::Time until, absl::Duration spin) {
  if (ended_) return true;
  if (spin > absl::ZeroDuration()) {
    const absl::Time asleep_from = std::min(until, absl::Now() + spin);
    while (absl::Now() < asleep_from) {
      if (Ends(absl::UnixEpoch())) return true;
    }
  }
  // gRPC takes a time before the epoch for one that never comes.
  return Ends(std::max(until, absl::UnixEpoch()));
}

bool PendingCallBase::Ends(absl::Time by) {
  void* tag = nullptr;
  bool ok = false;
  const auto deadline = absl::ToChronoTime(by);
  ended_ = queue_.AsyncNext(&tag, &ok, deadline) == grpc::CompletionQueue::GOT_EVENT;
  return ended_;
}

bool LateCalls::Add(std::unique_ptr<PendingCallBase> call) {
  absl::MutexLock lock(&mu_);
  if (stopped_ || calls_.size() >= kMaxLate) return false;
  if (!thread_.joinable()) {
    try {
      thread_ = std::thread([this] { Run(); });
    } catch (const std::system_error&) {
      return false;
    }
  }
  calls_.push_back(std::move(call));
  return true;
}

void LateCalls::Stop() {
  std::thread thread;
  {
    absl::MutexLock lock(&mu_);
    stopped_ = true;
    if (awaited_ != nullptr) awaited_->Cancel();
    thread = std::move(thread_);
  }
  if (thread.joinable()) thread.join();
}

// One after the other: all have about the same time left, so those behind are late by little.
void LateCalls::Run() {
  const auto due = [this]()
                       ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stopped_ || !calls_.empty(); };
  while (true) {
    std::unique_ptr<PendingCallBase> call;
    {
      absl::MutexLock lock(&mu_);
      awaited_ = nullptr;
      mu_.Await(absl::Condition(&due));
      if (stopped_) break;
      call = std::move(calls_.front());
      calls_.pop_front();
      awaited_ = call.get();
    }
    call->Await(absl::InfiniteFuture());
    {
      absl::MutexLock lock(&mu_);
      awaited_ = nullptr;  // It is about to go.
    }
    call->settle(*call);
  }
  absl::MutexLock lock(&mu_);
  calls_.clear();
}

}  // namespace kvd
