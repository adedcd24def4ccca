#include "bench/damage_list.h"

#include <grpcpp/create_channel.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "proto/admin.grpc.pb.h"

namespace kvd {
namespace {

constexpr absl::Duration kCallTimeout = absl::Seconds(10);
constexpr int kPasses = 100;  // Of one check, while something is skipped.

}  // namespace

struct DamageList::Stub {
  explicit Stub(const std::string& endpoint)
      : admin(v1::Admin::NewStub(
            grpc::CreateChannel(endpoint + ".admin", grpc::InsecureChannelCredentials()))) {}

  template <typename Request, typename Reply>
  absl::Status Ask(const char* name,
                   grpc::Status (v1::Admin::Stub::*method)(grpc::ClientContext*, const Request&,
                                                           Reply*),
                   const Request& request, Reply& reply) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + kCallTimeout));
    const grpc::Status status = (admin.get()->*method)(&context, request, &reply);
    if (status.ok()) return absl::OkStatus();
    return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                        absl::StrCat(name, ": ", status.error_message()));
  }
  // One check of everything, to its end.
  absl::StatusOr<v1::VerifyReply> Verify() {
    v1::VerifyRequest request;
    v1::VerifyReply reply;
    do {
      if (absl::Status status = Ask("verify", &v1::Admin::Stub::Verify, request, reply);
          !status.ok()) {
        return status;
      }
      request.set_run(reply.run());
    } while (!reply.done());
    return reply;
  }

  const std::unique_ptr<v1::Admin::Stub> admin;
};

DamageList::DamageList(const std::string& endpoint) : stub_(std::make_unique<Stub>(endpoint)) {}

DamageList::~DamageList() = default;

absl::Status DamageList::Read() {
  v1::QuarantineReply reply;
  if (absl::Status status =
          stub_->Ask("quarantine", &v1::Admin::Stub::Quarantine, v1::QuarantineRequest(), reply);
      !status.ok()) {
    return status;
  }
  for (const v1::QuarantineEntry& entry : reply.entries()) {
    if (entry.number() <= last_) continue;
    if (entry.number() != last_ + 1) {
      return absl::DataLossError(absl::StrCat("quarantine: entries ", last_ + 1, " to ",
                                              entry.number() - 1, " are forgotten"));
    }
    last_ = entry.number();
    found_.insert({.key = entry.key(), .shard = entry.shard(), .on_nvme = entry.tier() == "nvme"});
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> DamageList::VerifyAll() {
  uint64_t damaged = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    const absl::StatusOr<v1::VerifyReply> reply = stub_->Verify();
    if (!reply.ok()) return reply.status();
    if (absl::Status status = Read(); !status.ok()) return status;
    damaged += reply->damaged();
    if (reply->skipped() == 0) return damaged;
  }
  return absl::UnavailableError("verify: something was skipped every time");
}

}  // namespace kvd
