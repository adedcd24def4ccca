// The engine-facing service: gRPC in and out. It turns messages into the plain structs of
// requests.h and back, checks what can be checked without state, and decides nothing.
//
// It owns the completion queue that the control thread sleeps in, so a request costs no hop between
// threads. Other threads wake it by an Alarm set in the past (9 us; "now" would take 285).
//
// A call that asks for more time goes to the end of a queue of slices; between two slices whatever
// has arrived meanwhile is served, so a large call does not hold up small ones.
//
// Threads: Run() is the control thread. Wake() and Shutdown() are safe from any thread.

#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "daemon/control.h"
#include "daemon/metrics.h"
#include "proto/types/clock.h"

namespace kvd {

class CallLog;

class Service {
 public:
  struct Options {
    std::string path;           // Of the gRPC socket. The caller has made sure that it is ours.
    int listener = -1;          // Listens there already, and stays the caller's; -1: bind it.
    uint32_t max_calls = 1024;  // Accepted and not answered; beyond it calls are refused.
    uint32_t max_domain_calls = 512;  // The same of one domain; those of no session are another.
    // The same of one session: one that does not read its answers shall not use up those of its
    // domain. A client has one connection, so it never meets this.
    uint32_t max_session_calls = 128;
    uint32_t endless_call_ms = 60'000;  // What a call without a deadline may wait at most.
    int streams_per_connection = 128;
    // Of gRPC, for messages on their way in and out. Anybody may open connections and send half a
    // message on each of their streams; beyond this gRPC drops some.
    size_t max_message_memory = size_t{1} << 30;
    bool count_operations = true;  // How long each call took, as histograms.
    CallLog* log = nullptr;        // Told of what is answered; outlives this. May be null.
  };

  // Binds the socket; calls are served once Run() does. `control` must outlive this, and so must
  // the listener, if there is one.
  static absl::StatusOr<std::unique_ptr<Service>> Start(Control& control, const Clock& clock,
                                                        const Options& options);
  ~Service();

  void Run();       // Until Shutdown() has drained what was accepted.
  void Wake();      // Makes Run() look at the inbox.
  void Shutdown();  // Stops accepting, ends waits, lets calls end (2 s at most).

  // Frees what is left of messages that could not be parsed: up to one of each method, as large as
  // messages may be. Returns how many bytes. Control thread, from time to time.
  size_t ForgetUnparsed();

  const ServiceMetrics& metrics() const;  // Any thread.

  class Impl;

 private:
  explicit Service(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvd
