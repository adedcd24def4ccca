#include "bench/micro_peer.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "bench/commands.h"
#include "bench/daemon_process.h"
#include "bench/micro_forest.h"
#include "bench/micro_stream.h"
#include "client/client.h"
#include "proto/types/limits.h"
#include "proto/types/packed.h"
#include "proto/types/status.h"

namespace kvd {
namespace {

constexpr absl::Duration kStartTimeout = absl::Seconds(20);
constexpr absl::Duration kPollInterval = absl::Milliseconds(5);
constexpr uint32_t kHogPartBytes = 512;

sockaddr_un AddressOf(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  return address;
}

absl::StatusOr<std::unique_ptr<ChildProcess>> StartPeer(const std::string& kind,
                                                        const std::string& where) {
  absl::StatusOr<std::string> program = ProgramBesideThis("kvd-bench");
  if (!program.ok()) return program.status();
  return ChildProcess::Start({*program, "micro-peer", kind, where});
}

// ---- in the children ----------------------------------------------------------------------------

// One call of the echo: waits for a request, answers, goes. The same tag for both events.
class EchoCall {
 public:
  EchoCall(v1::Engine::AsyncService& service, grpc::ServerCompletionQueue& queue)
      : service_(service), queue_(queue), writer_(&context_) {
    service_.RequestLookup(&context_, &request_, &writer_, &queue_, &queue_, this);
  }
  void OnEvent(bool ok) {
    if (answered_ || !ok) {
      delete this;
      return;
    }
    new EchoCall(service_, queue_);
    answered_ = true;
    reply_.set_hit_blocks(static_cast<uint32_t>(request_.keys().size() / kMaxHashBytes));
    reply_.set_lease(v1::LEASE_GRANTED);
    reply_.set_lease_id(1);
    reply_.set_load_time_us(1000);
    v1::TierShare& share = *reply_.add_tiers();
    share.set_tier(v1::TIER_DRAM);
    share.set_blocks(reply_.hit_blocks());
    reply_.set_extent_blocks(request_.extent_blocks());
    reply_.mutable_extents()->resize(request_.extent_blocks() * sizeof(PackedExtent));
    reply_.set_hold_id(request_.extent_blocks() > 0 ? 1 : 0);
    writer_.Finish(reply_, grpc::Status::OK, this);
  }

 private:
  v1::Engine::AsyncService& service_;
  grpc::ServerCompletionQueue& queue_;
  grpc::ServerContext context_;
  v1::LookupRequest request_;
  v1::LookupReply reply_;
  grpc::ServerAsyncResponseWriter<v1::LookupReply> writer_;
  bool answered_ = false;
};

absl::Status ServeGrpcEcho(const std::string& path) {
  v1::Engine::AsyncService service;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("unix:" + path, grpc::InsecureServerCredentials());
  builder.RegisterService(&service);
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  const std::unique_ptr<grpc::ServerCompletionQueue> queue = builder.AddCompletionQueue();
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) return absl::UnavailableError("cannot listen");
  new EchoCall(service, *queue);
  void* tag = nullptr;
  bool ok = false;
  while (queue->Next(&tag, &ok)) static_cast<EchoCall*>(tag)->OnEvent(ok);
  return absl::OkStatus();
}

absl::Status ServeSeqpacketEcho(const std::string& path) {
  const int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  const sockaddr_un address = AddressOf(path);
  if (bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      listen(listener, 1) != 0) {
    return ErrnoStatus(errno, "seqpacket echo");
  }
  const int fd = accept(listener, nullptr, nullptr);
  std::vector<char> buffer(1 << 20);
  while (true) {
    const ssize_t got = recv(fd, buffer.data(), buffer.size(), 0);
    if (got < 0 && errno == EINTR) continue;
    uint32_t reply_bytes = 0;
    if (got < static_cast<ssize_t>(sizeof reply_bytes)) return absl::OkStatus();
    std::memcpy(&reply_bytes, buffer.data(), sizeof reply_bytes);
    if (send(fd, buffer.data(), reply_bytes, MSG_NOSIGNAL) < 0) return absl::OkStatus();
  }
}

absl::Status BeAHog(const std::string& endpoint) {
  Client client({.endpoint = endpoint, .timeout = absl::Seconds(10)});
  absl::StatusOr<Namespace> ns = client.RegisterNamespace(MicroNamespace(kHogPartBytes, 1));
  if (!ns.ok()) return ns.status();
  const std::vector<std::byte> part(kHogPartBytes);
  uint64_t chain = uint64_t{1} << 40;  // Beyond those of the forest.
  const std::string loaded = MakeKeys(chain++, kMaxPageBlocks);
  if (absl::Status status = PutChain(client, *ns, "", loaded, part); !status.ok()) return status;
  raise(SIGSTOP);
  while (true) {
    const LoadResult load = client.Load(*ns, loaded);
    if (load.chain.blocks() != kMaxPageBlocks) return absl::InternalError("the hog's blocks left");
    PutChain(client, *ns, "", MakeKeys(chain++, kMaxPageBlocks), part).IgnoreError();
  }
}

}  // namespace

void AddMicroPeerCommand(CLI::App& app) {
  auto kind = std::make_shared<std::string>();
  auto where = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("micro-peer", "What micro measures against")->group("");
  command->add_option("kind", *kind)
      ->required()
      ->check(CLI::IsMember({"grpc-echo", "seqpacket-echo", "tls-stream", "hog"}));
  command->add_option("where", *where)->required();
  command->callback([kind, where] {
    FinishCommand(*kind == "grpc-echo"        ? ServeGrpcEcho(*where)
                  : *kind == "seqpacket-echo" ? ServeSeqpacketEcho(*where)
                  : *kind == "tls-stream"     ? ServeBareStream(*where)
                                              : BeAHog(*where));
  });
}

// ---- in the parent ------------------------------------------------------------------------------

absl::StatusOr<std::unique_ptr<GrpcEcho>> GrpcEcho::Start(const std::string& folder) {
  const std::string path = folder + "/grpc-echo.sock";
  absl::StatusOr<std::unique_ptr<ChildProcess>> process = StartPeer("grpc-echo", path);
  if (!process.ok()) return process.status();
  grpc::ChannelArguments args;  // As client/client.cc has them.
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 20'000);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 50);
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  args.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  args.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  args.SetMaxReceiveMessageSize(kMaxMessageBytes);
  args.SetMaxSendMessageSize(kMaxMessageBytes);
  const std::shared_ptr<grpc::Channel> channel =
      grpc::CreateCustomChannel("unix:" + path, grpc::InsecureChannelCredentials(), args);
  if (!channel->WaitForConnected(absl::ToChronoTime(absl::Now() + kStartTimeout))) {
    return absl::DeadlineExceededError("the gRPC echo does not answer");
  }
  return std::unique_ptr<GrpcEcho>(new GrpcEcho(*std::move(process), v1::Engine::NewStub(channel)));
}

absl::Status GrpcEcho::Call(const v1::LookupRequest& request, v1::LookupReply& reply) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kStartTimeout));
  const grpc::Status status = stub_->Lookup(&context, request, &reply);
  if (status.ok()) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("gRPC echo: ", status.error_message()));
}

absl::StatusOr<std::unique_ptr<SeqpacketEcho>> SeqpacketEcho::Start(const std::string& folder) {
  const std::string path = folder + "/seqpacket-echo.sock";
  absl::StatusOr<std::unique_ptr<ChildProcess>> process = StartPeer("seqpacket-echo", path);
  if (!process.ok()) return process.status();
  const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  auto echo = std::unique_ptr<SeqpacketEcho>(new SeqpacketEcho(*std::move(process), fd));
  const sockaddr_un address = AddressOf(path);
  const absl::Time deadline = absl::Now() + kStartTimeout;
  while (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    if (absl::Now() > deadline) return ErrnoStatus(errno, "seqpacket echo");
    absl::SleepFor(kPollInterval);
  }
  return echo;
}

SeqpacketEcho::~SeqpacketEcho() { close(fd_); }

absl::Status SeqpacketEcho::Call(std::string& request, uint32_t reply_bytes) {
  std::memcpy(request.data(), &reply_bytes, sizeof reply_bytes);
  char reply[4096];
  if (send(fd_, request.data(), request.size(), MSG_NOSIGNAL) < 0 ||
      recv(fd_, reply, sizeof reply, 0) < 0) {
    return ErrnoStatus(errno, "seqpacket echo");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Hog>> Hog::Start(const std::string& endpoint) {
  absl::StatusOr<std::unique_ptr<ChildProcess>> process = StartPeer("hog", endpoint);
  if (!process.ok()) return process.status();
  int status = 0;  // It stops when it is ready.
  if (waitpid((*process)->pid(), &status, WUNTRACED) < 0 || !WIFSTOPPED(status)) {
    return absl::UnavailableError("the hog did not start");
  }
  return std::unique_ptr<Hog>(new Hog(*std::move(process)));
}

void Hog::Run() const { kill(pid(), SIGCONT); }

void Hog::Pause() const {
  kill(pid(), SIGSTOP);
  absl::SleepFor(absl::Milliseconds(20));
}

}  // namespace kvd
