// Lookups that nobody sits out: an engine's scheduler starts one and asks later whether it has
// ended. One thread makes one after another, because a lookup takes less time than it takes to wake
// more threads.
//
// Threads: everything is safe from any thread, and nothing but the destructor waits for the daemon.
// Bounds: kMaxWaiting lookups wait; the next one is refused.

#pragma once

#include <cstddef>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/client.h"

namespace kvd {

class AsyncLookups {
 public:
  static constexpr size_t kMaxWaiting = 256;
  struct Started;  // One lookup.
  using Ticket = std::shared_ptr<Started>;

  explicit AsyncLookups(Client& client) : client_(client) {}  // `client` outlives this.
  // What was not begun ends as kCancelled. What is under way is waited for, until its deadline.
  ~AsyncLookups() { Stop(); }
  AsyncLookups(const AsyncLookups&) = delete;
  AsyncLookups& operator=(const AsyncLookups&) = delete;

  // As Client::Lookup(), with copies of its arguments. The timeout counts from now on, so the time
  // spent behind others is a part of it. kResourceExhausted: kMaxWaiting wait, or no thread can be
  // had. kCancelled: after Stop().
  absl::StatusOr<Ticket> Start(const Namespace& ns, std::string_view keys,
                               const LookupOptions& options);

  // The answer, or nothing while it is under way. The lease of the first answer given is the
  // caller's to release; later answers say the same.
  std::optional<LookupResult> Poll(const Ticket& ticket);

  // The caller is interested no more. An answer that it did not take, or that comes yet, gives its
  // lease back.
  void Leave(const Ticket& ticket);

  // As the destructor; Poll() and Leave() are still good afterwards, without the client.
  void Stop();

 private:
  void Run();
  // Not once stopped: then the client goes too, and with its session every lease.
  void GiveBack(const LookupResult& result) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  Client& client_;
  absl::Mutex mu_;
  std::deque<Ticket> waiting_ ABSL_GUARDED_BY(mu_);
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_ ABSL_GUARDED_BY(mu_);  // From the first Start() on.
};

}  // namespace kvd
