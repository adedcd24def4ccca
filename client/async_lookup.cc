#include "client/async_lookup.h"

#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace kvd {

struct AsyncLookups::Started {
  // Constant once it waits.
  Namespace ns;
  std::string keys;
  std::string parent;
  absl::Duration lease;
  absl::Time deadline = absl::InfiniteFuture();  // Infinite: the client's, from when it begins.

  // Guarded by mu_ of the AsyncLookups.
  std::optional<LookupResult> result;
  bool taken = false;  // The lease is the caller's.
  bool left = false;
};

absl::StatusOr<AsyncLookups::Ticket> AsyncLookups::Start(const Namespace& ns, std::string_view keys,
                                                         const LookupOptions& options) {
  auto started = std::make_shared<Started>();
  started->ns = ns;
  started->keys = keys;
  started->parent = options.parent;
  started->lease = options.lease;
  if (options.timeout > absl::ZeroDuration()) started->deadline = absl::Now() + options.timeout;
  absl::MutexLock lock(&mu_);
  if (stopped_) return absl::CancelledError("lookup: the client is going");
  if (waiting_.size() >= kMaxWaiting) {
    return absl::ResourceExhaustedError(absl::StrCat("lookup: ", kMaxWaiting, " wait already"));
  }
  if (!thread_.joinable()) {
    try {
      thread_ = std::thread([this] { Run(); });
    } catch (const std::system_error& error) {
      return absl::ResourceExhaustedError(absl::StrCat("lookup: no thread: ", error.what()));
    }
  }
  waiting_.push_back(started);
  return started;
}

std::optional<LookupResult> AsyncLookups::Poll(const Ticket& ticket) {
  absl::MutexLock lock(&mu_);
  ticket->taken = ticket->result.has_value();
  return ticket->result;
}

void AsyncLookups::Leave(const Ticket& ticket) {
  absl::MutexLock lock(&mu_);
  ticket->left = true;
  if (ticket->result.has_value() && !ticket->taken) GiveBack(*ticket->result);
}

void AsyncLookups::GiveBack(const LookupResult& result) {
  if (result.lease_id != 0 && !stopped_) client_.ReleaseLease(result.lease_id);
}

void AsyncLookups::Stop() {
  std::thread thread;
  {
    absl::MutexLock lock(&mu_);
    stopped_ = true;
    for (const Ticket& ticket : waiting_) {
      ticket->result.emplace().status = absl::CancelledError("lookup: the client went");
    }
    waiting_.clear();
    thread = std::move(thread_);
  }
  if (thread.joinable()) thread.join();
}

void AsyncLookups::Run() {
  const auto due = [this]()
                       ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stopped_ || !waiting_.empty(); };
  while (true) {
    Ticket ticket;
    {
      absl::MutexLock lock(&mu_);
      mu_.Await(absl::Condition(&due));
      if (stopped_) return;
      ticket = std::move(waiting_.front());
      waiting_.pop_front();
      if (ticket->left) continue;
    }
    LookupResult result;
    LookupOptions options{.lease = ticket->lease, .parent = ticket->parent};
    if (ticket->deadline != absl::InfiniteFuture()) {
      options.timeout = ticket->deadline - absl::Now();
    }
    if (options.timeout < absl::ZeroDuration()) {
      result.status = absl::DeadlineExceededError("lookup: others took its time");
    } else {
      result = client_.Lookup(ticket->ns, ticket->keys, options);
    }
    absl::MutexLock lock(&mu_);
    if (ticket->left) GiveBack(result);
    ticket->result = std::move(result);
  }
}

}  // namespace kvd
