// Leases: promises that a chain stays findable until a point in time. This table knows when they
// end and whose they are; the counts that keep blocks in place are in the index.
//
// Threads: one, the control thread. All memory is set aside by the constructor.

#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "daemon/residency.h"
#include "proto/types/clock.h"

namespace kvd {

using LeaseId = uint64_t;  // Never the same twice in one run; 0: none.

class LeaseTable {
 public:
  struct Lease {
    BlockRef block = 0;
    uint32_t owner = 0;  // A session; or kPinOwner.
    Nanos expires = 0;
  };
  static constexpr uint32_t kPinOwner = 0xffffffff;  // Belongs to no session.

  explicit LeaseTable(uint32_t max_leases);

  // 0 when the table is full.
  LeaseId Add(BlockRef block, uint32_t owner, Nanos expires);
  // What the lease was; empty: it ended before, or never was.
  std::optional<Lease> Remove(LeaseId id);
  const Lease* Find(LeaseId id) const;

  // Any lease of `owner` (not kPinOwner); 0: it has none.
  LeaseId AnyOf(uint32_t owner) const;
  uint32_t CountOf(uint32_t owner) const;
  // A lease whose time has come; 0: none.
  LeaseId Expired(Nanos now) const;

  // The lease in entry `index`, for a walk over [1, entries()]; 0: it is free.
  LeaseId At(uint32_t index) const { return entries_[index].position != 0 ? IdOf(index) : 0; }
  uint32_t entries() const { return static_cast<uint32_t>(entries_.size() - 1); }

  uint32_t size() const { return static_cast<uint32_t>(heap_.size()); }

 private:
  struct Entry {
    Lease lease;
    uint32_t sequence = 0;  // Differs at each use of the entry.
    uint32_t position = 0;  // In the heap, from 1; 0: free.
    uint32_t next = 0;      // Of the same owner, or of the free ones.
    uint32_t prev = 0;
  };
  struct Owned {
    uint32_t first = 0;
    uint32_t count = 0;
  };

  LeaseId IdOf(uint32_t index) const { return uint64_t{entries_[index].sequence} << 32 | index; }
  const Entry* EntryOf(LeaseId id) const;
  void Place(uint32_t position, uint32_t index);
  void Sift(uint32_t position);

  std::vector<Entry> entries_;  // [0] is unused.
  std::vector<uint32_t> heap_;  // Binary, the first to end first; positions count from 1.
  std::vector<Owned> owned_;    // By session.
  uint32_t free_ = 0;
};

}  // namespace kvd
