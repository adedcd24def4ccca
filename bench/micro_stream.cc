// Gets by clients without shared memory, over TLS on loopback.

#include "bench/micro_stream.h"

#include <grpcpp/grpcpp.h>

#include <cstdio>
#include <fstream>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "bench/certificates.h"
#include "bench/child_process.h"
#include "bench/daemon_process.h"
#include "bench/micro_forest.h"
#include "bench/micro_run.h"
#include "client/client.h"
#include "proto/stream.grpc.pb.h"
#include "proto/types/host_memory.h"
#include "proto/types/limits.h"
#include "proto/types/status.h"

namespace kvd {
namespace {

constexpr uint32_t kBlockBytes = 2u << 20;
constexpr uint32_t kBlocks = 64;
constexpr uint64_t kBytes = uint64_t{kBlocks} * kBlockBytes;
constexpr absl::Duration kPatience = absl::Seconds(20);

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

class BareService final : public v1::Transfer::Service {
  grpc::Status Get(grpc::ServerContext*, const v1::GetRequest*,
                   grpc::ServerWriter<v1::GetChunk>* writer) override {
    v1::GetChunk chunk;
    chunk.mutable_bytes()->mutable_data()->assign(kMaxChunkBytes, 'x');
    for (uint64_t sent = 0; sent < kBytes; sent += kMaxChunkBytes) {
      if (!writer->Write(chunk)) return grpc::Status::CANCELLED;
    }
    return grpc::Status::OK;
  }
};

class BareStream {
 public:
  static absl::StatusOr<std::unique_ptr<BareStream>> Start(const std::string& folder) {
    absl::StatusOr<std::string> program = ProgramBesideThis("kvd-bench");
    if (!program.ok()) return program.status();
    auto process = ChildProcess::Start({*program, "micro-peer", "tls-stream", folder});
    if (!process.ok()) return process.status();
    const absl::Time deadline = absl::Now() + kPatience;
    std::string port;
    while ((port = ReadFile(folder + "/port")).empty()) {
      if (absl::Now() > deadline) return absl::DeadlineExceededError("the bare stream");
      absl::SleepFor(absl::Milliseconds(5));
    }
    grpc::SslCredentialsOptions options;
    options.pem_root_certs = ReadFile(folder + "/ca.pem");
    options.pem_private_key = ReadFile(folder + "/client.key");
    options.pem_cert_chain = ReadFile(folder + "/client.pem");
    grpc::ChannelArguments args;
    args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    args.SetSslTargetNameOverride(kTestServerName);
    return std::unique_ptr<BareStream>(new BareStream(
        *std::move(process), v1::Transfer::NewStub(grpc::CreateCustomChannel(
                                 "127.0.0.1:" + port, grpc::SslCredentials(options), args))));
  }

  pid_t pid() const { return process_->pid(); }

  absl::Status Get() {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + kPatience));
    const auto reader = stub_->Get(&context, {});
    uint64_t received = 0;
    for (v1::GetChunk chunk; reader->Read(&chunk);) received += chunk.bytes().data().size();
    const grpc::Status status = reader->Finish();
    if (status.ok() && received == kBytes) return absl::OkStatus();
    return absl::UnavailableError(absl::StrCat("the bare stream: ", status.error_message()));
  }

 private:
  BareStream(std::unique_ptr<ChildProcess> process, std::unique_ptr<v1::Transfer::Stub> stub)
      : process_(std::move(process)), stub_(std::move(stub)) {}

  const std::unique_ptr<ChildProcess> process_;
  const std::unique_ptr<v1::Transfer::Stub> stub_;
};

}  // namespace

absl::Status ServeBareStream(const std::string& folder) {
  grpc::SslServerCredentialsOptions options(
      GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  options.pem_root_certs = ReadFile(folder + "/ca.pem");
  options.pem_key_cert_pairs.push_back(
      {ReadFile(folder + "/server.key"), ReadFile(folder + "/server.pem")});
  BareService service;
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::SslServerCredentials(options), &port);
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) return absl::UnavailableError("the bare stream cannot listen");
  const std::string path = folder + "/port";
  std::ofstream(path + ".new") << port;
  if (std::rename((path + ".new").c_str(), path.c_str()) != 0) return ErrnoStatus(errno, path);
  server->Wait();
  return absl::OkStatus();
}

absl::Status MeasureStream(MicroRun& run) {
  constexpr std::string_view kRow = "get_tls_2mib";
  if (!run.Wanted(kRow)) return absl::OkStatus();
  absl::StatusOr<std::unique_ptr<TemporaryFolder>> folder = TemporaryFolder::Create();
  if (!folder.ok()) return folder.status();
  const std::string& at = (*folder)->path();
  if (absl::Status status = MakeCertificates(at); !status.ok()) return status;
  absl::StatusOr<std::unique_ptr<BareStream>> bare = BareStream::Start(at);
  if (!bare.ok()) return bare.status();
  absl::StatusOr<std::unique_ptr<DaemonProcess>> daemon = DaemonProcess::Start(
      {.arguments = {"--dram", "512MiB", "--log-level", "warn", "--tcp", "127.0.0.1:0",
                     "--tls-certificate", at + "/server.pem", "--tls-key", at + "/server.key",
                     "--tls-client-ca", at + "/ca.pem"}});
  if (!daemon.ok()) return daemon.status();
  run.AddServer((*bare)->pid());
  run.AddServer((*daemon)->pid());
  Client client({.endpoint = "tcp:" + (*daemon)->Said("tcp"),
                 .tls = {.certificate = at + "/client.pem",
                         .key = at + "/client.key",
                         .authority = at + "/ca.pem",
                         .server_name = kTestServerName},
                 .timeout = kPatience});
  const absl::StatusOr<Namespace> ns = client.RegisterNamespace(MicroNamespace(kBlockBytes, 1));
  if (!ns.ok()) return ns.status();
  MappedArray<std::byte> memory(kBytes, Touch::kNow);
  const std::string keys = MakeKeys(0, kBlocks);
  const absl::Status put =
      PutChain(client, *ns, "", keys, absl::MakeConstSpan(&memory[0], kBlockBytes));
  if (!put.ok()) return put;
  std::vector<absl::Span<std::byte>> targets;
  for (uint32_t i = 0; i < kBlocks; ++i) {
    targets.push_back({&memory[size_t{i} * kBlockBytes], kBlockBytes});
  }

  run.Place(Placement::kAnywhere);  // Both ends encrypt: each wants a CPU, and gRPC some more.
  const SystemClock clock;
  const auto rate = [&clock](Nanos start) {
    return static_cast<double>(kBytes) / static_cast<double>(clock.Now() - start);
  };
  const absl::StatusOr<Rounds> rounds = run.Take([&]() -> absl::StatusOr<std::vector<double>> {
    Nanos start = clock.Now();
    const GetResult got = client.Get(*ns, keys, targets);
    const double ours = rate(start);
    if (!got.status.ok()) return got.status;
    if (got.blocks != kBlocks) return absl::InternalError("a get over TLS came short");
    start = clock.Now();
    if (absl::Status status = (*bare)->Get(); !status.ok()) return status;
    return std::vector<double>{ours, rate(start)};
  });
  run.RemoveServer((*daemon)->pid());
  run.RemoveServer((*bare)->pid());
  if (!rounds.ok()) return rounds.status();
  run.Add(kRow, *rounds, 0, 1, "bare gRPC stream, same TLS");
  return absl::OkStatus();
}

}  // namespace kvd
