// Admit to NVMe? The question that is asked when a block is about to leave DRAM, with what is known
// of it then. Drives die of writing everything through.
//
// An admitted block takes with it the ancestors that are not on NVMe yet: leaves leave DRAM first,
// and without its ancestors nothing on NVMe could be found after a power loss. They are charged to
// the budget like itself, and not asked about.
//
// Threads: one. No clock, no randomness: time is an argument.

#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "proto/types/block.h"
#include "proto/types/clock.h"

namespace kvd {

class AdmissionPolicy {
 public:
  struct Candidate {
    NamespaceId ns = 0;
    uint32_t depth = 0;     // 0: a root.
    uint32_t uses = 0;      // Lookups that found it since it entered DRAM, saturating.
    bool returned = false;  // It was stored before, left, and was stored again (a ghost knew it).
    uint32_t blocks = 0;    // To write: itself and its ancestors that are not there.
    uint64_t bytes = 0;     // Of them.
    ChainHash key;
  };

  virtual ~AdmissionPolicy() = default;
  virtual std::string_view name() const = 0;
  virtual bool Admit(const Candidate& candidate, Nanos now) = 0;
  // A block of this key was stored in, or left, DRAM without being on NVMe; for ghosts and classes.
  virtual void Stored(const ChainHash& key, NamespaceId ns) = 0;
  virtual void Left(const ChainHash& key, NamespaceId ns, uint32_t uses) = 0;
};

}  // namespace kvd
