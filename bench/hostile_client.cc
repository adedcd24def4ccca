// The well-behaved client of `hostile`, and the board.

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <random>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/time/clock.h"
#include "bench/hostile_peer.h"
#include "bench/micro_forest.h"
#include "bench/micro_run.h"
#include "bench/payload.h"
#include "client/client.h"
#include "proto/types/clock.h"
#include "proto/types/status.h"

namespace kvd {
namespace {

constexpr uint32_t kChains = 4;
// What makes our share of a daemon of 256 MiB full, so that from the first round on what is new
// pushes out what is old: the memory before and after is that of the same state.
constexpr uint32_t kFillChains = 32;
constexpr uint32_t kLookupsPerRound = 4;
constexpr uint32_t kGetBlocks = 16;
constexpr uint32_t kPutBlocks = 4;
constexpr absl::Duration kRoundTime = absl::Milliseconds(5);
constexpr absl::Duration kTimeout = absl::Seconds(1);
constexpr absl::Duration kFillTimeout = absl::Seconds(10);  // Before anything is measured.
constexpr absl::Duration kLease = absl::Seconds(30);
constexpr absl::Duration kPausedPoll = absl::Milliseconds(1);

std::string_view KeyAt(std::string_view keys, size_t block) {
  return keys.substr(block * MicroForest::kHashBytes, MicroForest::kHashBytes);
}

absl::Span<const std::byte> AsBytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

class GoodClient {
 public:
  GoodClient(const std::string& endpoint, uint32_t index, HostileBoard& board)
      : index_(index),
        board_(board),
        mine_(board.clients[index]),
        client_({.endpoint = endpoint, .timeout = kTimeout}),
        memory_(size_t{kHostileChainBlocks} * kHostilePartBytes),
        random_(index) {
    for (uint32_t i = 0; i < kChains; ++i) {
      chains_.push_back(HostileKeys(index, i, kHostileChainBlocks));
    }
  }

  absl::Status Start() {
    absl::StatusOr<Namespace> ns =
        client_.RegisterNamespace(MicroNamespace(kHostilePartBytes, 1), kFillTimeout);
    if (!ns.ok()) return ns.status();
    ns_ = *std::move(ns);
    while (next_chain_ < kFillChains) {
      absl::Status status =
          Put(HostileKeys(index_, kChains + next_chain_++, kHostileChainBlocks), kFillTimeout);
      if (!status.ok()) return status;
    }
    for (const std::string& keys : chains_) {
      absl::Status status = Put(keys, kFillTimeout);
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  void Round() {
    for (uint32_t i = 0; i < kLookupsPerRound; ++i) Lookup(chains_[next_lookup_++ % kChains]);
    // Anywhere in a chain, not only its start.
    const std::string_view keys = chains_[random_() % kChains];
    const size_t from = 1 + random_() % (kHostileChainBlocks - kGetBlocks);
    GetAndCheck(keys.substr(from * MicroForest::kHashBytes, kGetBlocks * MicroForest::kHashBytes),
                KeyAt(keys, from - 1));
    const std::string fresh = HostileKeys(index_, kChains + next_chain_++, kPutBlocks);
    if (!Put(fresh).ok()) ++mine_.failed_calls;
    GetAndCheck(fresh, "");
  }

  void Pause() {
    if (lease_id_ != 0) client_.ReleaseLease(std::exchange(lease_id_, 0));
    if (!client_.Flush().ok()) ++mine_.failed_calls;
    mine_.paused.store(1);
    while (board_.phase.load() == HostileBoard::kPaused) absl::SleepFor(kPausedPoll);
    mine_.paused.store(0);
  }

 private:
  void Lookup(const std::string& keys) {
    const uint32_t phase = board_.phase.load();
    const Nanos start = clock_.Now();
    if (lease_id_ != 0) client_.ReleaseLease(lease_id_);
    const LookupResult found = client_.Lookup(ns_, keys, {.lease = kLease});
    double us = Microseconds(start, clock_.Now());
    lease_id_ = found.lease_id;
    if (!found.status.ok()) {
      // An engine without an answer is no better off for having been refused quickly.
      us = absl::ToDoubleMicroseconds(kTimeout);
      ++mine_.failed_calls;
    } else if (found.hit_blocks < kHostileChainBlocks) {
      mine_.missed_blocks += kHostileChainBlocks - found.hit_blocks;
      if (!Put(keys).ok()) ++mine_.failed_calls;
    }
    const uint64_t at = mine_.samples.load();
    if (phase < HostileBoard::kFirstPhase || board_.phase.load() != phase ||
        at == kMaxHostileSamples) {
      return;
    }
    mine_.sample[at] = {.us = static_cast<float>(us), .phase = phase};
    mine_.samples.store(at + 1);
  }

  // Requires: at most 256 keys.
  absl::Status Put(std::string_view keys, absl::Duration timeout = kTimeout) {
    const size_t blocks = keys.size() / MicroForest::kHashBytes;
    std::vector<absl::Span<const std::byte>> sources;
    for (size_t i = 0; i < blocks; ++i) {
      const absl::Span<std::byte> part = PartOf(i);
      FillPayload(AsBytes(KeyAt(keys, i)), 0, 0, part);
      sources.push_back(part);
    }
    return client_.Put(ns_, keys, sources, {.timeout = timeout}).status;
  }

  void GetAndCheck(std::string_view keys, std::string_view parent) {
    const size_t blocks = keys.size() / MicroForest::kHashBytes;
    std::vector<absl::Span<std::byte>> targets;
    for (size_t i = 0; i < blocks; ++i) targets.push_back(PartOf(i));
    const GetResult got = client_.Get(ns_, keys, targets, {.parent = parent});
    if (!got.status.ok()) ++mine_.failed_calls;
    ++mine_.gets;
    mine_.missed_blocks += blocks - got.blocks;
    mine_.blocks_checked += got.blocks;
    for (size_t i = 0; i < got.blocks; ++i) {
      if (CheckPayload(AsBytes(KeyAt(keys, i)), 0, 0, targets[i]) != kPayloadMatches) {
        ++mine_.wrong_blocks;
      }
    }
  }

  absl::Span<std::byte> PartOf(size_t block) {
    return absl::MakeSpan(memory_).subspan(block * kHostilePartBytes, kHostilePartBytes);
  }

  const uint32_t index_;
  HostileBoard& board_;
  HostileBoard::Client& mine_;
  const SystemClock clock_;
  Client client_;
  Namespace ns_;
  std::vector<std::string> chains_;
  std::vector<std::byte> memory_;
  std::mt19937_64 random_;
  uint64_t next_lookup_ = 0;
  uint64_t next_chain_ = 0;
  uint64_t lease_id_ = 0;
};

}  // namespace

std::string HostileKeys(uint32_t client, uint64_t chain, uint32_t blocks) {
  return MakeKeys((uint64_t{client} + 1) << 40 | chain, blocks);
}

absl::StatusOr<HostileBoard*> HostileBoard::Map(const std::string& path, How how) {
  const int flags = how == How::kCreate ? O_RDWR | O_CREAT | O_EXCL : O_RDWR;
  const int fd = open(path.c_str(), flags | O_CLOEXEC, 0600);
  if (fd < 0) return ErrnoStatus(errno, path);
  const absl::Cleanup close_it = [fd] { close(fd); };
  if (how == How::kCreate && ftruncate(fd, sizeof(HostileBoard)) != 0) {
    return ErrnoStatus(errno, path);
  }
  void* memory = mmap(nullptr, sizeof(HostileBoard), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) return ErrnoStatus(errno, path);
  return static_cast<HostileBoard*>(memory);
}

absl::Status BehaveWell(const std::string& endpoint, uint32_t index, HostileBoard& board) {
  GoodClient client(endpoint, index, board);
  if (absl::Status status = client.Start(); !status.ok()) return status;
  absl::Time due = absl::Now();
  while (true) {
    if (board.phase.load() == HostileBoard::kPaused) {
      client.Pause();
      due = absl::Now();
    }
    client.Round();
    due += kRoundTime;
    // What is late is not caught up with: a burst would be a load of our own making.
    if (const absl::Time now = absl::Now(); due < now) due = now;
    absl::SleepFor(due - absl::Now());
  }
}

}  // namespace kvd
