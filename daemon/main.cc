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
#include <climits>
#include <csignal>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/types/span.h"
#include "daemon/accounts.h"
#include "daemon/activation.h"
#include "daemon/admin.h"
#include "daemon/arena_record.h"
#include "daemon/call_log.h"
#include "daemon/config.h"
#include "daemon/control.h"
#include "daemon/copier_pool.h"
#include "daemon/damage_log.h"
#include "daemon/data_directory.h"
#include "daemon/domains.h"
#include "daemon/endpoint_lock.h"
#include "daemon/event_publisher.h"
#include "daemon/exposition.h"
#include "daemon/former_readers.h"
#include "daemon/gateway.h"
#include "daemon/heartbeat.h"
#include "daemon/metrics_http.h"
#include "daemon/named_arena.h"
#include "daemon/nvme_stack.h"
#include "daemon/process.h"
#include "daemon/reload.h"
#include "daemon/restore.h"
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

// Ends of their own, because what to do about them is another's: deploy/README.md.
constexpr int kDataInUse = 3;
constexpr int kDataNewer = 4;

int FailData(const absl::Status& status) {
  Fail(status);
  return absl::IsAlreadyExists(status) || absl::IsAborted(status) ? kDataInUse
         : IsNewerFormat(status)                                  ? kDataNewer
                                                                  : 1;
}

// A mistake in what the operator said, as those that ReadConfig() finds.
int Misconfigured(const absl::Status& status) {
  spdlog::error("config.invalid error=\"{}\"", std::string(status.message()));
  return 2;
}

// For the control thread to take a turn, before it is called dead.
constexpr absl::Duration kHeartbeatPatience = absl::Seconds(3);

// What is scraped of NVMe is that old at most.
constexpr absl::Duration kNvmePublishPeriod = absl::Seconds(1);
// What is left of messages that could not be parsed goes before the heap is trimmed.
constexpr absl::Duration kTidyPeriod = absl::Seconds(1);
// For open segments to be ended. What is not is found by the next start all the same.
constexpr absl::Duration kNvmeClosePatience = absl::Seconds(5);

// Writes where the default logger does, on a thread of its own: the control thread must not wait
// for whoever reads our log.
std::shared_ptr<spdlog::logger> PatientLogger() {
  constexpr size_t kLines = 1024;
  spdlog::init_thread_pool(kLines, /*threads_n=*/1);
  const std::shared_ptr<spdlog::logger> shared = spdlog::default_logger();
  auto logger = std::make_shared<spdlog::async_logger>(
      shared->name() + ".control", shared->sinks().begin(), shared->sinks().end(),
      spdlog::thread_pool(), spdlog::async_overflow_policy::overrun_oldest);
  logger->set_level(shared->level());
  logger->flush_on(spdlog::level::info);
  spdlog::register_logger(logger);  // For a level that changes later.
  return logger;
}

// With a name or without; `use` is whichever there is.
struct OpenedArena {
  std::unique_ptr<Arena> own;
  std::unique_ptr<NamedArena> named;
  Arena* use = nullptr;
};

absl::StatusOr<OpenedArena> OpenArena(const Config& config,
                                      const std::optional<DataDirectory>& data,
                                      RegionDirectory& regions) {
  OpenedArena opened;
  const Arena::Options options{.bytes = config.dram_bytes};
  if (data.has_value()) {
    auto named = NamedArena::Open(regions, config.arena_directory, data->uuid(), options);
    if (!named.ok()) return named.status();
    opened.named = *std::move(named);
    opened.use = &opened.named->arena();
    spdlog::info(
        "arena.named path={} isolation=\"engines under user id {} are kept apart by "
        "checksums only\"",
        opened.named->path(), geteuid());
  } else {
    auto own = Arena::Open(regions, options);
    if (!own.ok()) return own.status();
    opened.own = *std::move(own);
    opened.use = opened.own.get();
  }
  return opened;
}

std::function<absl::StatusOr<MemoryRegion>(uint64_t)> MakerOfRegions(const OpenedArena& arena) {
  if (arena.named == nullptr) return nullptr;
  return [named = arena.named.get()](uint64_t bytes) { return named->MakeRegion(bytes); };
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

// Blocks of the process before, and who of its readers is left.
void Restore(NamedArena& named, Control& control, Store& store, ArenaRecord& record,
             Domains& domains, absl::Span<const FormerReaders::Reader> readers, NvmeStack* nvme) {
  if (!named.cold_because().empty()) {
    spdlog::warn("arena.cold path={} reason=\"{}\"", named.path(), named.cold_because());
  }
  record.restored().cold = named.cold_because().empty() ? 0 : 1;
  std::map<uint32_t, ReaderRow> sessions;
  for (const FormerReaders::Reader& reader : readers) sessions[reader.number] = reader.session;
  std::optional<NvmeRemains> remains;
  if (nvme != nullptr) remains.emplace(nvme->remains());
  const RestoreReport report =
      RestoreArena(named.table(), control, store, record, domains, std::move(sessions),
                   remains.has_value() ? &*remains : nullptr);
  if (nvme != nullptr) nvme->ForgetRemains();
  store.Observe(record);
  store.RenewInherited();
  spdlog::info(
      "arena.restored path={} blocks={} bytes={} nvme_records={} nvme_bytes={} namespaces={} "
      "parts_dropped={} records_dropped={} rows_damaged={} regions_lost={} readers={}",
      named.path(), report.blocks, report.bytes, report.records, report.record_bytes,
      report.namespaces, report.parts_dropped, report.records_dropped, report.rows_damaged,
      named.regions_lost(), readers.size());
}

// The most records that the tier has room for: the smallest takes a header and a page.
uint64_t MaxRecords(NvmeStack* nvme) {
  return nvme == nullptr ? 0 : nvme->tier().live_capacity_bytes() / NvmeTier::RoomOf(1);
}

// The tier of NVMe, or none: who cannot have it serves from memory, and says so. Another daemon's
// devices and those of a newer format are for the operator to sort out.
absl::StatusOr<std::unique_ptr<NvmeStack>> OpenNvme(const Config& config, const Arena& arena,
                                                    const Clock& clock, Inbox& inbox) {
  if (config.nvme.empty()) return nullptr;
  std::vector<absl::Span<std::byte>> memory;
  for (uint32_t i = 0; i < arena.regions(); ++i) memory.push_back(arena.memory(i));
  const auto wake = [&inbox] { inbox.Post(Task{[](Control&) {}}); };
  absl::StatusOr<std::unique_ptr<NvmeStack>> opened =
      NvmeStack::Open(config, config.data + "/index", memory, clock, wake);
  if (!opened.ok()) {
    if (absl::IsAborted(opened.status()) || IsNewerFormat(opened.status())) return opened.status();
    spdlog::error("tier.refused tier=nvme error=\"{}\" action=\"serving from memory alone\"",
                  std::string(opened.status().message()));
    return nullptr;
  }
  for (const std::string& note : (*opened)->notes()) spdlog::warn("nvme.note note=\"{}\"", note);
  if (!(*opened)->index_moved_to().empty()) {
    spdlog::warn("nvme.index_damaged moved_to={} action=\"built again from the devices\"",
                 (*opened)->index_moved_to());
  }
  const RecoveryReport& r = (*opened)->recovery();
  spdlog::info(
      "tier.opened tier=nvme devices={} engine={} live_capacity_bytes={} admission={} "
      "budget_bytes_per_day={}",
      config.nvme.size(), (*opened)->numbers().devices[0]->engine,
      uint64_t{(*opened)->numbers().live_capacity_bytes}, config.admission,
      config.nvme_write_budget);
  spdlog::info(
      "nvme.recovered records={} from_index={} from_footers={} from_headers={} dead_epoch={} "
      "duplicates={} damaged_records={} damaged_rows={} rows_without_data={} footers_damaged={} "
      "read_errors={} index_damaged={} superblock_copies_lost={} devices_new={} took_ms={}",
      r.records, r.from_index, r.from_footers, r.from_headers, r.of_dead_epoch, r.duplicates,
      r.damaged_records, r.damaged_rows, r.rows_without_data, r.footers_damaged, r.read_errors,
      r.index_damaged, r.superblock_copies_lost, r.devices_new, r.took_ms);
  return opened;
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

// What tells routers where blocks are; null: nobody asked for it.
absl::StatusOr<std::unique_ptr<EventPublisher>> StartEvents(const Config& config, Inbox& inbox,
                                                            EventRing& events, Domains& domains,
                                                            EventMetrics& metrics) {
  if (config.events.empty()) return nullptr;
  char host[HOST_NAME_MAX + 1] = "";
  gethostname(host, sizeof host - 1);
  return EventPublisher::Start(
      inbox, events,
      {.listen = config.events,
       .replay = config.events_replay,
       .topic = config.events_topic,
       .backend_id = absl::StrCat("kvd@", host),
       .ipc_mode = config.socket_mode,
       .domain_name = [&domains](DomainId domain) { return domains.Name(domain); },
       .metrics = &metrics});
}

absl::StatusOr<std::unique_ptr<Gateway>> StartGateway(const Config& config, int listener,
                                                      const TlsSource* tls, Inbox& inbox,
                                                      EventRing& events, CopierPool& copiers,
                                                      const Copier& copier, Domains& domains,
                                                      GatewayMetrics& metrics,
                                                      StrangerCounts& strangers) {
  Gateway::Options options{.path = config.path() + ".stream",
                           .listener = listener,
                           .tcp = config.tcp,
                           .tls = tls,
                           .count_operations = config.op_metrics,
                           .metrics = &metrics,
                           .strangers = &strangers};
  return Gateway::Start(inbox, events, copiers, copier, domains, std::move(options));
}

int Serve(const Config& config) {
  const absl::StatusOr<ActivatedSockets> activated = ActivatedSockets::Take(config.path());
  if (!activated.ok()) return Fail(activated.status());
  absl::StatusOr<EndpointLock> lock = EndpointLock::Take(config.path());
  if (!lock.ok()) return Fail(lock.status());
  KVD_KILL_POINT("start.locked");

  std::optional<DataDirectory> data;
  if (!config.data.empty()) {
    absl::StatusOr<DataDirectory> opened = DataDirectory::Open(config.data);
    if (!opened.ok()) return FailData(opened.status());
    data.emplace(*std::move(opened));
    if (data->identity_was_damaged()) {
      spdlog::warn(
          "data.damaged path={}/identity action=\"put aside as identity.damaged; nothing "
          "that hung on it is found again\"",
          config.data);
    }
  }

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
        inbox.Post(Task{[scrub = changed.scrub_bandwidth](Control& control) {
          control.SetScrubBandwidth(scrub);
          control.ConfigReloaded();
        }});
      },
      [&tls](const Config& now) { return RenewTls(tls->get(), now); });
  RegionDirectory regions;
  absl::StatusOr<OpenedArena> arena = OpenArena(config, data, regions);
  if (!arena.ok()) return Fail(arena.status());
  spdlog::info("tier.opened tier=dram capacity_bytes={} region_bytes={} pages=\"{}\"",
               arena->use->capacity_bytes(), arena->use->region_bytes(),
               PageKindName(arena->use->page_kind()));
  KVD_KILL_POINT("start.arena_opened");

  absl::StatusOr<std::unique_ptr<NvmeStack>> nvme = OpenNvme(config, *arena->use, clock, inbox);
  if (!nvme.ok()) return FailData(nvme.status());
  KVD_KILL_POINT("start.nvme_opened");

  const std::unique_ptr<EvictionPolicy> policy = MakePolicy(config.policy, config.max_blocks);
  const std::unique_ptr<EvictionPolicy> nvme_policy =
      *nvme == nullptr ? nullptr : MakePolicy(config.policy, config.max_blocks);
  const std::shared_ptr<spdlog::logger> patient_logger = PatientLogger();
  DamageLog damage_log(patient_logger,
                       [&domains](DomainId domain) { return domains.Name(domain); });
  Control::Options limits{
      .scrubber = {.bytes_per_second = config.scrub_bandwidth},
      .damage_found = [&damage_log](const Quarantined& found) { damage_log.Write(found); },
      .load_bytes_per_us = MeasureCopy(copier, clock),
      .count_operations = config.op_metrics,
      .announce_bytes = config.announce_bytes};
  FillBoard board(limits.max_reservations);
  auto copiers = std::make_unique<CopierPool>(
      board, inbox, copier,
      CopierPool::Options{.threads = config.copiers, .make_region = MakerOfRegions(*arena)});
  Store store(
      *policy, *arena->use,
      {.max_blocks = config.max_blocks,
       .max_parts = arena->use->capacity_bytes() / Arena::kMinSlotBytes,
       .max_cold_parts = MaxRecords(nvme->get()),
       .secret = secret},
      [&copiers](uint32_t region, uint64_t bytes) { copiers->MakeRegion(region, bytes); },
      nvme_policy.get());

  std::optional<ArenaRecord> record;
  if (arena->named != nullptr) {
    record.emplace(arena->named->table(), store,
                   [&domains](DomainId domain) { return domains.Name(domain); });
    limits.record = &*record;
  }

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
  const auto domain_name = [&domains](DomainId domain) { return domains.Name(domain); };
  if (*nvme != nullptr) {
    control.AttachNvme((*nvme)->tier(), (*nvme)->admission(), domain_name);
    (*nvme)->tier().SetOwner(&control.movement()->owner());
  }
  std::optional<FormerReaders> former_readers;
  if (record.has_value()) {
    std::vector<FormerReaders::Reader> readers = arena->named->TakeReaders();
    Restore(*arena->named, control, store, *record, domains, readers, nvme->get());
    former_readers.emplace(std::move(readers), [&inbox](uint32_t number) {
      inbox.Post(Task{[number](Control& control) { control.FormerReaderEnded(number); }});
    });
  }

  CallLog call_log(patient_logger);
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
  EventMetrics event_metrics;
  const MetricsSource metrics{
      .control = &control,
      .service = &(*service)->metrics(),
      .gateway = &gateway_metrics,
      .events = config.events.empty() ? nullptr : &event_metrics,
      .strangers = &strangers,
      .tenant_name = [&domains](DomainId domain) { return domains.Name(domain); },
      .version = KVD_VERSION,
      .record = record.has_value() ? &*record : nullptr,
      .nvme = nvme->get(),
      .nvme_refused = !config.nvme.empty() && *nvme == nullptr,
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
      StartGateway(config, activated->at(".stream"), tls->get(), inbox, control.events(), *copiers,
                   copier, domains, gateway_metrics, strangers);
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
  absl::StatusOr<std::unique_ptr<EventPublisher>> events =
      StartEvents(config, inbox, control.events(), domains, event_metrics);
  if (!events.ok()) return Fail(events.status());
  (*gateway)->Serve();
  KVD_KILL_POINT("start.serving");

  std::string ready = absl::StrCat("listen=", config.listen, " pid=", getpid());
  const auto say = [&ready](const char* name, const std::string& address) {
    if (!address.empty()) absl::StrAppend(&ready, " ", name, "=", address);
  };
  say("metrics", metrics_address);
  say("tcp", (*gateway)->tcp_address());
  say("events", *events == nullptr ? "" : (*events)->address());
  say("events_replay", *events == nullptr ? "" : (*events)->replay_address());
  spdlog::info("daemon.ready {} blocks={} policy={} copiers={}", ready, config.max_blocks,
               config.policy, config.copiers);
  std::printf("kvd ready %s\n", ready.c_str());
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
    events->reset();  // It asks the control thread, as long as there is one.
    (*service)->Shutdown();
  });
  const Watchdog watchdog(
      [&] { inbox.Post(Task{[](Control&) { NotifyServiceManager("WATCHDOG=1"); }}); });
  const HeapTrimmer trimmer;
  std::optional<Periodic> tidier(std::in_place, kTidyPeriod, [&inbox, &service] {
    inbox.Post(Task{[&service](Control&) { (*service)->ForgetUnparsed(); }});
  });
  std::optional<Periodic> nvme_publisher;
  if (*nvme != nullptr) {
    nvme_publisher.emplace(kNvmePublishPeriod, [&inbox, stack = nvme->get()] {
      inbox.Post(Task{[stack](Control&) { stack->Publish(); }});
    });
  }
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
  nvme_publisher.reset();
  tidier.reset();
  copiers.reset();
  former_readers.reset();
  inbox.SetWake(nullptr);
  if (*nvme != nullptr) {
    if (absl::Status status = (*nvme)->Close(kNvmeClosePatience); !status.ok()) {
      spdlog::warn("nvme.not_closed error=\"{}\" action=\"the next start looks at what is open\"",
                   std::string(status.message()));
    }
  }
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
