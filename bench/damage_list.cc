#include "bench/damage_list.h"

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "bench/admin_caller.h"
#include "proto/admin.grpc.pb.h"

namespace kvd {
namespace {

constexpr absl::Duration kCallTimeout = absl::Seconds(10);
constexpr int kPasses = 100;  // Of one check, while something is skipped.

// One check of everything, to its end.
absl::StatusOr<v1::VerifyReply> VerifyOnce(AdminCaller& daemon) {
  v1::VerifyRequest request;
  v1::VerifyReply reply;
  do {
    absl::Status status = daemon.Ask("verify", &v1::Admin::Stub::Verify, request, reply);
    if (!status.ok()) return status;
    request.set_run(reply.run());
  } while (!reply.done());
  return reply;
}

}  // namespace

DamageList::DamageList(const std::string& endpoint)
    : daemon_(std::make_unique<AdminCaller>(endpoint, kCallTimeout)) {}

DamageList::~DamageList() = default;

absl::Status DamageList::Read() {
  v1::QuarantineReply reply;
  if (absl::Status status =
          daemon_->Ask("quarantine", &v1::Admin::Stub::Quarantine, v1::QuarantineRequest(), reply);
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
    const absl::StatusOr<v1::VerifyReply> reply = VerifyOnce(*daemon_);
    if (!reply.ok()) return reply.status();
    if (absl::Status status = Read(); !status.ok()) return status;
    damaged += reply->damaged();
    if (reply->skipped() == 0) return damaged;
  }
  return absl::UnavailableError("verify: something was skipped every time");
}

}  // namespace kvd
