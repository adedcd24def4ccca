#include "bench/crash_client.h"

#include <algorithm>
#include <array>
#include <deque>
#include <optional>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "proto/types/check.h"

namespace kvd {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(2);
constexpr uint32_t kSharedOwner = UINT32_MAX;  // Any client extends it.
constexpr size_t kHeldAtOnce = 3;
constexpr uint32_t kOpenChains = 6;  // That one client extends.
constexpr uint32_t kLongPut = 20;    // Blocks; more than goes in one call.

}  // namespace

// --- a session -----------------------------------------------------------------------------------

CrashSession::CrashSession(CrashAccount& account, const std::string& endpoint)
    : account_(account),
      client_({.endpoint = endpoint,
               .timeout = kTimeout,
               .reconnect_interval = absl::Milliseconds(2),
               .staging_bytes = 2u << 20,
               .copy_loop = "plain"}),
      memory_(kCrashChainBlocks * size_t{48 << 10}) {}

bool CrashSession::Register(CrashNamespace ns) {
  std::optional<Namespace>& known = namespaces_[static_cast<size_t>(ns)];
  if (known.has_value()) return true;
  absl::StatusOr<Namespace> registered = client_.RegisterNamespace(CrashDescriptor(ns));
  if (registered.ok()) known = *std::move(registered);
  return known.has_value();
}

void CrashSession::Greet() {
  if (!Register(CrashNamespace::kPlain)) return;
  client_.Lookup(ns(CrashNamespace::kPlain), std::string(kMaxHashBytes, '\0'));
}

absl::Span<std::byte> CrashSession::PartOf(CrashNamespace ns, uint32_t block, uint32_t part) {
  const size_t bytes = CrashPartBytes(ns);
  return absl::MakeSpan(memory_).subspan((size_t{block} * CrashParts(ns) + part) * bytes, bytes);
}

void CrashSession::Put(CrashChain& chain, uint32_t first, uint32_t blocks) {
  if (!Register(chain.ns)) return;
  std::vector<absl::Span<const std::byte>> sources;
  for (uint32_t i = 0; i < blocks; ++i) {
    for (uint32_t part = 0; part < CrashParts(chain.ns); ++part) {
      const absl::Span<std::byte> bytes = PartOf(chain.ns, i, part);
      CrashAccount::Fill(chain.key(first + i), part, bytes);
      sources.push_back(bytes);
    }
  }
  const PutResult put =
      client_.Put(ns(chain.ns), chain.Keys(first, blocks), sources,
                  {.parent = first == 0 ? std::string_view() : chain.key(first - 1)});
  const Nanos now = clock_.Now();
  for (size_t i = 0; i < put.results.size(); ++i) {
    if (put.results[i] == CommitResult::kCommitted) {
      account_.Stored(chain, first + static_cast<uint32_t>(i), now);
    }
  }
}

int CrashSession::Get(CrashChain& chain, uint32_t blocks, const char* what) {
  if (!Register(chain.ns)) return -1;
  std::vector<absl::Span<std::byte>> targets;
  for (uint32_t i = 0; i < blocks; ++i) {
    for (uint32_t part = 0; part < CrashParts(chain.ns); ++part) {
      targets.push_back(PartOf(chain.ns, i, part));
    }
  }
  const GetResult got = client_.Get(ns(chain.ns), chain.Keys(0, blocks), targets);
  found_ = std::max(got.hit_blocks, got.blocks);
  const Nanos now = clock_.Now();
  for (uint32_t i = 0; i < got.blocks; ++i) {
    for (uint32_t part = 0; part < CrashParts(chain.ns); ++part) {
      account_.Check(chain, i, part, PartOf(chain.ns, i, part), what);
    }
    account_.Stored(chain, i, now);  // Also one whose put had no answer.
  }
  return got.status.ok() ? static_cast<int>(got.blocks) : -1;
}

// --- one client ----------------------------------------------------------------------------------

class CrashClients::One {
 public:
  One(CrashClients& all, const std::string& endpoint, uint32_t index, uint64_t seed)
      : all_(all),
        account_(all.account_),
        index_(index),
        random_(seed + index),
        session_(all.account_, endpoint) {}

  void Run() {
    while (all_.WaitForTurn()) Step();
    held_.clear();
  }

  // While nobody has a turn.
  void Greet() {
    held_.clear();
    session_.Greet();
  }

 private:
  struct Held {
    CrashChain* chain = nullptr;
    LoadedChain blocks;
    bool intact = true;  // When it was taken.
  };

  uint64_t Dice(uint64_t sides) { return random_() % sides; }

  void Step() {
    switch (Dice(16)) {
      default:
        Extend();
        break;
      case 6:
      case 7:
      case 8:
      case 9:
      case 10:
        if (CrashChain* chain = AnyChain()) {
          session_.Get(*chain, 1 + static_cast<uint32_t>(Dice(kCrashChainBlocks)), "get");
        }
        break;
      case 11:
      case 12:
        Hold();
        break;
      case 13:
        LetGo();
        break;
      case 14:
        Lease();
        break;
      case 15:
        if (all_.pressure_) Press();
        break;
    }
  }

  CrashChain* AnyChain() {
    const size_t chains = account_.chains();
    if (chains == 0) return nullptr;
    CrashChain& chain = account_.chain(Dice(chains));
    return chain.retired || chain.ns == CrashNamespace::kDropped ? nullptr : &chain;
  }

  // The next blocks of a chain of ours, or of one that all of us extend, where a child may come
  // before its parent.
  void Extend() {
    if (account_.live_bytes() + account_.leaving_bytes() > all_.live_bytes_) return;
    std::erase_if(open_, [](const CrashChain* chain) {
      return chain->retired || chain->StoredBy(INT64_MAX) == kCrashChainBlocks;
    });
    if (open_.size() < kOpenChains && Dice(2) == 0) {
      const bool shared = Dice(4) == 0;
      CrashChain* chain =
          account_.NewChain(Dice(2) == 0 ? CrashNamespace::kPlain : CrashNamespace::kSharded,
                            shared ? kSharedOwner : index_);
      if (!shared) open_.push_back(chain);
    }
    CrashChain* chain = nullptr;
    if (!open_.empty() && Dice(4) != 0) {
      chain = open_[Dice(open_.size())];
    } else {
      for (size_t n = account_.chains(), tries = 0; tries < 16 && tries < n; ++tries) {
        CrashChain& recent = account_.chain(n - 1 - tries);
        if (recent.owner != kSharedOwner || recent.retired) continue;
        chain = &recent;
        break;
      }
    }
    if (chain == nullptr) return;
    uint32_t first = chain->StoredBy(INT64_MAX);
    uint32_t blocks = 1 + static_cast<uint32_t>(Dice(8));
    if (chain->owner == kSharedOwner && first == 0) {
      // Long enough for one of us to come with what lies below before it is committed.
      if (Dice(2) == 0) {
        blocks = kLongPut;
      } else {
        first = kLongPut;
      }
    }
    if (first >= kCrashChainBlocks || !all_.Take(blocks * CrashBlockBytes(chain->ns))) return;
    session_.Put(*chain, first, std::min(blocks, kCrashChainBlocks - first));
  }

  void Hold() {
    CrashChain* chain = AnyChain();
    if (chain == nullptr || !session_.Register(chain->ns)) return;
    if (held_.size() >= kHeldAtOnce) LetGo();
    LoadResult loaded = session_.client().Load(session_.ns(chain->ns),
                                               chain->Keys(0, 1 + static_cast<uint32_t>(Dice(8))));
    if (loaded.chain.blocks() == 0) return;
    const bool intact = Check(*chain, loaded.chain, "held");
    held_.push_back({chain, std::move(loaded.chain), intact});
  }

  // Under a hold the bytes stay what they were, whatever became of the daemon meanwhile.
  void LetGo() {
    if (held_.empty()) return;
    Held held = std::move(held_.front());
    held_.pop_front();
    if (Check(*held.chain, held.blocks, "held until now") || !held.intact) return;
    account_.Wrong(*held.chain, 0, "bytes under a hold have changed");
  }

  // Whether all of it verifies.
  bool Check(const CrashChain& chain, LoadedChain& blocks, const char* what) {
    bool intact = true;
    for (uint32_t i = 0; i < blocks.blocks(); ++i) {
      for (uint32_t part = 0; part < blocks.parts(); ++part) {
        if (blocks.Verify(i, part)) {
          account_.Check(chain, i, part, blocks.part(i, part), what);
        } else {
          intact = false;  // Damage that is seen is a miss.
        }
      }
    }
    return intact;
  }

  void Lease() {
    CrashChain* chain = AnyChain();
    if (chain == nullptr || !session_.Register(chain->ns)) return;
    if (lease_ != 0) session_.client().ReleaseLease(std::exchange(lease_, 0));
    lease_ = session_.client()
                 .Lookup(session_.ns(chain->ns), chain->keys, {.lease = absl::Seconds(1)})
                 .lease_id;
  }

  void Press() {
    CrashChain* chain = account_.NewChain(CrashNamespace::kPressure, index_);
    session_.Put(*chain, 0, 8);
    session_.Get(*chain, 8, "get under pressure");
  }

  CrashClients& all_;
  CrashAccount& account_;
  const uint32_t index_;
  std::mt19937_64 random_;
  CrashSession session_;
  std::vector<CrashChain*> open_;
  std::deque<Held> held_;
  uint64_t lease_ = 0;
};

// --- all of them ---------------------------------------------------------------------------------

CrashClients::CrashClients(CrashAccount& account, const std::string& endpoint, uint32_t clients,
                           uint64_t seed, uint64_t live_bytes)
    : account_(account), live_bytes_(live_bytes) {
  for (uint32_t i = 0; i < clients; ++i) {
    ones_.push_back(std::make_unique<One>(*this, endpoint, i, seed));
  }
  for (const auto& one : ones_) threads_.emplace_back([&one = *one] { one.Run(); });
}

CrashClients::~CrashClients() {
  {
    const std::lock_guard lock(mu_);
    over_ = true;
    go_ = false;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

bool CrashClients::WaitForTurn() {
  if (go_.load(std::memory_order_acquire)) return true;
  std::unique_lock lock(mu_);
  ++at_rest_;
  changed_.notify_all();
  changed_.wait(lock, [this] { return running_ || over_; });
  --at_rest_;
  return !over_;
}

bool CrashClients::Take(uint64_t bytes) {
  uint64_t left = granted_bytes_.load();
  do {
    if (left < bytes) return false;
  } while (!granted_bytes_.compare_exchange_weak(left, left - bytes));
  return true;
}

void CrashClients::Resume() {
  const std::lock_guard lock(mu_);
  running_ = true;
  go_ = true;
  changed_.notify_all();
}

void CrashClients::Pause() {
  std::unique_lock lock(mu_);
  running_ = false;
  go_ = false;
  changed_.wait(lock, [this] { return at_rest_ == ones_.size(); });
}

void CrashClients::Greet() {
  for (const std::unique_ptr<One>& one : ones_) one->Greet();
}

}  // namespace kvd
