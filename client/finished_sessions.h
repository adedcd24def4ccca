// The sessions of this process that are over and that nothing of it reads any more, until a daemon
// has heard of it: room that was held under them is not handed out before
// (daemon/former_readers.h).
//
// One list for the process, though nothing else here is global: what a process still reads is a
// fact about the process. A client that is destroyed while its daemon is away can tell nobody, and
// a daemon that starts then would wait for it as long as the process lives. The next session that
// any client opens at that path tells.
//
// Threads: any.

#pragma once

#include <cstddef>
#include <deque>
#include <map>
#include <string>

#include "absl/synchronization/mutex.h"
#include "proto/types/session_wire.h"

namespace kvd {

class FinishedSessions {
 public:
  // The newest of one path are remembered; what is forgotten is over when the process is.
  static constexpr size_t kMaxOfAPath = 64;
  static constexpr size_t kMaxPaths = 64;

  static FinishedSessions& OfThisProcess();

  // `path` is where the daemon listens.
  void Add(const std::string& path, const SessionToken& token);
  // One of them, which is now the caller's to tell; zeros: there is none.
  SessionToken Take(const std::string& path);

 private:
  absl::Mutex mu_;
  std::map<std::string, std::deque<SessionToken>> tokens_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kvd
