// The operator's service in this process, with answers that a test sets: a real gRPC server at
// PATH.admin, so that kvctl's verbs go all the way but for the daemon.
//
// Threads: set answers before the verb runs; look at requests after it.

#pragma once

#include <grpcpp/server.h>

#include <memory>
#include <string>
#include <vector>

#include "proto/admin.grpc.pb.h"

namespace kvd {

class FakeAdmin final : private v1::Admin::Service {
 public:
  // Serves at `path`.admin until destroyed.
  explicit FakeAdmin(const std::string& path);
  ~FakeAdmin() override;
  // Ends the server, as a daemon that went away.
  void Stop();

  v1::StatusReply status;
  v1::TiersReply tiers;
  v1::SessionsReply sessions;
  std::vector<v1::LeaseStatus> leases;  // Answered in pages of 2.
  v1::NamespacesReply namespaces;
  std::vector<v1::BlockStatus> blocks;  // Inspect and Blocks (in pages of 2) search them.
  v1::GetConfigReply config;
  v1::ReloadConfigReply reloaded;
  grpc::Status reload_status;
  std::vector<v1::Event> events;
  std::vector<v1::VerifyReply> verified;  // One after the other; the last again and again.
  v1::QuarantineReply quarantine;
  grpc::Status everything;  // What every call answers, unless it is OK.
  bool stop_on_drain = false;

  // What was asked, one for each call.
  std::vector<std::string> calls;
  v1::PinChainRequest pin;
  v1::UnpinChainRequest unpin;
  v1::EvictRequest evict;
  v1::FlushRequest flush;
  std::vector<v1::VerifyRequest> verify;
  v1::DropNamespaceRequest drop;
  v1::DrainRequest drain;
  v1::EventsRequest events_request;

 private:
  using Context = grpc::ServerContext;
  grpc::Status Status(Context*, const v1::StatusRequest*, v1::StatusReply*) override;
  grpc::Status Tiers(Context*, const v1::TiersRequest*, v1::TiersReply*) override;
  grpc::Status Verify(Context*, const v1::VerifyRequest*, v1::VerifyReply*) override;
  grpc::Status Quarantine(Context*, const v1::QuarantineRequest*, v1::QuarantineReply*) override;
  grpc::Status Sessions(Context*, const v1::SessionsRequest*, v1::SessionsReply*) override;
  grpc::Status Leases(Context*, const v1::LeasesRequest*, v1::LeasesReply*) override;
  grpc::Status Namespaces(Context*, const v1::NamespacesRequest*, v1::NamespacesReply*) override;
  grpc::Status DropNamespace(Context*, const v1::DropNamespaceRequest*,
                             v1::DropNamespaceReply*) override;
  grpc::Status Blocks(Context*, const v1::BlocksRequest*, v1::BlocksReply*) override;
  grpc::Status Inspect(Context*, const v1::InspectRequest*, v1::InspectReply*) override;
  grpc::Status PinChain(Context*, const v1::PinChainRequest*, v1::PinChainReply*) override;
  grpc::Status UnpinChain(Context*, const v1::UnpinChainRequest*, v1::UnpinChainReply*) override;
  grpc::Status Evict(Context*, const v1::EvictRequest*, v1::EvictReply*) override;
  grpc::Status Flush(Context*, const v1::FlushRequest*, v1::FlushReply*) override;
  grpc::Status Drain(Context*, const v1::DrainRequest*, v1::DrainReply*) override;
  grpc::Status Undrain(Context*, const v1::UndrainRequest*, v1::UndrainReply*) override;
  grpc::Status Events(Context*, const v1::EventsRequest*, grpc::ServerWriter<v1::Event>*) override;
  grpc::Status GetConfig(Context*, const v1::GetConfigRequest*, v1::GetConfigReply*) override;
  grpc::Status ReloadConfig(Context*, const v1::ReloadConfigRequest*,
                            v1::ReloadConfigReply*) override;

  grpc::Status Enter(const char* name);

  std::unique_ptr<grpc::Server> server_;
};

}  // namespace kvd
