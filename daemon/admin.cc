#include "daemon/admin.h"

#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "daemon/control.h"
#include "daemon/exposition.h"
#include "proto/admin.grpc.pb.h"

namespace kvd {
namespace {

constexpr uint32_t kAuditSlots = 1024;  // For each turn of the control thread, about 50 us.
constexpr absl::Duration kPatience = absl::Seconds(5);

}  // namespace

class AdminServer::Impl final : public v1::Admin::Service {
 public:
  Impl(Inbox& inbox, const Options& options) : inbox_(inbox), options_(options) {}

  absl::Status Start() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + options_.path, grpc::InsecureServerCredentials());
    builder.RegisterService(this);
    builder.SetMaxReceiveMessageSize(64 * 1024);
    builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::NUM_CQS, 1);
    builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::MIN_POLLERS, 1);
    builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::MAX_POLLERS, 2);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, 8);
    grpc::ResourceQuota quota("admin");
    quota.SetMaxThreads(4);
    builder.SetResourceQuota(quota);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) {
      return absl::UnavailableError(absl::StrCat("cannot listen at unix:", options_.path));
    }
    return absl::OkStatus();
  }
  void Stop() { server_->Shutdown(std::chrono::system_clock::now()); }

  grpc::Status Status(grpc::ServerContext*, const v1::StatusRequest*,
                      v1::StatusReply* reply) override {
    const bool answered =
        OnControl<v1::StatusReply>(*reply, [](Control& control, v1::StatusReply& out) {
          const Residency& residency = control.store().residency();
          out.set_page_kind(std::string(PageKindName(control.store().arena().page_kind())));
          out.set_blocks(residency.counts().visible);
          out.set_blocks_capacity(residency.max_blocks());
          out.set_stubs(residency.counts().stubs);
          out.set_sessions(control.sessions());
          out.set_namespaces(residency.namespaces());
          out.set_leases(control.leases());
          out.set_pins(control.pins());
          out.set_holds(control.holds().total_extents());
          out.set_held_bytes(control.holds().total_bytes());
          out.set_reservations(control.reservations());
          out.set_quarantined_bytes(residency.counts().quarantined_bytes);
          for (const auto& [name, value] : control.Counters()) {
            v1::Counter& counter = *out.add_counters();
            counter.set_name(name);
            counter.set_value(value);
          }
        });
    if (!answered) return Busy();
    reply->set_version(KVD_VERSION);
    reply->set_protocol_version(kProtocolVersion);
    reply->set_pid(static_cast<uint32_t>(getpid()));
    reply->set_uptime_ms(static_cast<uint64_t>((clock_.Now() - started_) / kMillisecond));
    reply->set_endpoint(options_.endpoint);
    reply->set_metrics(options_.metrics);
    reply->set_policy(options_.policy);
    reply->set_copy_loops(options_.copy_loops);
    reply->set_memory_beside_arena_bytes(PrivateBytes());
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

 private:
  static grpc::Status Busy() {
    return {grpc::StatusCode::DEADLINE_EXCEEDED, "the control thread did not answer"};
  }

  // Runs `look` on the control thread and waits for it, within bounds. What it fills lives on when
  // the wait is given up.
  template <typename Out>
  bool OnControl(Out& out, std::function<void(Control&, Out&)> look) {
    struct Shared {
      Out out;
      absl::Notification done;
    };
    auto shared = std::make_shared<Shared>();
    inbox_.Post(Task{[shared, look = std::move(look)](Control& control) {
      look(control, shared->out);
      shared->done.Notify();
    }});
    if (!shared->done.WaitForNotificationWithTimeout(kPatience)) return false;
    out = std::move(shared->out);
    return true;
  }

  Inbox& inbox_;
  const Options options_;
  SystemClock clock_;
  const Nanos started_ = clock_.Now();
  std::unique_ptr<grpc::Server> server_;
};

AdminServer::AdminServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
AdminServer::~AdminServer() { impl_->Stop(); }

absl::StatusOr<std::unique_ptr<AdminServer>> AdminServer::Start(Inbox& inbox,
                                                                const Options& options) {
  auto impl = std::make_unique<Impl>(inbox, options);
  if (absl::Status status = impl->Start(); !status.ok()) return status;
  return std::unique_ptr<AdminServer>(new AdminServer(std::move(impl)));
}

}  // namespace kvd
