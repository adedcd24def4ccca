// The HTTP server as a monitor, and somebody who means no good, see it.

#include "daemon/metrics_http.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "daemon/heartbeat.h"
#include "tests/testing/control_harness.h"

namespace kvd {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

constexpr absl::Duration kPatience = absl::Seconds(20);

// A TCP connection to 127.0.0.1.
class Connection {
 public:
  explicit Connection(const std::string& address)
      : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    uint32_t port = 0;
    KVD_CHECK(absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port));
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(static_cast<uint16_t>(port));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    KVD_CHECK(connect(fd_, reinterpret_cast<sockaddr*>(&to), sizeof to) == 0);
  }
  ~Connection() { close(fd_); }
  Connection(const Connection&) = delete;

  bool Send(const std::string& bytes) const {
    return send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL) ==
           static_cast<ssize_t>(bytes.size());
  }
  // Until the other end closes, or patience does.
  std::string ReadToEnd() const {
    const absl::Time deadline = absl::Now() + kPatience;
    std::string all;
    char bytes[65536];
    while (absl::Now() < deadline) {
      pollfd readable{.fd = fd_, .events = POLLIN, .revents = 0};
      if (poll(&readable, 1, 100) <= 0) continue;
      const ssize_t got = recv(fd_, bytes, sizeof bytes, 0);
      if (got <= 0) return all;
      all.append(bytes, static_cast<size_t>(got));
    }
    return all + " (never closed)";
  }

 private:
  const int fd_;
};

class MetricsHttpTest : public testing::Test {
 protected:
  std::string Ask(const std::string& what) const {
    const Connection connection(http_->address());
    EXPECT_TRUE(connection.Send(what + " HTTP/1.1\r\nHost: x\r\n\r\n"));
    return connection.ReadToEnd();
  }
  static absl::StatusOr<std::unique_ptr<MetricsHttp>> Listen(const std::string& address,
                                                             bool beyond_loopback = false) {
    return MetricsHttp::Start({.address = address, .beyond_loopback = beyond_loopback},
                              {.metrics = [] { return "kvd_x 1\n"; },
                               .alive = [] { return true; },
                               .why_not_ready = [] { return std::string(); }});
  }
  void Start() {
    auto http = MetricsHttp::Start({.address = "127.0.0.1:0"},
                                   {.metrics = [this] { return metrics_; },
                                    .alive = [this] { return alive_.load(); },
                                    .why_not_ready = [this] { return why_not_ready_; }});
    ASSERT_TRUE(http.ok()) << http.status();
    http_ = *std::move(http);
  }

  std::string metrics_ = "kvd_x 1\n";
  std::atomic<bool> alive_{true};
  std::string why_not_ready_;
  std::unique_ptr<MetricsHttp> http_;
};

TEST_F(MetricsHttpTest, AnswersWhatMonitorsAsk) {
  Start();
  const std::string metrics = Ask("GET /metrics");
  EXPECT_THAT(metrics, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(metrics, HasSubstr("Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"));
  EXPECT_THAT(metrics, HasSubstr("\r\n\r\nkvd_x 1\n"));
  EXPECT_THAT(Ask("GET /healthz"), StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(Ask("GET /readyz"), StartsWith("HTTP/1.1 200 OK\r\n"));
}

TEST_F(MetricsHttpTest, SaysWhenItIsNotAliveOrNotReady) {
  Start();
  alive_ = false;
  why_not_ready_ = "draining";
  EXPECT_THAT(Ask("GET /healthz"), StartsWith("HTTP/1.1 503 "));
  const std::string not_ready = Ask("GET /readyz");
  EXPECT_THAT(not_ready, StartsWith("HTTP/1.1 503 "));
  EXPECT_THAT(not_ready, HasSubstr("draining"));
}

TEST_F(MetricsHttpTest, HasNothingElse) {
  Start();
  for (const char* path :
       {"/", "/metrics/", "/metrics/x", "/..", "/../../etc/passwd", "/%6detrics"}) {
    EXPECT_THAT(Ask(absl::StrCat("GET ", path)),
                testing::AnyOf(StartsWith("HTTP/1.1 404 "), StartsWith("HTTP/1.1 400 ")))
        << path;
  }
  for (const char* method : {"POST", "PUT", "DELETE", "OPTIONS"}) {
    EXPECT_THAT(Ask(absl::StrCat(method, " /metrics")), StartsWith("HTTP/1.1 40")) << method;
  }
}

TEST_F(MetricsHttpTest, AHeadRequestGetsNoBody) {
  Start();
  const std::string head = Ask("HEAD /metrics");
  EXPECT_THAT(head, HasSubstr("Content-Length: 8\r\n"));
  EXPECT_THAT(head, testing::EndsWith("\r\n\r\n"));
}

TEST_F(MetricsHttpTest, ALongAnswerIsWhole) {
  metrics_.assign(3u << 20, 'x');
  Start();
  const std::string answer = Ask("GET /metrics");
  EXPECT_EQ(answer.size() - answer.find("\r\n\r\n") - 4, metrics_.size());
}

// More connections than threads and queue: who says nothing, or only a part, is cut off, and a
// monitor that asks properly is served meanwhile or soon after.
TEST_F(MetricsHttpTest, ThoseWhoSayNothingDoNotKeepAMonitorOut) {
  Start();
  std::vector<std::unique_ptr<Connection>> silent;
  for (int i = 0; i < 12; ++i) {
    silent.push_back(std::make_unique<Connection>(http_->address()));
    ASSERT_TRUE(silent.back()->Send("GET /metrics HTTP/1.1\r\nHost: "));
  }
  EXPECT_THAT(Ask("GET /metrics"), StartsWith("HTTP/1.1 200 OK\r\n"));
}

TEST_F(MetricsHttpTest, AddressesThatAreNoneAreNamed) {
  for (const auto& [address, why] : std::vector<std::pair<std::string, std::string>>{
           {"127.0.0.1", "is not HOST:PORT"},
           {"", "is not HOST:PORT"},
           {"127.0.0.1:", "is not HOST:PORT"},
           {"127.0.0.1:99999", "with a port of 0 to 65535"},
           {"127.0.0.1:http", "is not HOST:PORT"},
           {":9464", "names no host"},
           {"::1:9464", "write [ADDRESS]:PORT"},
           {"no-such-host.invalid:9464", "cannot be resolved"}}) {
    const auto http = Listen(address);
    EXPECT_EQ(http.status().code(), absl::StatusCode::kInvalidArgument) << address;
    EXPECT_THAT(std::string(http.status().message()), HasSubstr(why)) << address;
  }
}

TEST_F(MetricsHttpTest, ListensBeyondLoopbackOnlyWhenThatIsSaid) {
  for (const char* address : {"0.0.0.0:0", "[::]:0", "192.0.2.1:0"}) {
    const auto http = Listen(address);
    EXPECT_EQ(http.status().code(), absl::StatusCode::kInvalidArgument) << address;
    EXPECT_THAT(std::string(http.status().message()), HasSubstr("--metrics-beyond-loopback"));
  }
  const auto http = Listen("0.0.0.0:0", /*beyond_loopback=*/true);
  ASSERT_TRUE(http.ok()) << http.status();
  EXPECT_THAT((*http)->address(), StartsWith("0.0.0.0:"));
}

TEST_F(MetricsHttpTest, APortInUseIsNamed) {
  Start();
  const auto second = Listen(http_->address());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  const std::string message(second.status().message());
  EXPECT_THAT(message, HasSubstr(http_->address()));
  EXPECT_THAT(message, HasSubstr("Address already in use"));
  EXPECT_THAT(message, HasSubstr("port 0"));
}

TEST(HeartbeatTest, BeatsWhenTheControlThreadTakesATurn) {
  ControlHarness h;
  Heartbeat heartbeat(h.inbox);
  std::atomic<bool> stop{false};
  std::thread control([&] {
    while (!stop) {
      h.control.Poll();
      std::this_thread::yield();
    }
  });
  EXPECT_TRUE(heartbeat.Beats(kPatience));
  EXPECT_TRUE(heartbeat.Beats(kPatience));
  stop = true;
  control.join();
}

TEST(HeartbeatTest, AsksOnceHoweverOftenNobodyAnswers) {
  Inbox inbox;
  Heartbeat heartbeat(inbox);
  for (int i = 0; i < 5; ++i) EXPECT_FALSE(heartbeat.Beats(absl::Milliseconds(1)));
  std::vector<InboxEvent> events;
  inbox.Drain(events);
  EXPECT_EQ(events.size(), 1u);
}

}  // namespace
}  // namespace kvd
