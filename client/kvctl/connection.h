// The way to one daemon's operators: gRPC over PATH.admin.
//
// The socket is connected here and then given to gRPC, not named to it: that needs no resolver and
// no thread of its own, comes back at once when nobody listens, and says what is wrong (no socket,
// left over, not ours) where gRPC only says UNAVAILABLE.
//
// Threads: one at a time.

#pragma once

#include <grpcpp/client_context.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/admin.grpc.pb.h"

namespace kvd::kvctl {

// An Engine's endpoint as a path: kInvalidArgument for what is not unix:PATH, or too long.
absl::StatusOr<std::string> PathOf(const std::string& endpoint);

class Connection {
 public:
  using Admin = v1::Admin::Stub;

  // Connects at the first call. `timeout`: of one call.
  Connection(std::string endpoint, absl::Duration timeout)
      : endpoint_(std::move(endpoint)), timeout_(timeout) {}

  // One call. kUnavailable: nobody answers, and the next call tries to connect again.
  template <typename Request, typename Reply>
  absl::StatusOr<Reply> Ask(grpc::Status (Admin::*method)(grpc::ClientContext*, const Request&,
                                                          Reply*),
                            const Request& request = {}) {
    if (absl::Status status = Connect(); !status.ok()) return status;
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + timeout_));
    Reply reply;
    const grpc::Status status = (stub_.get()->*method)(&context, request, &reply);
    if (!status.ok()) return Explain(status);
    return reply;
  }

  // For calls that stream. The pointer is good until the next call.
  absl::StatusOr<Admin*> Stub();
  // An error of a call, as whoever typed it should read it. Hangs up where the daemon is gone.
  absl::Status Explain(const grpc::Status& status);

  const std::string& endpoint() const { return endpoint_; }
  void set_timeout(absl::Duration timeout) { timeout_ = timeout; }

 private:
  absl::Status Connect();

  const std::string endpoint_;
  absl::Duration timeout_;
  std::unique_ptr<Admin> stub_;
};

}  // namespace kvd::kvctl
