// A kvd of our own: a process beside this one, with its sockets in a fresh folder, that ends when
// we do, however we end.
//
// Threads: Start() on a thread that outlives the object, best the main one and before there are
// others: the kernel ends the daemon with the thread that started it. The rest on one thread.

#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace kvd {

class DaemonProcess {
 public:
  struct Options {
    std::string program;                 // Path of kvd; empty: the one beside this program.
    std::vector<std::string> arguments;  // Beside --listen.
    absl::Duration start_timeout = absl::Minutes(5);  // To touch much memory takes long.
    absl::Duration stop_timeout = absl::Seconds(30);
    uint64_t max_descriptors = 0;  // That it may have open; 0: as many as we may.
  };

  // Returns when the daemon said that it is ready. Errors: kUnavailable with the end of its log
  // when it ended instead, kDeadlineExceeded when it said nothing; nothing is left behind then.
  static absl::StatusOr<std::unique_ptr<DaemonProcess>> Start(const Options& options);

  ~DaemonProcess();  // Stop(), whatever it says.
  DaemonProcess(const DaemonProcess&) = delete;
  DaemonProcess& operator=(const DaemonProcess&) = delete;

  // Drains by SIGTERM, waits, and removes the folder. A daemon that has not ended by stop_timeout
  // is killed, which is kDeadlineExceeded; any end but exit 0 is kInternal with the end of its log.
  absl::Status Stop();

  const std::string& endpoint() const { return endpoint_; }  // unix:PATH, as --listen.
  pid_t pid() const { return pid_; }
  // What its ready line says of `name`, as in "tcp=127.0.0.1:4711"; empty: nothing.
  std::string Said(const std::string& name) const;

 private:
  explicit DaemonProcess(absl::Duration stop_timeout) : stop_timeout_(stop_timeout) {}
  absl::Status Launch(const Options& options);
  absl::Status WaitUntilReady(absl::Duration timeout);
  bool WaitForExit(absl::Duration timeout);
  std::string LogTail() const;

  const absl::Duration stop_timeout_;
  std::string folder_;  // Empty: there is none.
  std::string endpoint_;
  std::string ready_line_;
  pid_t pid_ = -1;  // -1: not running.
  int pidfd_ = -1;
  int ready_fd_ = -1;    // Its standard output.
  int wait_status_ = 0;  // Of a process that has ended.
};

// The path of `name` in the folder that this program lies in.
absl::StatusOr<std::string> ProgramBesideThis(const std::string& name);

}  // namespace kvd
