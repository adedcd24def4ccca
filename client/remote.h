// The session of a client without shared memory: with a daemon on another host, over TLS, or with
// one on this host, over its stream socket. Instead of a socket beside gRPC it is a call that stays
// open (OpenSession of kvd.proto); bytes travel by kvd.v1.Transfer.
//
// The calls that stream are Client::Impl's, in remote.cc.
//
// Threads: everything is safe from any thread.

#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/client.h"
#include "client/session.h"
#include "proto/kvd.grpc.pb.h"
#include "proto/stream.grpc.pb.h"

namespace kvd {

// Where such a daemon is: "tcp:HOST:PORT", or "stream:unix:PATH" with the PATH of its --listen.
// Empty: `endpoint` is neither.
struct RemoteEndpoint {
  std::string target;  // As gRPC names it.
  bool tls = false;
};
std::optional<RemoteEndpoint> ParseRemoteEndpoint(const std::string& endpoint);

class RemoteSession final : public Session {
 public:
  // kInvalidArgument: a file of `tls` is missing or unreadable. Otherwise as Session::Open.
  static absl::StatusOr<std::unique_ptr<Session>> Open(const RemoteEndpoint& endpoint,
                                                       const ClientTls& tls, absl::Time deadline);
  ~RemoteSession() override;

  bool ended() const override;
  void End() override;
  // kFailedPrecondition: there is no memory in common.
  absl::StatusOr<std::shared_ptr<const Region>> GetRegion(uint32_t number,
                                                          absl::Time deadline) override;
  absl::StatusOr<StagingMemory> OpenStaging(uint64_t size_bytes, absl::Time deadline) override;
  RemoteSession* remote() override { return this; }

  const std::shared_ptr<grpc::Channel>& channel() const { return life_->channel; }
  v1::Transfer::Stub& transfer() { return *life_->transfer; }

 private:
  // The open call.
  struct Life {
    explicit Life(std::shared_ptr<grpc::Channel> to);
    ~Life();
    // The first answer, or why there is none.
    absl::StatusOr<SessionToken> Begin(absl::Time deadline);

    const std::shared_ptr<grpc::Channel> channel;
    const std::unique_ptr<v1::Engine::Stub> engine;
    const std::unique_ptr<v1::Transfer::Stub> transfer;
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    v1::OpenSessionReply reply;
    std::unique_ptr<grpc::ClientAsyncReader<v1::OpenSessionReply>> reader;
  };

  RemoteSession(std::unique_ptr<Life> life, const SessionToken& token);

  const std::unique_ptr<Life> life_;
  mutable std::atomic<bool> over_{false};  // A stop flag.
};

}  // namespace kvd
