#include "daemon/metrics_http.h"

#include <arpa/inet.h>
#include <civetweb.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "proto/types/check.h"
#include "proto/types/status.h"

namespace kvd {
namespace {

// Of one answer on its way out, whatever its reader does; what the library itself waits for a
// request or for one write is in kSettings.
constexpr absl::Duration kAnswerTime = absl::Seconds(5);
constexpr size_t kPieceBytes = 64u << 10;

// Requests that say nothing for two seconds are over; eight are served at a time, sixteen wait.
constexpr std::pair<const char*, const char*> kSettings[] = {
    {"num_threads", "8"},
    {"connection_queue", "16"},
    {"listen_backlog", "16"},
    {"request_timeout_ms", "2000"},
    {"max_request_size", "8192"},
    {"enable_keep_alive", "no"},
    {"enable_directory_listing", "no"},
    {"decode_url", "no"},
};

// The library keeps global counts; once for the process, for good.
void InitLibrary() {
  static const unsigned features = mg_init_library(MG_FEATURES_DEFAULT);
  KVD_CHECK(features == MG_FEATURES_DEFAULT);
}

struct Listen {
  std::string host;  // Numbers.
  uint16_t port = 0;
  bool loopback = false;
  bool v6 = false;

  std::string WithPort(int real) const {
    return v6 ? absl::StrCat("[", host, "]:", real) : absl::StrCat(host, ":", real);
  }
};

absl::Status Bad(const std::string& address, const std::string& what) {
  return InvalidField("--metrics", absl::StrCat("\"", address, "\" ", what));
}

bool IsLoopback(const sockaddr* address) {
  if (address->sa_family == AF_INET) {
    const auto* v4 = reinterpret_cast<const sockaddr_in*>(address);
    return ntohl(v4->sin_addr.s_addr) >> 24 == 127;
  }
  const auto* v6 = reinterpret_cast<const sockaddr_in6*>(address);
  if (IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr)) return v6->sin6_addr.s6_addr[12] == 127;
  return IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr);
}

absl::StatusOr<Listen> Resolve(const std::string& address) {
  const size_t colon = address.rfind(':');
  uint32_t port = 0;
  if (colon == std::string::npos || !absl::SimpleAtoi(address.substr(colon + 1), &port) ||
      port > 65535) {
    return Bad(address, "is not HOST:PORT, such as 127.0.0.1:9464, with a port of 0 to 65535");
  }
  std::string host = address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string::npos) {
    return Bad(address, "has an IPv6 address without brackets: write [ADDRESS]:PORT");
  }
  if (host.empty()) return Bad(address, "names no host: 127.0.0.1 is this machine alone");

  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(host.c_str(), nullptr, &hints, &found); error != 0) {
    return Bad(address, absl::StrCat("cannot be resolved: ", gai_strerror(error)));
  }
  const absl::Cleanup free = [found] { freeaddrinfo(found); };
  // One address. IPv4 where there is a choice: not every machine has the other.
  const addrinfo* chosen = found;
  for (const addrinfo* each = found; each != nullptr; each = each->ai_next) {
    if (each->ai_family == AF_INET) {
      chosen = each;
      break;
    }
  }
  char numbers[NI_MAXHOST];
  if (getnameinfo(chosen->ai_addr, chosen->ai_addrlen, numbers, sizeof numbers, nullptr, 0,
                  NI_NUMERICHOST) != 0) {
    return Bad(address, "has no address that can be written");
  }
  return Listen{.host = numbers,
                .port = static_cast<uint16_t>(port),
                .loopback = IsLoopback(chosen->ai_addr),
                .v6 = chosen->ai_family == AF_INET6};
}

void Send(mg_connection* connection, int status, const char* reason, const char* type,
          const char* extra, std::string_view body) {
  const std::string head =
      absl::StrCat("HTTP/1.1 ", status, " ", reason, "\r\nContent-Type: ", type,
                   "\r\nContent-Length: ", body.size(), "\r\nConnection: close\r\n", extra, "\r\n");
  if (mg_write(connection, head.data(), head.size()) != static_cast<int>(head.size())) return;
  if (std::strcmp(mg_get_request_info(connection)->request_method, "HEAD") == 0) return;
  const absl::Time deadline = absl::Now() + kAnswerTime;
  while (!body.empty() && absl::Now() < deadline) {
    const std::string_view piece = body.substr(0, kPieceBytes);
    if (mg_write(connection, piece.data(), piece.size()) != static_cast<int>(piece.size())) return;
    body.remove_prefix(piece.size());
  }
}

void SendText(mg_connection* connection, int status, const char* reason, std::string_view text) {
  Send(connection, status, reason, "text/plain; charset=utf-8", "", text);
}

// Connects to a numeric address and hangs up. Best effort.
void Knock(const std::string& address) {
  const size_t colon = address.rfind(':');
  std::string host = address.substr(0, colon);
  if (host.front() == '[') host = host.substr(1, host.size() - 2);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), address.c_str() + colon + 1, &hints, &found) != 0) return;
  const absl::Cleanup free = [found] { freeaddrinfo(found); };
  const int fd = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return;
  (void)connect(fd, found->ai_addr, found->ai_addrlen);
  close(fd);
}

}  // namespace

absl::StatusOr<std::unique_ptr<MetricsHttp>> MetricsHttp::Start(const Options& options,
                                                                Content content) {
  const absl::StatusOr<Listen> listen = Resolve(options.address);
  if (!listen.ok()) return listen.status();
  if (!listen->loopback && !options.beyond_loopback) {
    return Bad(options.address,
               "can be reached from other machines, without a password: name a loopback address, "
               "or say --metrics-beyond-loopback too");
  }
  InitLibrary();
  const std::string port = listen->WithPort(listen->port);
  std::vector<const char*> settings;
  for (const auto& [name, value] : kSettings) settings.insert(settings.end(), {name, value});
  settings.insert(settings.end(), {"listening_ports", port.c_str(), nullptr});
  std::unique_ptr<MetricsHttp> http(new MetricsHttp(std::move(content)));
  mg_callbacks callbacks{};
  callbacks.log_message = &MetricsHttp::Log;
  mg_init_data init{
      .callbacks = &callbacks, .user_data = http.get(), .configuration_options = settings.data()};
  char error_text[256] = "";
  unsigned error_code = 0;
  mg_error_data error{
      .code = &error_code, .text = error_text, .text_buffer_size = sizeof error_text};
  http->server_ = mg_start2(&init, &error);
  if (http->server_ == nullptr) {
    absl::MutexLock lock(&http->mu_);
    return absl::UnavailableError(
        absl::StrCat("--metrics: cannot listen at ", port, ": ",
                     http->first_message_.empty() ? error_text : http->first_message_,
                     "; name another address, or port 0 for any port that is free"));
  }
  mg_server_port bound[1];
  KVD_CHECK(mg_get_server_ports(http->server_, 1, bound) == 1);
  http->address_ = listen->WithPort(bound[0].port);
  mg_set_request_handler(http->server_, "/", &MetricsHttp::Handle, http.get());
  return http;
}

// The library's thread that accepts looks whether it should stop every two seconds, or when
// somebody comes. So we come, rather than make every end of the daemon wait.
MetricsHttp::~MetricsHttp() {
  if (server_ == nullptr) return;
  absl::Notification stopped;
  std::thread stopper([this, &stopped] {
    mg_stop(server_);
    stopped.Notify();
  });
  do {
    Knock(address_);
  } while (!stopped.WaitForNotificationWithTimeout(absl::Milliseconds(20)));
  stopper.join();
}

// What the library says first is why it does not start: the reason stands nowhere else. The rest,
// what clients do wrong, is theirs.
int MetricsHttp::Log(const mg_connection* connection, const char* message) {
  auto* self = static_cast<MetricsHttp*>(mg_get_user_data(mg_get_context(connection)));
  if (self != nullptr) {
    absl::MutexLock lock(&self->mu_);
    if (self->first_message_.empty()) self->first_message_ = message;
  }
  return 1;  // Not on standard error.
}

int MetricsHttp::Handle(mg_connection* connection, void* self) {
  static_cast<const MetricsHttp*>(self)->Answer(connection);
  return 1;  // Answered, whatever the status.
}

void MetricsHttp::Answer(mg_connection* connection) const {
  const mg_request_info& request = *mg_get_request_info(connection);
  const std::string_view method = request.request_method;
  const std::string_view path = request.local_uri == nullptr ? "" : request.local_uri;
  if (method != "GET" && method != "HEAD") {
    Send(connection, 405, "Method Not Allowed", "text/plain; charset=utf-8", "Allow: GET, HEAD\r\n",
         "only GET and HEAD\n");
  } else if (path == "/metrics") {
    Send(connection, 200, "OK", "text/plain; version=0.0.4; charset=utf-8", "", content_.metrics());
  } else if (path == "/healthz") {
    if (content_.alive()) return SendText(connection, 200, "OK", "ok\n");
    SendText(connection, 503, "Service Unavailable", "the control thread takes no turns\n");
  } else if (path == "/readyz") {
    const std::string why_not = content_.why_not_ready();
    if (why_not.empty()) return SendText(connection, 200, "OK", "ready\n");
    SendText(connection, 503, "Service Unavailable", why_not + "\n");
  } else {
    SendText(connection, 404, "Not Found", "there are /metrics, /healthz and /readyz\n");
  }
}

}  // namespace kvd
