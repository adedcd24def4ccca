#include "bench/replay.h"

#include <grpcpp/create_channel.h>
#include <poll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <iostream>
#include <memory>
#include <optional>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "bench/commands.h"
#include "bench/daemon_process.h"
#include "bench/floors.h"
#include "bench/payload.h"
#include "bench/progress.h"
#include "bench/stats.h"
#include "bench/table.h"
#include "bench/trace.h"
#include "client/client.h"
#include "nlohmann/json.hpp"
#include "policy/admissions.h"
#include "policy/policies.h"
#include "proto/admin.grpc.pb.h"
#include "proto/types/clock.h"
#include "proto/types/limits.h"
#include "proto/types/status.h"
#include "tiers/arena.h"
#include "tiers/nvme_tier.h"

namespace kvd {
namespace {

constexpr double kGiB = 1024.0 * 1024 * 1024;
constexpr uint64_t kMiB = 1u << 20;
// The same in every run, so that a daemon that kept its blocks can be asked for them again.
constexpr uint64_t kKeySeed = 1;
constexpr uint32_t kDefaultBlockTokens = 512;  // Where the trace does not say.
constexpr uint64_t kBufferBytes = 64 * kMiB;   // Of a client: longer prefixes go in pages.
constexpr uint32_t kMaxClients = 64;
// Long, because a call that fails here is a flaw of the measurement, not an answer to an engine.
constexpr absl::Duration kCallTimeout = absl::Seconds(30);
constexpr absl::Duration kLease = absl::Milliseconds(kMaxLeaseMs);
constexpr size_t kEchoSamples = 2000;

// --- the machine's side --------------------------------------------------------------------------

// SIGINT and SIGTERM, kept back from all threads that start later: a replay that ends early still
// drains its daemon. What was kept back takes effect with the end of the object.
class Interrupts {
 public:
  Interrupts() {
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &signals, &before_);
    fd_ = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
  }
  ~Interrupts() {
    if (fd_ >= 0) close(fd_);
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;

  // Waits for so long, or not at all; true: a signal came.
  bool Wait(Nanos duration) const {
    pollfd signal = {.fd = fd_, .events = POLLIN, .revents = 0};
    const Nanos wait = std::max<Nanos>(0, duration);
    const timespec timeout = {.tv_sec = wait / kSecond, .tv_nsec = wait % kSecond};
    return ppoll(&signal, 1, &timeout, nullptr) > 0;
  }

 private:
  sigset_t before_;
  int fd_;
};

// Memory that certainly holds so many blocks, in regions as Arena cuts them.
uint64_t DramBytesFor(uint64_t blocks, uint32_t block_bytes) {
  const uint64_t slot = Arena::SlotBytes(block_bytes);
  const uint64_t wanted = blocks + blocks / 64 + 64;  // Quarantined room is not room.
  uint64_t dram = wanted * slot + 64 * kMiB;
  while (true) {
    const uint64_t region = std::min(256 * kMiB, dram / 16) / (2 * kMiB) * (2 * kMiB);
    if (dram / region * (region / slot) >= wanted) return dram;
    dram += std::max(dram / 64, 16 * kMiB);
  }
}

// Memory that holds so many blocks and hardly more, in regions as Arena cuts them: with a tier
// below, bytes are what makes blocks leave it.
uint64_t SnugDramBytesFor(uint64_t blocks, uint32_t block_bytes) {
  const uint64_t bytes = blocks * Arena::SlotBytes(block_bytes);
  const uint64_t unit = bytes < 16 * 256 * kMiB ? 16 * 2 * kMiB : 256 * kMiB;
  return (bytes + unit - 1) / unit * unit;
}

// A device with room for so many live records, of the share of it that those may take.
uint64_t NvmeBytesFor(uint64_t blocks, uint32_t block_bytes) {
  constexpr uint64_t kSuperblocks = 8 * kMiB;
  constexpr uint64_t kSpare = 256 * kMiB;  // Segments for reclaiming, and the ends of others.
  const uint64_t live = blocks * NvmeTier::RoomOf(block_bytes);
  return (kSuperblocks + live + live / 3 + kSpare) / kMiB * kMiB;
}

// What a daemon with an NVMe tier needs on a disk; goes with its owner.
class TierFolder {
 public:
  static absl::StatusOr<std::unique_ptr<TierFolder>> Make() {
    auto folder = std::unique_ptr<TierFolder>(new TierFolder());
    // On a disk, where /tmp may be memory.
    char path[] = "/var/tmp/kvd-bench-tier-XXXXXX";
    if (mkdtemp(path) == nullptr) return ErrnoStatus(errno, path);
    folder->path_ = path;
    // In memory, where the arena lies.
    char memory[] = "/dev/shm/kvd-bench-XXXXXX";
    if (mkdtemp(memory) == nullptr) return ErrnoStatus(errno, memory);
    folder->memory_ = memory;
    return folder;
  }
  ~TierFolder() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
    if (!memory_.empty()) std::filesystem::remove_all(memory_, ignored);
  }

  std::vector<std::string> Arguments(const ReplayOptions& options) const {
    const uint64_t bytes = NvmeBytesFor(options.nvme_blocks, options.block_bytes);
    return {"--data",      path_ + "/data",  "--arena-directory",
            memory_,       "--nvme",         absl::StrCat(path_, "/nvme:", bytes),
            "--admission", options.admission};
  }

 private:
  TierFolder() = default;

  std::string path_;
  std::string memory_;
};

// --- what is counted -----------------------------------------------------------------------------

// Values for percentiles: all of them up to a bound, beyond it a random sample of that size.
class Sample {
 public:
  void Add(double value) {
    ++seen_;
    if (values_.size() < kMax) {
      values_.push_back(value);
    } else if (const uint64_t at = random_() % seen_; at < kMax) {
      values_[at] = value;
    }
  }
  const std::vector<double>& values() const { return values_; }

 private:
  static constexpr size_t kMax = 1u << 18;
  uint64_t seen_ = 0;
  std::mt19937_64 random_{1};
  std::vector<double> values_;
};

struct ClientTally {
  ReplayResult counts;  // Its counters only.
  uint64_t put_bytes = 0;
  uint64_t get_bytes = 0;
  Nanos put_time = 0;
  Nanos get_time = 0;
  Sample lookup_us;
  Sample lookup_bytes;
};

void AddClientTally(const ClientTally& tally, ReplayResult& total) {
  const ReplayResult& counts = tally.counts;
  total.requests += counts.requests;
  total.blocks_asked += counts.blocks_asked;
  total.blocks_hit += counts.blocks_hit;
  total.prompt_tokens += counts.prompt_tokens;
  total.prompt_tokens_not_recomputed += counts.prompt_tokens_not_recomputed;
  total.blocks_stored += counts.blocks_stored;
  total.blocks_without_room += counts.blocks_without_room;
  total.wrong_blocks += counts.wrong_blocks;
  total.damaged_parts += counts.damaged_parts;
  total.refused_calls += counts.refused_calls;
  total.leases_held += counts.leases_held;
}

// --- the requests --------------------------------------------------------------------------------

// The trace, shared by all clients.
class Cursor {
 public:
  Cursor(TraceReader& reader, const ReplayOptions& options, const Clock& clock,
         const Interrupts& interrupts)
      : limit_(options.limit == 0 ? UINT64_MAX : options.limit),
        at_trace_time_(options.at_trace_time),
        clock_(clock),
        interrupts_(interrupts),
        start_(clock.Now()),
        reader_(reader) {}

  // The next request and its number from 1, when its time has come; false: there is no other.
  absl::StatusOr<bool> Next(TraceRequest& request, uint64_t& number) {
    {
      absl::MutexLock lock(&mu_);
      if (ended_ || given_ == limit_) return false;
      absl::StatusOr<bool> more = reader_.Next(request);
      if (!more.ok() || !*more) {
        ended_ = true;
        return more;
      }
      number = ++given_;
    }
    Nanos wait = 0;
    if (at_trace_time_) {
      // A wait of years is as good as one of centuries, and does not overflow.
      const uint64_t arrival_ms = std::min<uint64_t>(request.timestamp_ms, uint64_t{1} << 40);
      wait = start_ + static_cast<Nanos>(arrival_ms) * kMillisecond - clock_.Now();
    }
    if (interrupts_.Wait(wait)) return absl::CancelledError("interrupted");
    return true;
  }

  // The other clients get no more.
  void Stop() {
    absl::MutexLock lock(&mu_);
    ended_ = true;
  }

 private:
  // Constant after construction.
  const uint64_t limit_;
  const bool at_trace_time_;
  const Clock& clock_;
  const Interrupts& interrupts_;
  const Nanos start_;

  absl::Mutex mu_;
  TraceReader& reader_ ABSL_GUARDED_BY(mu_);
  uint64_t given_ ABSL_GUARDED_BY(mu_) = 0;
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
};

// One engine: a session and a buffer. Used by one thread.
class ReplayClient {
 public:
  ReplayClient(const ReplayOptions& options, const std::string& endpoint, uint32_t block_tokens,
               const Clock& clock)
      : options_(options),
        block_tokens_(block_tokens),
        page_blocks_(static_cast<uint32_t>(
            std::clamp<uint64_t>(kBufferBytes / options.block_bytes, 1, kMaxPageBlocks))),
        clock_(clock),
        buffer_(uint64_t{page_blocks_} * options.block_bytes),
        client_({.endpoint = endpoint, .timeout = kCallTimeout}) {}

  absl::Status Connect() {
    NamespaceDescriptor descriptor;
    descriptor.model = "kvd-bench replay";
    descriptor.hash_bytes = kMaxHashBytes;
    descriptor.groups = {{.block_tokens = block_tokens_, .part_bytes = options_.block_bytes}};
    absl::StatusOr<Namespace> ns = client_.RegisterNamespace(descriptor);
    if (ns.ok()) ns_ = *std::move(ns);
    return ns.status();
  }

  // Replays requests until the cursor has no more, or the daemon fails us. After each `settle`, if
  // there is one, says when the next may come.
  absl::Status Run(Cursor& cursor, ProgressBar& progress,
                   const std::function<absl::Status()>& settle) {
    TraceRequest request;
    while (true) {
      uint64_t number = 0;
      absl::StatusOr<bool> more = cursor.Next(request, number);
      if (!more.ok() || !*more) return more.status();
      if (absl::Status status = ReplayOne(request); !status.ok()) {
        return absl::Status(status.code(),
                            absl::StrCat("request ", number, ": ", status.message()));
      }
      if (settle != nullptr) {
        if (absl::Status status = settle(); !status.ok()) return status;
      }
      progress.Add();
    }
  }

  // Ends the leases that were kept.
  absl::Status Finish() {
    tally_.counts.leases_held = kept_leases_.size();
    ReleaseAll(kept_leases_);
    return client_.Flush(kCallTimeout);
  }

  const ClientTally& tally() const { return tally_; }

 private:
  absl::Status ReplayOne(const TraceRequest& request) {
    const auto blocks = static_cast<uint32_t>(request.hash_ids.size());
    keys_.clear();
    for (const uint64_t id : request.hash_ids) {
      const std::array<std::byte, kMaxHashBytes> key = KeyOf(id, kKeySeed);
      keys_.append(reinterpret_cast<const char*>(key.data()), key.size());
    }

    absl::StatusOr<uint32_t> hits = LookUp(blocks, Timing::kMeasured);
    if (!hits.ok()) return hits.status();
    absl::StatusOr<uint32_t> loaded = LoadPrefix(*hits);
    if (!loaded.ok()) return loaded.status();
    if (absl::Status status = StoreRest(*loaded, blocks); !status.ok()) return status;

    std::vector<uint64_t> done = std::exchange(leases_, {});
    if (options_.hold_leases) {  // Once more, now that the whole chain is there to be leased.
      absl::StatusOr<uint32_t> stored = LookUp(blocks, Timing::kIgnored);
      if (!stored.ok()) return stored.status();
      kept_leases_.insert(kept_leases_.end(), leases_.begin(), leases_.end());
      leases_.clear();
    }
    ReleaseAll(done);

    ReplayResult& counts = tally_.counts;
    ++counts.requests;
    counts.blocks_asked += blocks;
    counts.blocks_hit += *loaded;
    counts.prompt_tokens += request.input_length;
    counts.prompt_tokens_not_recomputed +=
        std::min<uint64_t>(request.input_length, uint64_t{*loaded} * block_tokens_);
    return absl::OkStatus();
  }

  enum class Timing { kMeasured, kIgnored };

  // The longest stored prefix of the request, leased.
  absl::StatusOr<uint32_t> LookUp(uint32_t blocks, Timing timing) {
    uint32_t hits = 0;
    while (hits < blocks) {
      const uint32_t asked = std::min(blocks - hits, kMaxLookupBlocks);
      const Nanos start = clock_.Now();
      const LookupResult found =
          client_.Lookup(ns_, Keys(hits, asked), {.lease = kLease, .parent = ParentOf(hits)});
      if (timing == Timing::kMeasured) {
        tally_.lookup_us.Add(static_cast<double>(clock_.Now() - start) / 1e3);
        tally_.lookup_bytes.Add(static_cast<double>(asked) * kMaxHashBytes);
      }
      if (found.lease_id != 0) leases_.push_back(found.lease_id);
      if (absl::Status status = Examine(found.status, "lookup"); !status.ok()) return status;
      hits += found.hit_blocks;
      if (found.hit_blocks < asked) break;
    }
    return hits;
  }

  // Loads and checks the first `hits` blocks; how many could be had.
  absl::StatusOr<uint32_t> LoadPrefix(uint32_t hits) {
    uint32_t loaded = 0;
    while (loaded < hits) {
      const uint32_t asked = std::min(hits - loaded, page_blocks_);
      targets_.clear();
      for (uint32_t i = 0; i < asked; ++i) targets_.push_back(Slot(i));
      const Nanos start = clock_.Now();
      const GetResult got =
          client_.Get(ns_, Keys(loaded, asked), targets_, {.parent = ParentOf(loaded)});
      tally_.get_time += clock_.Now() - start;
      tally_.get_bytes += uint64_t{got.blocks} * options_.block_bytes;
      tally_.counts.damaged_parts += got.damaged;
      if (absl::Status status = Examine(got.status, "get"); !status.ok()) return status;
      for (uint32_t i = 0; i < got.blocks; ++i) {
        tally_.counts.wrong_blocks +=
            CheckPayload(KeyBytes(loaded + i), 0, 0, Slot(i)) != kPayloadMatches;
      }
      loaded += got.blocks;
      if (got.blocks == 0) break;  // Damaged, gone or refused. Fewer than asked: too much to hold.
    }
    return loaded;
  }

  // Puts the blocks from `from` on, as far as there is room.
  absl::Status StoreRest(uint32_t from, uint32_t blocks) {
    while (from < blocks) {
      const uint32_t page = std::min(blocks - from, page_blocks_);
      sources_.clear();
      for (uint32_t i = 0; i < page; ++i) {
        FillPayload(KeyBytes(from + i), 0, 0, Slot(i));
        sources_.push_back(Slot(i));
      }
      const Nanos start = clock_.Now();
      const PutResult put =
          client_.Put(ns_, Keys(from, page), sources_, {.parent = ParentOf(from)});
      tally_.put_time += clock_.Now() - start;
      tally_.counts.blocks_stored += put.stored;
      if (absl::Status status = Examine(put.status, "put"); !status.ok()) return status;
      uint32_t there = 0;
      for (const CommitResult result : put.results) {
        const bool sent = result == CommitResult::kCommitted || result == CommitResult::kParked;
        tally_.put_bytes += sent ? options_.block_bytes : 0;
        there += sent || result == CommitResult::kPresent;
      }
      if (there < page) {
        tally_.counts.blocks_without_room += blocks - from - there;
        break;
      }
      from += page;
    }
    return absl::OkStatus();
  }

  // Overload is an answer: a miss that is counted. Anything else that is not OK ends the replay.
  absl::Status Examine(const absl::Status& status, std::string_view call) {
    if (status.ok()) return status;
    if (absl::IsResourceExhausted(status) || absl::IsDeadlineExceeded(status)) {
      ++tally_.counts.refused_calls;
      return absl::OkStatus();
    }
    return absl::Status(status.code(), absl::StrCat(std::string(call), ": ", status.message()));
  }

  void ReleaseAll(std::vector<uint64_t>& leases) {
    for (const uint64_t lease : leases) client_.ReleaseLease(lease);
    leases.clear();
  }

  std::string_view Keys(uint32_t from, uint32_t n) const {
    return std::string_view(keys_).substr(size_t{from} * kMaxHashBytes, size_t{n} * kMaxHashBytes);
  }
  std::string_view ParentOf(uint32_t block) const {
    return block == 0 ? std::string_view() : Keys(block - 1, 1);
  }
  absl::Span<const std::byte> KeyBytes(uint32_t block) const {
    return {reinterpret_cast<const std::byte*>(Keys(block, 1).data()), kMaxHashBytes};
  }
  absl::Span<std::byte> Slot(uint32_t i) {
    return absl::MakeSpan(buffer_).subspan(size_t{i} * options_.block_bytes, options_.block_bytes);
  }

  const ReplayOptions& options_;
  const uint32_t block_tokens_;
  const uint32_t page_blocks_;
  const Clock& clock_;
  ClientTally tally_;
  std::vector<uint64_t> leases_;       // Of the request under way.
  std::vector<uint64_t> kept_leases_;  // Of all requests.
  std::string keys_;                   // Of the request under way.
  std::vector<std::byte> buffer_;      // A page of blocks.
  std::vector<absl::Span<std::byte>> targets_;
  std::vector<absl::Span<const std::byte>> sources_;
  Client client_;
  Namespace ns_;
};

// --- the daemon's side ---------------------------------------------------------------------------

class AdminClient {
 public:
  explicit AdminClient(const std::string& endpoint)
      : stub_(v1::Admin::NewStub(
            grpc::CreateChannel(endpoint + ".admin", grpc::InsecureChannelCredentials()))) {}

  absl::Status GetStatus(v1::StatusReply& reply) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + kCallTimeout));
    return Told("status", stub_->Status(&context, {}, &reply));
  }
  absl::Status Audit(v1::AuditReply& reply) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + kCallTimeout));
    return Told("audit", stub_->Audit(&context, {}, &reply));
  }

 private:
  static absl::Status Told(std::string_view call, const grpc::Status& status) {
    if (status.ok()) return absl::OkStatus();
    return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                        absl::StrCat(std::string(call), ": ", status.error_message()));
  }

  const std::unique_ptr<v1::Admin::Stub> stub_;
};

absl::Status CheckOptions(const ReplayOptions& options) {
  if (options.block_bytes == 0 || options.block_bytes > kMaxStagingBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("--block-bytes: must be 1 to ", kMaxStagingBytes));
  }
  if (options.clients == 0 || options.clients > kMaxClients) {
    return absl::InvalidArgumentError(absl::StrCat("--clients: must be 1 to ", kMaxClients));
  }
  if (!options.endpoint.empty()) {
    return absl::StartsWith(options.endpoint, "unix:")
               ? absl::OkStatus()
               : absl::InvalidArgumentError("--daemon: must be unix:PATH");
  }
  if (options.capacity_blocks == 0 || options.capacity_blocks > (1u << 29)) {
    return absl::InvalidArgumentError(absl::StrCat("--capacity-blocks: must be 1 to ", 1u << 29));
  }
  if (options.nvme_blocks > (1u << 29)) {
    return absl::InvalidArgumentError(absl::StrCat("--nvme-blocks: must be 0 to ", 1u << 29));
  }
  if (MakeAdmission(options.admission, 1) == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("no admission policy \"", options.admission,
                                                   "\"; there is ", std::string(AdmissionNames())));
  }
  if (MakePolicy(options.policy, 1) == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("no policy \"", options.policy, "\"; there is ", std::string(PolicyNames())));
  }
  return absl::OkStatus();
}

// All clients at once, until the trace ends or one of them fails: then the first error.
absl::Status RunClients(std::vector<std::unique_ptr<ReplayClient>>& clients, Cursor& cursor,
                        ProgressBar& progress, const std::function<absl::Status()>& settle) {
  std::vector<absl::Status> ends(clients.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < clients.size(); ++i) {
    threads.emplace_back([&, i] {
      ends[i] = clients[i]->Run(cursor, progress, settle);
      if (!ends[i].ok()) cursor.Stop();
    });
  }
  for (std::thread& thread : threads) thread.join();
  progress.Finish();
  for (const absl::Status& end : ends) {
    if (!end.ok()) return end;
  }
  return absl::OkStatus();
}

uint64_t CounterOf(const v1::StatusReply& status, const std::string& name) {
  for (const v1::Counter& counter : status.counters()) {
    if (counter.name() == name) return counter.value();
  }
  return 0;
}

// Each question is a turn of the control thread, so asking again lets it go on.
absl::Status WaitUntilNothingMoves(AdminClient& admin) {
  v1::StatusReply status;
  do {
    if (absl::Status asked = admin.GetStatus(status); !asked.ok()) return asked;
  } while (CounterOf(status, "nvme_moves") > 0);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ReplayResult> Replay(const ReplayOptions& options) {
  if (absl::Status status = CheckOptions(options); !status.ok()) return status;
  absl::StatusOr<std::unique_ptr<TraceReader>> reader = TraceReader::Open(options.trace);
  if (!reader.ok()) return reader.status();

  // Both processes start before the first thread does.
  const Interrupts interrupts;
  absl::StatusOr<std::unique_ptr<EchoProcess>> echo = EchoProcess::Start();
  if (!echo.ok()) return echo.status();
  std::unique_ptr<TierFolder> tier_folder;  // Outlives the daemon.
  std::unique_ptr<DaemonProcess> daemon;
  if (options.endpoint.empty()) {
    const uint64_t dram_bytes = options.nvme_blocks > 0
                                    ? SnugDramBytesFor(options.capacity_blocks, options.block_bytes)
                                    : DramBytesFor(options.capacity_blocks, options.block_bytes);
    std::vector<std::string> arguments = {
        "--blocks", absl::StrCat(options.capacity_blocks + options.nvme_blocks), "--dram",
        absl::StrCat(dram_bytes), "--policy", options.policy,
        // What is being scrubbed cannot leave meanwhile, and then the policy's next victim does.
        "--scrub-bandwidth", "0"};
    if (options.nvme_blocks > 0) {
      absl::StatusOr<std::unique_ptr<TierFolder>> made = TierFolder::Make();
      if (!made.ok()) return made.status();
      tier_folder = *std::move(made);
      for (std::string& argument : tier_folder->Arguments(options)) {
        arguments.push_back(std::move(argument));
      }
    }
    absl::StatusOr<std::unique_ptr<DaemonProcess>> started =
        DaemonProcess::Start({.arguments = std::move(arguments)});
    if (!started.ok()) return started.status();
    daemon = *std::move(started);
  }
  const std::string& endpoint = daemon != nullptr ? daemon->endpoint() : options.endpoint;

  const SystemClock clock;
  AdminClient admin(endpoint);
  v1::StatusReply status_reply;
  ReplayResult result;
  if (absl::Status status = admin.GetStatus(status_reply); !status.ok()) {
    // That socket may be its operators' alone. Whether there is a daemon at all, clients find out.
    if (daemon != nullptr || !absl::IsUnavailable(status)) return status;
    result.not_audited = std::string(status.message());
  }
  const uint32_t block_tokens = (*reader)->block_tokens().value_or(kDefaultBlockTokens);
  std::vector<std::unique_ptr<ReplayClient>> clients;
  for (uint32_t i = 0; i < options.clients; ++i) {
    clients.push_back(std::make_unique<ReplayClient>(options, endpoint, block_tokens, clock));
    if (absl::Status status = clients.back()->Connect(); !status.ok()) {
      return absl::Status(status.code(), absl::StrCat(endpoint, ": ", status.message()));
    }
  }

  const uint64_t limit = options.limit == 0 ? UINT64_MAX : options.limit;
  ProgressBar progress(
      clock, ProgressBar::OnStandardError(
                 "replay", std::min((*reader)->request_count().value_or(options.limit), limit),
                 options.quiet));
  Cursor cursor(**reader, options, clock, interrupts);
  const Nanos start = clock.Now();
  std::function<absl::Status()> settle;
  if (options.quiesce) settle = [&admin] { return WaitUntilNothingMoves(admin); };
  if (absl::Status status = RunClients(clients, cursor, progress, settle); !status.ok()) {
    return status;
  }

  result.seconds = static_cast<double>(clock.Now() - start) / 1e9;
  result.policy = status_reply.policy();
  result.capacity_blocks = status_reply.blocks_capacity();
  result.block_bytes = options.block_bytes;
  if (options.nvme_blocks > 0) result.admission = options.admission;
  result.nvme_blocks = options.nvme_blocks;
  result.clients = options.clients;
  v1::AuditReply audit;
  if (result.not_audited.empty()) {
    if (absl::Status status = admin.Audit(audit); !status.ok()) return status;
    if (absl::Status status = admin.GetStatus(status_reply); !status.ok()) return status;
    result.nvme_written_blocks = CounterOf(status_reply, "nvme_written_blocks");
    result.nvme_written_bytes = CounterOf(status_reply, "nvme_written_bytes");
    result.nvme_promoted_blocks = CounterOf(status_reply, "nvme_promoted_blocks");
    result.nvme_lost_blocks = CounterOf(status_reply, "nvme_lost_blocks");
  }
  result.stranded_blocks = audit.stranded_blocks();
  result.audit_errors = audit.errors();
  result.audit_first_error = audit.first_error();

  std::vector<double> lookup_us;
  std::vector<double> lookup_bytes;
  uint64_t put_bytes = 0;
  uint64_t get_bytes = 0;
  Nanos put_time = 0;
  Nanos get_time = 0;
  for (const std::unique_ptr<ReplayClient>& client : clients) {
    if (absl::Status status = client->Finish(); !status.ok()) return status;
    const ClientTally& tally = client->tally();
    AddClientTally(tally, result);
    put_bytes += tally.put_bytes;
    get_bytes += tally.get_bytes;
    put_time += tally.put_time;
    get_time += tally.get_time;
    lookup_us.insert(lookup_us.end(), tally.lookup_us.values().begin(),
                     tally.lookup_us.values().end());
    lookup_bytes.insert(lookup_bytes.end(), tally.lookup_bytes.values().begin(),
                        tally.lookup_bytes.values().end());
  }
  const auto rate = [](uint64_t bytes, Nanos time) {
    return bytes == 0 ? std::numeric_limits<double>::quiet_NaN()
                      : static_cast<double>(bytes) / kGiB / (static_cast<double>(time) / 1e9);
  };
  result.put_gib_s = rate(put_bytes, put_time);
  result.get_gib_s = rate(get_bytes, get_time);
  result.lookup_us_p50 = Percentile(lookup_us, 50);
  result.lookup_us_p99 = Percentile(std::move(lookup_us), 99);

  // The floors come with the sessions still open: the same machine in the same state.
  const CopyFloor copy = MeasureCopyFloor(options.block_bytes);
  result.copy_gib_s = copy.gib_per_s;
  result.copy_loop = copy.loop;
  if (!lookup_bytes.empty()) result.echo_bytes = static_cast<uint64_t>(Median(lookup_bytes));
  absl::StatusOr<std::vector<double>> echoes = (*echo)->Measure(result.echo_bytes, kEchoSamples);
  if (!echoes.ok()) return echoes.status();
  result.echo_us_p50 = Percentile(*echoes, 50);
  result.echo_us_p99 = Percentile(*std::move(echoes), 99);

  clients.clear();
  if (daemon != nullptr) {
    if (absl::Status status = daemon->Stop(); !status.ok()) return status;
  }
  return result;
}

absl::Status JudgeReplay(const ReplayResult& result) {
  if (result.wrong_blocks > 0) {
    return absl::DataLossError(
        absl::StrCat(WithCommas(result.wrong_blocks), " blocks were not the bytes of their key"));
  }
  if (result.stranded_blocks > 0) {
    return absl::DataLossError(
        absl::StrCat(WithCommas(result.stranded_blocks), " blocks are stranded"));
  }
  if (result.audit_errors > 0) {
    return absl::DataLossError(absl::StrCat("the index does not add up in ",
                                            WithCommas(result.audit_errors),
                                            " places: ", result.audit_first_error));
  }
  return absl::OkStatus();
}

// --- the subcommand ------------------------------------------------------------------------------

namespace {

void PrintJson(const ReplayResult& result) {
  // What only the daemon knows is null when nobody could ask it.
  const auto told = [&](const auto& value) {
    return result.not_audited.empty() ? nlohmann::ordered_json(value) : nlohmann::ordered_json();
  };
  const nlohmann::ordered_json json = {
      {"policy", told(result.policy)},
      {"capacity_blocks", told(result.capacity_blocks)},
      {"block_bytes", result.block_bytes},
      {"clients", result.clients},
      {"seconds", result.seconds},
      {"requests", result.requests},
      {"blocks_asked", result.blocks_asked},
      {"blocks_hit", result.blocks_hit},
      {"hit_ratio", result.hit_ratio()},
      {"prompt_tokens", result.prompt_tokens},
      {"prompt_tokens_not_recomputed", result.prompt_tokens_not_recomputed},
      {"blocks_stored", result.blocks_stored},
      {"blocks_without_room", result.blocks_without_room},
      {"stranded_blocks", told(result.stranded_blocks)},
      {"wrong_blocks", result.wrong_blocks},
      {"damaged_parts", result.damaged_parts},
      {"refused_calls", result.refused_calls},
      {"audit_errors", told(result.audit_errors)},
      {"leases_held", result.leases_held},
      {"nvme",
       {{"blocks", result.nvme_blocks},
        {"admission", result.admission},
        {"written_blocks", told(result.nvme_written_blocks)},
        {"written_bytes", told(result.nvme_written_bytes)},
        {"promoted_blocks", told(result.nvme_promoted_blocks)},
        {"lost_blocks", told(result.nvme_lost_blocks)}}},
      {"lookup_us", {{"p50", result.lookup_us_p50}, {"p99", result.lookup_us_p99}}},
      {"put_gib_s", result.put_gib_s},
      {"get_gib_s", result.get_gib_s},
      {"floors",
       {{"lookup_us", {{"p50", result.echo_us_p50}, {"p99", result.echo_us_p99}}},
        {"lookup_name", "bare Unix seqpacket echo"},
        {"lookup_bytes", result.echo_bytes},
        {"copy_gib_s", result.copy_gib_s},
        {"copy_loop", std::string(result.copy_loop)}}}};
  std::cout << json.dump(2) << std::endl;
}

std::string Count(uint64_t value, uint64_t of) {
  if (of == 0) return WithCommas(value);
  return absl::StrFormat("%s (%.1f %%)", WithCommas(value),
                         100 * static_cast<double>(value) / static_cast<double>(of));
}

void PrintTable(const ReplayResult& result) {
  Table table({"", "value", "floor", "ratio"});
  const auto row = [&table](std::string what, std::string value) {
    table.AddRow({std::move(what), std::move(value)});
  };
  const auto beside = [&table](std::string what, double value, double floor, const char* unit) {
    if (value != value) return table.AddRow({std::move(what), "n/a"});
    table.AddRow({std::move(what), absl::StrFormat("%.2f %s", value, unit),
                  absl::StrFormat("%.2f %s", floor, unit),
                  absl::StrFormat("%.2fx", value / floor)});
  };
  row("requests", WithCommas(result.requests));
  row("blocks asked", WithCommas(result.blocks_asked));
  row("blocks hit", WithCommas(result.blocks_hit));
  row("hit ratio", absl::StrFormat("%.4f", result.hit_ratio()));
  row("prompt tokens", WithCommas(result.prompt_tokens));
  row("prompt tokens not recomputed",
      Count(result.prompt_tokens_not_recomputed, result.prompt_tokens));
  row("blocks stored", WithCommas(result.blocks_stored));
  beside("put", result.put_gib_s, result.copy_gib_s, "GiB/s");
  beside("get", result.get_gib_s, result.copy_gib_s, "GiB/s");
  beside("lookup p50", result.lookup_us_p50, result.echo_us_p50, "us");
  beside("lookup p99", result.lookup_us_p99, result.echo_us_p99, "us");
  const bool told = result.not_audited.empty();
  row("stranded blocks", told ? WithCommas(result.stranded_blocks) : "n/a");
  row("wrong blocks", WithCommas(result.wrong_blocks));
  if (result.blocks_without_room > 0) {
    row("blocks without room", WithCommas(result.blocks_without_room));
  }
  if (result.damaged_parts > 0) row("damaged parts", WithCommas(result.damaged_parts));
  if (result.refused_calls > 0) row("refused calls", WithCommas(result.refused_calls));
  if (result.leases_held > 0) row("leases held", WithCommas(result.leases_held));
  if (result.nvme_blocks > 0) {
    row("blocks written to NVMe", WithCommas(result.nvme_written_blocks));
    row("bytes written to NVMe", WithCommas(result.nvme_written_bytes));
    row("blocks read from NVMe", WithCommas(result.nvme_promoted_blocks));
    row("blocks lost before they were written", WithCommas(result.nvme_lost_blocks));
  }
  std::cout << absl::StrFormat(
      "%s, %s blocks of %s bytes, %d client%s, %.1f s\n", told ? result.policy : "policy unknown",
      told ? WithCommas(result.capacity_blocks) : "n/a", WithCommas(result.block_bytes),
      result.clients, result.clients == 1 ? "" : "s", result.seconds);
  std::cout << "floors: copy loop " << std::string(result.copy_loop) << "; Unix seqpacket echo of "
            << WithCommas(result.echo_bytes) << " bytes\n\n";
  std::cout << table.ToString() << std::flush;
}

}  // namespace

void AddReplayCommand(CLI::App& app) {
  auto options = std::make_shared<ReplayOptions>();
  auto json = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand("replay", "Sends a trace through a daemon, as engines do");
  command->add_option("--trace", options->trace, "Trace in any form; - is standard input")
      ->required();
  CLI::Option* daemon = command->add_option(
      "--daemon", options->endpoint, "unix:PATH of a running daemon; default: one of its own");
  command
      ->add_option("--capacity-blocks", options->capacity_blocks,
                   "Most blocks that its own daemon keeps")
      ->excludes(daemon)
      ->capture_default_str();
  command
      ->add_option("--policy", options->policy,
                   absl::StrCat("Policy of its own daemon: ", std::string(PolicyNames())))
      ->excludes(daemon)
      ->capture_default_str();
  command
      ->add_option("--nvme-blocks", options->nvme_blocks,
                   "Blocks that an NVMe tier of its own daemon has room for; 0: none")
      ->excludes(daemon)
      ->capture_default_str();
  command
      ->add_option("--admission", options->admission,
                   absl::StrCat("What NVMe takes: ", std::string(AdmissionNames())))
      ->excludes(daemon)
      ->capture_default_str();
  command->add_flag("--quiesce", options->quiesce,
                    "Each request waits until no block moves between the tiers");
  command->add_option("--limit", options->limit, "Only the first requests of the trace")
      ->check(CLI::PositiveNumber);
  command->add_option("--clients", options->clients, "Threads, each with a session")
      ->capture_default_str();
  command->add_option("--block-bytes", options->block_bytes, "Payload of one block")
      ->transform(CLI::AsSizeValue(false))
      ->default_str("4096");
  command->add_flag("--hold-leases", options->hold_leases,
                    "Keep a lease on each request's chain until the end");
  command->add_flag("--at-trace-time", options->at_trace_time, "Wait for each request's arrival");
  command->add_flag("--json", *json, "One JSON object on standard output");
  command->callback([options, json] {
    options->quiet = *json;
    absl::StatusOr<ReplayResult> result = Replay(*options);
    FinishCommand(result.status());
    if (!result->not_audited.empty()) {
      std::cerr << "kvd-bench: replayed without the daemon's audit, so stranded blocks were not "
                   "counted: PATH.admin cannot be reached: "
                << result->not_audited << std::endl;
    }
    if (*json) {
      PrintJson(*result);
    } else {
      PrintTable(*result);
    }
    FinishCommand(JudgeReplay(*result));
  });
}

}  // namespace kvd
