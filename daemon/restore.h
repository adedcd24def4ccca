// Puts what a named arena holds back into the index, at the start of the process that takes it
// over. Bytes are not looked at: each is verified when it is first read, as always.
//
// A block comes back if its namespace, all parts that make it findable, and its parent do. What
// does not come back is counted, and its room is free again when nobody of before can read it.
//
// Threads: the control thread, before anybody is served.

#pragma once

#include <cstdint>
#include <map>

#include "daemon/arena_record.h"
#include "daemon/control.h"
#include "daemon/domains.h"
#include "daemon/store.h"
#include "tiers/slot_table.h"

namespace kvd {

struct RestoreReport {
  uint64_t blocks = 0;
  uint64_t parts = 0;
  uint64_t bytes = 0;
  uint32_t namespaces = 0;
  uint64_t parts_dropped = 0;      // No parent, incomplete, no namespace, or no place in the index.
  uint64_t rows_damaged = 0;       // Slots of which nothing is known.
  uint64_t parts_quarantined = 0;  // That were, and are until their readers end.
};

// `readers`: sessions of before whose processes live.
RestoreReport RestoreArena(SlotTable& table, Control& control, Store& store, ArenaRecord& record,
                           Domains& domains, std::map<uint32_t, ReaderRow> readers);

}  // namespace kvd
