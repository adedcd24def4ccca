// The load of `crash`: clients that store, read, hold and lease, each byte compared, while the
// daemon below them is killed and comes back.
//
// Threads: each client is one of its own; the functions are the one thread's that has the clients.

#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "bench/crash_account.h"
#include "client/client.h"

namespace kvd {

class CrashClients {
 public:
  // No client stores beyond `live_bytes` of the account, what is leaving included.
  CrashClients(CrashAccount& account, const std::string& endpoint, uint32_t clients, uint64_t seed,
               uint64_t live_bytes);
  ~CrashClients();
  CrashClients(const CrashClients&) = delete;
  CrashClients& operator=(const CrashClients&) = delete;

  void Resume();
  // When this returns, no client calls.
  void Pause();
  // Each has a session with the daemon of now, and holds nothing. Requires: paused.
  void Greet();
  // All clients together may put so many bytes until this is called again: as much as there is room
  // for.
  void Grant(uint64_t bytes) { granted_bytes_.store(bytes, std::memory_order_relaxed); }
  // Takes so many bytes of what was granted. False: that is less. Any thread.
  bool Take(uint64_t bytes);
  // Blocks of kPressure are stored, too, which are more than the arena holds and need no grant.
  void SetPressure(bool on) { pressure_ = on; }

 private:
  class One;
  // False: it is over.
  bool WaitForTurn();

  CrashAccount& account_;
  const uint64_t live_bytes_;
  std::atomic<bool> pressure_{false};
  std::atomic<uint64_t> granted_bytes_{0};
  std::mutex mu_;
  std::condition_variable changed_;
  bool running_ = false;
  bool over_ = false;
  uint32_t at_rest_ = 0;
  std::atomic<bool> go_{false};  // running_, for who does not want the lock.
  std::vector<std::unique_ptr<One>> ones_;
  std::vector<std::thread> threads_;
};

// The session of one client: what `crash` and `mutate` both do with it. One thread.
class CrashSession {
 public:
  CrashSession(CrashAccount& account, const std::string& endpoint);

  // The namespace as the daemon of now knows it. False: it is away.
  bool Register(CrashNamespace ns);
  // As an engine that goes on: the daemon of now knows it, and that it reads nothing of before but
  // what it still holds.
  void Greet();
  Client& client() { return client_; }
  const Namespace& ns(CrashNamespace ns) const { return *namespaces_[static_cast<size_t>(ns)]; }

  // Puts `blocks` from `first` on; what is stored by that is told to the account.
  void Put(CrashChain& chain, uint32_t first, uint32_t blocks);
  // Blocks from the root on that came back, every byte compared; -1: the call failed.
  int Get(CrashChain& chain, uint32_t blocks, const char* what);
  // Of the last Get(): blocks that the daemon has. It may have answered fewer, for want of room or
  // time to bring them from NVMe.
  uint32_t found() const { return found_; }

 private:
  absl::Span<std::byte> PartOf(CrashNamespace ns, uint32_t block, uint32_t part);

  CrashAccount& account_;
  SystemClock clock_;
  Client client_;
  std::array<std::optional<Namespace>, kCrashNamespaces> namespaces_;
  std::vector<std::byte> memory_;
  uint32_t found_ = 0;
};

}  // namespace kvd
