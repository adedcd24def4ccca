#include "tests/e2e/recorded_session.h"

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/codegen/client_unary_call.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <deque>
#include <fstream>
#include <sstream>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "client/session.h"
#include "proto/kvd.pb.h"
#include "proto/types/check.h"
#include "proto/types/packed.h"
#include "proto/types/session_wire.h"

namespace kvd {
namespace {

constexpr char kCommit[] = "/kvd.v1.Engine/Commit";

int SocketAt(const std::string& path, bool listens) {
  const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  sockaddr_un address{.sun_family = AF_UNIX};
  KVD_CHECK(path.size() < sizeof address.sun_path) << path;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  const auto* name = reinterpret_cast<const sockaddr*>(&address);
  KVD_CHECK(listens ? bind(fd, name, sizeof address) == 0 && listen(fd, 8) == 0
                    : connect(fd, name, sizeof address) == 0)
      << path;
  return fd;
}

struct Message {
  std::string bytes;  // Empty: the other end hung up.
  std::vector<UniqueFd> fds;
};

Message Receive(int fd) {
  Message message;
  message.bytes.resize(4096);
  const auto size = ReceiveMessage(fd, message.bytes.data(), message.bytes.size(), message.fds,
                                   absl::InfiniteFuture());
  message.bytes.resize(size.ok() ? *size : 0);
  return message;
}

bool Send(int fd, const Message& message) {
  iovec io{const_cast<char*>(message.bytes.data()), message.bytes.size()};
  msghdr header{};
  header.msg_iov = &io;
  header.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(4 * sizeof(int))] = {};
  if (!message.fds.empty()) {
    KVD_CHECK(message.fds.size() <= 4);
    header.msg_control = control;
    header.msg_controllen = CMSG_SPACE(message.fds.size() * sizeof(int));
    cmsghdr* part = CMSG_FIRSTHDR(&header);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(message.fds.size() * sizeof(int));
    std::array<int, 4> passed{};
    for (size_t i = 0; i < message.fds.size(); ++i) passed[i] = message.fds[i].get();
    std::memcpy(CMSG_DATA(part), passed.data(), message.fds.size() * sizeof(int));
  }
  return sendmsg(fd, &header, MSG_NOSIGNAL) == static_cast<ssize_t>(message.bytes.size());
}

std::string Flat(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  KVD_CHECK(buffer.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes;
}

}  // namespace

absl::StatusOr<std::vector<RecordedEntry>> ReadRecording(const std::string& file) {
  std::ifstream in(file);
  if (!in) return absl::NotFoundError(absl::StrCat("cannot read ", file));
  std::vector<RecordedEntry> entries;
  for (std::string line; std::getline(in, line);) {
    if (line.empty() || line[0] == '#') continue;
    std::istringstream words(line);
    RecordedEntry entry;
    words >> entry.word;
    std::string hex;
    if (entry.word == "call") words >> entry.method;
    if (entry.word != "stage") {
      words >> hex;
      entry.bytes = hex == "-" ? "" : absl::HexStringToBytes(hex);
    }
    for (uint64_t number; words >> number;) entry.numbers.push_back(number);
    entries.push_back(std::move(entry));
  }
  return entries;
}

void WriteRecording(const std::string& file, const std::string& comment,
                    const std::vector<RecordedEntry>& entries) {
  std::ofstream out(file);
  out << comment;
  for (const RecordedEntry& entry : entries) {
    out << entry.word;
    if (entry.word == "call") out << " " << entry.method;
    if (entry.word != "stage") {
      out << " " << (entry.bytes.empty() ? "-" : absl::BytesToHexString(entry.bytes));
    }
    for (const uint64_t number : entry.numbers) out << " " << number;
    out << "\n";
  }
  KVD_CHECK(out.good()) << file;
}

class SessionRecorder::Impl {
 public:
  Impl(const std::string& path, const std::string& daemon)
      : daemon_(daemon),
        listener_(SocketAt(path + ".session", /*listens=*/true)),
        channel_(grpc::CreateChannel("unix:" + daemon, grpc::InsecureChannelCredentials())) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + path, grpc::InsecureServerCredentials());
    builder.RegisterAsyncGenericService(&service_);
    queue_ = builder.AddCompletionQueue();
    server_ = builder.BuildAndStart();
    KVD_CHECK(server_ != nullptr) << path;
    threads_.emplace_back([this] { PassCalls(); });
    threads_.emplace_back([this] { PassSessions(); });
  }
  ~Impl() {
    server_->Shutdown(std::chrono::system_clock::now());
    queue_->Shutdown();
    shutdown(listener_.get(), SHUT_RDWR);
    for (std::thread& thread : threads_) thread.join();
  }

  std::vector<RecordedEntry> entries() const {
    absl::MutexLock lock(&mu_);
    return entries_;
  }

 private:
  void Note(RecordedEntry entry) {
    absl::MutexLock lock(&mu_);
    entries_.push_back(std::move(entry));
  }
  void NoteStaged(uint64_t offset, uint64_t length) {
    KVD_CHECK(offset + length <= staging_.size()) << offset;
    const std::byte* bytes = staging_.data() + offset;
    for (uint64_t i = 1; i < length; ++i) KVD_CHECK(bytes[i] == bytes[0]) << "not one byte";
    Note({.word = "stage",
          .numbers = {offset, length, static_cast<uint64_t>(std::to_integer<uint8_t>(bytes[0]))}});
  }

  // One call after the other.
  void PassCalls() {
    void* tag = nullptr;
    bool ok = false;
    const auto next = [&] { return queue_->Next(&tag, &ok) && ok; };
    while (true) {
      grpc::GenericServerContext context;
      grpc::GenericServerAsyncReaderWriter stream(&context);
      service_.RequestCall(&context, &stream, queue_.get(), queue_.get(), this);
      if (!next()) break;
      grpc::ByteBuffer request;
      stream.Read(&request, this);
      if (!next()) continue;
      const std::string bytes = Flat(request);
      if (context.method() == kCommit) {
        v1::CommitRequest commit;
        KVD_CHECK(commit.ParseFromString(bytes));
        for (size_t i = 0; i < commit.staged().size() / sizeof(PackedStaged); ++i) {
          const auto staged = UnpackAt<PackedStaged>(commit.staged(), i);
          NoteStaged(staged.offset, staged.length);
        }
      }
      grpc::ClientContext onward;
      onward.set_deadline(context.deadline());
      grpc::ByteBuffer reply;
      const grpc::internal::RpcMethod method(context.method().c_str(),
                                             grpc::internal::RpcMethod::NORMAL_RPC, channel_);
      const grpc::Status status =
          grpc::internal::BlockingUnaryCall<grpc::ByteBuffer, grpc::ByteBuffer>(
              channel_.get(), method, &onward, request, &reply);
      KVD_CHECK(status.ok()) << context.method() << " " << status.error_message();
      Note({.word = "call", .method = context.method(), .bytes = bytes});
      Note({.word = "answer", .bytes = Flat(reply)});
      stream.WriteAndFinish(reply, grpc::WriteOptions(), status, this);
      next();
    }
    while (queue_->Next(&tag, &ok)) {
    }
  }

  void PassSessions() {
    while (true) {
      const UniqueFd client(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (client.get() < 0) return;
      const UniqueFd daemon(SocketAt(daemon_ + ".session", /*listens=*/false));
      while (true) {
        const Message request = Receive(client.get());
        if (request.bytes.empty()) break;
        Note({.word = "session>", .bytes = request.bytes});
        KVD_CHECK(Send(daemon.get(), request));
        Message answer = Receive(daemon.get());
        Note({.word = "session<", .bytes = answer.bytes, .numbers = {answer.fds.size()}});
        SessionMessage kind{};
        std::memcpy(&kind, answer.bytes.data(), sizeof kind);
        if (kind == SessionMessage::kStagingReply) TapStaging(answer);
        KVD_CHECK(Send(client.get(), answer));
      }
    }
  }

  // Looks at the staging memory too, and puts itself on the fill channel.
  void TapStaging(Message& answer) {
    KVD_CHECK(answer.fds.size() == 2);
    struct stat info;
    KVD_CHECK(fstat(answer.fds[0].get(), &info) == 0);
    const auto size = static_cast<uint64_t>(info.st_size);
    void* data = mmap(nullptr, size, PROT_READ, MAP_SHARED, answer.fds[0].get(), 0);
    KVD_CHECK(data != MAP_FAILED);
    staging_ = {static_cast<const std::byte*>(data), size};
    int ends[2];
    KVD_CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
    UniqueFd daemon = std::exchange(answer.fds[1], UniqueFd(ends[1]));
    threads_.emplace_back([this, client = UniqueFd(ends[0]), daemon = std::move(daemon)] {
      pollfd both[] = {{.fd = client.get(), .events = POLLIN, .revents = 0},
                       {.fd = daemon.get(), .events = POLLIN, .revents = 0}};
      while (poll(both, 2, -1) > 0) {
        for (const bool from_client : {true, false}) {
          if (both[from_client ? 0 : 1].revents == 0) continue;
          const Message message = Receive(from_client ? client.get() : daemon.get());
          if (message.bytes.empty()) return;
          for (size_t i = 0; from_client && i < message.bytes.size() / sizeof(FillRequest); ++i) {
            const auto fill = UnpackAt<FillRequest>(message.bytes, i);
            NoteStaged(fill.staging_offset, fill.length);
          }
          Note({.word = from_client ? "fill>" : "fill<", .bytes = message.bytes});
          if (!Send(from_client ? daemon.get() : client.get(), message)) return;
        }
      }
    });
  }

  const std::string daemon_;
  const UniqueFd listener_;
  const std::shared_ptr<grpc::Channel> channel_;
  grpc::AsyncGenericService service_;
  std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  std::unique_ptr<grpc::Server> server_;
  absl::Span<const std::byte> staging_;  // Stays mapped.
  mutable absl::Mutex mu_;
  std::vector<RecordedEntry> entries_ ABSL_GUARDED_BY(mu_);
  std::deque<std::thread> threads_;  // Never moved: one joins while another is added.
};

SessionRecorder::SessionRecorder(const std::string& path, const std::string& daemon)
    : impl_(std::make_unique<Impl>(path, daemon)) {}
SessionRecorder::~SessionRecorder() = default;
std::vector<RecordedEntry> SessionRecorder::entries() const { return impl_->entries(); }

}  // namespace kvd
