#include "daemon/event_publisher.h"

#include <netinet/in.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <zmq.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <list>
#include <optional>
#include <string_view>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "daemon/event_streams.h"
#include "daemon/residency_follower.h"
#include "proto/types/check.h"
#include "proto/types/status.h"
#include "proto/types/view.h"

namespace kvd {
namespace {

// A busy daemon stores a hundred thousand blocks a second: the control thread is asked this often,
// not for each of them.
constexpr absl::Duration kBetweenReads = absl::Milliseconds(5);
// When somebody whose answer does not fit is tried again, and how long without any progress.
constexpr absl::Duration kBetweenTries = absl::Milliseconds(5);
constexpr absl::Duration kAnswerPatience = absl::Seconds(10);
constexpr absl::Duration kAfterFailure = absl::Seconds(1);
constexpr int kMessagesPerTurn = 64;        // Of an answer, before others have theirs.
constexpr int64_t kMaxRequestBytes = 1024;  // Of one frame that somebody sends us.
constexpr int kRequestsWaiting = 64;
constexpr std::string_view kSnapshot = "snapshot-v1";
constexpr std::string_view kIpc = "ipc://";

struct Closer {
  void operator()(void* socket) const { zmq_close(socket); }
};
using Socket = std::unique_ptr<void, Closer>;
struct Terminator {
  void operator()(void* context) const { zmq_ctx_term(context); }
};
using Context = std::unique_ptr<void, Terminator>;

void Set(void* socket, int option, int value) {
  KVD_CHECK(zmq_setsockopt(socket, option, &value, sizeof value) == 0) << option << zmq_errno();
}

std::string BigEndian(uint64_t value) {
  std::string bytes(8, '\0');
  for (int i = 7; i >= 0; --i, value >>= 8)
    bytes[static_cast<size_t>(i)] = static_cast<char>(value);
  return bytes;
}

uint64_t FromBigEndian(std::string_view bytes) {
  uint64_t value = 0;
  for (const char byte : bytes) value = value << 8 | static_cast<uint8_t>(byte);
  return value;
}

absl::StatusOr<std::string> Bind(void* socket, std::string_view flag, const std::string& address,
                                 mode_t ipc_mode) {
  Set(socket, ZMQ_LINGER, 0);
  Set(socket, ZMQ_IPV6, 1);
  const int64_t most = kMaxRequestBytes;
  KVD_CHECK(zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &most, sizeof most) == 0);
  if (zmq_bind(socket, address.c_str()) != 0) {
    return absl::UnavailableError(
        absl::StrCat(View(flag), ": cannot listen at ", address, ": ", zmq_strerror(zmq_errno())));
  }
  if (absl::StartsWith(address, View(kIpc)) &&
      chmod(address.c_str() + kIpc.size(), ipc_mode) != 0) {
    return ErrnoStatus(errno, absl::StrCat(View(flag), ": ", address));
  }
  char bound[256];
  size_t size = sizeof bound;
  KVD_CHECK(zmq_getsockopt(socket, ZMQ_LAST_ENDPOINT, bound, &size) == 0);
  return std::string(bound);
}

// Whatever somebody has sent, frame by frame; nothing: nobody has.
std::optional<std::vector<std::string>> Receive(void* socket) {
  std::vector<std::string> frames;
  zmq_msg_t frame;
  zmq_msg_init(&frame);
  int more = 1;
  while (more != 0) {
    if (zmq_msg_recv(&frame, socket, ZMQ_DONTWAIT) < 0) {
      zmq_msg_close(&frame);
      return std::nullopt;
    }
    frames.emplace_back(static_cast<const char*>(zmq_msg_data(&frame)), zmq_msg_size(&frame));
    more = zmq_msg_more(&frame);
  }
  zmq_msg_close(&frame);
  return frames;
}

// All frames or, where the first finds no room or no peer, none. 0, or errno.
template <size_t n>
int Send(void* socket, const std::array<std::string_view, n>& frames) {
  for (size_t i = 0; i < n; ++i) {
    const int flags = ZMQ_DONTWAIT | (i + 1 < n ? ZMQ_SNDMORE : 0);
    if (zmq_send(socket, frames[i].data(), frames[i].size(), flags) < 0) return zmq_errno();
  }
  return 0;
}

// Whether `fd` is a connection to `address`, as ZeroMQ names what it has bound.
bool IsConnectionTo(int fd, const std::string& address) {
  sockaddr_storage local{};
  socklen_t size = sizeof local;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&local), &size) != 0) return false;
  if (local.ss_family == AF_UNIX) {
    return address ==
           absl::StrCat(View(kIpc), reinterpret_cast<const sockaddr_un&>(local).sun_path);
  }
  const uint16_t port = local.ss_family == AF_INET
                            ? reinterpret_cast<const sockaddr_in&>(local).sin_port
                            : reinterpret_cast<const sockaddr_in6&>(local).sin6_port;
  return absl::EndsWith(address, absl::StrCat(":", ntohs(port)));
}

// One of our two sockets, and who is connected there.
struct Endpoint {
  Socket socket;
  Socket monitor;
  std::string address;
  uint32_t connections = 0;
};

}  // namespace

class EventPublisher::Impl {
 public:
  Impl(Inbox& inbox, EventRing& events, Options options)
      : options_(std::move(options)),
        metrics_(*options_.metrics),
        events_(events),
        follower_(inbox),
        streams_(metrics_, {.topic = options_.topic,
                            .backend_id = options_.backend_id,
                            .replay_messages = options_.replay_messages,
                            .replay_bytes = options_.replay_bytes,
                            .domain_name = options_.domain_name,
                            .model_name = [this](NamespaceId ns) {
                              return follower_.ModelOf(ns).value_or("");
                            }}) {}

  ~Impl() {
    if (thread_.joinable()) {
      stop_ = true;
      eventfd_write(wake_, 1);
      thread_.join();
    }
    events_.SetWake(nullptr);
    if (wake_ >= 0) close(wake_);
    for (const std::string& address : {pub_.address, router_.address}) {
      if (absl::StartsWith(address, View(kIpc))) unlink(address.c_str() + kIpc.size());
    }
  }

  absl::Status Start() {
    wake_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (wake_ < 0) return ErrnoStatus(errno, "eventfd");
    context_.reset(zmq_ctx_new());
    KVD_CHECK(context_ != nullptr);
    Open(pub_, ZMQ_XPUB);
    Set(pub_.socket.get(), ZMQ_SNDHWM, options_.high_water);
    Set(pub_.socket.get(), ZMQ_XPUB_NODROP, 1);  // Says so where somebody has no room.
    if (absl::Status status = Listen(pub_, "--events", options_.listen); !status.ok()) {
      return status;
    }
    if (!options_.replay.empty()) {
      Open(router_, ZMQ_ROUTER);
      Set(router_.socket.get(), ZMQ_ROUTER_MANDATORY, 1);  // Says so where an answer has no room.
      Set(router_.socket.get(), ZMQ_SNDHWM, kMessagesPerTurn);
      Set(router_.socket.get(), ZMQ_RCVHWM, kRequestsWaiting);
      if (absl::Status status = Listen(router_, "--events-replay", options_.replay); !status.ok()) {
        return status;
      }
    }
    events_.SetWake([fd = wake_] { eventfd_write(fd, 1); });
    thread_ = std::thread([this] { Run(); });
    return absl::OkStatus();
  }

  const std::string& address() const { return pub_.address; }
  const std::string& replay_address() const { return router_.address; }

 private:
  struct Answer {
    std::string identity;
    std::variant<EventStreams::Replay, EventStreams::Snapshot> what;
    EventMessagePtr next;  // That found no room yet.
    absl::Time progress;
  };

  void Open(Endpoint& endpoint, int type) {
    endpoint.socket.reset(zmq_socket(context_.get(), type));
    KVD_CHECK(endpoint.socket != nullptr);
    const std::string name = absl::StrCat("inproc://connections.", type);
    KVD_CHECK(zmq_socket_monitor(endpoint.socket.get(), name.c_str(),
                                 ZMQ_EVENT_ACCEPTED | ZMQ_EVENT_DISCONNECTED) == 0);
    endpoint.monitor.reset(zmq_socket(context_.get(), ZMQ_PAIR));
    KVD_CHECK(zmq_connect(endpoint.monitor.get(), name.c_str()) == 0);
  }

  absl::Status Listen(Endpoint& endpoint, std::string_view flag, const std::string& address) {
    absl::StatusOr<std::string> bound =
        Bind(endpoint.socket.get(), flag, address, options_.ipc_mode);
    if (!bound.ok()) return bound.status();
    endpoint.address = *std::move(bound);
    return absl::OkStatus();
  }

  void Run() {
    while (!stop_) {
      const absl::Time now = absl::Now();
      streams_.SetTime(absl::ToDoubleSeconds(now - absl::UnixEpoch()));
      if (now >= next_read_ && !events_.WakeAt(follower_.next())) ReadTurn();
      TakeConnections(pub_);
      TakeConnections(router_);
      TakeSubscriptions();
      TakeRequests();
      ContinueAnswers();
      Sleep();
    }
  }

  // One turn of the control thread's, and what follows of it.
  void ReadTurn() {
    ResidencyFollower::Turn turn;
    if (const absl::Status status = follower_.Next(turn); !status.ok()) {
      spdlog::warn("events.delayed error=\"{}\"", std::string(status.message()));
      next_read_ = absl::Now() + kAfterFailure;
      return;
    }
    if (turn.cleared) {
      synced_ = false;
      if (turn.lost) {
        streams_.Lost();
        spdlog::warn("events.lost action=\"everything is told anew\"");
      }
    }
    for (const Control::FollowedEvent& event : turn.events) streams_.Apply(event);
    synced_ |= turn.synced;
    for (const EventMessagePtr& message : streams_.Take()) Publish(*message);
    metrics_.blocks = streams_.blocks();
    if (turn.idle) next_read_ = absl::Now() + kBetweenReads;
  }

  void Publish(const EventMessage& message) {
    const std::string sequence = BigEndian(message.sequence);
    const std::array<std::string_view, 3> frames = {message.topic, sequence, message.payload};
    ++metrics_.messages;
    if (Send(pub_.socket.get(), frames) == 0) return;
    // Somebody is too far behind. The others get it.
    ++metrics_.dropped_messages;
    Set(pub_.socket.get(), ZMQ_XPUB_NODROP, 0);
    KVD_CHECK(Send(pub_.socket.get(), frames) == 0) << zmq_errno();
    Set(pub_.socket.get(), ZMQ_XPUB_NODROP, 1);
  }

  // Who is beyond the bound, which ZeroMQ has not, is cut off at once. Its number may be another's
  // by the time we hear of it: then that one is looked at.
  void TakeConnections(Endpoint& endpoint) {
    if (endpoint.monitor == nullptr) return;
    while (const std::optional<std::vector<std::string>> frames = Receive(endpoint.monitor.get())) {
      uint16_t event = 0;
      int32_t fd = -1;
      std::memcpy(&event, frames->front().data(), sizeof event);
      std::memcpy(&fd, frames->front().data() + sizeof event, sizeof fd);
      if (event == ZMQ_EVENT_DISCONNECTED) {
        endpoint.connections -= std::min(endpoint.connections, 1u);
      } else if (++endpoint.connections > options_.most_connections) {
        ++metrics_.refused_requests;
        if (IsConnectionTo(fd, endpoint.address)) shutdown(fd, SHUT_RDWR);
      }
    }
  }

  // The socket knows who wants what; what it tells us of it would pile up.
  void TakeSubscriptions() {
    while (Receive(pub_.socket.get()).has_value()) {
    }
  }

  void TakeRequests() {
    if (router_.socket == nullptr) return;
    while (synced_ && answers_.size() < options_.most_answers) {
      const std::optional<std::vector<std::string>> frames = Receive(router_.socket.get());
      if (!frames.has_value()) return;
      TakeRequest(*frames);
    }
  }

  void TakeRequest(const std::vector<std::string>& frames) {
    const bool shaped = (frames.size() == 3 || frames.size() == 4) && frames[1].empty();
    const std::string_view asked = shaped ? std::string_view(frames[2]) : std::string_view();
    const bool any_topic = frames.size() == 3;
    const std::string topic = any_topic || !shaped ? "" : frames[3];
    Answer answer{.identity = frames[0], .what = {}, .next = nullptr, .progress = absl::Now()};
    if (asked == kSnapshot) {
      ++metrics_.snapshots;
      answer.what = streams_.TakeSnapshot(topic, any_topic);
    } else if (asked.size() == 8) {
      ++metrics_.replays;
      answer.what = EventStreams::Replay{
          .topic = topic, .any_topic = any_topic, .from = FromBigEndian(asked)};
    } else {
      ++metrics_.refused_requests;
      return;
    }
    answers_.push_back(std::move(answer));
  }

  void ContinueAnswers() {
    blocked_ = true;
    for (auto answer = answers_.begin(); answer != answers_.end();) {
      answer = Continue(*answer) ? std::next(answer) : answers_.erase(answer);
    }
  }

  // False: it is over, one way or another.
  bool Continue(Answer& answer) {
    for (int i = 0; i < kMessagesPerTurn; ++i) {
      if (answer.next == nullptr) {
        answer.next = std::visit([this](auto& what) { return streams_.Next(what); }, answer.what);
      }
      const bool last = answer.next == nullptr;
      const std::string sequence = BigEndian(last ? UINT64_MAX : answer.next->sequence);
      const int error =
          Send(router_.socket.get(),
               std::array<std::string_view, 5>{
                   answer.identity, "", last ? std::string_view() : answer.next->topic, sequence,
                   last ? std::string_view() : answer.next->payload});
      if (error == EAGAIN) return absl::Now() < answer.progress + kAnswerPatience;
      if (error != 0 || last) return false;  // Done, or its reader has gone.
      answer.next = nullptr;
      answer.progress = absl::Now();
    }
    blocked_ = false;
    return true;
  }

  // Until somebody wants something, or the time has come.
  void Sleep() {
    absl::Duration patience = absl::InfiniteDuration();
    if (!events_.WakeAt(follower_.next())) {
      patience = std::max(next_read_ - absl::Now(), absl::ZeroDuration());
    }
    if (!answers_.empty()) {
      patience = std::min(patience, blocked_ ? kBetweenTries : absl::ZeroDuration());
    }
    const bool full = !synced_ || answers_.size() >= options_.most_answers;
    zmq_pollitem_t items[] = {
        {.fd = wake_, .events = ZMQ_POLLIN},
        {.socket = pub_.socket.get(), .events = ZMQ_POLLIN},
        {.socket = pub_.monitor.get(), .events = ZMQ_POLLIN},
        {.socket = router_.monitor.get(), .events = ZMQ_POLLIN},
        {.socket = router_.socket.get(), .events = ZMQ_POLLIN},
    };
    const int n = router_.socket == nullptr ? 3 : full ? 4 : 5;
    const int64_t ms = patience == absl::InfiniteDuration()
                           ? -1
                           : absl::ToInt64Milliseconds(patience + absl::Microseconds(999));
    zmq_poll(items, n, static_cast<long>(ms));
    eventfd_t ignored;
    eventfd_read(wake_, &ignored);
  }

  // Constant after Start().
  const Options options_;
  EventMetrics& metrics_;
  EventRing& events_;
  int wake_ = -1;
  Context context_;  // Before its sockets, which go first.
  Endpoint pub_;
  Endpoint router_;  // May be none.
  std::thread thread_;
  std::atomic<bool> stop_{false};

  // The thread's.
  ResidencyFollower follower_;
  EventStreams streams_;
  std::list<Answer> answers_;
  bool synced_ = false;   // What streams_ have is all that there is.
  bool blocked_ = false;  // Every answer waits for its reader.
  absl::Time next_read_ = absl::InfinitePast();
};

EventPublisher::EventPublisher(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
EventPublisher::~EventPublisher() = default;

absl::StatusOr<std::unique_ptr<EventPublisher>> EventPublisher::Start(Inbox& inbox,
                                                                      EventRing& events,
                                                                      Options options) {
  auto impl = std::make_unique<Impl>(inbox, events, std::move(options));
  if (absl::Status status = impl->Start(); !status.ok()) return status;
  return std::unique_ptr<EventPublisher>(new EventPublisher(std::move(impl)));
}

const std::string& EventPublisher::address() const { return impl_->address(); }
const std::string& EventPublisher::replay_address() const { return impl_->replay_address(); }

}  // namespace kvd
