#include "client/remote.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <sstream>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/client_impl.h"
#include "client/convert.h"
#include "proto/types/checksum.h"
#include "proto/types/limits.h"

namespace kvd {
namespace {

// A put up to this size is one stream: to ask first would cost more than to send for nothing.
constexpr uint64_t kMaxBlindBytes = 256 << 10;
constexpr int kKeepaliveMs = 30'000;
constexpr int kKeepaliveTimeoutMs = 15'000;

absl::StatusOr<std::string> ReadPem(const char* option, const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  if (path.empty() || !file.good()) {
    return absl::InvalidArgumentError(
        absl::StrCat("tls.", option, ": ", path.empty() ? "missing" : "cannot read " + path,
                     "; tcp: wants a certificate, its key and the authority of the daemon's"));
  }
  return text.str();
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> Credentials(
    const RemoteEndpoint& endpoint, const ClientTls& tls) {
  if (!endpoint.tls) return grpc::InsecureChannelCredentials();
  grpc::SslCredentialsOptions options;
  for (const auto& [option, path, text] :
       {std::tuple{"certificate", &tls.certificate, &options.pem_cert_chain},
        {"key", &tls.key, &options.pem_private_key},
        {"authority", &tls.authority, &options.pem_root_certs}}) {
    absl::StatusOr<std::string> read = ReadPem(option, *path);
    if (!read.ok()) return read.status();
    *text = *std::move(read);
  }
  return grpc::SslCredentials(options);
}

absl::Status NoSharedMemory() {
  return absl::FailedPreconditionError(
      "this endpoint has no shared memory: use Get and Put, which stream the bytes");
}

// Waits for the one operation that is under way; nullopt: not by `deadline`.
std::optional<bool> Await(grpc::CompletionQueue& queue, absl::Time deadline) {
  void* tag = nullptr;
  bool ok = false;
  const auto next = queue.AsyncNext(&tag, &ok, absl::ToChronoTime(deadline));
  if (next == grpc::CompletionQueue::TIMEOUT) return std::nullopt;
  return next == grpc::CompletionQueue::GOT_EVENT && ok;
}

}  // namespace

std::optional<RemoteEndpoint> ParseRemoteEndpoint(const std::string& endpoint) {
  constexpr std::string_view kTcp = "tcp:";
  constexpr std::string_view kStream = "stream:";
  if (endpoint.rfind(kTcp, 0) == 0) {
    return RemoteEndpoint{.target = "dns:///" + endpoint.substr(kTcp.size()), .tls = true};
  }
  if (endpoint.rfind("stream:unix:", 0) == 0) {
    return RemoteEndpoint{.target = endpoint.substr(kStream.size()) + ".stream", .tls = false};
  }
  return std::nullopt;
}

// ---- the session --------------------------------------------------------------------------------

RemoteSession::Life::Life(std::shared_ptr<grpc::Channel> to)
    : channel(std::move(to)),
      engine(v1::Engine::NewStub(channel)),
      transfer(v1::Transfer::NewStub(channel)) {}

RemoteSession::Life::~Life() {
  context.TryCancel();
  queue.Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (queue.Next(&tag, &ok)) {
  }
}

absl::StatusOr<SessionToken> RemoteSession::Life::Begin(absl::Time deadline) {
  v1::OpenSessionRequest request;
  request.set_version_min(kProtocolVersionMin);
  request.set_version_max(kProtocolVersion);
  reader = engine->AsyncOpenSession(&context, request, &queue, this);
  std::optional<bool> done = Await(queue, deadline);
  if (done == true) {
    reader->Read(&reply, this);
    done = Await(queue, deadline);
  }
  if (!done.has_value()) return absl::DeadlineExceededError("the daemon does not answer");
  if (*done && reply.session().size() == sizeof(SessionToken)) {
    SessionToken token;
    std::memcpy(token.data(), reply.session().data(), token.size());
    reader->Read(&reply, this);  // Ends when the session does.
    return token;
  }
  if (*done) context.TryCancel();  // Otherwise it is over, and the daemon has said why.
  grpc::Status status;
  reader->Finish(&status, this);
  Await(queue, absl::InfiniteFuture());
  return *done || status.ok() ? absl::InternalError("session: not 16 bytes") : ToAbsl(status);
}

RemoteSession::RemoteSession(std::unique_ptr<Life> life, const SessionToken& token)
    : Session(UniqueFd(), token), life_(std::move(life)) {}

RemoteSession::~RemoteSession() = default;

absl::StatusOr<std::unique_ptr<Session>> RemoteSession::Open(const RemoteEndpoint& endpoint,
                                                             const ClientTls& tls,
                                                             absl::Time deadline) {
  const auto credentials = Credentials(endpoint, tls);
  if (!credentials.ok()) return credentials.status();
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  args.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  args.SetMaxReceiveMessageSize(kMaxMessageBytes);
  args.SetMaxSendMessageSize(kMaxMessageBytes);
  if (!tls.server_name.empty()) args.SetSslTargetNameOverride(tls.server_name);
  auto life =
      std::make_unique<Life>(grpc::CreateCustomChannel(endpoint.target, *credentials, args));
  const absl::StatusOr<SessionToken> token = life->Begin(deadline);
  if (!token.ok()) return token.status();
  return std::unique_ptr<Session>(new RemoteSession(std::move(life), *token));
}

bool RemoteSession::ended() const {
  if (over_.load(std::memory_order_relaxed)) return true;
  // Not InfinitePast(): gRPC takes a time before 1970 for the infinite future.
  if (!Await(life_->queue, absl::UnixEpoch()).has_value()) return false;
  over_.store(true, std::memory_order_relaxed);
  return true;
}

void RemoteSession::End() {
  over_.store(true, std::memory_order_relaxed);
  life_->context.TryCancel();
}

absl::StatusOr<std::shared_ptr<const Region>> RemoteSession::GetRegion(uint32_t, absl::Time) {
  return NoSharedMemory();
}

absl::StatusOr<StagingMemory> RemoteSession::OpenStaging(uint64_t, absl::Time) {
  return NoSharedMemory();
}

// ---- get ----------------------------------------------------------------------------------------

namespace {

// What has come of a streamed get. Each byte is summed while it is copied to where it is wanted.
class GetReceiver {
 public:
  GetReceiver(const Copier& copier, const Selection& parts,
              absl::Span<const absl::Span<std::byte>> targets)
      : copier_(copier), parts_(parts), targets_(targets), usable_(targets.size(), false) {}

  // False: it is not what a daemon sends.
  bool Take(const v1::PartBytes& bytes) {
    const size_t size = bytes.data().size();
    if (bytes.index() >= targets_.size() || size == 0 ||
        bytes.length() != parts_.bytes[bytes.index() % parts_.size()]) {
      return false;
    }
    if (received_ == 0) {
      index_ = bytes.index();
      sum_ = 0;
    }
    if (bytes.index() != index_ || bytes.offset() != received_ ||
        size > bytes.length() - received_ || usable_[index_]) {
      return false;
    }
    const uint32_t sum = copier_.CopySum(
        targets_[index_].subspan(received_, size),
        {reinterpret_cast<const std::byte*>(bytes.data().data()), size}, CopyUse::kMemory);
    sum_ = Crc32cConcat(sum_, sum, size);
    received_ += static_cast<uint32_t>(size);
    if (received_ < bytes.length()) return true;
    received_ = 0;
    usable_[index_] = sum_ == bytes.sum();
    damaged_ += !usable_[index_];
    return true;
  }

  // Of the first `blocks`.
  const std::vector<bool>& usable() const { return usable_; }
  uint32_t damaged() const { return damaged_; }

 private:
  const Copier& copier_;
  const Selection& parts_;
  const absl::Span<const absl::Span<std::byte>> targets_;
  std::vector<bool> usable_;
  uint32_t damaged_ = 0;
  // The part that is coming.
  uint32_t index_ = 0;
  uint32_t received_ = 0;
  uint32_t sum_ = 0;
};

}  // namespace

GetResult Client::Impl::GetStreamed(Link& link, const v1::GetRequest& request,
                                    const Selection& parts,
                                    absl::Span<const absl::Span<std::byte>> targets,
                                    absl::Time deadline) {
  GetResult result;
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(deadline));
  const auto reader = link.session->remote()->transfer().Get(&context, request);
  GetReceiver receiver(*copier_, parts, targets);
  std::optional<v1::GetEnd> end;
  bool sound = true;
  for (v1::GetChunk chunk; sound && reader->Read(&chunk);) {
    if (chunk.has_start()) {
      result.hit_blocks = chunk.start().hit_blocks();
      if (chunk.start().lease() == v1::LEASE_GRANTED) result.lease_id = chunk.start().lease_id();
    } else if (chunk.has_bytes()) {
      sound = receiver.Take(chunk.bytes());
    } else {
      end = chunk.end();
    }
  }
  if (!sound) context.TryCancel();
  const absl::Status status = EndOf(context, reader->Finish());
  NoteEnd(link, status, {});
  if (!sound) {
    result.status = absl::InternalError("get: the stream is not what was asked for");
  } else if (!status.ok()) {
    result.status = status;
  } else if (!end.has_value()) {
    result.status = absl::InternalError("get: the stream broke off");
  }
  // The daemon's word holds for its whole prefix; of what was cut it is worked out again.
  const auto asked = static_cast<uint32_t>(targets.size() / parts.size());
  const bool as_promised = result.status.ok() && receiver.damaged() == 0 && end->damaged() == 0 &&
                           end->blocks() == result.hit_blocks && end->blocks() <= asked;
  const uint32_t came = end.has_value() ? std::min(end->blocks(), asked) : asked;
  result.blocks = as_promised ? end->blocks() : ServableBlocks(parts, receiver.usable(), came);
  result.damaged = receiver.damaged() + (end.has_value() ? end->damaged() : 0);
  damaged_parts_.fetch_add(result.damaged, std::memory_order_relaxed);
  return result;
}

// ---- put ----------------------------------------------------------------------------------------

PutResult Client::Impl::PutStreamed(Link& link, uint32_t namespace_id, const PutCall& put) {
  PutResult result;
  v1::PutStart start;
  start.set_session(link.session->token().data(), link.session->token().size());
  std::string states(put.blocks, static_cast<char>(ReserveState::kGranted));
  // A stream carries nothing for routers: what is announced is reserved first.
  if (put.total_bytes <= kMaxBlindBytes && put.options.wait == absl::ZeroDuration() &&
      put.options.announce.empty()) {
    start.set_namespace_id(namespace_id);
    start.set_keys(put.keys.data(), put.keys.size());
    start.set_parent(put.options.parent.data(), put.options.parent.size());
    start.set_parts(put.parts.packed);
  } else {
    v1::ReserveRequest request;
    request.set_namespace_id(namespace_id);
    request.set_keys(put.keys.data(), put.keys.size());
    request.set_parent(put.options.parent.data(), put.options.parent.size());
    request.set_parts(put.parts.packed);
    const absl::Duration left = std::max(put.deadline - absl::Now(), absl::ZeroDuration());
    request.set_wait_ms(static_cast<uint32_t>(
        absl::ToInt64Milliseconds(std::clamp(put.options.wait, absl::ZeroDuration(), left))));
    for (const std::string& announce : put.options.announce) request.add_announce(announce);
    v1::ReserveReply reserved;
    result.status = Call(link, &v1::Engine::Stub::Reserve, request, &reserved, put.deadline);
    if (!result.status.ok()) return result;
    states = reserved.states();
    if (states.size() != put.blocks) {
      releases_.AddAbort(link.number, reserved.reservation_id());
      result.status = absl::InternalError("states: not one a block");
      return result;
    }
    start.set_reservation_id(reserved.reservation_id());
    if (reserved.reservation_id() == 0) {  // Nothing to send.
      for (const char state : states) {
        const auto of = static_cast<ReserveState>(state);
        result.results.push_back(of == ReserveState::kNoRoom     ? CommitResult::kNoRoom
                                 : of == ReserveState::kNoParent ? CommitResult::kNoParent
                                                                 : CommitResult::kPresent);
      }
      return result;
    }
  }

  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(put.deadline));
  const uint64_t reservation_id = start.reservation_id();
  v1::PutReply reply;
  const auto writer = link.session->remote()->transfer().Put(&context, &reply);
  SendParts(*writer, std::move(start), states, put);
  result.status = EndOf(context, writer->Finish());
  NoteEnd(link, result.status, {});
  if (!result.status.ok()) {
    if (reservation_id != 0) releases_.AddAbort(link.number, reservation_id);
    return result;
  }
  if (reply.results().size() != put.blocks) {
    result.status = absl::InternalError("results: not one a block");
    return result;
  }
  for (const char committed : reply.results()) {
    result.results.push_back(static_cast<CommitResult>(committed));
  }
  result.stored = reply.stored();
  return result;
}

// Sends what was granted, until the daemon wants no more; why, Finish() says.
void Client::Impl::SendParts(grpc::ClientWriter<v1::PutChunk>& writer, v1::PutStart start,
                             const std::string& states, const PutCall& put) {
  v1::PutChunk chunk;
  *chunk.mutable_start() = std::move(start);
  if (!writer.Write(chunk)) return;
  v1::PartBytes& bytes = *chunk.mutable_bytes();
  for (uint32_t index = 0; index < put.sources.size(); ++index) {
    const char state = states[index / put.parts.size()];
    if (static_cast<ReserveState>(state) != ReserveState::kGranted) continue;
    const absl::Span<const std::byte> source = put.sources[index];
    uint32_t sum = 0;
    for (size_t offset = 0; offset < source.size();) {
      const auto piece = source.subspan(offset, kMaxChunkBytes);
      bytes.set_index(index);
      bytes.set_length(static_cast<uint32_t>(source.size()));
      bytes.set_offset(static_cast<uint32_t>(offset));
      std::string& data = *bytes.mutable_data();
      data.resize(piece.size());
      // Of the bytes as they were read once: the source may change under our hands.
      const uint32_t piece_sum = copier_->CopySum(
          {reinterpret_cast<std::byte*>(data.data()), data.size()}, piece, CopyUse::kCache);
      sum = Crc32cConcat(sum, piece_sum, piece.size());
      offset += piece.size();
      bytes.set_sum(offset == source.size() ? sum : 0);
      if (!writer.Write(chunk)) return;
    }
  }
  writer.WritesDone();
}

}  // namespace kvd
