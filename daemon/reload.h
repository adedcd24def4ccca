// Changes the configuration while the daemon runs: reads the file again, takes what is live, and
// names what needs a restart. SIGHUP and the operators' service call it.
//
// Threads: everything is safe from any thread. Reloads come one after another.

#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "daemon/config.h"

namespace kvd {

class ConfigReloader {
 public:
  struct Outcome {
    std::vector<std::string> changed;        // Names of options, now in force.
    std::vector<std::string> needs_restart;  // The file says otherwise than what is in force.
  };
  // Puts into force what is live. Called with the configuration as it is then, by the thread that
  // reloads, and only if something changed.
  using Apply = std::function<void(const Config& config)>;
  // Puts into force what the files hold that the configuration names, and tells the options whose
  // files have changed. kInvalidArgument: one has a mistake, and nothing has changed.
  using Renew = std::function<absl::StatusOr<std::vector<std::string>>(const Config& config)>;

  // `renew` may be null: there are no such files.
  ConfigReloader(Config running, Apply apply, Renew renew = nullptr)
      : apply_(std::move(apply)), renew_(std::move(renew)), running_(std::move(running)) {}

  // Also says in the log what came of it.
  //   kFailedPrecondition  started without a file: there is nothing to read.
  //   kInvalidArgument     the file has mistakes, named a line each; nothing has changed.
  absl::StatusOr<Outcome> Reload();

  Config Current() const;  // What is in force.
  std::vector<ConfigEntry> Entries() const { return ConfigEntries(Current()); }
  std::string file() const { return Current().config_file; }

 private:
  absl::StatusOr<Outcome> ReadAgain() ABSL_EXCLUSIVE_LOCKS_REQUIRED(reload_mu_);

  const Apply apply_;
  const Renew renew_;
  // Held while the file is read and applied, so that the last of two reloads is what stays. Nobody
  // else waits for it. Before mu_.
  absl::Mutex reload_mu_;
  mutable absl::Mutex mu_;
  Config running_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kvd
