#include "tests/client/fake_admin.h"

#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>

#include <algorithm>
#include <chrono>

#include "proto/types/check.h"

namespace kvd {
namespace {

constexpr size_t kPage = 2;

}  // namespace

FakeAdmin::FakeAdmin(const std::string& path) {
  grpc::ServerBuilder builder;
  builder.AddListeningPort("unix:" + path + ".admin", grpc::InsecureServerCredentials());
  builder.RegisterService(this);
  server_ = builder.BuildAndStart();
  KVD_CHECK(server_ != nullptr) << path;
}

FakeAdmin::~FakeAdmin() { Stop(); }

void FakeAdmin::Stop() { server_->Shutdown(std::chrono::system_clock::now()); }

grpc::Status FakeAdmin::Enter(const char* name) {
  calls.emplace_back(name);
  return everything;
}

grpc::Status FakeAdmin::Status(Context*, const v1::StatusRequest*, v1::StatusReply* reply) {
  *reply = status;
  if (stop_on_drain && std::find(calls.begin(), calls.end(), "Drain") != calls.end()) {
    return {grpc::StatusCode::UNAVAILABLE, "ended"};
  }
  return Enter("Status");
}

grpc::Status FakeAdmin::Tiers(Context*, const v1::TiersRequest*, v1::TiersReply* reply) {
  *reply = tiers;
  return Enter("Tiers");
}

grpc::Status FakeAdmin::Sessions(Context*, const v1::SessionsRequest*, v1::SessionsReply* reply) {
  *reply = sessions;
  return Enter("Sessions");
}

grpc::Status FakeAdmin::Leases(Context*, const v1::LeasesRequest* request, v1::LeasesReply* reply) {
  for (size_t i = request->cursor(); i < std::min(leases.size(), request->cursor() + kPage); ++i) {
    *reply->add_leases() = leases[i];
  }
  if (request->cursor() + kPage < leases.size()) reply->set_next_cursor(request->cursor() + kPage);
  return Enter("Leases");
}

grpc::Status FakeAdmin::Namespaces(Context*, const v1::NamespacesRequest*,
                                   v1::NamespacesReply* reply) {
  *reply = namespaces;
  return Enter("Namespaces");
}

grpc::Status FakeAdmin::DropNamespace(Context*, const v1::DropNamespaceRequest* request,
                                      v1::DropNamespaceReply* reply) {
  drop = *request;
  reply->set_evicted_blocks(7);
  return Enter("DropNamespace");
}

grpc::Status FakeAdmin::Blocks(Context*, const v1::BlocksRequest* request, v1::BlocksReply* reply) {
  size_t at = request->cursor();
  for (; at < std::min(blocks.size(), request->cursor() + kPage); ++at) {
    const bool wanted = blocks[at].key().rfind(request->key_prefix(), 0) == 0;
    if (wanted &&
        (request->namespace_id() == 0 || request->namespace_id() == blocks[at].namespace_id())) {
      *reply->add_blocks() = blocks[at];
    }
  }
  if (at < blocks.size()) reply->set_next_cursor(at);
  return Enter("Blocks");
}

grpc::Status FakeAdmin::Inspect(Context*, const v1::InspectRequest* request,
                                v1::InspectReply* reply) {
  for (const v1::BlockStatus& block : blocks) {
    if (block.key().rfind(request->key_prefix(), 0) != 0) continue;
    if (request->namespace_id() != 0 && request->namespace_id() != block.namespace_id()) continue;
    *reply->add_blocks() = block;
  }
  const grpc::Status entered = Enter("Inspect");
  if (!entered.ok() || reply->blocks_size() > 0) return entered;
  return {grpc::StatusCode::NOT_FOUND, "no such block"};
}

grpc::Status FakeAdmin::PinChain(Context*, const v1::PinChainRequest* request,
                                 v1::PinChainReply* reply) {
  pin = *request;
  reply->set_pin_id(0x4d2);
  reply->set_blocks(37);
  reply->set_bytes(37u << 20);
  return Enter("PinChain");
}

grpc::Status FakeAdmin::UnpinChain(Context*, const v1::UnpinChainRequest* request,
                                   v1::UnpinChainReply*) {
  unpin = *request;
  const grpc::Status entered = Enter("UnpinChain");
  if (!entered.ok() || request->pin_id() == 0x4d2) return entered;
  return {grpc::StatusCode::NOT_FOUND, "no such pin"};
}

grpc::Status FakeAdmin::Verify(Context*, const v1::VerifyRequest* request, v1::VerifyReply* reply) {
  *reply = verified[std::min(verify.size(), verified.size() - 1)];
  verify.push_back(*request);
  return Enter("Verify");
}

grpc::Status FakeAdmin::Quarantine(Context*, const v1::QuarantineRequest*,
                                   v1::QuarantineReply* reply) {
  *reply = quarantine;
  return Enter("Quarantine");
}

grpc::Status FakeAdmin::Evict(Context*, const v1::EvictRequest* request, v1::EvictReply* reply) {
  evict = *request;
  reply->set_evicted_blocks(3);
  reply->set_kept_blocks(1);
  return Enter("Evict");
}

grpc::Status FakeAdmin::Flush(Context*, const v1::FlushRequest* request, v1::FlushReply* reply) {
  flush = *request;
  reply->set_evicted_blocks(1234);
  const grpc::Status entered = Enter("Flush");
  if (!entered.ok() || request->tier() == "dram") return entered;
  return {grpc::StatusCode::NOT_FOUND, "there is no tier " + request->tier()};
}

grpc::Status FakeAdmin::Drain(Context*, const v1::DrainRequest* request, v1::DrainReply* reply) {
  drain = *request;
  reply->set_holds(2);
  reply->set_moves(1);
  return Enter("Drain");
}

grpc::Status FakeAdmin::Undrain(Context*, const v1::UndrainRequest*, v1::UndrainReply*) {
  return Enter("Undrain");
}

grpc::Status FakeAdmin::Events(Context*, const v1::EventsRequest* request,
                               grpc::ServerWriter<v1::Event>* writer) {
  events_request = *request;
  for (const v1::Event& event : events) writer->Write(event);
  return Enter("Events");
}

grpc::Status FakeAdmin::GetConfig(Context*, const v1::GetConfigRequest*,
                                  v1::GetConfigReply* reply) {
  *reply = config;
  return Enter("GetConfig");
}

grpc::Status FakeAdmin::ReloadConfig(Context*, const v1::ReloadConfigRequest*,
                                     v1::ReloadConfigReply* reply) {
  *reply = reloaded;
  const grpc::Status entered = Enter("ReloadConfig");
  return entered.ok() ? reload_status : entered;
}

}  // namespace kvd
