// Calls of the admin service of a daemon that this program started.
//
// Threads: any.

#pragma once

#include <grpcpp/create_channel.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "proto/admin.grpc.pb.h"

namespace kvd {

class AdminCaller {
 public:
  // Of the daemon that serves `endpoint`; each call ends within `timeout`.
  AdminCaller(const std::string& endpoint, absl::Duration timeout)
      : timeout_(timeout),
        stub_(v1::Admin::NewStub(
            grpc::CreateChannel(endpoint + ".admin", grpc::InsecureChannelCredentials()))) {}

  // Errors as the daemon gives them, behind `name`.
  template <typename Request, typename Reply>
  absl::Status Ask(const char* name,
                   grpc::Status (v1::Admin::Stub::*method)(grpc::ClientContext*, const Request&,
                                                           Reply*),
                   const Request& request, Reply& reply) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + timeout_));
    const grpc::Status status = (stub_.get()->*method)(&context, request, &reply);
    if (status.ok()) return absl::OkStatus();
    return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                        absl::StrCat(name, ": ", status.error_message()));
  }

 private:
  const absl::Duration timeout_;
  const std::unique_ptr<v1::Admin::Stub> stub_;
};

}  // namespace kvd
