// Puts what a named arena and NVMe hold back into the index, at the start of the process that takes
// them over. Bytes are not looked at: each is verified when it is first read, as always.
//
// A block comes back if its namespace, all parts that make it findable, in one tier or in both, and
// its parent do. What does not come back is counted; its room is free again when nobody of before
// can read it, its records are dead.
//
// Threads: the control thread, before anybody is served.

#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "daemon/arena_record.h"
#include "daemon/control.h"
#include "daemon/domains.h"
#include "daemon/store.h"
#include "tiers/nvme_tier.h"
#include "tiers/slot_table.h"

namespace kvd {

// What lies on NVMe.
struct NvmeRemains {
  NvmeTier& tier;
  const std::vector<StoredScope>& scopes;       // By number, less one.
  const std::vector<RecoveredRecord>& records;  // No part twice.
};

struct RestoreReport {
  uint64_t blocks = 0;  // In either tier.
  uint64_t records = 0;
  uint64_t record_bytes = 0;
  uint64_t records_dropped = 0;
  uint64_t parts = 0;
  uint64_t bytes = 0;
  uint32_t namespaces = 0;
  uint64_t parts_dropped = 0;      // No parent, incomplete, no namespace, or no place in the index.
  uint64_t rows_damaged = 0;       // Slots of which nothing is known.
  uint64_t parts_quarantined = 0;  // That were, and are until their readers end.
};

// `readers`: sessions of before whose processes live. `nvme`: null without that tier; control knows
// it already.
RestoreReport RestoreArena(SlotTable& table, Control& control, Store& store, ArenaRecord& record,
                           Domains& domains, std::map<uint32_t, ReaderRow> readers,
                           const NvmeRemains* nvme);

}  // namespace kvd
