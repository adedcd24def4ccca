// A kvd of our own: a process beside this one that ends when we do, however we end. Its sockets are
// in a fresh folder, or in one that outlives it.
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
    // Where its sockets and its log lie, kvd.sock and kvd.log. It is there and it stays. Empty: a
    // fresh one, which goes with the daemon.
    std::string folder;
  };

  // Returns when the daemon said that it is ready. Errors: kUnavailable with the end of its log
  // when it ended instead, kAborted when SIGKILL ended it, kDeadlineExceeded when it said nothing;
  // nothing is left behind then.
  static absl::StatusOr<std::unique_ptr<DaemonProcess>> Start(const Options& options);

  ~DaemonProcess();  // Stop(), whatever it says.
  DaemonProcess(const DaemonProcess&) = delete;
  DaemonProcess& operator=(const DaemonProcess&) = delete;

  // Drains by SIGTERM, waits, and removes the folder. A daemon that has not ended by stop_timeout
  // is killed, which is kDeadlineExceeded; any end but exit 0 is kInternal with the end of its log.
  absl::Status Stop();

  // Ends it by SIGKILL; when this returns it has ended.
  void Kill();
  // Waits for it to end by itself. False: it has not.
  bool WaitForExit(absl::Duration timeout);
  // Of one that has ended.
  bool was_killed() const;

  const std::string& endpoint() const { return endpoint_; }  // unix:PATH, as --listen.
  pid_t pid() const { return pid_; }
  // What its ready line says of `name`, as in "tcp=127.0.0.1:4711"; empty: nothing.
  std::string Said(const std::string& name) const;

 private:
  explicit DaemonProcess(absl::Duration stop_timeout) : stop_timeout_(stop_timeout) {}
  absl::Status Launch(const Options& options);
  absl::Status WaitUntilReady(absl::Duration timeout);
  std::string LogTail() const;

  const absl::Duration stop_timeout_;
  std::string folder_;
  bool folder_is_ours_ = false;
  std::string endpoint_;
  std::string ready_line_;
  pid_t pid_ = -1;  // -1: not running, and waited for.
  int pidfd_ = -1;
  int ready_fd_ = -1;    // Its standard output.
  int wait_status_ = 0;  // Of a process that has ended.
};

// The path of `name` in the folder that this program lies in.
absl::StatusOr<std::string> ProgramBesideThis(const std::string& name);

}  // namespace kvd
