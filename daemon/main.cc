// kvd: configuration, construct, serve, drain.

#include <pthread.h>
#include <spdlog/async.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "daemon/accounts.h"
#include "daemon/activation.h"
#include "daemon/admin.h"
#include "daemon/call_log.h"
#include "daemon/config.h"
#include "daemon/control.h"
#include "daemon/copier_pool.h"
#include "daemon/domains.h"
#include "daemon/endpoint_lock.h"
#include "daemon/exposition.h"
#include "daemon/gateway.h"
#include "daemon/heartbeat.h"
#include "daemon/metrics_http.h"
#include "daemon/process.h"
#include "daemon/reload.h"
#include "daemon/service.h"
#include "daemon/session_server.h"
#include "daemon/store.h"
#include "daemon/tls.h"
#include "policy/policies.h"
#include "proto/types/kill_point.h"

namespace kvd {
namespace {

int Fail(const absl::Status& status) {
  spdlog::error("daemon.failed error=\"{}\"", std::string(status.message()));
  return 1;
}

// A mistake in what the operator said, as those that ReadConfig() finds.
int Misconfigured(const absl::Status& status) {
  spdlog::error("config.invalid error=\"{}\"", std::string(status.message()));
  return 2;
}

// For the control thread to take a turn, before it is called dead.
constexpr absl::Duration kHeartbeatPatience = absl::Seconds(3);

// Writes where the default logger does, on a thread of its own: the control thread must not wait
// for whoever reads our log.
std::shared_ptr<spdlog::logger> CallLogger() {
  constexpr size_t kLines = 1024;
  spdlog::init_thread_pool(kLines, /*threads_n=*/1);
  const std::shared_ptr<spdlog::logger> shared = spdlog::default_logger();
  auto logger = std::make_shared<spdlog::async_logger>(
      shared->name() + ".call", shared->sinks().begin(), shared->sinks().end(),
      spdlog::thread_pool(), spdlog::async_overflow_policy::overrun_oldest);
  logger->set_level(shared->level());
  logger->flush_on(spdlog::level::info);
  spdlog::register_logger(logger);  // For a level that changes later.
  return logger;
}

absl::Status OpenToEngines(const Config& config, const ActivatedSockets& activated) {
  for (const char* suffix : {"", ".session", ".stream"}) {
    if (activated.at(suffix) >= 0) continue;  // Who may connect there, the socket unit said.
    const std::string path = config.path() + suffix;
    if (!config.socket_group.empty() &&
        chown(path.c_str(), static_cast<uid_t>(-1), *GroupId(config.socket_group)) != 0) {
      return ErrnoStatus(errno, "--socket-group: " + path);
    }
    if (chmod(path.c_str(), config.socket_mode) != 0) {
      return ErrnoStatus(errno, "--socket-mode: " + path);
    }
  }
  return absl::OkStatus();
}

// What a client's verified copy out of the arena reaches, bytes per microsecond: an estimate for
// lookups, from the loop that calibration chose.
double MeasureCopy(const Copier& copier, const Clock& clock) {
  constexpr size_t kBytes = 8u << 20;
  std::vector<std::byte> source(kBytes, std::byte{1});
  std::vector<std::byte> target(kBytes);
  const Nanos start = clock.Now();
  copier.CopySum(absl::MakeSpan(target), source, CopyUse::kMemory);
  return kBytes * 1e3 / static_cast<double>(std::max<Nanos>(1, clock.Now() - start));
}

TlsPaths TlsPathsOf(const Config& config) {
  return {config.tls_certificate, config.tls_key, config.tls_client_ca};
}

// What the TCP endpoint shows and believes; null: there is none.
absl::StatusOr<std::unique_ptr<TlsSource>> OpenTls(const Config& config) {
  if (config.tcp.empty()) return nullptr;
  absl::StatusOr<TlsIdentity> tls = ReadTls(TlsPathsOf(config));
  if (!tls.ok()) return tls.status();
  return std::make_unique<TlsSource>(*std::move(tls));
}

absl::StatusOr<std::vector<std::string>> RenewTls(TlsSource* tls, const Config& config) {
  if (tls == nullptr) return std::vector<std::string>();
  absl::StatusOr<TlsIdentity> read = ReadTls(TlsPathsOf(config));
  if (!read.ok()) return read.status();
  return tls->Renew(*std::move(read));
}

absl::StatusOr<std::unique_ptr<Gateway>> StartGateway(const Config& config, int listener,
                                                      const TlsSource* tls, Inbox& inbox,
                                                      CopierPool& copiers, const Copier& copier,
                                                      Domains& domains, GatewayMetrics& metrics,
                                                      StrangerCounts& strangers) {
  Gateway::Options options{.path = config.path() + ".stream",
                           .listener = listener,
                           .tcp = config.tcp,
                           .tls = tls,
                           .count_operations = config.op_metrics,
                           .metrics = &metrics,
                           .strangers = &strangers};
  return Gateway::Start(inbox, copiers, copier, domains, std::move(options));
}

int Serve(const Config& config) {
  const absl::StatusOr<ActivatedSockets> activated = ActivatedSockets::Take(config.path());
  if (!activated.ok()) return Fail(activated.status());
  absl::StatusOr<EndpointLock> lock = EndpointLock::Take(config.path());
  if (!lock.ok()) return Fail(lock.status());
  KVD_KILL_POINT("start.locked");

  spdlog::info("config.in_force {}", DescribeConfig(config));
  SystemClock clock;
  uint64_t secret = 0;
  if (getrandom(&secret, sizeof secret, 0) != sizeof secret) {
    return Fail(ErrnoStatus(errno, "getrandom"));
  }
  const Copier copier(Copier::Options{.loop = config.copy_loop});
  spdlog::info("copy.calibrated {}", copier.description());

  Domains domains(config.domains);
  Inbox inbox;
  const absl::StatusOr<std::unique_ptr<TlsSource>> tls = OpenTls(config);
  if (!tls.ok()) return Fail(tls.status());
  ConfigReloader reloader(
      config,
      [&domains, &inbox](const Config& changed) {
        spdlog::set_level(spdlog::level::from_str(changed.log_level));
        domains.SetRules(changed.domains);
        inbox.Post(Task{[](Control& control) { control.ConfigReloaded(); }});
      },
      [&tls](const Config& now) { return RenewTls(tls->get(), now); });
  RegionDirectory regions;
  absl::StatusOr<std::unique_ptr<Arena>> arena = Arena::Open(regions, {.bytes = config.dram_bytes});
  if (!arena.ok()) return Fail(arena.status());
  spdlog::info("tier.opened tier=dram capacity_bytes={} region_bytes={} pages=\"{}\"",
               (*arena)->capacity_bytes(), (*arena)->region_bytes(),
               PageKindName((*arena)->page_kind()));
  KVD_KILL_POINT("start.arena_opened");

  const std::unique_ptr<EvictionPolicy> policy = MakePolicy(config.policy, config.max_blocks);
  Control::Options limits{.load_bytes_per_us = MeasureCopy(copier, clock),
                          .count_operations = config.op_metrics};
  FillBoard board(limits.max_reservations);
  auto copiers = std::make_unique<CopierPool>(board, inbox, copier,
                                              CopierPool::Options{.threads = config.copiers});
  Store store(*policy, **arena,
              {.max_blocks = config.max_blocks,
               .max_parts = (*arena)->capacity_bytes() / Arena::kMinSlotBytes,
               .secret = secret},
              [&copiers](uint32_t region, uint64_t bytes) { copiers->MakeRegion(region, bytes); });

  StrangerCounts strangers;
  absl::StatusOr<std::unique_ptr<SessionServer>> sessions =
      SessionServer::Start(inbox, *copiers, regions, domains,
                           {.path = config.path() + ".session",
                            .listener = activated->at(".session"),
                            .strangers = &strangers});
  if (!sessions.ok()) return Fail(sessions.status());
  limits.session_over = [&sessions](uint32_t serial) { (*sessions)->Forget(serial); };
  absl::Notification drained;
  limits.drained = [&drained] { drained.Notify(); };
  Control control(store, board, *copiers, inbox, clock, limits);

  CallLog call_log(CallLogger());
  absl::StatusOr<std::unique_ptr<Service>> service =
      Service::Start(control, clock,
                     {.path = config.path(),
                      .listener = activated->at(""),
                      .count_operations = config.op_metrics,
                      .log = &call_log});
  if (!service.ok()) return Fail(service.status());
  inbox.SetWake([&service] { (*service)->Wake(); });
  // A start that fails further on ends the service before the threads that post.
  const absl::Cleanup forget_service = [&inbox] { inbox.SetWake(nullptr); };
  GatewayMetrics gateway_metrics;
  const MetricsSource metrics{
      .control = &control,
      .service = &(*service)->metrics(),
      .gateway = &gateway_metrics,
      .strangers = &strangers,
      .tenant_name = [&domains](DomainId domain) { return domains.Name(domain); },
      .version = KVD_VERSION,
      .count_operations = config.op_metrics};
  Heartbeat heartbeat(inbox);
  std::unique_ptr<MetricsHttp> http;
  if (!config.metrics.empty()) {
    absl::StatusOr<std::unique_ptr<MetricsHttp>> started = MetricsHttp::Start(
        {.address = config.metrics, .beyond_loopback = config.metrics_beyond_loopback},
        {.metrics = [&metrics] { return MetricsText(metrics); },
         .alive = [&heartbeat] { return heartbeat.Beats(kHeartbeatPatience); },
         .why_not_ready = [&control] { return control.draining() ? "draining" : ""; }});
    if (absl::IsInvalidArgument(started.status())) return Misconfigured(started.status());
    if (!started.ok()) return Fail(started.status());
    http = *std::move(started);
  }
  const std::string metrics_address = http == nullptr ? "" : http->address();
  absl::StatusOr<std::unique_ptr<Gateway>> gateway =
      StartGateway(config, activated->at(".stream"), tls->get(), inbox, *copiers, copier, domains,
                   gateway_metrics, strangers);
  if (!gateway.ok()) return Fail(gateway.status());
  absl::StatusOr<std::unique_ptr<AdminServer>> admin =
      AdminServer::Start(inbox, control.events(),
                         {.path = config.path() + ".admin",
                          .listener = activated->at(".admin"),
                          .endpoint = config.listen,
                          .metrics = metrics_address,
                          .tcp = (*gateway)->tcp_address(),
                          .service = &(*service)->metrics(),
                          .policy = config.policy,
                          .copy_loops = copier.description(),
                          .config = &reloader,
                          .domain_name = [&domains](DomainId id) { return domains.Name(id); }});
  if (!admin.ok()) return Fail(admin.status());
  if (absl::Status status = OpenToEngines(config, *activated); !status.ok()) return Fail(status);
  (*gateway)->Serve();
  KVD_KILL_POINT("start.serving");

  const std::string& tcp_address = (*gateway)->tcp_address();
  spdlog::info("daemon.ready listen={} pid={} blocks={} policy={} copiers={} metrics={} tcp={}",
               config.listen, getpid(), config.max_blocks, config.policy, config.copiers,
               metrics_address, tcp_address);
  std::printf("kvd ready listen=%s pid=%d%s%s%s%s\n", config.listen.c_str(), getpid(),
              metrics_address.empty() ? "" : " metrics=", metrics_address.c_str(),
              tcp_address.empty() ? "" : " tcp=", tcp_address.c_str());
  std::fflush(stdout);
  NotifyServiceManager("READY=1");

  // A signal is a drain, which operators can ask for as well. The second signal does not wait.
  std::atomic<bool> over{false};
  std::thread listener([&] {
    bool draining = false;
    while (true) {
      const int signal = WaitForSignal();
      if (over) return;
      if (signal == SIGHUP) {
        reloader.Reload().IgnoreError();
        continue;
      }
      spdlog::info("daemon.draining signal={}", signal);
      KVD_KILL_POINT("stop.draining");
      NotifyServiceManager("STOPPING=1");
      const Nanos patience =
          draining ? 0 : static_cast<Nanos>(reloader.Current().drain_timeout_ms) * kMillisecond;
      inbox.Post(Task{[patience](Control& control) {
        control.Drain(Control::DrainEnd::kExitPromptly, patience);
      }});
      draining = true;
    }
  });
  std::thread stopper([&] {
    drained.WaitForNotification();
    spdlog::info("daemon.drained");
    KVD_KILL_POINT("stop.drained");
    (*gateway)->Stop();
    (*service)->Shutdown();
  });
  const Watchdog watchdog(
      [&] { inbox.Post(Task{[](Control&) { NotifyServiceManager("WATCHDOG=1"); }}); });
  const HeapTrimmer trimmer;
  PreferThisThread();
  (*service)->Run();
  stopper.join();
  over = true;
  pthread_kill(listener.native_handle(), SIGINT);  // It waits for one, and no longer acts on it.
  listener.join();
  // The reverse of the construction, but for the threads that wake the control thread: they end
  // while there still is a service to wake.
  http.reset();
  gateway->reset();
  admin->reset();
  sessions->reset();
  copiers.reset();
  inbox.SetWake(nullptr);
  for (const char* suffix : {"", ".admin"}) {
    if (activated->at(suffix) < 0) unlink((config.path() + suffix).c_str());
  }
  spdlog::info("daemon.stopped");
  return 0;
}

}  // namespace
}  // namespace kvd

int main(int argc, char** argv) {
  kvd::TuneLibraries();
  const std::variant<kvd::Config, int> config = kvd::ReadConfig(argc, argv);
  if (const int* status = std::get_if<int>(&config)) return *status;
  spdlog::set_default_logger(spdlog::stderr_logger_mt("kvd"));
  spdlog::set_level(spdlog::level::from_str(std::get<kvd::Config>(config).log_level));
  spdlog::flush_on(spdlog::level::info);

  kvd::PrepareProcess();
  return kvd::Serve(std::get<kvd::Config>(config));
}
