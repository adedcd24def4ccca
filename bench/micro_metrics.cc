// What a monitor costs: how long a scrape of a daemon with a million blocks and a hundred sessions
// takes, how large it is, and what lookups feel of it.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "bench/micro_forest.h"
#include "bench/micro_run.h"
#include "bench/stats.h"
#include "client/client.h"
#include "proto/types/status.h"

namespace kvd {
namespace {

constexpr int kSessions = 100;
constexpr int kScrapesPerRound = 5;
constexpr int kLookupsPerRound = 10'000;
// A hundred times more often than monitors ask.
constexpr absl::Duration kScrapePeriod = absl::Milliseconds(100);

// The bytes of one scrape of "A.B.C.D:PORT", head included.
absl::StatusOr<size_t> Scrape(const std::string& address) {
  const size_t colon = address.rfind(':');
  uint32_t port = 0;
  sockaddr_in to{};
  to.sin_family = AF_INET;
  if (colon == std::string::npos || !absl::SimpleAtoi(address.substr(colon + 1), &port) ||
      inet_pton(AF_INET, address.substr(0, colon).c_str(), &to.sin_addr) != 1) {
    return absl::InvalidArgumentError("metrics: not an address: " + address);
  }
  to.sin_port = htons(static_cast<uint16_t>(port));
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return ErrnoStatus(errno, "socket");
  const absl::Cleanup hang_up = [fd] { close(fd); };
  const timeval patience{.tv_sec = 10};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  if (connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof to) != 0) {
    return ErrnoStatus(errno, "metrics: " + address);
  }
  constexpr char kRequest[] = "GET /metrics HTTP/1.1\r\nHost: kvd-bench\r\n\r\n";
  if (send(fd, kRequest, sizeof kRequest - 1, MSG_NOSIGNAL) != sizeof kRequest - 1) {
    return ErrnoStatus(errno, "metrics: send");
  }
  constexpr char kOk[] = "HTTP/1.1 200 ";
  char bytes[65536];
  size_t all = 0;
  ssize_t got;
  while ((got = recv(fd, bytes, sizeof bytes, 0)) > 0) {
    if (all == 0 && std::strncmp(bytes, kOk, sizeof kOk - 1) != 0) {
      return absl::UnavailableError("metrics: not answered with 200");
    }
    all += static_cast<size_t>(got);
  }
  if (got < 0) return ErrnoStatus(errno, "metrics: recv");
  return all;
}

using OneLookup = std::function<absl::StatusOr<double>()>;

absl::StatusOr<double> P99(const OneLookup& lookup) {
  std::vector<double> us;
  for (int i = 0; i < kLookupsPerRound; ++i) {
    const absl::StatusOr<double> one = lookup();
    if (!one.ok()) return one.status();
    us.push_back(*one);
  }
  return Percentile(std::move(us), 99);
}

absl::Status MeasureTime(MicroRun& run, const std::string& address) {
  const SystemClock clock;
  const absl::StatusOr<Rounds> rounds = run.Take([&]() -> absl::StatusOr<std::vector<double>> {
    std::vector<double> us, mib;
    for (int i = 0; i < kScrapesPerRound; ++i) {
      const Nanos start = clock.Now();
      const absl::StatusOr<size_t> bytes = Scrape(address);
      if (!bytes.ok()) return bytes.status();
      us.push_back(Microseconds(start, clock.Now()));
      mib.push_back(static_cast<double>(*bytes) / (1 << 20));
    }
    return std::vector<double>{Median(std::move(us)), Median(std::move(mib))};
  });
  if (!rounds.ok()) return rounds.status();
  const char* const rows[] = {"metrics_scrape_1m_blocks", "metrics_scrape_size_1m_blocks"};
  for (size_t i = 0; i < 2; ++i) {
    run.Add({.name = rows[i],
             .value = rounds->MedianOf(i),
             .samples = rounds->count,
             .foreign_cpus = rounds->foreign_cpus});
  }
  return absl::OkStatus();
}

absl::Status MeasureP99(MicroRun& run, const std::string& address, const OneLookup& lookup) {
  const absl::StatusOr<Rounds> rounds = run.Take([&]() -> absl::StatusOr<std::vector<double>> {
    const absl::StatusOr<double> alone = P99(lookup);
    absl::Notification enough;
    absl::Status scraped;
    std::thread monitor([&] {
      do {
        scraped.Update(Scrape(address).status());
      } while (!enough.WaitForNotificationWithTimeout(kScrapePeriod));
    });
    const absl::StatusOr<double> beside = P99(lookup);
    enough.Notify();
    monitor.join();
    if (!alone.ok()) return alone.status();
    if (!beside.ok()) return beside.status();
    if (!scraped.ok()) return scraped;
    return std::vector<double>{*beside, *alone};
  });
  if (!rounds.ok()) return rounds.status();
  run.Add("metrics_scrape_lookup_p99", *rounds, 0, 1, "its p99 without ten scrapes a second");
  return absl::OkStatus();
}

}  // namespace

absl::Status MeasureScrapes(MicroRun& run, const std::string& endpoint, const std::string& address,
                            const OneLookup& lookup) {
  if (!run.WantedAny({"metrics_scrape_1m_blocks", "metrics_scrape_size_1m_blocks",
                      "metrics_scrape_lookup_p99"})) {
    return absl::OkStatus();
  }
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < kSessions; ++i) {
    clients.push_back(std::make_unique<Client>(
        ClientOptions{.endpoint = endpoint, .timeout = absl::Seconds(10)}));
    // A session is opened by the first call.
    absl::Status status = clients.back()->RegisterNamespace(MicroNamespace(512, 1)).status();
    if (!status.ok()) return status;
  }
  run.Place(Placement::kAnywhere);
  absl::Status status;
  if (run.WantedAny({"metrics_scrape_1m_blocks", "metrics_scrape_size_1m_blocks"})) {
    status.Update(MeasureTime(run, address));
  }
  if (run.Wanted("metrics_scrape_lookup_p99")) status.Update(MeasureP99(run, address, lookup));
  return status;
}

}  // namespace kvd
