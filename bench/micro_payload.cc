// Payload: gets and puts of 2 MiB blocks beside the best bare loop and beside Redis, and small
// gets. One daemon serves them all.

#include <algorithm>
#include <atomic>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "bench/child_process.h"
#include "bench/daemon_process.h"
#include "bench/machine.h"
#include "bench/micro_forest.h"
#include "bench/micro_peer.h"
#include "bench/micro_run.h"
#include "bench/payload.h"
#include "bench/redis_client.h"
#include "bench/stats.h"
#include "client/client.h"
#include "proto/types/check.h"
#include "proto/types/copy_loops.h"
#include "proto/types/host_memory.h"
#include "tiers/memory_region.h"

namespace kvd {
namespace {

constexpr uint32_t kBlockBytes = 2u << 20;
constexpr uint32_t kBatchBlocks = 64;  // 128 MiB: more than the caches keep.
constexpr uint64_t kBatchBytes = uint64_t{kBatchBlocks} * kBlockBytes;
constexpr uint32_t kChains = 8;  // Of one batch each, read in turn.
constexpr uint32_t kBatchesPerSample = 6;
constexpr uint32_t kHeldChains = 4;
constexpr uint32_t kBuffers = 4;              // Of the client, one batch each, used in turn.
constexpr uint64_t kStagingBytes = 4u << 20;  // Of the bare way through staging: stays in cache.
constexpr uint64_t kStagingPiece = 256u << 10;
constexpr uint32_t kSmallBytes = 256u << 10;
constexpr uint32_t kSmallBlocks = 1024;
constexpr int kSmallCallsPerRound = 200;

using Sources = std::vector<absl::Span<const std::byte>>;
using Targets = std::vector<absl::Span<std::byte>>;

double GigabytesPerSecond(uint64_t bytes, Nanos from, Nanos to) {
  return static_cast<double>(bytes) / static_cast<double>(to - from);
}

// Candidates of the floor: each way to copy once.
std::vector<const CopyLoop*> BareLoops() {
  std::vector<const CopyLoop*> loops;
  for (const CopyLoop& loop : CopyLoops()) {
    const bool known = std::any_of(loops.begin(), loops.end(), [&loop](const CopyLoop* other) {
      return other->copy == loop.copy;
    });
    if (!known) loops.push_back(&loop);
  }
  return loops;
}

// The order in which the floor visits its blocks: an odd stride reaches all, and none beside the
// last one.
size_t Scattered(size_t i, size_t blocks) { return i * (blocks / 2 + 1) % blocks; }

Targets SplitBatch(std::byte* base) {
  Targets targets;
  for (uint32_t i = 0; i < kBatchBlocks; ++i) {
    targets.push_back({base + size_t{i} * kBlockBytes, kBlockBytes});
  }
  return targets;
}

// What a put does with its bytes and nothing else: one thread copies them into a ring of staging
// memory while another copies them out of it. Both spin.
void CopyThroughStaging(const CopyLoop& in, const CopyLoop& out, const Sources& sources,
                        const Targets& targets, std::byte* staging) {
  constexpr uint64_t kOfBlock = kBlockBytes / kStagingPiece;
  constexpr uint64_t kSlots = kStagingBytes / kStagingPiece;
  constexpr uint64_t kPieces = kBatchBytes / kStagingPiece;
  std::atomic<uint64_t> filled{0};
  std::atomic<uint64_t> emptied{0};
  std::thread copier([&] {
    for (uint64_t i = 0; i < kPieces; ++i) {
      while (filled.load(std::memory_order_acquire) <= i) std::this_thread::yield();
      out.copy(targets[i / kOfBlock].data() + i % kOfBlock * kStagingPiece,
               staging + i % kSlots * kStagingPiece, kStagingPiece);
      emptied.store(i + 1, std::memory_order_release);
    }
  });
  for (uint64_t i = 0; i < kPieces; ++i) {
    while (i - emptied.load(std::memory_order_acquire) >= kSlots) std::this_thread::yield();
    in.copy(staging + i % kSlots * kStagingPiece,
            sources[i / kOfBlock].data() + i % kOfBlock * kStagingPiece, kStagingPiece);
    filled.store(i + 1, std::memory_order_release);
  }
  copier.join();
}

class PayloadBench {
 public:
  static absl::StatusOr<std::unique_ptr<PayloadBench>> Start(MicroRun& run);
  ~PayloadBench() { run_.RemoveServer(daemon_->pid()); }

  absl::Status MeasureGetCopy();
  absl::Status MeasureGetInPlace();
  absl::Status MeasureSmallGet(GrpcEcho& echo);
  absl::Status MeasurePut(std::string_view row, Placement placement);
  absl::Status MeasureBareStaging();
  absl::Status MeasureRedis(RedisServer& redis);

 private:
  PayloadBench(MicroRun& run, std::unique_ptr<DaemonProcess> daemon)
      : run_(run),
        daemon_(std::move(daemon)),
        client_({.endpoint = daemon_->endpoint(), .timeout = absl::Seconds(20)}),
        reader_({.endpoint = daemon_->endpoint(), .timeout = absl::Seconds(20)}),
        memory_(kBuffers * kBatchBytes, Touch::kNow) {}

  absl::Status Fill();
  absl::StatusOr<LoadedChain> Load(const Namespace& ns, std::string_view keys, uint32_t blocks);

  Targets NextBuffer() { return SplitBatch(&memory_[next_buffer_++ % kBuffers * kBatchBytes]); }
  const std::string& NextChain() { return chains_[next_chain_++ % kChains]; }

  // GB/s over some batches on end: an engine has more than one, and after the loops between two
  // samples nothing of the call would be in cache.
  absl::StatusOr<double> Get();
  absl::StatusOr<double> Put();
  // GB/s of each bare loop, one batch each, which `next` names anew for each.
  struct Batch {
    Sources sources;
    Targets targets;
  };
  std::vector<double> RunLoops(const std::function<Batch()>& next,
                               std::vector<double>* cpu_us_per_mb);

  MicroRun& run_;
  const std::unique_ptr<DaemonProcess> daemon_;
  Client client_;
  Client reader_;  // Holds what the floors read: its session has a budget of its own.
  MappedArray<std::byte> memory_;
  const std::vector<const CopyLoop*> loops_ = BareLoops();
  Namespace large_;
  Namespace small_;
  std::vector<std::string> chains_;
  std::string small_keys_;
  uint64_t next_chain_ = 0;
  uint64_t next_buffer_ = 0;
  uint64_t next_put_ = uint64_t{1} << 30;
  const SystemClock clock_;
};

absl::StatusOr<std::unique_ptr<PayloadBench>> PayloadBench::Start(MicroRun& run) {
  auto daemon = DaemonProcess::Start({.arguments = {"--dram", "2304MiB", "--log-level", "warn"}});
  if (!daemon.ok()) return daemon.status();
  auto bench = std::unique_ptr<PayloadBench>(new PayloadBench(run, *std::move(daemon)));
  run.AddServer(bench->daemon_->pid());
  if (absl::Status status = bench->Fill(); !status.ok()) return status;
  return bench;
}

absl::Status PayloadBench::Fill() {
  FillPayload({}, 0, 0, absl::MakeSpan(&memory_[0], memory_.size()));
  for (auto [ns, bytes] : {std::pair{&large_, kBlockBytes}, std::pair{&small_, kSmallBytes}}) {
    absl::StatusOr<Namespace> known = client_.RegisterNamespace(MicroNamespace(bytes, 1));
    if (!known.ok()) return known.status();
    *ns = *std::move(known);
    // In the same order, so that both clients number them alike.
    if (known = reader_.RegisterNamespace(MicroNamespace(bytes, 1)); !known.ok()) {
      return known.status();
    }
    KVD_CHECK(known->index == ns->index) << known->index;
  }
  for (uint32_t i = 0; i < kChains; ++i) {
    chains_.push_back(MakeKeys(i, kBatchBlocks));
    absl::Status status = PutChain(client_, large_, "", chains_.back(),
                                   absl::MakeSpan(&memory_[i * kBlockBytes], kBlockBytes));
    if (!status.ok()) return status;
  }
  small_keys_ = MakeKeys(kChains, kSmallBlocks);
  return PutChain(client_, small_, "", small_keys_, absl::MakeSpan(&memory_[0], kSmallBytes));
}

absl::StatusOr<LoadedChain> PayloadBench::Load(const Namespace& ns, std::string_view keys,
                                               uint32_t blocks) {
  LoadResult load = reader_.Load(ns, keys);
  if (!load.status.ok()) return load.status;
  if (load.chain.blocks() != blocks) {
    return absl::InternalError(absl::StrCat("load found ", load.chain.blocks(), " of ", blocks));
  }
  return std::move(load.chain);
}

std::vector<double> PayloadBench::RunLoops(const std::function<Batch()>& next,
                                           std::vector<double>* cpu_us_per_mb) {
  std::vector<double> rates;
  for (const CopyLoop* loop : loops_) {
    const auto [sources, targets] = next();
    const double cpu = CpuSecondsOfThisThread();
    const Nanos start = clock_.Now();
    for (size_t i = 0; i < sources.size(); ++i) {
      const size_t at = Scattered(i, sources.size());
      loop->copy(targets[at].data(), sources[at].data(), sources[at].size());
    }
    rates.push_back(GigabytesPerSecond(kBatchBytes, start, clock_.Now()));
    if (cpu_us_per_mb != nullptr) {
      cpu_us_per_mb->push_back((CpuSecondsOfThisThread() - cpu) * 1e12 / kBatchBytes);
    }
  }
  return rates;
}

absl::StatusOr<double> PayloadBench::Get() {
  Nanos spent = 0;
  for (uint32_t i = 0; i < kBatchesPerSample; ++i) {
    const std::string& keys = NextChain();
    const Targets targets = NextBuffer();
    const Nanos start = clock_.Now();
    const GetResult got = client_.Get(large_, keys, targets);
    spent += clock_.Now() - start;
    if (!got.status.ok()) return got.status;
    if (got.blocks != kBatchBlocks || got.damaged > 0) {
      return absl::InternalError(absl::StrCat("get gave ", got.blocks, " blocks"));
    }
  }
  return GigabytesPerSecond(kBatchesPerSample * kBatchBytes, 0, spent);
}

absl::StatusOr<double> PayloadBench::Put() {
  Nanos spent = 0;
  for (uint32_t i = 0; i < kBatchesPerSample; ++i) {
    const std::string keys = MakeKeys(next_put_++, kBatchBlocks);
    const Targets buffer = NextBuffer();
    const Sources sources(buffer.begin(), buffer.end());
    const Nanos start = clock_.Now();
    const PutResult put = client_.Put(large_, keys, sources);
    spent += clock_.Now() - start;
    if (!put.status.ok()) return put.status;
    if (put.stored != kBatchBlocks) {
      return absl::InternalError(absl::StrCat("put stored ", put.stored, " blocks"));
    }
  }
  return GigabytesPerSecond(kBatchesPerSample * kBatchBytes, 0, spent);
}

// Figures: get, its CPU time, the loops, their CPU time.
absl::Status PayloadBench::MeasureGetCopy() {
  if (!run_.WantedAny({"get_copy_2mib", "get_copy_2mib_cpu"})) return absl::OkStatus();
  run_.Place(Placement::kTwoCpus);
  const absl::StatusOr<Rounds> rounds = run_.Take([&]() -> absl::StatusOr<std::vector<double>> {
    // Several chains, because one after the other would find its page tables in cache; not all,
    // because a session may hold a quarter of the arena.
    std::vector<LoadedChain> held;
    while (held.size() < kHeldChains) {
      absl::StatusOr<LoadedChain> chain = Load(large_, NextChain(), kBatchBlocks);
      if (!chain.ok()) return chain.status();
      held.push_back(*std::move(chain));
    }
    uint32_t next_held = 0;
    const auto next = [&] {
      const LoadedChain& chain = held[next_held++ % kHeldChains];
      Batch batch{{}, NextBuffer()};
      for (uint32_t i = 0; i < kBatchBlocks; ++i) batch.sources.push_back(chain.part(i, 0));
      return batch;
    };
    std::vector<double> floor_cpu;
    const std::vector<double> floors = RunLoops(next, &floor_cpu);
    const double cpu = CpuSecondsOfThisThread() + CpuSecondsOf(daemon_->pid());
    const absl::StatusOr<double> rate = Get();
    if (!rate.ok()) return rate.status();
    const double used = CpuSecondsOfThisThread() + CpuSecondsOf(daemon_->pid()) - cpu;
    std::vector<double> figures = {*rate, used * 1e12 / (kBatchesPerSample * kBatchBytes)};
    figures.insert(figures.end(), floors.begin(), floors.end());
    figures.insert(figures.end(), floor_cpu.begin(), floor_cpu.end());
    return figures;
  });
  if (!rounds.ok()) return rounds.status();
  const size_t best = rounds->LargestOf(2, 2 + loops_.size());
  const std::string name(loops_[best - 2]->name);
  run_.Add("get_copy_2mib", *rounds, 0, best, absl::StrCat("bare copy, ", name));
  run_.Add("get_copy_2mib_cpu", *rounds, 1, best + loops_.size(),
           absl::StrCat("CPU of the bare copy, ", name, "; per 10^6 bytes"));
  return absl::OkStatus();
}

absl::Status PayloadBench::MeasureGetInPlace() {
  if (!run_.Wanted("get_in_place_2mib")) return absl::OkStatus();
  run_.Place(Placement::kTwoCpus);
  const absl::Span<const SumLoop> sums = SumLoops();
  const absl::StatusOr<Rounds> rounds = run_.Take([&]() -> absl::StatusOr<std::vector<double>> {
    const std::string& keys = NextChain();
    const Nanos start = clock_.Now();
    absl::StatusOr<LoadedChain> chain = Load(large_, keys, kBatchBlocks);
    if (!chain.ok()) return chain.status();
    for (uint32_t i = 0; i < kBatchBlocks; ++i) {
      if (!chain->Verify(i, 0)) return absl::DataLossError("a block does not verify");
    }
    std::vector<double> figures = {GigabytesPerSecond(kBatchBytes, start, clock_.Now())};
    uint32_t used = 0;
    for (const SumLoop& sum : sums) {
      const Nanos begin = clock_.Now();
      for (uint32_t i = 0; i < kBatchBlocks; ++i) {
        const absl::Span<const std::byte> part = chain->part(i, 0);
        used ^= sum.sum(0, part.data(), part.size());
      }
      figures.push_back(GigabytesPerSecond(kBatchBytes, begin, clock_.Now()));
    }
    if (used == 1) return absl::InternalError("the sums were optimized away");
    return figures;
  });
  if (!rounds.ok()) return rounds.status();
  const size_t best = rounds->LargestOf(1, 1 + sums.size());
  run_.Add("get_in_place_2mib", *rounds, 0, best,
           absl::StrCat("bare checksum pass, ", std::string(sums[best - 1].name)));
  return absl::OkStatus();
}

// Figures: get, echo of its messages, then the copy by each loop; the floor is a sum.
absl::Status PayloadBench::MeasureSmallGet(GrpcEcho& echo) {
  if (!run_.Wanted("get_256kib")) return absl::OkStatus();
  run_.Place(Placement::kTwoCpus);
  const absl::StatusOr<LoadedChain> held = Load(small_, small_keys_, kSmallBlocks);
  if (!held.ok()) return held.status();
  v1::LookupRequest request;
  request.set_session(std::string(16, 's'));
  request.set_namespace_id(2);
  request.set_keys(small_keys_.substr(0, MicroForest::kHashBytes));
  request.set_extent_blocks(1);
  request.mutable_releases()->add_hold_ids(1);
  uint32_t at = 0;
  // Scattered over daemon and client memory, as an engine's pages are.
  const auto next = [&at] { return at = (at + 389) % kSmallBlocks; };
  const auto target = [this](uint32_t block) {
    return absl::MakeSpan(&memory_[size_t{block} * kSmallBytes], kSmallBytes);
  };
  const absl::StatusOr<Rounds> rounds = run_.Take([&]() -> absl::StatusOr<std::vector<double>> {
    std::vector<double> us_get, us_echo;
    std::vector<std::vector<double>> us_copy(loops_.size());
    for (int i = 0; i < kSmallCallsPerRound; ++i) {
      uint32_t block = next();
      const std::string_view key =
          std::string_view(small_keys_)
              .substr(block * MicroForest::kHashBytes, MicroForest::kHashBytes);
      const absl::Span<std::byte> targets[] = {target(block)};
      Nanos start = clock_.Now();
      const GetResult got = client_.Get(small_, key, targets);
      us_get.push_back(Microseconds(start, clock_.Now()));
      if (!got.status.ok()) return got.status;
      if (got.blocks != 1) return absl::InternalError("a small get missed");

      v1::LookupReply reply;
      start = clock_.Now();
      if (absl::Status status = echo.Call(request, reply); !status.ok()) return status;
      us_echo.push_back(Microseconds(start, clock_.Now()));
      block = next();
      // One loop a call: others would find the echo's wake-up long past.
      const size_t loop = static_cast<size_t>(i) % loops_.size();
      const absl::Span<const std::byte> part = held->part(block, 0);
      start = clock_.Now();
      loops_[loop]->copy(target(block).data(), part.data(), part.size());
      us_copy[loop].push_back(Microseconds(start, clock_.Now()));
    }
    std::vector<double> figures = {Median(std::move(us_get))};
    const double echo_us = Median(std::move(us_echo));
    for (std::vector<double>& us : us_copy) figures.push_back(echo_us + Median(std::move(us)));
    return figures;
  });
  if (!rounds.ok()) return rounds.status();
  const size_t best = rounds->SmallestOf(1, 1 + loops_.size());
  run_.Add("get_256kib", *rounds, 0, best,
           absl::StrCat("gRPC echo + bare copy, ", std::string(loops_[best - 1]->name)));
  return absl::OkStatus();
}

absl::Status PayloadBench::MeasurePut(std::string_view row, Placement placement) {
  if (!run_.Wanted(row)) return absl::OkStatus();
  run_.Place(placement);
  // The floor writes to memory of the same kind as the arena: its pages may be small.
  const absl::StatusOr<MemoryRegion> arena =
      MemoryRegion::Create(kBuffers * kBatchBytes, PageKind::kHugetlb);
  if (!arena.ok()) return arena.status();
  uint64_t next = 0;
  const absl::StatusOr<Rounds> rounds = run_.Take([&]() -> absl::StatusOr<std::vector<double>> {
    const absl::StatusOr<double> rate = Put();
    if (!rate.ok()) return rate.status();
    const std::vector<double> floors = RunLoops(
        [&] {
          const Targets from = NextBuffer();
          return Batch{Sources(from.begin(), from.end()),
                       SplitBatch(arena->data() + next++ % kBuffers * kBatchBytes)};
        },
        nullptr);
    std::vector<double> figures = {*rate};
    figures.insert(figures.end(), floors.begin(), floors.end());
    return figures;
  });
  if (!rounds.ok()) return rounds.status();
  const size_t best = rounds->LargestOf(1, 1 + loops_.size());
  run_.Add(row, *rounds, 0, best, absl::StrCat("bare copy, ", std::string(loops_[best - 1]->name)));
  return absl::OkStatus();
}

// How much of the floor of a put its two copies leave on this machine, by the best pair of loops.
absl::Status PayloadBench::MeasureBareStaging() {
  constexpr std::string_view kRow = "staged_copy_2mib";
  if (!run_.Wanted(kRow)) return absl::OkStatus();
  run_.Place(Placement::kAnywhere);
  const absl::StatusOr<MemoryRegion> arena =
      MemoryRegion::Create(kBuffers * kBatchBytes, PageKind::kHugetlb);
  if (!arena.ok()) return arena.status();
  const absl::StatusOr<MemoryRegion> staging =
      MemoryRegion::Create(kStagingBytes, PageKind::kHugetlb);
  if (!staging.ok()) return staging.status();
  uint64_t next_target = 0;
  const auto next = [&] {
    const Targets from = NextBuffer();
    return Batch{Sources(from.begin(), from.end()),
                 SplitBatch(arena->data() + next_target++ % kBuffers * kBatchBytes)};
  };
  const size_t pairs = loops_.size() * loops_.size();
  const absl::StatusOr<Rounds> rounds = run_.Take([&]() -> absl::StatusOr<std::vector<double>> {
    std::vector<double> figures;
    for (size_t pair = 0; pair < pairs; ++pair) {
      const Batch batch = next();
      const Nanos start = clock_.Now();
      CopyThroughStaging(*loops_[pair / loops_.size()], *loops_[pair % loops_.size()],
                         batch.sources, batch.targets, staging->data());
      figures.push_back(GigabytesPerSecond(kBatchBytes, start, clock_.Now()));
    }
    const std::vector<double> floors = RunLoops(next, nullptr);
    figures.insert(figures.end(), floors.begin(), floors.end());
    return figures;
  });
  if (!rounds.ok()) return rounds.status();
  const size_t best = rounds->LargestOf(pairs, pairs + loops_.size());
  run_.Add(kRow, *rounds, rounds->LargestOf(0, pairs), best,
           absl::StrCat("bare copy, ", std::string(loops_[best - pairs]->name)));
  return absl::OkStatus();
}

// Redis gets the best of several modes: one or many commands under way, on one CPU or two.
absl::Status PayloadBench::MeasureRedis(RedisServer& redis) {
  constexpr uint32_t kDepths[] = {1, 8, kBatchBlocks};
  constexpr Placement kPlacements[] = {Placement::kTwoCpus, Placement::kOneCpu};
  std::vector<std::string> modes;
  for (Placement placement : kPlacements) {
    for (uint32_t depth : kDepths) {
      modes.push_back(absl::StrCat(depth, " under way, ",
                                   placement == Placement::kOneCpu ? "one CPU" : "two CPUs"));
    }
  }
  std::vector<std::vector<std::string>> batches(kBuffers);
  for (size_t batch = 0; batch < batches.size(); ++batch) {
    for (uint32_t i = 0; i < kBatchBlocks; ++i) {
      batches[batch].push_back(absl::StrCat("batch", batch, "-block", i));
    }
  }
  uint64_t next_batch = 0;
  const auto all_modes = [&](const auto& batch) -> absl::StatusOr<std::vector<double>> {
    std::vector<double> rates;
    for (Placement placement : kPlacements) {
      run_.Place(placement);
      for (uint32_t depth : kDepths) {
        const std::vector<std::string>& keys = batches[next_batch++ % batches.size()];
        const Targets buffer = NextBuffer();
        const Nanos start = clock_.Now();
        if (absl::Status status = batch(keys, buffer, depth); !status.ok()) return status;
        rates.push_back(GigabytesPerSecond(kBatchBytes, start, clock_.Now()));
      }
    }
    run_.Place(Placement::kTwoCpus);
    return rates;
  };
  const auto set = [&](const std::vector<std::string>& keys, const Targets& buffer,
                       uint32_t depth) {
    return redis.client().Set(keys, Sources(buffer.begin(), buffer.end()), depth);
  };
  const auto get = [&](const std::vector<std::string>& keys, const Targets& buffer,
                       uint32_t depth) { return redis.client().Get(keys, buffer, depth); };
  const auto measure = [&](std::string_view row, auto ours, const auto& theirs,
                           std::string_view what) {
    const absl::StatusOr<Rounds> rounds = run_.Take([&]() -> absl::StatusOr<std::vector<double>> {
      absl::StatusOr<std::vector<double>> figures = all_modes(theirs);
      if (!figures.ok()) return figures.status();
      const absl::StatusOr<double> rate = ours();
      if (!rate.ok()) return rate.status();
      figures->push_back(*rate);
      return figures;
    });
    if (!rounds.ok()) return rounds.status();
    const size_t best = rounds->LargestOf(0, modes.size());
    run_.Add(row, *rounds, modes.size(), best,
             absl::StrCat("redis ", std::string(what), ", ", modes[best]));
    return absl::OkStatus();
  };

  run_.Place(Placement::kTwoCpus);
  for (const std::vector<std::string>& keys : batches) {
    if (absl::Status status = set(keys, NextBuffer(), 1); !status.ok()) return status;
  }
  if (run_.Wanted("redis_get_2mib")) {
    absl::Status status = measure(
        "redis_get_2mib", [this] { return Get(); }, get, "get");
    if (!status.ok()) return status;
  }
  if (run_.Wanted("redis_put_2mib")) {
    absl::Status status = measure(
        "redis_put_2mib", [this] { return Put(); }, set, "set");
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status MeasurePayload(MicroRun& run) {
  if (!run.WantedAny({"get_copy_2mib", "get_copy_2mib_cpu", "get_in_place_2mib", "put_2mib",
                      "put_2mib_one_thread", "staged_copy_2mib", "get_256kib", "redis_get_2mib",
                      "redis_put_2mib"})) {
    return absl::OkStatus();
  }
  absl::StatusOr<std::unique_ptr<TemporaryFolder>> folder = TemporaryFolder::Create();
  if (!folder.ok()) return folder.status();
  run.Place(Placement::kAnywhere);
  absl::StatusOr<std::unique_ptr<GrpcEcho>> echo = GrpcEcho::Start((*folder)->path());
  if (!echo.ok()) return echo.status();
  run.AddServer((*echo)->pid());
  absl::StatusOr<std::unique_ptr<PayloadBench>> bench = PayloadBench::Start(run);
  absl::Status status = bench.status();
  if (bench.ok()) {
    // Gets before puts: in the end, new blocks push out old ones.
    status.Update((*bench)->MeasureGetCopy());
    status.Update((*bench)->MeasureGetInPlace());
    status.Update((*bench)->MeasureSmallGet(**echo));
    if (run.WantedAny({"redis_get_2mib", "redis_put_2mib"})) {
      absl::StatusOr<std::unique_ptr<RedisServer>> redis = RedisServer::Start((*folder)->path());
      if (redis.ok()) {
        run.AddServer((*redis)->pid());
        status.Update((*bench)->MeasureRedis(**redis));
        run.RemoveServer((*redis)->pid());
      } else {
        status.Update(redis.status());
      }
    }
    status.Update((*bench)->MeasurePut("put_2mib", Placement::kTwoCpus));
    status.Update((*bench)->MeasurePut("put_2mib_one_thread", Placement::kOneCpu));
    status.Update((*bench)->MeasureBareStaging());
  }
  run.RemoveServer((*echo)->pid());
  return status;
}

}  // namespace kvd
