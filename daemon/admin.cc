#include "daemon/admin.h"

#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/server_posix.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "daemon/activation.h"
#include "daemon/admin_rows.h"
#include "daemon/control.h"
#include "daemon/exposition.h"
#include "daemon/grpc_status.h"
#include "daemon/reflection.h"
#include "proto/admin.grpc.pb.h"

namespace kvd {
namespace {

constexpr uint32_t kAuditSlots = 1024;  // For each turn of the control thread, about 50 us.
constexpr absl::Duration kPatience = absl::Seconds(5);
constexpr uint32_t kMaxRows = 10'000;
constexpr uint32_t kDefaultRows = 1000;
constexpr uint32_t kRowsPerTurn = 128;
constexpr uint32_t kInspected = 16;
constexpr absl::Duration kVerifyCall = absl::Milliseconds(500);
constexpr absl::Duration kVerifyTurn = absl::Milliseconds(1);
constexpr absl::Duration kFlushTurn = absl::Milliseconds(5);
constexpr size_t kDomainsShown = 64;
constexpr size_t kEventsPerTurn = 512;
// Who follows has a thread of ours.
constexpr uint32_t kMaxEventReaders = 8;
// A busy daemon stores a hundred thousand blocks a second: it is asked for events this often, not
// for each of them.
constexpr absl::Duration kBetweenReads = absl::Milliseconds(5);
constexpr absl::Duration kUntilCancelled = absl::Seconds(1);  // How late we notice a caller gone.
constexpr uint64_t kMaxDrainMs = 24 * 3600 * 1000;

grpc::Status NotFound(const std::string& message) { return {grpc::StatusCode::NOT_FOUND, message}; }

grpc::Status Invalid(const std::string& message) {
  return {grpc::StatusCode::INVALID_ARGUMENT, message};
}

// Blocks that lookups found on NVMe, of all tenants.
uint64_t NvmeLookups(const ControlMetrics& metrics) {
  uint64_t blocks = metrics.others().lookup_nvme_blocks;
  for (uint32_t i = 0; i < metrics.tenants(); ++i) blocks += metrics.tenant(i).lookup_nvme_blocks;
  return blocks;
}

uint32_t RowLimit(uint32_t asked) { return std::min(asked == 0 ? kDefaultRows : asked, kMaxRows); }

}  // namespace

class AdminServer::Impl final : public v1::Admin::Service {
 public:
  Impl(Inbox& inbox, EventRing& events, const Options& options)
      : inbox_(inbox), events_(events), options_(options) {}

  absl::Status Start() {
    grpc::ServerBuilder builder;
    builder.RegisterService(this);
    builder.RegisterService(&reflection_);
    grpc::EnableDefaultHealthCheckService(true);
    builder.SetMaxReceiveMessageSize(64 * 1024);
    builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::NUM_CQS, 1);
    builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::MIN_POLLERS, 1);
    builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::MAX_POLLERS, 2);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, 8);
    grpc::ResourceQuota quota("admin");
    quota.SetMaxThreads(4 + kMaxEventReaders);
    builder.SetResourceQuota(quota);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) {
      return absl::InternalError("gRPC does not start a server for operators");
    }
    // Of the daemon: whoever may ask here may not be able to at the gateway.
    for (const char* name : {"kvd.v1.Admin", "kvd.v1.Engine"}) {
      server_->GetHealthCheckService()->SetServingStatus(name, true);
    }
    const auto adopt = [this](int fd) { grpc::AddInsecureChannelFromFd(server_.get(), fd); };
    absl::StatusOr<std::unique_ptr<Acceptor>> acceptor =
        options_.listener < 0 ? Acceptor::Listen(options_.path, adopt)
                              : Acceptor::Start(options_.listener, adopt);
    if (!acceptor.ok()) return acceptor.status();
    acceptor_ = *std::move(acceptor);
    return absl::OkStatus();
  }
  void Stop() {
    acceptor_.reset();
    {
      absl::MutexLock lock(&answers_->mu);
      answers_->stopping = true;
      answers_->changed.SignalAll();
    }
    events_.EndWaits();
    server_->Shutdown(std::chrono::system_clock::now());
  }

  // ---- the whole --------------------------------------------------------------------------------

  grpc::Status Status(grpc::ServerContext*, const v1::StatusRequest*,
                      v1::StatusReply* reply) override {
    struct Turn {
      v1::StatusReply status;
      std::vector<DomainRow> domains;
      uint64_t capacity_bytes = 0;
    };
    Turn turn;
    const bool answered = OnControl<Turn>(turn, [](Control& control, Turn& out) {
      v1::StatusReply& status = out.status;
      const Residency& residency = control.store().residency();
      status.set_page_kind(std::string(PageKindName(control.store().arena().page_kind())));
      status.set_blocks(residency.counts().visible);
      status.set_blocks_capacity(residency.max_blocks());
      status.set_stubs(residency.counts().stubs);
      status.set_sessions(control.sessions());
      status.set_namespaces(control.namespaces());
      status.set_leases(control.leases());
      status.set_pins(control.pins());
      status.set_holds(control.holds().total_extents());
      status.set_held_bytes(control.holds().total_bytes());
      status.set_reservations(control.reservations());
      status.set_quarantined_bytes(residency.counts().quarantined_bytes);
      status.set_draining(control.draining());
      for (const auto& [name, value] : control.Counters()) {
        v1::Counter& counter = *status.add_counters();
        counter.set_name(name);
        counter.set_value(value);
      }
      const auto add = [&status](const char* tier, uint64_t asked, uint64_t evicted) {
        v1::TierTraffic& traffic = *status.add_traffic();
        traffic.set_tier(tier);
        traffic.set_lookup_blocks(asked);
        traffic.set_evicted_blocks(evicted);
      };
      const ControlCounters& counters = control.counters();
      const MovementCounters& movement = control.metrics().movement;
      const uint64_t from_nvme = NvmeLookups(control.metrics());
      add("dram", counters.lookup_hit_blocks - from_nvme, residency.counts().evicted);
      if (control.movement() != nullptr) add("nvme", from_nvme, movement.nvme_evicted_blocks);
      add("miss", counters.lookup_blocks - counters.lookup_hit_blocks, 0);
      out.domains = control.ListDomains();
      out.capacity_bytes = control.store().arena().capacity_bytes();
    });
    if (!answered) return Busy();
    *reply = std::move(turn.status);
    reply->set_version(KVD_VERSION);
    reply->set_protocol_version(kProtocolVersion);
    reply->set_pid(static_cast<uint32_t>(getpid()));
    reply->set_uptime_ms(static_cast<uint64_t>((clock_.Now() - started_) / kMillisecond));
    reply->set_endpoint(options_.endpoint);
    reply->set_metrics(options_.metrics);
    reply->set_tcp(options_.tcp);
    reply->set_policy(options_.policy);
    reply->set_copy_loops(options_.copy_loops);
    reply->set_memory_beside_arena_bytes(PrivateBytes());
    std::stable_sort(turn.domains.begin(), turn.domains.end(),
                     [](const DomainRow& a, const DomainRow& b) { return a.lookups > b.lookups; });
    if (turn.domains.size() > kDomainsShown) turn.domains.resize(kDomainsShown);
    for (const DomainRow& row : turn.domains) {
      Write(row, options_.domain_name, *reply->add_domains());
    }
    if (options_.service != nullptr) {
      for (const Op op : {Op::kLookup, Op::kLoad, Op::kReserve, Op::kCommit}) {
        const ServiceMetrics::OfOp& counts = options_.service->ops[static_cast<size_t>(op)];
        v1::OpLatency& latency = *reply->add_latencies();
        latency.set_op(std::string(kOpNames[static_cast<size_t>(op)]));
        uint64_t calls = 0;
        for (const SharedCount& answers : counts.answers) calls += answers;
        latency.set_calls(calls);
        latency.set_p50_us(Quantile(counts.duration, 0.5) * 1e-3);
        latency.set_p99_us(Quantile(counts.duration, 0.99) * 1e-3);
      }
    }
    AddProblems(*reply, turn.capacity_bytes);
    return grpc::Status::OK;
  }

  grpc::Status Tiers(grpc::ServerContext*, const v1::TiersRequest*,
                     v1::TiersReply* reply) override {
    const bool answered =
        OnControl<v1::TiersReply>(*reply, [](Control& control, v1::TiersReply& out) {
          const Arena& arena = control.store().arena();
          v1::TierStatus& dram = *out.add_tiers();
          dram.set_name("dram");
          dram.set_state("online");
          dram.set_capacity_bytes(arena.capacity_bytes());
          dram.set_reserved_bytes(arena.reserved_bytes());
          dram.set_blocks(control.store().residency().counts().visible);
          dram.set_regions(arena.regions());
          dram.set_regions_free(arena.free_regions());
          dram.set_region_bytes(arena.region_bytes());
          const Movement* movement = control.movement();
          if (movement == nullptr) return;
          out.set_moves_in_flight(movement->moves());
          const NvmeTier& tier = movement->tier();
          v1::TierStatus& nvme = *out.add_tiers();
          nvme.set_name("nvme");
          nvme.set_state(!tier.readable() ? "offline" : tier.writable() ? "online" : "degraded");
          nvme.set_capacity_bytes(tier.live_capacity_bytes());
          nvme.set_reserved_bytes(tier.live_bytes());
          nvme.set_blocks(control.store().residency().counts().cold_blocks);
        });
    return answered ? grpc::Status::OK : Busy();
  }

  grpc::Status Audit(grpc::ServerContext* context, const v1::AuditRequest*,
                     v1::AuditReply* reply) override {
    struct Turn {
      Residency::AuditResult result;
      uint32_t max_blocks = 0;
    };
    for (uint64_t from = 1;; from += kAuditSlots) {
      if (context->IsCancelled()) return grpc::Status::CANCELLED;
      Turn turn;
      const bool answered = OnControl<Turn>(turn, [from](Control& control, Turn& out) {
        out.result = control.store().residency().Audit(static_cast<uint32_t>(from), kAuditSlots);
        out.max_blocks = control.store().residency().max_blocks();
      });
      if (!answered) return Busy();
      reply->set_blocks(reply->blocks() + turn.result.blocks);
      reply->set_stranded_blocks(reply->stranded_blocks() + turn.result.stranded);
      reply->set_errors(reply->errors() + turn.result.errors);
      if (reply->first_error().empty() && turn.result.first_error != nullptr) {
        reply->set_first_error(turn.result.first_error);
      }
      if (from + kAuditSlots > turn.max_blocks) return grpc::Status::OK;
    }
  }

  grpc::Status Verify(grpc::ServerContext* context, const v1::VerifyRequest* request,
                      v1::VerifyReply* reply) override {
    struct Turn {
      Scrubber::RunId run = 0;
      absl::StatusOr<Scrubber::Progress> progress = absl::UnknownError("not begun");
    };
    Turn turn{.run = request->run()};
    const absl::Time end = absl::Now() + kVerifyCall;
    do {
      const bool answered =
          OnControl<Turn>(turn, [run = turn.run, ns = request->namespace_id(),
                                 key = request->key()](Control& control, Turn& out) {
            out.run = run;
            if (out.run == 0) {
              const absl::StatusOr<Scrubber::RunId> begun = control.BeginVerify(ns, key);
              if (!begun.ok()) {
                out.progress = begun.status();
                return;
              }
              out.run = *begun;
            }
            out.progress = control.ContinueVerify(out.run);
          });
      if (!answered) return Busy();
      if (!turn.progress.ok()) return ToGrpc(turn.progress.status());
      if (context->IsCancelled()) return grpc::Status::CANCELLED;
      if (!turn.progress->done) absl::SleepFor(kVerifyTurn);  // The copiers and the disk have to.
    } while (!turn.progress->done && absl::Now() < end);
    reply->set_run(turn.run);
    reply->set_done(turn.progress->done);
    reply->set_blocks(turn.progress->blocks);
    reply->set_parts(turn.progress->parts);
    reply->set_bytes(turn.progress->bytes);
    reply->set_damaged(turn.progress->damaged);
    reply->set_skipped(turn.progress->skipped);
    return grpc::Status::OK;
  }

  grpc::Status Quarantine(grpc::ServerContext*, const v1::QuarantineRequest*,
                          v1::QuarantineReply* reply) override {
    struct Turn {
      std::vector<Quarantined> entries;
      std::vector<uint32_t> hash_bytes;
      uint64_t total = 0;
      Nanos now = 0;
    };
    Turn turn;
    const bool answered = OnControl<Turn>(turn, [](Control& control, Turn& out) {
      const QuarantineList& list = control.quarantine();
      out.entries.assign(list.entries().begin(), list.entries().end());
      for (const Quarantined& entry : out.entries) {
        out.hash_bytes.push_back(control.hash_bytes(entry.ns));
      }
      out.total = list.total();
      out.now = control.now();
    });
    if (!answered) return Busy();
    reply->set_total(turn.total);
    const int64_t unix_now_ms = absl::ToUnixMillis(absl::Now());
    for (size_t i = 0; i < turn.entries.size(); ++i) {
      const Quarantined& entry = turn.entries[i];
      const int64_t age_ms = (turn.now - entry.time) / kMillisecond;
      Write(entry, turn.hash_bytes[i], static_cast<uint64_t>(unix_now_ms - age_ms),
            options_.domain_name, *reply->add_entries());
    }
    return grpc::Status::OK;
  }

  // ---- who --------------------------------------------------------------------------------------

  grpc::Status Sessions(grpc::ServerContext* context, const v1::SessionsRequest*,
                        v1::SessionsReply* reply) override {
    uint64_t cursor = 0;
    return Pages<SessionRow>(
        *context, kMaxRows, cursor,
        [](const Control& control, uint32_t from, size_t, std::vector<SessionRow>& rows) {
          return control.ListSessions(from, rows);
        },
        [&](const SessionRow& row) { Write(row, options_.domain_name, *reply->add_sessions()); });
  }

  grpc::Status Leases(grpc::ServerContext* context, const v1::LeasesRequest* request,
                      v1::LeasesReply* reply) override {
    uint64_t cursor = request->cursor();
    const grpc::Status status = Pages<LeaseRow>(
        *context, RowLimit(request->limit()), cursor,
        [](const Control& control, uint32_t from, size_t most, std::vector<LeaseRow>& rows) {
          return control.ListLeases(from, most, rows);
        },
        [&](const LeaseRow& row) { Write(row, options_.domain_name, *reply->add_leases()); });
    reply->set_next_cursor(cursor);
    return status;
  }

  grpc::Status Namespaces(grpc::ServerContext* context, const v1::NamespacesRequest*,
                          v1::NamespacesReply* reply) override {
    uint64_t cursor = 0;
    return Pages<NamespaceRow>(
        *context, kMaxRows, cursor,
        [](const Control& control, uint32_t from, size_t, std::vector<NamespaceRow>& rows) {
          return control.ListNamespaces(from, rows);
        },
        [&](const NamespaceRow& row) {
          Write(row, options_.domain_name, *reply->add_namespaces());
        });
  }

  grpc::Status DropNamespace(grpc::ServerContext* context, const v1::DropNamespaceRequest* request,
                             v1::DropNamespaceReply* reply) override {
    Sweep sweep;
    const grpc::Status status = RunSweep(
        *context, sweep,
        [ns = request->namespace_id()](const Control& control) { return control.BeginDrop(ns); });
    reply->set_evicted_blocks(sweep.evicted);
    reply->set_kept_blocks(sweep.kept);
    reply->set_dropped(sweep.dropped);
    return status;
  }

  // ---- blocks -----------------------------------------------------------------------------------

  grpc::Status Blocks(grpc::ServerContext* context, const v1::BlocksRequest* request,
                      v1::BlocksReply* reply) override {
    const BlockFilter filter{.ns = request->namespace_id(), .key_prefix = request->key_prefix()};
    if (filter.key_prefix.size() > kMaxHashBytes) return Invalid("key_prefix: at most 32 bytes");
    uint64_t cursor = request->cursor();
    const grpc::Status status = Pages<BlockRow>(
        *context, RowLimit(request->limit()), cursor,
        [filter](const Control& control, uint32_t from, size_t most, std::vector<BlockRow>& rows) {
          return control.ListBlocks(filter, from, most, rows);
        },
        [&](const BlockRow& row) { Write(row, options_.domain_name, *reply->add_blocks()); });
    reply->set_next_cursor(cursor);
    return status;
  }

  grpc::Status Inspect(grpc::ServerContext* context, const v1::InspectRequest* request,
                       v1::InspectReply* reply) override {
    const BlockFilter filter{
        .ns = request->namespace_id(), .key_prefix = request->key_prefix(), .with_parts = true};
    if (filter.key_prefix.size() < 2 || filter.key_prefix.size() > kMaxHashBytes) {
      return Invalid("key_prefix: must be 2 to 32 bytes");
    }
    const auto write = [&](const BlockRow& row) {
      if (reply->blocks_size() == static_cast<int>(kInspected)) {
        reply->set_more(true);
      } else {
        Write(row, options_.domain_name, *reply->add_blocks());
      }
    };
    // A whole key is found at once; what only begins so, by a walk over all blocks.
    uint64_t cursor = 0;
    if (filter.key_prefix.size() >= kMinHashBytes) {
      const grpc::Status status = Pages<BlockRow>(
          *context, kInspected + 1, cursor,
          [filter](const Control& control, uint32_t from, size_t most,
                   std::vector<BlockRow>& rows) {
            return control.FindBlocks(filter, from, most, rows);
          },
          write);
      if (!status.ok() || reply->blocks_size() > 0) return status;
    }
    cursor = 0;
    const grpc::Status status = Pages<BlockRow>(
        *context, kInspected + 1, cursor,
        [filter](const Control& control, uint32_t from, size_t most, std::vector<BlockRow>& rows) {
          return control.ListBlocks(filter, from, most, rows);
        },
        write);
    if (!status.ok()) return status;
    return reply->blocks_size() > 0 ? grpc::Status::OK
                                    : NotFound("key_prefix: no block whose key begins so");
  }

  grpc::Status PinChain(grpc::ServerContext*, const v1::PinChainRequest* request,
                        v1::PinChainReply* reply) override {
    struct Turn {
      v1::PinChainRequest request;
      OperatorPin pin;
      absl::Status status;
    };
    Turn turn{.request = *request};
    const bool answered = OnControl<Turn>(turn, [](Control& control, Turn& out) {
      out.pin = {.ns = out.request.namespace_id(),
                 .key = out.request.key(),
                 .owner = out.request.owner(),
                 .budget_bytes = out.request.budget_bytes(),
                 .ttl_ms = out.request.ttl_ms()};
      out.status = control.PinChain(out.pin);
    });
    if (!answered) return Busy();
    reply->set_pin_id(turn.pin.pin_id);
    reply->set_blocks(turn.pin.blocks);
    reply->set_bytes(turn.pin.bytes);
    return ToGrpc(turn.status);
  }

  grpc::Status UnpinChain(grpc::ServerContext*, const v1::UnpinChainRequest* request,
                          v1::UnpinChainReply*) override {
    absl::Status status;
    const bool answered = OnControl<absl::Status>(
        status,
        [id = request->pin_id()](Control& control, auto& out) { out = control.UnpinChain(id); });
    return answered ? ToGrpc(status) : Busy();
  }

  grpc::Status Evict(grpc::ServerContext* context, const v1::EvictRequest* request,
                     v1::EvictReply* reply) override {
    Sweep sweep;
    const grpc::Status status =
        RunSweep(*context, sweep,
                 [ns = request->namespace_id(), key = request->key()](const Control& control) {
                   return control.BeginEvict(ns, key);
                 });
    reply->set_evicted_blocks(sweep.evicted);
    reply->set_kept_blocks(sweep.kept);
    return status;
  }

  grpc::Status Flush(grpc::ServerContext* context, const v1::FlushRequest* request,
                     v1::FlushReply* reply) override {
    const bool dram = request->tier() == "dram";
    if (!dram && request->tier() != "nvme") return Invalid("tier: must be \"dram\" or \"nvme\"");
    Sweep sweep;
    const grpc::Status status =
        RunSweep(*context, sweep,
                 [tier = dram ? TierIndex::kDram : TierIndex::kNvme](const Control& control) {
                   return control.BeginFlush(tier);
                 });
    reply->set_evicted_blocks(sweep.evicted);
    reply->set_moved_blocks(sweep.moved);
    reply->set_kept_blocks(sweep.kept);
    return status;
  }

  // ---- life -------------------------------------------------------------------------------------

  grpc::Status Drain(grpc::ServerContext*, const v1::DrainRequest* request,
                     v1::DrainReply* reply) override {
    const uint64_t timeout_ms = std::min(
        request->timeout_ms() == 0 ? DrainTimeoutMs() : request->timeout_ms(), kMaxDrainMs);
    DrainProgress progress;
    const bool answered = OnControl<DrainProgress>(
        progress, [exit = request->exit(), timeout_ms](Control& control, DrainProgress& out) {
          out = control.Drain(exit ? Control::DrainEnd::kExit : Control::DrainEnd::kStay,
                              static_cast<Nanos>(timeout_ms) * kMillisecond);
        });
    if (!answered) return Busy();
    reply->set_holds(progress.holds);
    reply->set_moves(progress.moves);
    return grpc::Status::OK;
  }

  grpc::Status Undrain(grpc::ServerContext*, const v1::UndrainRequest*,
                       v1::UndrainReply*) override {
    absl::Status status;
    const bool answered = OnControl<absl::Status>(
        status, [](Control& control, absl::Status& out) { out = control.Undrain(); });
    return answered ? ToGrpc(status) : Busy();
  }

  grpc::Status GetConfig(grpc::ServerContext*, const v1::GetConfigRequest*,
                         v1::GetConfigReply* reply) override {
    if (options_.config == nullptr) return NoConfig();
    reply->set_file(options_.config->file());
    for (const ConfigEntry& entry : options_.config->Entries()) {
      v1::ConfigEntry& row = *reply->add_entries();
      row.set_name(entry.name);
      row.set_value(entry.value);
      row.set_source(entry.source);
      row.set_live(entry.live);
    }
    return grpc::Status::OK;
  }

  grpc::Status ReloadConfig(grpc::ServerContext*, const v1::ReloadConfigRequest*,
                            v1::ReloadConfigReply* reply) override {
    if (options_.config == nullptr) return NoConfig();
    const absl::StatusOr<ConfigReloader::Outcome> outcome = options_.config->Reload();
    if (!outcome.ok()) return ToGrpc(outcome.status());
    for (const std::string& name : outcome->changed) reply->add_changed(name);
    for (const std::string& name : outcome->needs_restart) reply->add_needs_restart(name);
    return grpc::Status::OK;
  }

  grpc::Status Events(grpc::ServerContext* context, const v1::EventsRequest* request,
                      grpc::ServerWriter<v1::Event>* writer) override {
    struct Reader {
      explicit Reader(std::atomic<uint32_t>& readers) : all(readers), before(all++) {}
      ~Reader() { --all; }
      std::atomic<uint32_t>& all;
      const uint32_t before;
    } reader(event_readers_);
    if (reader.before >= kMaxEventReaders) {
      return {grpc::StatusCode::RESOURCE_EXHAUSTED,
              absl::StrCat("events: ", kMaxEventReaders, " read already; end one of those")};
    }
    struct Turn {
      uint64_t from = 0;
      std::vector<kvd::Event> events;
      std::vector<uint8_t> key_bytes;
      EventRing::Batch batch;
      uint64_t next = 0;  // Of the ring.
      Nanos now = 0;
    };
    uint64_t from = request->from_sequence();
    uint64_t end = UINT64_MAX;
    if (!request->follow() || request->last() > 0) {
      Turn turn;
      if (!OnControl<Turn>(
              turn, [](Control& control, Turn& out) { out.next = control.events().next(); })) {
        return Busy();
      }
      if (!request->follow()) end = turn.next;
      const uint64_t last = std::min(request->last(), turn.next);
      if (last > 0) from = std::max(from, turn.next - last);
    }
    v1::Event message;
    while (from < end) {
      if (context->IsCancelled()) return grpc::Status::CANCELLED;
      const absl::Time read_at = absl::Now();
      Turn turn{.from = from,
                .events = std::vector<kvd::Event>(kEventsPerTurn),
                .key_bytes = std::vector<uint8_t>(kEventsPerTurn)};
      if (!OnControl<Turn>(turn, [](Control& control, Turn& out) {
            out.batch = control.events().Read(out.from, absl::MakeSpan(out.events));
            out.now = control.now();
            for (size_t i = 0; i < out.batch.size; ++i) {
              out.key_bytes[i] = static_cast<uint8_t>(control.hash_bytes(out.events[i].ns));
            }
          })) {
        return Busy();
      }
      const int64_t unix_ms = absl::ToUnixMillis(absl::Now());
      if (request->follow() && from > 0 && turn.batch.first > from) events_.CountGap();
      from = turn.batch.first;
      for (size_t i = 0; i < turn.batch.size && from < end; ++i, ++from) {
        const kvd::Event& event = turn.events[i];
        message.Clear();
        message.set_sequence(from);
        message.set_unix_ms(
            static_cast<uint64_t>(unix_ms - (turn.now - event.time) / kMillisecond));
        Write(event, turn.key_bytes[i], options_.domain_name, message);
        if (!writer->Write(message)) return grpc::Status::CANCELLED;
      }
      if (!request->follow() || turn.batch.size == kEventsPerTurn) continue;
      absl::SleepFor(read_at + kBetweenReads - absl::Now());
      events_.WaitFor(from, kUntilCancelled);
      if (Stopping()) return {grpc::StatusCode::UNAVAILABLE, "the daemon ends"};
    }
    return grpc::Status::OK;
  }

 private:
  // What calls wait for. It outlives the server, because a turn may still be due then.
  struct Answers {
    absl::Mutex mu;
    absl::CondVar changed;
    bool stopping ABSL_GUARDED_BY(mu) = false;
  };

  static grpc::Status NoConfig() {
    return {grpc::StatusCode::FAILED_PRECONDITION, "this server was given no configuration"};
  }
  uint64_t DrainTimeoutMs() const {
    return options_.config == nullptr ? options_.drain_timeout_ms
                                      : options_.config->Current().drain_timeout_ms;
  }
  static grpc::Status Busy() {
    return {grpc::StatusCode::DEADLINE_EXCEEDED, "the control thread did not answer"};
  }
  bool Stopping() const {
    absl::MutexLock lock(&answers_->mu);
    return answers_->stopping;
  }

  // Runs `look` on the control thread and waits for it, within bounds. What it fills lives on when
  // the wait is given up.
  template <typename Out>
  bool OnControl(Out& out, std::function<void(Control&, Out&)> look) {
    struct Shared {
      std::shared_ptr<Answers> answers;
      Out out;
      bool done = false;
    };
    auto shared = std::make_shared<Shared>(Shared{answers_, std::move(out)});
    inbox_.Post(Task{[shared, look = std::move(look)](Control& control) {
      look(control, shared->out);
      absl::MutexLock lock(&shared->answers->mu);
      shared->done = true;
      shared->answers->changed.SignalAll();
    }});
    {
      const absl::Time deadline = absl::Now() + kPatience;
      absl::MutexLock lock(&answers_->mu);
      while (!shared->done && !answers_->stopping &&
             !answers_->changed.WaitWithDeadline(&answers_->mu, deadline)) {
      }
      if (!shared->done) return false;
    }
    out = std::move(shared->out);
    return true;
  }

  // Turns of `list` from `cursor` on until there are `limit` rows, each written by `write` on this
  // thread. `cursor` is then where the next page begins; 0: that was all.
  template <typename Row>
  grpc::Status Pages(
      grpc::ServerContext& context, size_t limit, uint64_t& cursor,
      const std::function<uint32_t(const Control&, uint32_t, size_t, std::vector<Row>&)>& list,
      const std::function<void(const Row&)>& write) {
    struct Turn {
      std::vector<Row> rows;
      uint32_t next = 0;
    };
    if (cursor > UINT32_MAX) return Invalid("cursor: not one that was answered");
    while (true) {
      if (context.IsCancelled()) return grpc::Status::CANCELLED;
      Turn turn;
      const size_t most = std::min<size_t>(limit, kRowsPerTurn);
      turn.rows.reserve(most);
      if (!OnControl<Turn>(turn, [list, from = static_cast<uint32_t>(cursor), most](
                                     Control& control, Turn& out) {
            out.next = list(control, from, most, out.rows);
          })) {
        return Busy();
      }
      for (const Row& row : turn.rows) write(row);
      cursor = turn.next;
      limit -= std::min(limit, turn.rows.size());
      if (cursor == 0 || limit == 0) return grpc::Status::OK;
    }
  }

  grpc::Status RunSweep(grpc::ServerContext& context, Sweep& sweep,
                        const std::function<absl::StatusOr<Sweep>(const Control&)>& begin) {
    absl::StatusOr<Sweep> begun = absl::UnknownError("not begun");
    if (!OnControl<absl::StatusOr<Sweep>>(
            begun,
            [begin](Control& control, absl::StatusOr<Sweep>& out) { out = begin(control); })) {
      return Busy();
    }
    if (!begun.ok()) return ToGrpc(begun.status());
    struct Turn {
      Sweep sweep;
      bool done = false;
    };
    Turn turn{.sweep = *begun};
    while (!turn.done) {
      if (context.IsCancelled()) return grpc::Status::CANCELLED;
      if (!OnControl<Turn>(
              turn, [](Control& control, Turn& out) { out.done = control.Continue(out.sweep); })) {
        return Busy();
      }
      if (turn.sweep.waits) absl::SleepFor(kFlushTurn);  // The disk has to.
    }
    sweep = turn.sweep;
    return grpc::Status::OK;
  }

  Inbox& inbox_;
  EventRing& events_;  // WaitFor() and EndWaits() only: the rest is the control thread's.
  const Options options_;
  SystemClock clock_;
  const Nanos started_ = clock_.Now();
  const std::shared_ptr<Answers> answers_ = std::make_shared<Answers>();
  std::atomic<uint32_t> event_readers_{0};
  Reflection reflection_{
      {"kvd.v1.Admin", "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}};
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<Acceptor> acceptor_;
};

std::string AdminServer::NameOfUser(DomainId domain) { return absl::StrCat("uid:", domain); }

AdminServer::AdminServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
AdminServer::~AdminServer() { impl_->Stop(); }

absl::StatusOr<std::unique_ptr<AdminServer>> AdminServer::Start(Inbox& inbox, EventRing& events,
                                                                const Options& options) {
  auto impl = std::make_unique<Impl>(inbox, events, options);
  if (absl::Status status = impl->Start(); !status.ok()) return status;
  return std::unique_ptr<AdminServer>(new AdminServer(std::move(impl)));
}

}  // namespace kvd
