// `kvd-bench peer-driver`: one client of a store, told over pipes what to do. bench/peers starts
// one for each store that has a native client, so that what is timed is the store and its client,
// never the Python that compares them. Their payload is written before the clock starts and
// compared after it stopped.
//
// A command is a line of words; the answer is one line of JSON, {"error": ...} when the command
// could not be carried out. Times are nanoseconds, one for each call of the client.
//   put BYTES BATCH FIRST COUNT LIMIT   stores the blocks [FIRST, FIRST + COUNT), BATCH in a call
//     -> {"ns": [...], "acked": n, "why": "..."}
//   get BYTES BATCH FIRST COUNT LIMIT   -> {"ns": [...], "got": "1x0-..."}; a letter a block:
//   right,
//     wrong bytes given as right, a miss, not tried because LIMIT seconds were over
//   check BYTES FIRST COUNT LIMIT       as get, one by one, where misses are expected
//     -> {"exists": n, "got": ..., "slowest_ms": ...}
//   seed COUNT                          stores what `exists` asks for
//   exists COUNT TIMES                  -> {"ns": [...], "found": n}
//   forget BYTES FIRST COUNT            these blocks will be put anew, by the same numbers
//   scrub                               no copy of a payload stays in this process
//   pattern BYTES NUMBER                -> {"offset": o, "hex": ...}: bytes of a block, to be
//   looked
//     for in the memory of the store

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstring>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "bench/commands.h"
#include "bench/memcached_client.h"
#include "bench/payload.h"
#include "bench/redis_client.h"
#include "client/client.h"
#include "nlohmann/json.hpp"
#include "proto/types/clock.h"
#include "proto/types/host_memory.h"

namespace kvd {
namespace {

constexpr size_t kBufferBytes = 128u << 20;  // Far more than a core's own caches.
constexpr uint32_t kSeedChains = 8;
constexpr uint64_t kSeed = 20'261'121;
constexpr size_t kPatternBytes = 64;
constexpr absl::Duration kCallTimeout = absl::Seconds(10);
constexpr absl::Duration kSpin = absl::Microseconds(60);  // Of kvd's client.

using Sources = absl::Span<const absl::Span<const std::byte>>;
using Targets = absl::Span<const absl::Span<std::byte>>;

// The blocks of one call, named before the clock starts in both ways that stores want.
struct Blocks {
  uint32_t bytes = 0;
  std::string packed;              // 32 bytes each.
  std::vector<std::string> names;  // Text, one each.
};

// One store behind its own client. Threads: one.
class Store {
 public:
  virtual ~Store() = default;
  // How many of the blocks the store said it took.
  virtual absl::StatusOr<uint32_t> Put(const Blocks& blocks, Sources sources) = 0;
  // For each block whether the store said that the target holds its bytes.
  virtual absl::StatusOr<std::vector<bool>> Get(const Blocks& blocks, Targets targets) = 0;
  // The same for one block that may be missing, and whether the store said that it is there.
  virtual absl::StatusOr<std::pair<bool, bool>> Check(const Blocks& block, Targets target) = 0;
  // Stores `chain`, which can then be asked for.
  virtual absl::Status Seed(const Blocks& chain) = 0;
  // Of the first `count` blocks of the chain, how many there are.
  virtual absl::StatusOr<uint64_t> Exists(const Blocks& chain, uint32_t count) = 0;
  // Whether a put of a name that is there replaces it. Otherwise forgotten blocks get new names.
  virtual bool replaces() const = 0;
  // Where the sources of a put lie, kBufferBytes; null: it does not matter to this store.
  virtual std::byte* sources() { return nullptr; }
};

// What all others stand beside: memory of this process, and memcpy.
class CopyStore : public Store {
 public:
  CopyStore() : memory_(kBufferBytes, Touch::kNow) {}

  absl::StatusOr<uint32_t> Put(const Blocks& blocks, Sources sources) override {
    for (const absl::Span<const std::byte> source : sources) {
      std::memcpy(&memory_[Next(put_at_, source.size())], source.data(), source.size());
    }
    return static_cast<uint32_t>(blocks.names.size());
  }
  absl::StatusOr<std::vector<bool>> Get(const Blocks& blocks, Targets targets) override {
    for (const absl::Span<std::byte> target : targets) {
      std::memcpy(target.data(), &memory_[Next(get_at_, target.size())], target.size());
    }
    return std::vector<bool>(blocks.names.size(), true);
  }
  absl::StatusOr<std::pair<bool, bool>> Check(const Blocks&, Targets) override {
    return absl::UnimplementedError("memcpy keeps no blocks");
  }
  absl::Status Seed(const Blocks&) override { return absl::UnimplementedError("no keys"); }
  absl::StatusOr<uint64_t> Exists(const Blocks&, uint32_t) override {
    return absl::UnimplementedError("no keys");
  }
  bool replaces() const override { return true; }

 private:
  // Blocks lie in the order in which they were put, and are asked for in that order.
  static size_t Next(size_t& at, size_t bytes) {
    if (at + bytes > kBufferBytes) at = 0;
    return std::exchange(at, at + bytes);
  }

  MappedArray<std::byte> memory_;
  size_t put_at_ = 0;
  size_t get_at_ = 0;
};

// Memory that kvd's daemon reads where it lies, as an engine's host pool would be.
class SharedBuffer {
 public:
  SharedBuffer() {
    fd_ = memfd_create("peers-sources", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd_ < 0 || ftruncate(fd_, kBufferBytes) != 0 ||
        fcntl(fd_, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
      throw std::bad_alloc();
    }
    void* memory = mmap(nullptr, kBufferBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    madvise(memory, kBufferBytes, MADV_HUGEPAGE);  // Where shmem may have them.
    std::memset(memory, 0, kBufferBytes);
    data_ = static_cast<std::byte*>(memory);
  }
  ~SharedBuffer() {
    munmap(data_, kBufferBytes);
    close(fd_);
  }
  SharedBuffer(const SharedBuffer&) = delete;
  SharedBuffer& operator=(const SharedBuffer&) = delete;

  int fd() const { return fd_; }
  std::byte* data() const { return data_; }

 private:
  int fd_ = -1;
  std::byte* data_ = nullptr;
};

class KvdStore : public Store {
 public:
  explicit KvdStore(const std::string& endpoint)
      : client_({.endpoint = endpoint, .timeout = kCallTimeout, .spin = kSpin}) {}

  std::byte* sources() override { return sources_.data(); }

  absl::StatusOr<uint32_t> Put(const Blocks& blocks, Sources sources) override {
    const absl::StatusOr<Namespace> ns = NamespaceOf(blocks.bytes);
    if (!ns.ok()) return ns.status();
    const PutResult put = client_.Put(*ns, blocks.packed, sources);
    if (!put.status.ok()) return put.status;
    return put.stored;
  }
  absl::StatusOr<std::vector<bool>> Get(const Blocks& blocks, Targets targets) override {
    const absl::StatusOr<Namespace> ns = NamespaceOf(blocks.bytes);
    if (!ns.ok()) return ns.status();
    const GetResult got = client_.Get(*ns, blocks.packed, targets);
    if (!got.status.ok()) return got.status;
    std::vector<bool> found(targets.size(), false);
    std::fill_n(found.begin(), got.blocks, true);
    return found;
  }
  absl::StatusOr<std::pair<bool, bool>> Check(const Blocks& block, Targets target) override {
    const absl::StatusOr<Namespace> ns = NamespaceOf(block.bytes);
    if (!ns.ok()) return ns.status();
    const LookupResult hit = client_.Lookup(*ns, block.packed);
    if (!hit.status.ok()) return hit.status;
    const GetResult got = client_.Get(*ns, block.packed, target);
    if (!got.status.ok()) return got.status;
    return std::pair(hit.hit_blocks == 1, got.blocks == 1);
  }
  absl::Status Seed(const Blocks& chain) override {
    const std::vector<std::byte> part(chain.bytes);
    const std::vector<absl::Span<const std::byte>> sources(chain.names.size(), part);
    return Put(chain, sources).status();
  }
  absl::StatusOr<uint64_t> Exists(const Blocks& chain, uint32_t count) override {
    const LookupResult hit = client_.Lookup(
        namespaces_.at(chain.bytes), std::string_view(chain.packed).substr(0, size_t{count} * 32));
    if (!hit.status.ok()) return hit.status;
    return hit.hit_blocks;
  }
  bool replaces() const override { return false; }

 private:
  // A block has one size, so each size is a model of its own.
  absl::StatusOr<Namespace> NamespaceOf(uint32_t bytes) {
    if (const auto known = namespaces_.find(bytes); known != namespaces_.end()) {
      return known->second;
    }
    NamespaceDescriptor descriptor;
    descriptor.model = absl::StrCat("peers-", bytes);
    descriptor.hash_algorithm = "peers";
    descriptor.groups = {{.block_tokens = 16, .part_bytes = bytes}};
    absl::StatusOr<Namespace> ns = client_.RegisterNamespace(descriptor);
    if (!ns.ok()) return ns;
    if (!adopted_) {
      absl::Status status = client_.AdoptMemory(sources_.fd(), {sources_.data(), kBufferBytes});
      if (!status.ok()) return status;
      adopted_ = true;
    }
    namespaces_.emplace(bytes, *ns);
    return ns;
  }

  SharedBuffer sources_;  // Outlives the client.
  Client client_;
  bool adopted_ = false;
  std::map<uint32_t, Namespace> namespaces_;
};

// A client over a socket. How many commands are best under way at once depends on the machine, so
// a batch is sent in every way in turn at first, and then in the best.
class Depths {
 public:
  // The depth for a call of `count` blocks, some `bytes` each.
  uint32_t Choose(uint32_t bytes, size_t count) {
    if (count == 1) return 1;
    Trials& trials = trials_[bytes];
    if (trials.calls < kTrials) return kDepths[trials.calls++ % kDepths.size()];
    const auto best = std::min_element(trials.best.begin(), trials.best.end());
    return kDepths[static_cast<size_t>(best - trials.best.begin())];
  }
  void Took(uint32_t bytes, uint32_t depth, Nanos time) {
    Trials& trials = trials_[bytes];
    const auto at = std::find(kDepths.begin(), kDepths.end(), depth);
    if (at == kDepths.end()) return;
    Nanos& best = trials.best[static_cast<size_t>(at - kDepths.begin())];
    best = std::min(best, time);
  }

 private:
  static constexpr std::array<uint32_t, 4> kDepths = {1, 2, 4, 16};
  static constexpr uint32_t kTrials = 8;
  struct Trials {
    uint32_t calls = 0;
    std::array<Nanos, 4> best = {INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX};
  };
  std::map<uint32_t, Trials> trials_;
};

// What Redis and memcached have in common: text names, values that are replaced, a connection that
// is made anew after it failed.
template <typename SocketClient>
class SocketStore : public Store {
 public:
  explicit SocketStore(std::string path) : path_(std::move(path)) {}

  absl::StatusOr<uint32_t> Put(const Blocks& blocks, Sources sources) override {
    const uint32_t depth = put_depths_.Choose(blocks.bytes, sources.size());
    const Nanos start = clock_.Now();
    absl::StatusOr<uint32_t> stored = With<uint32_t>(
        [&](SocketClient& client) { return PutOf(client, blocks.names, sources, depth); });
    if (sources.size() > 1) put_depths_.Took(blocks.bytes, depth, clock_.Now() - start);
    return stored;
  }
  absl::StatusOr<std::vector<bool>> Get(const Blocks& blocks, Targets targets) override {
    const uint32_t depth = get_depths_.Choose(blocks.bytes, targets.size());
    const Nanos start = clock_.Now();
    absl::StatusOr<std::vector<bool>> found = With<std::vector<bool>>(
        [&](SocketClient& client) { return GetOf(client, blocks.names, targets, depth); });
    if (targets.size() > 1) get_depths_.Took(blocks.bytes, depth, clock_.Now() - start);
    return found;
  }
  bool replaces() const override { return true; }

 protected:
  template <typename Result, typename Call>
  absl::StatusOr<Result> With(const Call& call) {
    if (client_ == nullptr) {
      absl::StatusOr<std::unique_ptr<SocketClient>> client = SocketClient::Connect(path_);
      if (!client.ok()) return client.status();
      client_ = *std::move(client);
    }
    absl::StatusOr<Result> result = call(*client_);
    if (!result.ok()) client_ = nullptr;
    return result;
  }

 private:
  static absl::StatusOr<uint32_t> PutOf(RedisClient& client, const std::vector<std::string>& names,
                                        Sources sources, uint32_t depth) {
    if (absl::Status status = client.Set(names, sources, depth); !status.ok()) return status;
    return static_cast<uint32_t>(names.size());
  }
  static absl::StatusOr<std::vector<bool>> GetOf(RedisClient& client,
                                                 const std::vector<std::string>& names,
                                                 Targets targets, uint32_t depth) {
    if (absl::Status status = client.Get(names, targets, depth); !status.ok()) return status;
    return std::vector<bool>(names.size(), true);
  }
  static absl::StatusOr<uint32_t> PutOf(MemcachedClient& client,
                                        const std::vector<std::string>& names, Sources sources,
                                        uint32_t depth) {
    return client.Set(names, sources, depth);
  }
  static absl::StatusOr<std::vector<bool>> GetOf(MemcachedClient& client,
                                                 const std::vector<std::string>& names,
                                                 Targets targets, uint32_t depth) {
    return client.Get(names, targets, depth);
  }

  const std::string path_;
  const SystemClock clock_;
  std::unique_ptr<SocketClient> client_;
  Depths put_depths_;
  Depths get_depths_;
};

class RedisStore : public SocketStore<RedisClient> {
 public:
  using SocketStore::SocketStore;

  absl::StatusOr<std::pair<bool, bool>> Check(const Blocks& block, Targets target) override {
    // Asked first: the client knows only the answer for a value that is there.
    const absl::StatusOr<uint64_t> there = With<uint64_t>([&](RedisClient& client) {
      const std::string_view names[] = {block.names.front()};
      return client.Exists(names);
    });
    if (!there.ok()) return there.status();
    if (*there == 0) return std::pair(false, false);
    const absl::StatusOr<std::vector<bool>> got = Get(block, target);
    if (!got.ok()) return got.status();
    return std::pair(true, bool{got->front()});
  }
  absl::Status Seed(const Blocks& chain) override {
    return With<bool>([&](RedisClient& client) -> absl::StatusOr<bool> {
             const std::vector<std::string_view> names(chain.names.begin(), chain.names.end());
             if (absl::Status status = client.SetMany(names, "1"); !status.ok()) return status;
             views_[chain.names.front()] = names;
             return true;
           })
        .status();
  }
  absl::StatusOr<uint64_t> Exists(const Blocks& chain, uint32_t count) override {
    const absl::Span<const std::string_view> names = views_.at(chain.names.front());
    return With<uint64_t>([&](RedisClient& client) { return client.Exists(names.first(count)); });
  }

 private:
  std::map<std::string, std::vector<std::string_view>> views_;  // Of chains, by their first name.
};

class MemcachedStore : public SocketStore<MemcachedClient> {
 public:
  using SocketStore::SocketStore;

  absl::StatusOr<std::pair<bool, bool>> Check(const Blocks& block, Targets target) override {
    const absl::StatusOr<std::vector<bool>> got = Get(block, target);
    if (!got.ok()) return got.status();
    return std::pair(bool{got->front()}, bool{got->front()});
  }
  absl::Status Seed(const Blocks& chain) override {
    const std::byte one[] = {std::byte{'1'}};
    const std::vector<absl::Span<const std::byte>> values(chain.names.size(), one);
    return With<uint32_t>([&](MemcachedClient& client) {
             return client.Set(chain.names, values, /*depth=*/64);
           })
        .status();
  }
  absl::StatusOr<uint64_t> Exists(const Blocks& chain, uint32_t count) override {
    return With<uint64_t>([&](MemcachedClient& client) {
      return client.Exists(absl::MakeSpan(chain.names).first(count));
    });
  }
};

// Carries out commands. Throws nothing; what cannot be done is the answer's "error".
class Driver {
 public:
  explicit Driver(std::unique_ptr<Store> store)
      : store_(std::move(store)),
        buffer_(kBufferBytes, Touch::kNow),
        sources_(store_->sources() != nullptr ? store_->sources() : &buffer_[0]) {}

  nlohmann::json Run(const std::string& line) {
    std::istringstream words(line);
    std::string verb;
    words >> verb;
    const auto number = [&words] {
      uint64_t value = 0;
      words >> value;
      return value;
    };
    absl::StatusOr<nlohmann::json> answer = absl::InvalidArgumentError("unknown command: " + verb);
    if (verb == "put" || verb == "get") {
      const auto bytes = static_cast<uint32_t>(number());
      const uint64_t batch = number(), first = number(), count = number(), limit = number();
      if (bytes == 0 || bytes % 8 != 0 || batch == 0 || batch * bytes > kBufferBytes) {
        answer = absl::InvalidArgumentError("no such size or batch: " + line);
      } else {
        answer = verb == "put" ? Put(bytes, batch, first, count, limit)
                               : Get(bytes, batch, first, count, limit);
      }
    } else if (verb == "check") {
      const auto bytes = static_cast<uint32_t>(number());
      const uint64_t first = number(), count = number(), limit = number();
      answer = Check(bytes, first, count, limit);
    } else if (verb == "seed") {
      answer = SeedChains(static_cast<uint32_t>(number()));
    } else if (verb == "exists") {
      const auto count = static_cast<uint32_t>(number());
      answer = Exists(count, number());
    } else if (verb == "forget") {
      if (!store_->replaces()) ++generation_;
      answer = nlohmann::json::object();
    } else if (verb == "scrub") {
      std::memset(&buffer_[0], 0, kBufferBytes);
      std::memset(sources_, 0, kBufferBytes);
      answer = nlohmann::json::object();
    } else if (verb == "pattern") {
      const auto bytes = static_cast<uint32_t>(number());
      answer = Pattern(bytes, number());
    }
    if (!answer.ok()) return {{"error", answer.status().ToString()}};
    return *std::move(answer);
  }

 private:
  std::array<std::byte, 32> KeyOfBlock(uint64_t block) const {
    return KeyOf(generation_ << 32 | block, kSeed);
  }
  Blocks Name(uint32_t bytes, uint64_t first, uint64_t count) const {
    Blocks blocks{.bytes = bytes, .packed = {}, .names = {}};
    for (uint64_t block = first; block < first + count; ++block) {
      const auto key = KeyOfBlock(block);
      blocks.packed.append(reinterpret_cast<const char*>(key.data()), key.size());
      blocks.names.push_back(absl::StrCat(bytes, ":", block));
    }
    return blocks;
  }
  absl::Span<std::byte> Place(uint64_t index, uint32_t bytes) {
    return absl::MakeSpan(&buffer_[index * bytes], bytes);
  }

  absl::Span<std::byte> SourcePlace(uint64_t index, uint32_t bytes) {
    return absl::MakeSpan(sources_ + index * bytes, bytes);
  }

  // Calls `call(first, count, place)` for each batch of as many blocks as the buffer has room for,
  // between `before` and `after` of all these blocks.
  using Range = std::function<void(uint64_t first, uint64_t count)>;
  using Call = std::function<absl::Status(const Blocks& blocks, uint64_t first, uint64_t place)>;
  void ForEachBatch(uint32_t bytes, uint64_t batch, uint64_t first, uint64_t count, uint64_t limit,
                    const Range& before, const Call& call, const Range& after) {
    const Nanos end_of_time = clock_.Now() + static_cast<Nanos>(limit) * kSecond;
    const uint64_t room = kBufferBytes / bytes / batch * batch;
    for (uint64_t done = 0; done < count; done += room) {
      const uint64_t some = std::min(room, count - done);
      std::vector<Blocks> calls;
      for (uint64_t at = 0; at < some; at += batch) {
        calls.push_back(Name(bytes, first + done + at, std::min(batch, some - at)));
      }
      before(first + done, some);
      for (size_t i = 0; i < calls.size(); ++i) {
        if (clock_.Now() > end_of_time) break;
        const absl::Status status = call(calls[i], first + done + i * batch, i * batch);
        if (!status.ok() && why_.empty()) why_ = status.ToString();
      }
      after(first + done, some);
      if (clock_.Now() > end_of_time) return;
    }
  }

  nlohmann::json Put(uint32_t bytes, uint64_t batch, uint64_t first, uint64_t count,
                     uint64_t limit) {
    std::vector<Nanos> times;
    uint64_t acked = 0;
    why_.clear();
    ForEachBatch(
        bytes, batch, first, count, limit,
        [&](uint64_t from, uint64_t some) {
          for (uint64_t i = 0; i < some; ++i) Fill(from + i, SourcePlace(i, bytes));
        },
        [&](const Blocks& blocks, uint64_t, uint64_t place) {
          std::vector<absl::Span<const std::byte>> sources;
          for (size_t i = 0; i < blocks.names.size(); ++i) {
            sources.push_back(SourcePlace(place + i, bytes));
          }
          const Nanos start = clock_.Now();
          const absl::StatusOr<uint32_t> put = store_->Put(blocks, sources);
          times.push_back(clock_.Now() - start);
          if (put.ok()) acked += *put;
          return put.status();
        },
        [](uint64_t, uint64_t) {});
    return {{"ns", times}, {"acked", acked}, {"why", why_}};
  }

  nlohmann::json Get(uint32_t bytes, uint64_t batch, uint64_t first, uint64_t count,
                     uint64_t limit) {
    std::vector<Nanos> times;
    std::string got(count, '-');
    why_.clear();
    ForEachBatch(
        bytes, batch, first, count, limit,
        [&](uint64_t, uint64_t some) { std::memset(&buffer_[0], 0xa5, some * bytes); },
        [&](const Blocks& blocks, uint64_t from, uint64_t place) {
          std::vector<absl::Span<std::byte>> targets;
          for (size_t i = 0; i < blocks.names.size(); ++i) {
            targets.push_back(Place(place + i, bytes));
          }
          const Nanos start = clock_.Now();
          const absl::StatusOr<std::vector<bool>> found = store_->Get(blocks, targets);
          times.push_back(clock_.Now() - start);
          for (size_t i = 0; i < blocks.names.size(); ++i) {
            got[from - first + i] = found.ok() && (*found)[i] ? '1' : '0';
          }
          return found.status();
        },
        [&](uint64_t from, uint64_t some) {
          for (uint64_t i = 0; i < some; ++i) {
            char& mark = got[from - first + i];
            if (mark == '1' && !Right(from + i, Place(i, bytes))) mark = 'x';
          }
        });
    return {{"ns", times}, {"got", got}, {"why", why_}};
  }

  nlohmann::json Check(uint32_t bytes, uint64_t first, uint64_t count, uint64_t limit) {
    std::string got(count, '-');
    uint64_t exists = 0;
    Nanos slowest = 0;
    why_.clear();
    ForEachBatch(
        bytes, 1, first, count, limit, [](uint64_t, uint64_t) {},
        [&](const Blocks& block, uint64_t number, uint64_t) {
          std::memset(&buffer_[0], 0xa5, bytes);
          const absl::Span<std::byte> targets[] = {Place(0, bytes)};
          const Nanos start = clock_.Now();
          const absl::StatusOr<std::pair<bool, bool>> found = store_->Check(block, targets);
          slowest = std::max(slowest, clock_.Now() - start);
          if (found.ok() && found->first) ++exists;
          char& mark = got[number - first];
          mark = !found.ok() || !found->second ? '0' : Right(number, targets[0]) ? '1' : 'x';
          return found.status();
        },
        [](uint64_t, uint64_t) {});
    return {{"exists", exists},
            {"got", got},
            {"slowest_ms", static_cast<double>(slowest) / 1e6},
            {"why", why_}};
  }

  absl::StatusOr<nlohmann::json> SeedChains(uint32_t count) {
    constexpr uint32_t kChainPartBytes = 512;
    chains_.clear();
    for (uint32_t chain = 0; chain < kSeedChains; ++chain) {
      chains_.push_back(Name(kChainPartBytes, (uint64_t{1} << 24) + chain * count, count));
      if (absl::Status status = store_->Seed(chains_.back()); !status.ok()) return status;
    }
    return nlohmann::json::object();
  }

  absl::StatusOr<nlohmann::json> Exists(uint32_t count, uint64_t times) {
    if (chains_.empty() || count > chains_.front().names.size()) {
      return absl::FailedPreconditionError("`seed` comes first, with as many keys");
    }
    std::vector<Nanos> taken;
    uint64_t found = 0;
    for (uint64_t i = 0; i < times; ++i) {
      const Blocks& chain = chains_[i % chains_.size()];
      const Nanos start = clock_.Now();
      const absl::StatusOr<uint64_t> there = store_->Exists(chain, count);
      taken.push_back(clock_.Now() - start);
      if (!there.ok()) return there.status();
      found += *there;
    }
    return nlohmann::json{{"ns", taken}, {"found", found}};
  }

  nlohmann::json Pattern(uint32_t bytes, uint64_t number) {
    const size_t offset = bytes / 2;
    std::array<std::byte, kPatternBytes> pattern;
    FillPayload(KeyOfBlock(number), 0, 0, absl::MakeSpan(pattern), offset);
    return {{"offset", offset},
            {"hex", absl::BytesToHexString(
                        {reinterpret_cast<const char*>(pattern.data()), pattern.size()})}};
  }

  void Fill(uint64_t number, absl::Span<std::byte> target) const {
    FillPayload(KeyOfBlock(number), 0, 0, target);
  }
  bool Right(uint64_t number, absl::Span<const std::byte> bytes) const {
    return CheckPayload(KeyOfBlock(number), 0, 0, bytes) == kPayloadMatches;
  }

  const std::unique_ptr<Store> store_;
  const SystemClock clock_;
  MappedArray<std::byte> buffer_;  // Targets of a get.
  std::byte* const sources_;       // Of a put: the same, unless the store has its own.
  std::vector<Blocks> chains_;     // What `exists` asks for.
  uint64_t generation_ = 0;        // Forgotten blocks have new keys.
  std::string why_;                // The first trouble of the current command.
};

absl::Status Drive(const std::string& kind, const std::string& where) {
  std::unique_ptr<Store> store;
  if (kind == "memcpy") store = std::make_unique<CopyStore>();
  if (kind == "kvd") store = std::make_unique<KvdStore>(where);
  if (kind == "redis") store = std::make_unique<RedisStore>(where);
  if (kind == "memcached") store = std::make_unique<MemcachedStore>(where);
  if (store == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("no driver for '", kind, "'; there are memcpy, kvd, redis, memcached"));
  }
  // Debian builds Abseil with the checks of a debug build, which engines' wheels do not have: every
  // lock of gRPC would note its order, 3 us of a call.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  std::signal(SIGPIPE, SIG_IGN);  // A store that is killed is an answer, not our end.
  Driver driver(std::move(store));
  std::cout << R"({"ready": true})" << std::endl;
  for (std::string line; std::getline(std::cin, line) && line != "quit";) {
    std::cout << driver.Run(line).dump() << std::endl;
  }
  return absl::OkStatus();
}

}  // namespace

void AddPeerDriverCommand(CLI::App& app) {
  struct Options {
    std::string kind;
    std::string where;
  };
  const auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("peer-driver", "One client of a store, for bench/peers");
  command->group("");  // Hidden.
  command->add_option("kind", options->kind)->required();
  command->add_option("where", options->where, "Endpoint or socket of the store");
  command->callback([options] { FinishCommand(Drive(options->kind, options->where)); });
}

}  // namespace kvd
