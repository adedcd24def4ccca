// Gives KV events to routers over ZeroMQ, as vLLM does: an XPUB socket, where messages of three
// frames go to whoever subscribes
//
//   topic | sequence number, 8 bytes, big-endian | payload (daemon/kv_events.h)
//
// and a ROUTER socket, where a DEALER (or REQ, for one answer) asks for what it has missed:
//
//   "" | first sequence number, 8 bytes, big-endian [| topic]     messages from there on
//   "" | "snapshot-v1"                              [| topic]     all that is there
//
// Without a topic those of all topics come. Answers are "" | topic | sequence number | payload, and
// the end is one with sequence number -1 and no payload. Messages of a snapshot all have the number
// of the last message that is in it: what the subscription brings after that number goes on from
// there.
//
// Nobody who reads slowly holds anybody up. A subscriber may be `high_water` messages behind; what
// it misses then is counted, and it sees a gap in the numbers. An answer waits for its reader, some
// seconds at most. There is no password and no encryption: who can connect reads the prompts of
// those who announce.
//
// Threads: one of its own, and ZeroMQ's. It reads what has changed from the control thread in turns
// (daemon/residency_follower.h), at most one in kBetweenReads while little happens. Construct and
// destroy on one thread, while the control thread runs.

#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "daemon/events.h"
#include "daemon/inbox.h"
#include "daemon/metrics.h"

namespace kvd {

class EventPublisher {
 public:
  struct Options {
    std::string listen;      // tcp://HOST:PORT, port 0: any that is free; or ipc:///PATH.
    std::string replay;      // The same; empty: nobody can ask.
    std::string topic;       // May have {model}.
    std::string backend_id;  // What this cache is called in events.
    mode_t ipc_mode = 0600;
    std::function<std::string(DomainId)> domain_name;
    int high_water = 1000;                       // Messages.
    uint32_t replay_messages = 10'000;           // Kept for who asks, ...
    uint64_t replay_bytes = uint64_t{64} << 20;  // ... at most so much.
    uint32_t most_answers = 8;                   // Under way at a time.
    uint32_t most_connections = 64;              // At each of the two sockets; more are cut off.
    EventMetrics* metrics = nullptr;             // Outlives this; required.
  };

  // Collaborators must outlive this. kUnavailable: nobody can listen there now.
  static absl::StatusOr<std::unique_ptr<EventPublisher>> Start(Inbox& inbox, EventRing& events,
                                                               Options options);
  ~EventPublisher();

  // As bound, with the real port.
  const std::string& address() const;
  const std::string& replay_address() const;  // Empty: there is none.

 private:
  class Impl;
  explicit EventPublisher(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvd
