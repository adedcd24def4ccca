// The attackers of `hostile`. What they send is made here, from a seed of their own; they use the
// wire as it is, not the client library, which is too polite.

#include <fcntl.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "bench/hostile_peer.h"
#include "bench/micro_forest.h"
#include "client/convert.h"
#include "proto/kvd.grpc.pb.h"
#include "proto/stream.grpc.pb.h"
#include "proto/types/limits.h"
#include "proto/types/session_wire.h"
#include "proto/types/status.h"

namespace kvd {
namespace {

constexpr double kSessionsPerSecond = 200;
constexpr size_t kHalfOpen = 64;
constexpr double kMalformedBatchesPerSecond = 250;
constexpr size_t kMalformedBatch = 8;  // Calls under way at a time.
constexpr uint32_t kSlowConnections = 6;
constexpr uint32_t kSlowCalls = 100;  // On each of them.
constexpr uint32_t kSlowStreams = 8;
constexpr absl::Duration kSlowTime = absl::Milliseconds(700);
constexpr size_t kOversizedBytes = 64u << 20;
constexpr double kOversizedPerSecond = 10;
constexpr size_t kOversizedHeld = 8;  // Connections that have announced one and say no more.
constexpr uint32_t kConnections = 600;
constexpr absl::Duration kExhaustedTime = absl::Milliseconds(300);
constexpr absl::Duration kMalformedTimeout = absl::Milliseconds(20);  // Some ask to wait.
constexpr absl::Duration kOversizedTimeout = absl::Milliseconds(500);
constexpr timeval kSocketTimeout = {.tv_sec = 0, .tv_usec = 100'000};

std::string PathOf(const std::string& endpoint) {
  return endpoint.substr(std::string_view("unix:").size());
}

// So many a second. One that falls behind does not catch up.
class Pace {
 public:
  explicit Pace(double per_second) : step_(absl::Seconds(1 / per_second)), due_(absl::Now()) {}
  void Wait() {
    due_ = std::max(due_ + step_, absl::Now() - step_);
    absl::SleepFor(due_ - absl::Now());
  }

 private:
  const absl::Duration step_;
  absl::Time due_;
};

class Socket {
 public:
  explicit Socket(int fd = -1) : fd_(fd) {}
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Socket() {
    if (fd_ >= 0) close(fd_);
  }
  int fd() const { return fd_; }

 private:
  int fd_;
};

// -1 where there is no room to connect.
Socket Connect(const std::string& path, int type) {
  sockaddr_un address{.sun_family = AF_UNIX};
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  Socket made(socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (made.fd() < 0 ||
      connect(made.fd(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return Socket();
  }
  fcntl(made.fd(), F_SETFL, 0);
  setsockopt(made.fd(), SOL_SOCKET, SO_SNDTIMEO, &kSocketTimeout, sizeof kSocketTimeout);
  setsockopt(made.fd(), SOL_SOCKET, SO_RCVTIMEO, &kSocketTimeout, sizeof kSocketTimeout);
  return made;
}

bool SendAll(const Socket& to, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = send(to.fd(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent < 0) return false;
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
  return true;
}

template <typename Message>
std::string_view BytesOf(const Message& message) {
  return {reinterpret_cast<const char*>(&message), sizeof message};
}

// Sends one message with `count` descriptors that nobody asked for.
void SendWithDescriptors(const Socket& to, std::string_view bytes, size_t count) {
  iovec io{const_cast<char*>(bytes.data()), bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(16 * sizeof(int))] = {};
  msghdr header{};
  header.msg_iov = &io;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = CMSG_SPACE(count * sizeof(int));
  cmsghdr* part = CMSG_FIRSTHDR(&header);
  part->cmsg_level = SOL_SOCKET;
  part->cmsg_type = SCM_RIGHTS;
  part->cmsg_len = CMSG_LEN(count * sizeof(int));
  const std::vector<int> fds(count, to.fd());
  std::memcpy(CMSG_DATA(part), fds.data(), count * sizeof(int));
  sendmsg(to.fd(), &header, MSG_NOSIGNAL);
}

SessionHello Hello() {
  SessionHello hello;
  hello.version_min = kProtocolVersionMin;
  hello.version_max = kProtocolVersion;
  return hello;
}

// A session of our own: its socket and what calls name it by.
struct OpenedSession {
  Socket socket;
  std::string token;
};

absl::StatusOr<OpenedSession> OpenSession(const std::string& endpoint) {
  OpenedSession session{.socket = Connect(PathOf(endpoint) + ".session", SOCK_SEQPACKET)};
  SessionWelcome welcome;
  if (!SendAll(session.socket, BytesOf(Hello())) ||
      recv(session.socket.fd(), &welcome, sizeof welcome, 0) != sizeof welcome ||
      welcome.status != SessionStatus::kOk) {
    return absl::UnavailableError("hostile: no session");
  }
  session.token.assign(welcome.token.begin(), welcome.token.end());
  return session;
}

std::string RandomBytes(std::mt19937_64& random, size_t size) {
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

std::shared_ptr<grpc::Channel> ChannelTo(const std::string& target) {
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  args.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 50);
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 50);
  args.SetMaxReceiveMessageSize(-1);
  args.SetMaxSendMessageSize(-1);
  return grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), args);
}

// Calls of any method with any bytes, several at a time.
class RawCalls {
 public:
  RawCalls(const std::string& target, absl::Duration timeout)
      : stub_(ChannelTo(target)), timeout_(timeout) {}

  void Start(const std::string& method, grpc::ByteBuffer request) {
    calls_.push_back(std::make_unique<Call>());
    Call& call = *calls_.back();
    call.context.set_deadline(absl::ToChronoTime(absl::Now() + timeout_));
    call.request = std::move(request);
    call.reader = stub_.PrepareUnaryCall(&call.context, method, call.request, &queue_);
    call.reader->StartCall();
    call.reader->Finish(&call.reply, &call.status, &call);
  }
  void Start(const std::string& method, const std::string& request) {
    grpc::Slice slice(request);
    Start(method, grpc::ByteBuffer(&slice, 1));
  }
  void Wait() {
    void* tag = nullptr;
    bool ok = false;
    for (size_t i = 0; i < calls_.size(); ++i) queue_.Next(&tag, &ok);
    calls_.clear();
  }

 private:
  struct Call {
    grpc::ClientContext context;
    grpc::ByteBuffer request;
    grpc::ByteBuffer reply;
    grpc::Status status;
    std::unique_ptr<grpc::ClientAsyncResponseReader<grpc::ByteBuffer>> reader;
  };
  grpc::GenericStub stub_;
  const absl::Duration timeout_;
  grpc::CompletionQueue queue_;
  std::vector<std::unique_ptr<Call>> calls_;
};

// HTTP/2 by hand: only so much of it that a gRPC server takes us for a client.
class RawHttp2 {
 public:
  explicit RawHttp2(const std::string& path) : socket_(Connect(path, SOCK_STREAM)) {
    // SETTINGS_INITIAL_WINDOW_SIZE 0: no message of an answer may be sent to us.
    SendAll(socket_, absl::StrCat("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                                  Frame(4, 0, 0, std::string("\0\4\0\0\0\0", 6))));
  }

  bool StartCall(uint32_t stream, std::string_view method) {
    std::string headers;
    for (const auto& [name, value] :
         {std::pair<std::string_view, std::string_view>{":method", "POST"},
          {":scheme", "http"},
          {":path", method},
          {":authority", "localhost"},
          {"te", "trailers"},
          {"content-type", "application/grpc"}}) {
      headers.push_back('\0');  // A literal that neither side remembers.
      headers.push_back(static_cast<char>(name.size()));
      headers.append(name);
      headers.push_back(static_cast<char>(value.size()));
      headers.append(value);
    }
    constexpr uint8_t kEndHeaders = 4;
    return SendAll(socket_, Frame(1, kEndHeaders, stream, headers));
  }
  bool SendData(uint32_t stream, std::string_view bytes, uint8_t end_stream) {
    return SendAll(socket_, Frame(0, end_stream, stream, bytes));
  }
  // The five bytes before a message.
  static std::string Announce(uint32_t size) {
    const std::array<char, 5> bytes = {0, static_cast<char>(size >> 24),
                                       static_cast<char>(size >> 16), static_cast<char>(size >> 8),
                                       static_cast<char>(size)};
    return {bytes.data(), bytes.size()};
  }

 private:
  static std::string Frame(uint8_t type, uint8_t flags, uint32_t stream, std::string_view bytes) {
    const std::array<char, 9> header = {static_cast<char>(bytes.size() >> 16),
                                        static_cast<char>(bytes.size() >> 8),
                                        static_cast<char>(bytes.size()),
                                        static_cast<char>(type),
                                        static_cast<char>(flags),
                                        static_cast<char>(stream >> 24),
                                        static_cast<char>(stream >> 16),
                                        static_cast<char>(stream >> 8),
                                        static_cast<char>(stream)};
    return std::string(header.data(), header.size()).append(bytes);
  }

  Socket socket_;
};

constexpr const char* kEngineMethods[] = {"RegisterNamespace",
                                          "Lookup",
                                          "Load",
                                          "Release",
                                          "Reserve",
                                          "Commit",
                                          "Abort",
                                          "Pin",
                                          "Unpin",
                                          "Prefetch",
                                          "Hint",
                                          "Retain",
                                          "Watch",
                                          "OpenSession"};

// Numbers that are wrong in the ways that code forgets: none, the bounds and beside them, huge.
uint64_t OddNumber(std::mt19937_64& random) {
  static constexpr uint64_t kOdd[] = {0,     1,       2,       2047,       2048,       2049,
                                      32768, 600'000, 600'001, 0x7fffffff, 0xffffffff, UINT64_MAX};
  return random() % 4 == 0 ? random() : kOdd[random() % std::size(kOdd)];
}

std::string OddKeys(std::mt19937_64& random) {
  switch (random() % 4) {
    case 0:
      return RandomBytes(random, random() % 300);
    case 1:
      return RandomBytes(random, 32 * (random() % 64));
    case 2:
      return RandomBytes(random, 32 * 2049);
    default:
      return HostileKeys(0, random() % 4, kHostileChainBlocks);
  }
}

void AddOddReleases(std::mt19937_64& random, v1::Releases& releases) {
  for (uint64_t i = random() % 1200; i > 0; i -= std::min<uint64_t>(i, 3)) {
    releases.add_hold_ids(OddNumber(random));
    releases.add_lease_ids(random());
    v1::Damage& damage = *releases.add_damaged();
    damage.set_hold_id(random());
    damage.add_extents(static_cast<uint32_t>(random()));
  }
}

// The bytes of a request of that method that is well formed and means nothing.
std::string OddRequest(std::mt19937_64& random, const std::string& method,
                       const std::string& session, uint32_t ns) {
  const auto number = [&] { return static_cast<uint32_t>(OddNumber(random)); };
  if (random() % 3 == 0) ns = number();
  const auto common = [&](auto& request) {
    request.set_session(session);
    request.set_namespace_id(ns);
    request.set_keys(OddKeys(random));
    request.set_parts(RandomBytes(random, random() % 5));
    if (random() % 2 == 0) AddOddReleases(random, *request.mutable_releases());
    return request.SerializeAsString();
  };
  if (method == "Lookup") {
    v1::LookupRequest request;
    request.set_parent(RandomBytes(random, random() % 40));
    request.set_lease_ms(number());
    request.set_extent_blocks(number());
    return common(request);
  }
  if (method == "Load") {
    v1::LoadRequest request;
    request.set_range_offset(number());
    request.set_range_bytes(number());
    return common(request);
  }
  if (method == "Reserve") {
    v1::ReserveRequest request;
    request.set_parent(RandomBytes(random, random() % 40));
    request.set_wait_ms(number());
    for (uint64_t i = random() % 8; i > 0; --i) {
      request.add_announce(RandomBytes(random, random() % 20'000));
    }
    return common(request);
  }
  if (method == "Commit") {
    v1::CommitRequest request;
    if (random() % 2 == 0) request.set_reservation_id(OddNumber(random));
    request.set_first_block(number());
    request.set_blocks(number());
    request.set_staged(RandomBytes(random, random() % 100));
    request.set_fills(number());
    request.set_sums(RandomBytes(random, random() % 100));
    return common(request);
  }
  if (method == "RegisterNamespace") {
    v1::RegisterNamespaceRequest request;
    request.set_session(session);
    v1::NamespaceDescriptor& describes = *request.mutable_describes();
    describes.set_model(RandomBytes(random, 0) + std::string(random() % 600, 'm'));
    describes.set_hash_bytes(number());
    for (uint64_t i = random() % 40; i > 0; --i) {
      v1::Group& group = *describes.add_groups();
      group.set_kind(static_cast<v1::GroupKind>(random() % 7));
      group.set_shards(number());
      group.set_part_bytes(number());
      group.set_block_tokens(number());
    }
    return request.SerializeAsString();
  }
  if (method == "Pin") {
    v1::PinRequest request;
    request.set_session(session);
    request.set_namespace_id(ns);
    request.set_key(RandomBytes(random, random() % 40));
    request.set_owner(std::string(random() % 300, 'o'));
    request.set_ttl_ms(OddNumber(random));
    return request.SerializeAsString();
  }
  if (method == "Release" || method == "Abort" || method == "Unpin") {
    v1::ReleaseRequest request;  // The other two have numbers in its place.
    request.set_session(session);
    AddOddReleases(random, *request.mutable_releases());
    return request.SerializeAsString();
  }
  v1::HintRequest request;
  request.set_session(session);
  request.set_namespace_id(ns);
  request.set_kind(static_cast<v1::HintKind>(random() % 9));
  request.set_in_us(OddNumber(random));
  return request.SerializeAsString();
}

// What to send: chaos, a request cut short or with a byte changed, or one that only lies.
std::string Malformed(std::mt19937_64& random, const std::string& method,
                      const std::string& session, uint32_t ns) {
  if (random() % 3 == 0) return RandomBytes(random, random() % 4096);
  std::string request = OddRequest(
      random, method, random() % 4 == 0 ? RandomBytes(random, random() % 20) : session, ns);
  if (request.empty()) return request;
  switch (random() % 3) {
    case 0:
      request.resize(random() % request.size());
      break;
    case 1:
      request[random() % request.size()] = static_cast<char>(random());
      break;
    default:
      break;
  }
  return request;
}

// Registers what the well-behaved clients have, so that lookups of theirs have long answers.
absl::StatusOr<uint32_t> RegisterAsTheirs(const std::string& endpoint, const std::string& session) {
  const auto stub = v1::Engine::NewStub(ChannelTo(endpoint));
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(5)));
  v1::RegisterNamespaceRequest request;
  request.set_session(session);
  *request.mutable_describes() = ToProto(MicroNamespace(kHostilePartBytes, 1));
  v1::RegisterNamespaceReply reply;
  const grpc::Status status = stub->RegisterNamespace(&context, request, &reply);
  if (!status.ok()) return absl::UnavailableError("hostile: " + status.error_message());
  return reply.namespace_id();
}

}  // namespace

absl::Status ChurnSessions(const std::string& endpoint, HostileBoard& board) {
  const std::string path = PathOf(endpoint) + ".session";
  std::atomic<uint64_t>& done = board.attacks[static_cast<size_t>(Attack::kChurn)];
  std::mt19937_64 random(1);
  std::deque<Socket> half_open;
  for (Pace pace(kSessionsPerSecond);; pace.Wait()) {
    Socket socket = Connect(path, SOCK_SEQPACKET);
    if (socket.fd() < 0) continue;
    SessionWelcome welcome;
    switch (random() % 8) {
      case 0:  // Says nothing and goes.
        break;
      case 1:  // Greets and goes before it is answered.
        SendAll(socket, BytesOf(Hello()));
        break;
      case 2:  // Greets, hears and goes.
        SendAll(socket, BytesOf(Hello()));
        recv(socket.fd(), &welcome, sizeof welcome, 0);
        break;
      case 3:
        SendAll(socket, RandomBytes(random, 1 + random() % 100));
        break;
      case 4:
        SendWithDescriptors(socket, BytesOf(Hello()), 1 + random() % 16);
        break;
      case 5: {  // Takes memory and goes.
        StagingRequest staging;
        staging.kind = SessionMessage::kStagingRequest;
        staging.size_bytes = 4 << 20;
        SendAll(socket, BytesOf(Hello()));
        SendAll(socket, BytesOf(staging));
        recv(socket.fd(), &welcome, sizeof welcome, 0);
        break;
      }
      case 6:  // Greets twice.
        SendAll(socket, BytesOf(Hello()));
        SendAll(socket, BytesOf(Hello()));
        break;
      default:  // Stays, saying nothing or not reading.
        if (random() % 2 == 0) SendAll(socket, BytesOf(Hello()));
        half_open.push_back(std::move(socket));
        if (half_open.size() > kHalfOpen) half_open.pop_front();
    }
    ++done;
  }
}

absl::Status CallMalformed(const std::string& endpoint, HostileBoard& board) {
  const absl::StatusOr<OpenedSession> session = OpenSession(endpoint);
  if (!session.ok()) return session.status();
  const absl::StatusOr<uint32_t> ns = RegisterAsTheirs(endpoint, session->token);
  if (!ns.ok()) return ns.status();
  std::mt19937_64 random(2);
  RawCalls engine(endpoint, kMalformedTimeout);
  RawCalls stream(endpoint + ".stream", kMalformedTimeout);
  for (Pace pace(kMalformedBatchesPerSecond);; pace.Wait()) {
    for (size_t i = 0; i < kMalformedBatch; ++i) {
      const uint64_t which = random() % 16;
      if (which >= std::size(kEngineMethods)) {
        const std::string method = which == 14 ? "Get" : "Put";
        stream.Start("/kvd.v1.Transfer/" + method,
                     Malformed(random, "Lookup", session->token, *ns));
        continue;
      }
      const std::string method = kEngineMethods[which];
      RawCalls& calls = random() % 4 == 0 ? stream : engine;
      calls.Start("/kvd.v1.Engine/" + method, Malformed(random, method, session->token, *ns));
    }
    engine.Wait();
    stream.Wait();
    board.attacks[static_cast<size_t>(Attack::kMalformed)] += kMalformedBatch;
  }
}

absl::Status ReadSlowly(const std::string& endpoint, HostileBoard& board) {
  while (true) {
    const absl::StatusOr<OpenedSession> session = OpenSession(endpoint);
    if (!session.ok()) return session.status();
    const absl::StatusOr<uint32_t> ns = RegisterAsTheirs(endpoint, session->token);
    if (!ns.ok()) return ns.status();
    v1::LookupRequest lookup;
    lookup.set_session(session->token);
    lookup.set_namespace_id(*ns);
    lookup.set_keys(HostileKeys(0, 0, kHostileChainBlocks));
    lookup.set_lease_ms(kMaxLeaseMs);
    lookup.set_extent_blocks(kHostileChainBlocks);
    const std::string request = lookup.SerializeAsString();

    std::vector<std::unique_ptr<RawHttp2>> unread;
    for (uint32_t i = 0; i < kSlowConnections; ++i) {
      unread.push_back(std::make_unique<RawHttp2>(PathOf(endpoint)));
      for (uint32_t call = 0; call < kSlowCalls; ++call) {
        const uint32_t stream = 2 * call + 1;
        if (!unread.back()->StartCall(stream, "/kvd.v1.Engine/Lookup") ||
            !unread.back()->SendData(stream, RawHttp2::Announce(request.size()) + request, 1)) {
          break;
        }
        ++board.attacks[static_cast<size_t>(Attack::kSlow)];
      }
    }

    // Bytes that are asked for, and not taken.
    const auto channel = ChannelTo(endpoint + ".stream");
    const auto engine = v1::Engine::NewStub(channel);
    const auto transfer = v1::Transfer::NewStub(channel);
    grpc::ClientContext open_context;
    const absl::Time end = absl::Now() + kSlowTime;
    open_context.set_deadline(absl::ToChronoTime(end + absl::Seconds(1)));
    const auto opened = engine->OpenSession(&open_context, {});
    v1::OpenSessionReply streamed;
    std::deque<grpc::ClientContext> contexts;
    std::vector<std::unique_ptr<grpc::ClientReader<v1::GetChunk>>> readers;
    if (opened->Read(&streamed)) {
      v1::GetRequest get;
      get.set_session(streamed.session());
      get.set_namespace_id(*ns);
      get.set_keys(lookup.keys());
      for (uint32_t i = 0; i < kSlowStreams; ++i) {
        contexts.emplace_back().set_deadline(absl::ToChronoTime(end + absl::Seconds(1)));
        readers.push_back(transfer->Get(&contexts.back(), get));
        ++board.attacks[static_cast<size_t>(Attack::kSlow)];
      }
    }

    // Answers of the session socket that are not read.
    const RegionRequest region{.kind = SessionMessage::kRegionRequest, .region = 0};
    const Socket deaf = Connect(PathOf(endpoint) + ".session", SOCK_SEQPACKET);
    SendAll(deaf, BytesOf(Hello()));
    for (int i = 0; i < 1000 && SendAll(deaf, BytesOf(region)); ++i) {
    }

    absl::SleepFor(end - absl::Now());
    for (grpc::ClientContext& context : contexts) context.TryCancel();
    for (const auto& reader : readers) reader->Finish();
    open_context.TryCancel();
    opened->Finish();
  }
}

absl::Status SendOversized(const std::string& endpoint, HostileBoard& board) {
  const std::string path = PathOf(endpoint);
  std::atomic<uint64_t>& done = board.attacks[static_cast<size_t>(Attack::kOversized)];
  std::mt19937_64 random(4);
  const std::string mib(1 << 20, 'x');
  const std::vector<grpc::Slice> slices(kOversizedBytes / mib.size(), grpc::Slice(mib));
  constexpr size_t kFrameBytes = 16'384;
  const std::string frame(kFrameBytes, 'x');
  RawCalls engine(endpoint, kOversizedTimeout);
  RawCalls stream(endpoint + ".stream", kOversizedTimeout);
  std::deque<std::unique_ptr<RawHttp2>> held;
  for (Pace pace(kOversizedPerSecond);; pace.Wait()) {
    const std::string method =
        absl::StrCat("/kvd.v1.Engine/", kEngineMethods[random() % std::size(kEngineMethods)]);
    const std::string to = random() % 2 == 0 ? path : path + ".stream";
    switch (random() % 3) {
      case 0: {  // As a library sends it.
        RawCalls& calls = to == path ? engine : stream;
        calls.Start(method, grpc::ByteBuffer(slices.data(), slices.size()));
        calls.Wait();
        break;
      }
      case 1: {  // All of it, whatever we are told.
        RawHttp2 rude(to);
        rude.StartCall(1, method);
        bool sent = rude.SendData(1, RawHttp2::Announce(kOversizedBytes), 0);
        for (size_t at = 0; sent && at < kOversizedBytes; at += kFrameBytes) {
          sent = rude.SendData(1, frame, 0);
        }
        break;
      }
      default:  // Announced, begun, and left at that.
        held.push_back(std::make_unique<RawHttp2>(to));
        held.back()->StartCall(1, method);
        held.back()->SendData(1, RawHttp2::Announce(kOversizedBytes), 0);
        held.back()->SendData(1, frame, 0);
        if (held.size() > kOversizedHeld) held.pop_front();
    }
    ++done;
  }
}

absl::Status ExhaustDescriptors(const std::string& endpoint, HostileBoard& board) {
  const std::string path = PathOf(endpoint);
  while (true) {
    std::vector<Socket> held;
    for (uint32_t i = 0; i < kConnections; ++i) {
      constexpr const char* kSuffixes[] = {"", ".session", ".stream", ".admin"};
      const size_t which = i % std::size(kSuffixes);
      Socket socket = Connect(path + kSuffixes[which], which == 1 ? SOCK_SEQPACKET : SOCK_STREAM);
      if (socket.fd() < 0) continue;
      held.push_back(std::move(socket));
      ++board.attacks[static_cast<size_t>(Attack::kDescriptors)];
    }
    absl::SleepFor(kExhaustedTime);
  }
}

}  // namespace kvd
