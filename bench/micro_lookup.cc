// Lookups: alone, long, beside a hog, beside Redis; and what a million blocks cost in memory. One
// daemon with a million blocks serves them all.

#include <grpcpp/create_channel.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "bench/child_process.h"
#include "bench/daemon_process.h"
#include "bench/micro_forest.h"
#include "bench/micro_peer.h"
#include "bench/micro_run.h"
#include "bench/redis_client.h"
#include "bench/stats.h"
#include "client/client.h"
#include "proto/admin.grpc.pb.h"

namespace kvd {
namespace {

constexpr uint32_t kPartBytes = 512;
constexpr uint32_t kWindowBlocks = 256;
constexpr uint32_t kLongBlocks = 2 * MicroForest::kTrunkBlocks;
constexpr int kCallsPerRound = 400;
constexpr int kCallsPerTurn = 50;  // Before the other case has its turn.
constexpr int kLongCallsPerRound = 24;
constexpr int kHogCallsPerRound = 1500;
constexpr absl::Duration kLease = absl::Seconds(30);

// One client that looks chains up and leases them. The lease of a call is given back by the next.
class Lookups {
 public:
  Lookups(Client& client, const Namespace& ns) : client_(client), ns_(ns) {}

  // Microseconds of one call. kInternal when it did not hit everything.
  absl::StatusOr<double> Call(std::string_view keys, uint32_t blocks) {
    const Nanos start = clock_.Now();
    if (lease_id_ != 0) client_.ReleaseLease(lease_id_);
    const LookupResult found = client_.Lookup(ns_, keys, {.lease = kLease});
    const double us = Microseconds(start, clock_.Now());
    lease_id_ = found.lease_id;
    if (!found.status.ok()) return found.status;
    if (found.hit_blocks != blocks || found.lease_id == 0) {
      return absl::InternalError(absl::StrCat("lookup hit ", found.hit_blocks, " of ", blocks));
    }
    return us;
  }

 private:
  Client& client_;
  const Namespace& ns_;
  uint64_t lease_id_ = 0;
  const SystemClock clock_;
};

// What the client sends for such a lookup; the token and the id are of the same length as real
// ones.
v1::LookupRequest RequestLike(std::string_view keys) {
  v1::LookupRequest request;
  request.set_session(std::string(16, 's'));
  request.set_namespace_id(1);
  request.set_keys(keys.data(), keys.size());
  request.set_lease_ms(static_cast<uint32_t>(absl::ToInt64Milliseconds(kLease)));
  request.mutable_releases()->add_lease_ids(1);
  return request;
}

// Medians of two cases, in turns of some calls each.
using OneCall = std::function<absl::StatusOr<double>()>;
absl::StatusOr<std::vector<double>> Alternate(const OneCall& a, const OneCall& b, int calls,
                                              int turn) {
  std::vector<double> us_a, us_b;
  while (static_cast<int>(us_a.size()) < calls) {
    for (auto [call, us] : {std::pair{&a, &us_a}, std::pair{&b, &us_b}}) {
      for (int i = 0; i < turn; ++i) {
        const absl::StatusOr<double> one = (*call)();
        if (!one.ok()) return one.status();
        us->push_back(*one);
      }
    }
  }
  return std::vector<double>{Median(std::move(us_a)), Median(std::move(us_b))};
}

// Other requests in turn, as the lookups have: the same one again would lie in cache.
OneCall EchoOf(GrpcEcho& echo, const std::vector<v1::LookupRequest>& requests) {
  return [&echo, &requests, next = size_t{0}]() mutable -> absl::StatusOr<double> {
    const v1::LookupRequest& request = requests[next++ % requests.size()];
    const SystemClock clock;
    v1::LookupReply reply;
    const Nanos start = clock.Now();
    if (absl::Status status = echo.Call(request, reply); !status.ok()) return status;
    return Microseconds(start, clock.Now());
  };
}

// One daemon with a million blocks, and a client of it.
class Million {
 public:
  static absl::StatusOr<std::unique_ptr<Million>> Start(MicroRun& run) {
    auto daemon =
        DaemonProcess::Start({.arguments = {"--dram", "768MiB", "--blocks", "1048576",
                                            "--log-level", "warn", "--metrics", "127.0.0.1:0"}});
    if (!daemon.ok()) return daemon.status();
    auto million = std::unique_ptr<Million>(new Million(run, *std::move(daemon)));
    run.AddServer(million->daemon_->pid());
    absl::StatusOr<Namespace> ns =
        million->client_.RegisterNamespace(MicroNamespace(kPartBytes, 1));
    if (!ns.ok()) return ns.status();
    million->ns_ = *std::move(ns);
    const std::vector<std::byte> part(kPartBytes, std::byte{42});
    for (const MicroForest::Chain& chain : million->forest_.chains()) {
      absl::Status status =
          PutChain(million->client_, million->ns_, chain.parent, chain.keys, part);
      if (!status.ok()) return status;
    }
    return million;
  }
  ~Million() { run_.RemoveServer(daemon_->pid()); }

  const MicroForest& forest() const { return forest_; }
  DaemonProcess& daemon() { return *daemon_; }
  Client& client() { return client_; }
  const Namespace& ns() const { return ns_; }

  absl::StatusOr<v1::StatusReply> Status() const {
    const auto stub = v1::Admin::NewStub(
        grpc::CreateChannel(daemon_->endpoint() + ".admin", grpc::InsecureChannelCredentials()));
    grpc::ClientContext context;
    v1::StatusReply reply;
    const grpc::Status status = stub->Status(&context, {}, &reply);
    if (!status.ok()) return absl::UnavailableError("admin: " + status.error_message());
    return reply;
  }

 private:
  Million(MicroRun& run, std::unique_ptr<DaemonProcess> daemon)
      : run_(run),
        daemon_(std::move(daemon)),
        client_({.endpoint = daemon_->endpoint(), .timeout = absl::Seconds(10)}) {}

  MicroRun& run_;
  const MicroForest forest_;
  const std::unique_ptr<DaemonProcess> daemon_;
  Client client_;
  Namespace ns_;
};

absl::Status MeasureMemory(MicroRun& run, Million& million) {
  const absl::StatusOr<v1::StatusReply> status = million.Status();
  if (!status.ok()) return status.status();
  if (status->blocks() != MicroForest::kBlocks) {
    return absl::InternalError(
        absl::StrCat("memory: ", status->blocks(), " blocks, not a million"));
  }
  run.Add({.name = "memory_beyond_arena_1m_blocks",
           .value = static_cast<double>(status->memory_beside_arena_bytes()) / (1 << 20),
           .samples = 1});
  return absl::OkStatus();
}

absl::Status Measure256(MicroRun& run, Million& million, GrpcEcho& grpc, SeqpacketEcho& seqpacket) {
  Lookups lookups(million.client(), million.ns());
  uint64_t window = 0;
  const OneCall lookup = [&] {
    return lookups.Call(million.forest().Window256(window++), kWindowBlocks);
  };
  std::vector<v1::LookupRequest> requests;
  for (uint64_t i = 0; i < MicroForest::kBranches; ++i) {
    requests.push_back(RequestLike(million.forest().Window256(i)));
  }
  const OneCall grpc_echo = EchoOf(grpc, requests);
  if (run.Wanted("lookup_lease_256_one_cpu")) {
    run.Place(Placement::kOneCpu);
    const absl::StatusOr<Rounds> rounds =
        run.Take([&] { return Alternate(lookup, grpc_echo, kCallsPerRound, kCallsPerTurn); });
    if (!rounds.ok()) return rounds.status();
    run.Add("lookup_lease_256_one_cpu", *rounds, 0, 1, "gRPC echo of the same bytes, same CPU");
  }
  if (run.Wanted("lookup_lease_256_two_cpus")) {
    run.Place(Placement::kTwoCpus);
    std::string bytes = requests.front().SerializeAsString();
    constexpr uint32_t kReplyBytes = 32;  // About as long as a reply without extents.
    const OneCall echo = [&]() -> absl::StatusOr<double> {
      const SystemClock clock;
      const Nanos start = clock.Now();
      if (absl::Status status = seqpacket.Call(bytes, kReplyBytes); !status.ok()) return status;
      return Microseconds(start, clock.Now());
    };
    const absl::StatusOr<Rounds> rounds =
        run.Take([&] { return Alternate(lookup, echo, kCallsPerRound, kCallsPerTurn); });
    if (!rounds.ok()) return rounds.status();
    run.Add("lookup_lease_256_two_cpus", *rounds, 0, 1, "seqpacket echo of the same bytes");
  }
  if (run.Wanted("lookup_lease_256_two_cpus_grpc")) {
    run.Place(Placement::kTwoCpus);
    const absl::StatusOr<Rounds> rounds =
        run.Take([&] { return Alternate(lookup, grpc_echo, kCallsPerRound, kCallsPerTurn); });
    if (!rounds.ok()) return rounds.status();
    run.Add("lookup_lease_256_two_cpus_grpc", *rounds, 0, 1, "gRPC echo of the same bytes");
  }
  return absl::OkStatus();
}

absl::Status MeasureLong(MicroRun& run, Million& million, GrpcEcho& grpc) {
  if (!run.Wanted("lookup_lease_32768")) return absl::OkStatus();
  Lookups lookups(million.client(), million.ns());
  const std::vector<std::string>& chains = million.forest().longest();
  uint64_t chain = 0;
  const OneCall lookup = [&] { return lookups.Call(chains[chain++ % chains.size()], kLongBlocks); };
  std::vector<v1::LookupRequest> requests;
  for (const std::string& keys : chains) requests.push_back(RequestLike(keys));
  const OneCall grpc_echo = EchoOf(grpc, requests);
  run.Place(Placement::kTwoCpus);
  const absl::StatusOr<Rounds> rounds =
      run.Take([&] { return Alternate(lookup, grpc_echo, kLongCallsPerRound, /*turn=*/2); });
  if (!rounds.ok()) return rounds.status();
  run.Add("lookup_lease_32768", *rounds, 0, 1, "gRPC echo of the same bytes, two CPUs");
  return absl::OkStatus();
}

absl::Status MeasureRedisExists(MicroRun& run, Million& million, const std::string& folder) {
  constexpr std::string_view kRow = "redis_exists_256";
  constexpr uint32_t kRedisKeys = 1'000'000;
  if (!run.Wanted(kRow)) return absl::OkStatus();
  absl::StatusOr<std::unique_ptr<RedisServer>> redis = RedisServer::Start(folder);
  if (!redis.ok()) return redis.status();
  run.AddServer((*redis)->pid());
  const std::string keys = MakeKeys(uint64_t{1} << 41, kRedisKeys);
  const auto key = [&keys](uint64_t i) {
    return std::string_view(keys).substr(i % kRedisKeys * MicroForest::kHashBytes,
                                         MicroForest::kHashBytes);
  };
  absl::Status status;
  for (uint32_t from = 0; status.ok() && from < kRedisKeys; from += 1000) {
    std::vector<std::string_view> some;
    for (uint32_t i = 0; i < 1000; ++i) some.push_back(key(from + i));
    status = (*redis)->client().SetMany(some, std::string_view("twenty-four bytes of data"));
  }
  if (!status.ok()) return status;

  Lookups lookups(million.client(), million.ns());
  uint64_t window = 0;
  uint64_t at = 0;
  run.Place(Placement::kTwoCpus);
  const absl::StatusOr<Rounds> rounds = run.Take([&] {
    return Alternate(
        [&] { return lookups.Call(million.forest().Window256(window++), kWindowBlocks); },
        [&]() -> absl::StatusOr<double> {
          std::vector<std::string_view> asked;
          at += 7919 * kWindowBlocks;
          for (uint32_t i = 0; i < kWindowBlocks; ++i) asked.push_back(key(at + i));
          const SystemClock clock;
          const Nanos start = clock.Now();
          const absl::StatusOr<uint64_t> there = (*redis)->client().Exists(asked);
          if (!there.ok()) return there.status();
          if (*there != kWindowBlocks) return absl::InternalError("redis lost keys");
          return Microseconds(start, clock.Now());
        },
        kCallsPerRound, kCallsPerTurn);
  });
  run.RemoveServer((*redis)->pid());
  if (!rounds.ok()) return rounds.status();
  run.Add(kRow, *rounds, 0, 1, "redis EXISTS of 256 keys");
  return absl::OkStatus();
}

absl::Status MeasureBesideHog(MicroRun& run, Million& million) {
  if (!run.Wanted("lookup_p99_beside_hog")) return absl::OkStatus();
  run.Place(Placement::kAnywhere);
  absl::StatusOr<std::unique_ptr<Hog>> hog = Hog::Start(million.daemon().endpoint());
  if (!hog.ok()) return hog.status();
  run.AddServer((*hog)->pid());
  Lookups lookups(million.client(), million.ns());
  // Few windows: what is looked up all the time is not what the hog's blocks evict.
  uint64_t window = 0;
  const auto p99 = [&]() -> absl::StatusOr<double> {
    std::vector<double> us;
    for (int i = 0; i < kHogCallsPerRound; ++i) {
      const absl::StatusOr<double> one =
          lookups.Call(million.forest().Window256(window++ % 16), kWindowBlocks);
      if (!one.ok()) return one.status();
      us.push_back(*one);
    }
    return Percentile(std::move(us), 99);
  };
  const absl::StatusOr<Rounds> rounds = run.Take([&]() -> absl::StatusOr<std::vector<double>> {
    const absl::StatusOr<double> alone = p99();
    (*hog)->Run();
    const absl::StatusOr<double> beside = p99();
    (*hog)->Pause();
    if (!alone.ok()) return alone.status();
    if (!beside.ok()) return beside.status();
    return std::vector<double>{*beside, *alone};
  });
  run.RemoveServer((*hog)->pid());
  if (!rounds.ok()) return rounds.status();
  run.Add("lookup_p99_beside_hog", *rounds, 0, 1, "its p99 alone");
  return absl::OkStatus();
}

absl::Status MeasureScrapesOf(MicroRun& run, Million& million) {
  const absl::StatusOr<v1::StatusReply> status = million.Status();
  if (!status.ok()) return status.status();
  Lookups lookups(million.client(), million.ns());
  uint64_t window = 0;
  return MeasureScrapes(run, million.daemon().endpoint(), status->metrics(), [&] {
    return lookups.Call(million.forest().Window256(window++), kWindowBlocks);
  });
}

// Two daemons that differ in whether they count and time operations, in turns.
absl::Status MeasureMetricsCost(MicroRun& run) {
  constexpr std::string_view kRow = "metrics_cost_lookup_256";
  constexpr uint32_t kChains = 16;
  constexpr int kCalls = 1500;
  if (!run.Wanted(kRow)) return absl::OkStatus();
  struct Side {
    std::unique_ptr<DaemonProcess> daemon;
    std::unique_ptr<Client> client;
    Namespace ns;
    std::unique_ptr<Lookups> lookups;
  };
  std::vector<std::string> chains;
  for (uint32_t i = 0; i < kChains; ++i) chains.push_back(MakeKeys(i, kWindowBlocks));
  const std::vector<std::byte> part(kPartBytes);
  Side sides[2];
  for (Side& side : sides) {
    std::vector<std::string> arguments = {"--dram", "64MiB", "--log-level", "warn"};
    if (&side == &sides[1]) arguments.push_back("--no-operation-metrics");
    auto daemon = DaemonProcess::Start({.arguments = std::move(arguments)});
    if (!daemon.ok()) return daemon.status();
    side.daemon = *std::move(daemon);
    side.client = std::make_unique<Client>(
        ClientOptions{.endpoint = side.daemon->endpoint(), .timeout = absl::Seconds(10)});
    absl::StatusOr<Namespace> ns = side.client->RegisterNamespace(MicroNamespace(kPartBytes, 1));
    if (!ns.ok()) return ns.status();
    side.ns = *std::move(ns);
    side.lookups = std::make_unique<Lookups>(*side.client, side.ns);
    for (const std::string& keys : chains) {
      absl::Status status = PutChain(*side.client, side.ns, "", keys, part);
      if (!status.ok()) return status;
    }
  }
  for (const Side& side : sides) run.AddServer(side.daemon->pid());
  run.Place(Placement::kTwoCpus);
  uint64_t next[2] = {};
  const absl::StatusOr<Rounds> rounds = run.Take([&] {
    return Alternate(
        [&] { return sides[0].lookups->Call(chains[next[0]++ % kChains], kWindowBlocks); },
        [&] { return sides[1].lookups->Call(chains[next[1]++ % kChains], kWindowBlocks); }, kCalls,
        kCallsPerTurn);
  });
  for (const Side& side : sides) run.RemoveServer(side.daemon->pid());
  if (!rounds.ok()) return rounds.status();
  run.Add(kRow, *rounds, 0, 1, "the same with --no-operation-metrics");
  return absl::OkStatus();
}

}  // namespace

absl::Status MeasureLookups(MicroRun& run) {
  absl::Status cost = MeasureMetricsCost(run);
  if (!run.WantedAny({"lookup_lease_256_one_cpu", "lookup_lease_256_two_cpus",
                      "lookup_lease_256_two_cpus_grpc", "lookup_lease_32768",
                      "lookup_p99_beside_hog", "redis_exists_256", "memory_beyond_arena_1m_blocks",
                      "metrics_scrape_1m_blocks", "metrics_scrape_size_1m_blocks",
                      "metrics_scrape_lookup_p99"})) {
    return cost;
  }
  absl::StatusOr<std::unique_ptr<TemporaryFolder>> folder = TemporaryFolder::Create();
  if (!folder.ok()) return folder.status();
  run.Place(Placement::kAnywhere);
  absl::StatusOr<std::unique_ptr<GrpcEcho>> grpc = GrpcEcho::Start((*folder)->path());
  if (!grpc.ok()) return grpc.status();
  absl::StatusOr<std::unique_ptr<SeqpacketEcho>> seqpacket =
      SeqpacketEcho::Start((*folder)->path());
  if (!seqpacket.ok()) return seqpacket.status();
  run.AddServer((*grpc)->pid());
  run.AddServer((*seqpacket)->pid());
  absl::StatusOr<std::unique_ptr<Million>> million = Million::Start(run);
  absl::Status status = cost;
  status.Update(million.status());
  // One that fails is told, and does not keep the others from being measured.
  if (million.ok()) {
    status.Update(MeasureMemory(run, **million));
    status.Update(Measure256(run, **million, **grpc, **seqpacket));
    status.Update(MeasureLong(run, **million, **grpc));
    status.Update(MeasureRedisExists(run, **million, (*folder)->path()));
    status.Update(MeasureScrapesOf(run, **million));
    status.Update(MeasureBesideHog(run, **million));  // Last: it evicts.
  }
  run.RemoveServer((*grpc)->pid());
  run.RemoveServer((*seqpacket)->pid());
  return status;
}

}  // namespace kvd
