#include "bench/crash_account.h"

#include <iostream>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/payload.h"
#include "proto/types/view.h"

namespace kvd {
namespace {

constexpr uint64_t kWrongOnesSaid = 8;

absl::Span<const std::byte> AsBytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

}  // namespace

uint32_t CrashParts(CrashNamespace ns) { return ns == CrashNamespace::kSharded ? 2 : 1; }

uint32_t CrashPartBytes(CrashNamespace ns) {
  switch (ns) {
    case CrashNamespace::kPlain:
      return 16 << 10;
    case CrashNamespace::kSharded:
      return 6000;
    case CrashNamespace::kDropped:
      return 16'000;
    default:
      return 48 << 10;
  }
}

uint64_t CrashBlockBytes(CrashNamespace ns) {
  return uint64_t{CrashPartBytes(ns)} * CrashParts(ns);
}

NamespaceDescriptor CrashDescriptor(CrashNamespace ns) {
  NamespaceDescriptor descriptor;
  descriptor.model = absl::StrCat("crash-", static_cast<int>(ns));
  descriptor.hash_algorithm = "crash";
  descriptor.tensor_parallel = CrashParts(ns);
  descriptor.groups = {
      {.shards = CrashParts(ns), .block_tokens = 16, .part_bytes = CrashPartBytes(ns)}};
  return descriptor;
}

uint32_t CrashChain::StoredBy(Nanos when) const {
  uint32_t blocks = 0;
  while (blocks < kCrashChainBlocks) {
    const Nanos at = stored[blocks].load(std::memory_order_acquire);
    if (at == 0 || at > when) break;
    ++blocks;
  }
  return blocks;
}

CrashChain* CrashAccount::NewChain(CrashNamespace ns, uint32_t owner) {
  const std::lock_guard lock(mu_);
  const uint64_t first = uint64_t{chains_.size()} * kCrashChainBlocks;
  CrashChain& chain = chains_.emplace_back();
  chain.ns = ns;
  chain.owner = owner;
  for (uint32_t i = 0; i < kCrashChainBlocks; ++i) {
    const std::array<std::byte, kCrashHashBytes> key = KeyOf(first + i, seed_);
    chain.keys.append(reinterpret_cast<const char*>(key.data()), key.size());
  }
  count_.store(chains_.size(), std::memory_order_release);
  return &chain;
}

CrashChain& CrashAccount::chain(size_t i) {
  const std::lock_guard lock(mu_);
  return chains_[i];
}

void CrashAccount::Retire(CrashChain& chain) {
  if (chain.retired.exchange(true)) return;
  const uint64_t blocks = chain.StoredBy(INT64_MAX);
  leaving_bytes_.fetch_add(blocks * CrashBlockBytes(chain.ns), std::memory_order_relaxed);
  for (uint32_t i = 0; i < kCrashChainBlocks; ++i) Lost(chain, i);
}

std::set<std::string_view> CrashAccount::LiveRoots() {
  const std::lock_guard lock(mu_);
  std::set<std::string_view> roots;
  for (const CrashChain& chain : chains_) {
    if (!chain.retired) roots.insert(chain.key(0));
  }
  return roots;
}

void CrashAccount::Stored(CrashChain& chain, uint32_t block, Nanos now) {
  Nanos expected = 0;
  if (chain.retired.load() || chain.ns == CrashNamespace::kPressure) return;
  if (!chain.stored[block].compare_exchange_strong(expected, now)) return;
  live_bytes_.fetch_add(CrashBlockBytes(chain.ns), std::memory_order_relaxed);
}

void CrashAccount::Lost(CrashChain& chain, uint32_t block) {
  if (chain.stored[block].exchange(0) == 0) return;
  live_bytes_.fetch_sub(CrashBlockBytes(chain.ns), std::memory_order_relaxed);
}

void CrashAccount::Fill(std::string_view key, uint32_t part, absl::Span<std::byte> bytes) {
  FillPayload(AsBytes(key), 0, part, bytes);
}

void CrashAccount::Check(const CrashChain& chain, uint32_t block, uint32_t part,
                         absl::Span<const std::byte> bytes, const char* what) {
  if (part == 0) blocks_verified.fetch_add(1, std::memory_order_relaxed);
  const size_t differs = CheckPayload(AsBytes(chain.key(block)), 0, part, bytes);
  if (differs == kPayloadMatches) return;
  Wrong(chain, block, absl::StrCat(what, ", byte ", differs, " of part ", part).c_str());
}

void CrashAccount::Wrong(const CrashChain& chain, uint32_t block, const char* what) {
  if (wrong_blocks.fetch_add(1) >= kWrongOnesSaid) return;
  std::cerr << absl::StrFormat("kvd-bench: wrong bytes: namespace %d, block %d of chain %s: %s\n",
                               static_cast<int>(chain.ns), block,
                               absl::BytesToHexString(View(chain.key(0))).substr(0, 12), what);
}

}  // namespace kvd
