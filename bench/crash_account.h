// What clients of `crash` and `mutate` stored, and when the daemon said so: the oracle that answers
// after a restart are held against. Payload is a function of the key (payload.h), so no bytes are
// kept here.
//
// Threads: chains are appended by any thread; each has one owner, who alone extends it. The rest is
// atomic.

#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/types/span.h"
#include "client/client.h"
#include "proto/types/clock.h"

namespace kvd {

inline constexpr uint32_t kCrashChainBlocks = 24;
inline constexpr uint32_t kCrashHashBytes = 32;

// The namespaces of the clients. Parts of the second are no whole pages, and there are two.
enum class CrashNamespace : uint8_t {
  kPlain,     // 16 KiB.
  kSharded,   // 2 x 6,000 bytes.
  kDropped,   // 16,000 bytes, in slots as the first; dropped as a whole now and then.
  kPressure,  // 48 KiB; not in the account: it takes the others' room.
};
inline constexpr uint32_t kCrashNamespaces = 4;
NamespaceDescriptor CrashDescriptor(CrashNamespace ns);
uint64_t CrashBlockBytes(CrashNamespace ns);
uint32_t CrashParts(CrashNamespace ns);
uint32_t CrashPartBytes(CrashNamespace ns);

// Keys of blocks of one chain, root first. Deleted never, so that a pointer stays good.
struct CrashChain {
  CrashNamespace ns = CrashNamespace::kPlain;
  uint32_t owner = 0;  // The client that extends it.
  std::string keys;
  // When the block at this place was known to be stored; 0: it is not, or nobody can say.
  std::array<std::atomic<Nanos>, kCrashChainBlocks> stored{};
  // Seen on NVMe; of the one thread that takes account.
  std::array<bool, kCrashChainBlocks> on_nvme{};
  std::atomic<bool> retired{false};  // Evicted or dropped, or about to be: it may be there or not.

  std::string_view key(uint32_t block) const {
    return std::string_view(keys).substr(size_t{block} * kCrashHashBytes, kCrashHashBytes);
  }
  std::string_view Keys(uint32_t first, uint32_t blocks) const {
    return std::string_view(keys).substr(size_t{first} * kCrashHashBytes,
                                         size_t{blocks} * kCrashHashBytes);
  }
  // Blocks from the root on that were stored by `when`.
  uint32_t StoredBy(Nanos when) const;
};

class CrashAccount {
 public:
  explicit CrashAccount(uint64_t seed) : seed_(seed) {}

  CrashChain* NewChain(CrashNamespace ns, uint32_t owner);
  size_t chains() const { return count_.load(std::memory_order_acquire); }
  // Requires: i < chains().
  CrashChain& chain(size_t i);
  // Bytes of blocks that are not retired.
  uint64_t live_bytes() const { return live_bytes_.load(std::memory_order_relaxed); }
  // Bytes of blocks that are retired, or nobody's, and have not left the daemon yet.
  uint64_t leaving_bytes() const { return leaving_bytes_.load(std::memory_order_relaxed); }
  void SetLeaving(uint64_t bytes) { leaving_bytes_.store(bytes, std::memory_order_relaxed); }
  // Nobody expects it any more: its bytes are leaving.
  void Retire(CrashChain& chain);
  // The first keys of the chains that are not retired.
  std::set<std::string_view> LiveRoots();
  // Of a block that was not known to be stored before.
  void Stored(CrashChain& chain, uint32_t block, Nanos now);
  void Lost(CrashChain& chain, uint32_t block);

  // Fills `part` of a block, and compares.
  static void Fill(std::string_view key, uint32_t part, absl::Span<std::byte> bytes);
  // Counts, and says the first ones on standard error.
  void Check(const CrashChain& chain, uint32_t block, uint32_t part,
             absl::Span<const std::byte> bytes, const char* what);
  // Bytes that were right under a hold and are not any more, and the like.
  void Wrong(const CrashChain& chain, uint32_t block, const char* what);

  std::atomic<uint64_t> blocks_verified{0};
  std::atomic<uint64_t> wrong_blocks{0};

 private:
  const uint64_t seed_;
  std::mutex mu_;  // Guards the chains' deque.
  std::deque<CrashChain> chains_;
  std::atomic<size_t> count_{0};
  std::atomic<uint64_t> live_bytes_{0};
  std::atomic<uint64_t> leaving_bytes_{0};
};

}  // namespace kvd
