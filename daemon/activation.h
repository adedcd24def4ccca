// The service manager's side of the daemon: sockets that systemd listens at for us, and what we
// tell it about our state. Without systemd all of this is empty, and costs nothing.
//
// A socket that was passed is known by the address it is bound to, not by its name: a unit that
// listens elsewhere than the configuration says would otherwise leave engines waiting at a path
// that nobody serves. Such a socket keeps the daemon from starting.

#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"

namespace kvd {

// Listening sockets of the endpoint PATH that came with the process. They belong to the service
// manager: whoever serves one neither unlinks its file nor changes its mode. Immutable.
class ActivatedSockets {
 public:
  // Takes what the environment names (LISTEN_FDS), and takes that out of the environment. Call it
  // before there are threads, once in a process.
  // kInvalidArgument: a socket that is none of this endpoint, or of the wrong type.
  static absl::StatusOr<ActivatedSockets> Take(const std::string& path);

  // The descriptor of the socket PATH + `suffix`, non-blocking; -1: it did not come, bind it.
  int at(std::string_view suffix) const;
  bool empty() const;

 private:
  static constexpr std::array<std::string_view, 4> kSuffixes = {"", ".session", ".stream",
                                                                ".admin"};

  std::array<int, kSuffixes.size()> descriptors_ = {-1, -1, -1, -1};
};

// Accepts on a stream socket and hands the connections over, for gRPC, which cannot listen on a
// socket that it did not bind. Nor shall it listen on its own: gRPC 1.51 stops for good at the
// first connection for which the process has no descriptor left. One that would take a reserved
// descriptor is closed at once (descriptors.h).
//
// Threads: one of its own.
class Acceptor {
 public:
  // `adopt` gets each connection, non-blocking, and owns it; it runs on the acceptor's thread.
  // `listener` stays the caller's.
  static absl::StatusOr<std::unique_ptr<Acceptor>> Start(int listener,
                                                         std::function<void(int fd)> adopt);
  // The same at `path`, where it listens itself until it goes, as ListenUnix() does.
  static absl::StatusOr<std::unique_ptr<Acceptor>> Listen(const std::string& path,
                                                          std::function<void(int fd)> adopt);
  ~Acceptor();  // No connection is adopted after it.

 private:
  Acceptor(int listener, int wake, std::function<void(int fd)> adopt);
  void Run();

  const int listener_;
  const int wake_;
  const std::function<void(int fd)> adopt_;
  std::string bound_;  // Where we listen ourselves; empty: the listener is the caller's.
  std::thread thread_;
};

// Tells the service manager, if there is one that listens, as sd_notify(3): "READY=1". Safe from
// any thread. What it does not hear is lost: it has time-outs of its own.
void NotifyServiceManager(const char* state);

// Where the service manager wants to hear from us every so often (WatchdogSec=), asks `ask` twice
// as often to say so: it shall have the thread whose life matters call
// NotifyServiceManager("WATCHDOG=1").
//
// Threads: one of its own, if the service manager wants anything.
class Watchdog {
 public:
  explicit Watchdog(std::function<void()> ask);
  ~Watchdog();

 private:
  void Run(absl::Duration interval);

  const std::function<void()> ask_;
  absl::Notification stop_;
  std::thread thread_;
};

}  // namespace kvd
