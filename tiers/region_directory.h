// Which region numbers exist, whose they are, and the descriptor to hand out: what the session
// thread may know of the arena.
//
// Threads: safe from any thread. The control thread writes when a region changes hands, the session
// thread reads when a client first meets a number.

#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cstdint>

#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "proto/types/block.h"

namespace kvd {

class RegionDirectory {
 public:
  struct Entry {
    int fd = -1;  // Read-only.
    uint64_t size_bytes = 0;
  };

  RegionDirectory() = default;
  ~RegionDirectory() {
    for (const auto& [number, region] : regions_) close(region.entry.fd);
  }

  // Region `number` belongs to `domain` from now on. Keeps a duplicate of `fd`.
  void Publish(uint32_t number, DomainId domain, int fd, uint64_t size_bytes) {
    const int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    absl::MutexLock lock(&mu_);
    regions_[number] = {domain, {copy, size_bytes}};
  }

  void Withdraw(uint32_t number) {
    absl::MutexLock lock(&mu_);
    const auto it = regions_.find(number);
    if (it == regions_.end()) return;
    close(it->second.entry.fd);
    regions_.erase(it);
  }

  // A new descriptor of the caller's, or fd -1: no such region of this domain.
  Entry Open(uint32_t number, DomainId domain) const {
    absl::MutexLock lock(&mu_);
    const auto it = regions_.find(number);
    if (it == regions_.end() || it->second.domain != domain) return {};
    Entry entry = it->second.entry;
    entry.fd = fcntl(entry.fd, F_DUPFD_CLOEXEC, 0);
    return entry;
  }

 private:
  struct Region {
    DomainId domain = 0;
    Entry entry;
  };
  mutable absl::Mutex mu_;
  absl::flat_hash_map<uint32_t, Region> regions_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kvd
