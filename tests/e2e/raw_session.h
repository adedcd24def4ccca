// A session by hand: the session socket and the stub, without the client library between, for tests
// that send what a client would not.
//
// Threads: one at a time. Waits end after kPatience.

#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/session.h"
#include "proto/kvd.grpc.pb.h"
#include "proto/types/namespace_descriptor.h"
#include "proto/types/packed.h"
#include "proto/types/session_wire.h"

namespace kvd {

inline constexpr absl::Duration kPatience = absl::Seconds(20);

// ---- blocks that both ends of a test can name ---------------------------------------------------

inline constexpr uint32_t kE2eHashBytes = 16;

// One full group of one part.
NamespaceDescriptor TestModel(uint32_t part_bytes, std::string model = "test/model");
std::string TestKey(int block);
std::string TestKeys(int first, int count);
// What is stored under a key: a function of the key alone, so that any process can check it.
std::vector<std::byte> TestBytes(std::string_view key, uint32_t size);

// ---- messages -----------------------------------------------------------------------------------

class RawSession {
 public:
  // Connects to `path`.session and says hello.
  static absl::StatusOr<std::unique_ptr<RawSession>> Open(const std::string& path);
  // Connects and says nothing.
  static absl::StatusOr<UniqueFd> Connect(const std::string& path);

  const std::string& token() const { return token_; }
  int socket() const { return socket_.get(); }
  v1::Engine::Stub& stub() { return *stub_; }
  // Hangs up on the session socket; calls go on.
  void CloseSocket() { socket_ = UniqueFd(); }

  struct RegionAnswer {
    SessionStatus status = SessionStatus::kOk;
    uint64_t size_bytes = 0;
    UniqueFd fd;
  };
  absl::StatusOr<RegionAnswer> AskForRegion(uint32_t number);

  struct StagingAnswer {
    SessionStatus status = SessionStatus::kOk;
    uint64_t size_bytes = 0;
    UniqueFd memory;  // -1 when it is the caller's own.
    UniqueFd channel;
  };
  // `own` -1: made by the daemon.
  absl::StatusOr<StagingAnswer> AskForStaging(uint64_t size_bytes, int own = -1);

  // One call with this session's token, by kPatience.
  template <typename Request, typename Reply>
  grpc::Status Call(grpc::Status (v1::Engine::Stub::*method)(grpc::ClientContext*, const Request&,
                                                             Reply*),
                    Request request, Reply* reply) {
    request.set_session(token_);
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoSeconds(kPatience));
    return (stub_.get()->*method)(&context, request, reply);
  }

  // The number of a namespace; 0 when it is refused.
  uint32_t Register(const NamespaceDescriptor& descriptor);

 private:
  UniqueFd socket_;
  std::string token_;
  std::unique_ptr<v1::Engine::Stub> stub_;
};

// Staging memory with its channel, mapped, for puts step by step.
class RawStaging {
 public:
  static absl::StatusOr<std::unique_ptr<RawStaging>> Open(RawSession& session, uint64_t size_bytes);

  std::byte* data() { return memory_.data(); }
  int channel() const { return channel_.get(); }
  bool Send(const std::vector<FillRequest>& fills);
  // Replies to `count` fills; fewer when the daemon hung up.
  std::vector<FillReply> Receive(size_t count);

 private:
  Mapping memory_;
  UniqueFd channel_;
};

// Whether the other end of `fd` hangs up by kPatience.
bool HangsUp(int fd);

}  // namespace kvd
