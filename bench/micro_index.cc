// The index alone, in this process; and a daemon whose blocks have many parts.

#include <grpcpp/create_channel.h>

#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "bench/daemon_process.h"
#include "bench/micro_forest.h"
#include "bench/micro_run.h"
#include "bench/stats.h"
#include "client/client.h"
#include "daemon/lease_table.h"
#include "daemon/residency.h"
#include "policy/lru.h"
#include "proto/admin.grpc.pb.h"

namespace kvd {
namespace {

constexpr uint32_t kLongBlocks = 2 * MicroForest::kTrunkBlocks;
constexpr int kIndexCallsPerRound = 2000;
constexpr uint32_t kParts = 16;
constexpr uint32_t kPartBytes = 512;
constexpr uint32_t kManyPartsBlocks = 65'536;

class NoRoom final : public RoomOwner {
  void FreeRoom(const Part&) override {}
};

// Index, policy and leases as the daemon has them, filled with the forest.
class IndexBench {
 public:
  IndexBench()
      : policy_(kMaxBlocks),
        residency_(policy_, room_,
                   {.max_blocks = kMaxBlocks, .max_parts = kMaxBlocks, .secret = 0x5ec2e7}),
        leases_(1u << 16),
        ns_(residency_.AddNamespace({})) {
    for (const MicroForest::Chain& chain : forest_.chains()) Store(chain);
  }

  // Microseconds of one lookup with its lease, and the end of the lease before; the median of some.
  absl::StatusOr<double> Round() {
    std::vector<double> us;
    for (int i = 0; i < kIndexCallsPerRound; ++i) {
      const std::string& keys = forest_.longest()[static_cast<size_t>(i) % MicroForest::kTrees];
      const Nanos start = clock_.Now();
      if (const std::optional<LeaseTable::Lease> ended = leases_.Remove(lease_)) {
        residency_.Unlease(ended->block);
      }
      const Residency::Prefix prefix =
          residency_.LongestPrefix(ns_, KeyList(keys, MicroForest::kHashBytes), nullptr);
      residency_.Use(prefix.deepest, ++tick_);
      residency_.Lease(prefix.deepest);
      lease_ = leases_.Add(prefix.deepest, /*owner=*/0, start + kSecond);
      us.push_back(Microseconds(start, clock_.Now()));
      if (prefix.blocks != kLongBlocks || lease_ == 0) {
        return absl::InternalError(absl::StrCat("index found ", prefix.blocks, " blocks"));
      }
    }
    return Median(std::move(us));
  }

 private:
  static constexpr uint32_t kMaxBlocks = 1u << 20;

  void Store(const MicroForest::Chain& chain) {
    BlockRef above = chain.parent.empty()
                         ? 0
                         : residency_.Find(ns_, KeyList(chain.parent, MicroForest::kHashBytes)[0]);
    const KeyList keys(chain.keys, MicroForest::kHashBytes);
    for (uint32_t i = 0; i < keys.size(); ++i) {
      above = residency_.Add(ns_, keys[i], above, ++tick_);
      const PartRef part = residency_.AddPart(above, {}, 0, ++slot_, kPartBytes, 1);
      residency_.CommitPart(part, 0, tick_);
    }
  }

  const MicroForest forest_;
  LruPolicy policy_;
  NoRoom room_;
  Residency residency_;
  LeaseTable leases_;
  const NamespaceId ns_;
  LeaseId lease_ = 0;
  uint64_t tick_ = 0;
  uint32_t slot_ = 0;
  const SystemClock clock_;
};

absl::StatusOr<double> MibBesideArena(const std::string& endpoint) {
  const auto stub = v1::Admin::NewStub(
      grpc::CreateChannel(endpoint + ".admin", grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  v1::StatusReply reply;
  const grpc::Status status = stub->Status(&context, {}, &reply);
  if (!status.ok()) return absl::UnavailableError("admin: " + status.error_message());
  return static_cast<double>(reply.memory_beside_arena_bytes()) / (1 << 20);
}

}  // namespace

absl::Status MeasureIndex(MicroRun& run) {
  constexpr std::string_view kRow = "index_lookup_lease_32768";
  if (!run.Wanted(kRow)) return absl::OkStatus();
  auto bench = std::make_unique<IndexBench>();
  run.Place(Placement::kOneCpu);
  const absl::StatusOr<Rounds> rounds = run.Take([&]() -> absl::StatusOr<std::vector<double>> {
    const absl::StatusOr<double> us = bench->Round();
    if (!us.ok()) return us.status();
    return std::vector<double>{*us};
  });
  if (!rounds.ok()) return rounds.status();
  run.Add({.name = std::string(kRow),
           .value = rounds->MedianOf(0),
           .samples = rounds->count,
           .foreign_cpus = rounds->foreign_cpus});
  return absl::OkStatus();
}

// 16 million parts would take 8 GiB of arena and a minute. A sixteenth of the blocks, in a daemon
// that is made for a million, shows what each of them adds.
absl::Status MeasureManyParts(MicroRun& run) {
  constexpr std::string_view kRow = "memory_beyond_arena_1m_blocks_16_parts";
  if (!run.Wanted(kRow)) return absl::OkStatus();
  run.Place(Placement::kAnywhere);
  auto daemon = DaemonProcess::Start(
      {.arguments = {"--dram", "768MiB", "--blocks", "1048576", "--log-level", "warn"}});
  if (!daemon.ok()) return daemon.status();
  run.AddServer((*daemon)->pid());
  Client client({.endpoint = (*daemon)->endpoint(), .timeout = absl::Seconds(30)});
  absl::StatusOr<double> empty, full;
  absl::StatusOr<Namespace> ns = client.RegisterNamespace(MicroNamespace(kPartBytes, kParts));
  absl::Status status = ns.status();
  // The first blocks make what is made once: staging, reservations, gRPC's memory.
  const std::vector<std::byte> part(kPartBytes);
  if (status.ok()) status = PutChain(client, *ns, "", MakeKeys(0, kMaxPageBlocks), part);
  if (status.ok()) status = (empty = MibBesideArena((*daemon)->endpoint())).status();
  if (status.ok()) status = PutChain(client, *ns, "", MakeKeys(1, kManyPartsBlocks), part);
  if (status.ok()) status = (full = MibBesideArena((*daemon)->endpoint())).status();
  run.RemoveServer((*daemon)->pid());
  if (!status.ok()) return status;
  run.Add({.name = std::string(kRow),
           .value = *empty + (*full - *empty) * MicroForest::kBlocks / kManyPartsBlocks,
           .samples = 1});
  return absl::OkStatus();
}

}  // namespace kvd
