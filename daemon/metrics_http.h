// What a monitor asks over HTTP: /metrics, /healthz and /readyz; anything else is 404.
//
// A server with threads of its own, bounded in connections, threads and time: whoever scrapes
// slowly, or opens connections and says nothing, is cut off and takes nothing from engines. No TLS
// and no password: it listens beyond loopback only when that is asked for in so many words.
//
// Threads: its own call what Content has. Construct and destroy on one thread.

#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

struct mg_connection;
struct mg_context;

namespace kvd {

class MetricsHttp {
 public:
  struct Options {
    std::string address;           // HOST:PORT, or [HOST]:PORT; port 0: any that is free.
    bool beyond_loopback = false;  // Other machines may connect.
  };
  // Each is called on several threads at once.
  struct Content {
    std::function<std::string()> metrics;        // The text format.
    std::function<bool()> alive;                 // May take some seconds to say no.
    std::function<std::string()> why_not_ready;  // Empty: ready.
  };

  // kInvalidArgument: the address is none, cannot be resolved, or is beyond loopback without
  // leave. kUnavailable: nobody can listen there now.
  static absl::StatusOr<std::unique_ptr<MetricsHttp>> Start(const Options& options,
                                                            Content content);
  ~MetricsHttp();  // Cuts off who is connected.
  MetricsHttp(const MetricsHttp&) = delete;

  // Where it listens: numbers, with the real port.
  const std::string& address() const { return address_; }

 private:
  explicit MetricsHttp(Content content) : content_(std::move(content)) {}
  static int Log(const mg_connection* connection, const char* message);
  static int Handle(mg_connection* connection, void* self);
  void Answer(mg_connection* connection) const;

  const Content content_;
  std::string address_;
  mg_context* server_ = nullptr;
  absl::Mutex mu_;
  std::string first_message_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kvd
