// Writes down what the next process must know of a named arena: what lies in its slots, whose it
// is, and who may be reading it. And keeps what readers of the process before may be reading.
//
// Who held what died with that process; who they were is in the slot table. Until each of them has
// ended, or has said in a new session that it reads no more, no slot that was in use is handed out
// again: its parts are held, and rooms of which nothing is known any more stay taken.
//
// Threads: one, the control thread; counts are read by any.

#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "daemon/store.h"
#include "proto/types/namespace_descriptor.h"
#include "proto/types/session_wire.h"
#include "proto/types/shared_count.h"
#include "tiers/slot_table.h"

namespace kvd {

class ArenaRecord final : public RoomObserver {
 public:
  // Collaborators must outlive this.
  ArenaRecord(SlotTable& table, Store& store, std::function<std::string(DomainId)> domain_name);

  // --- what lies where ---------------------------------------------------------------------------

  void PartCommitted(const Block& block, const ChainHash* parent, const Part& part) override;
  void PartQuarantined(const Part& part) override;
  void RoomFreed(const Part& part) override;

  void NamespaceAdded(NamespaceId ns, DomainId domain, const NamespaceDescriptor& descriptor);
  void NamespaceDropped(NamespaceId ns);

  // --- who may read ------------------------------------------------------------------------------

  // A session whose process maps regions; the number is for SessionOver(), once nothing is held.
  uint32_t SessionOpened(const ReaderRow& session);
  void SessionOver(uint32_t number);

  // --- who may still read ------------------------------------------------------------------------

  struct Room {
    uint32_t region = 0;
    uint32_t slot = 0;
  };
  // Takes over, from a restart: sessions whose processes live (with their numbers), parts that are
  // in the index, and rooms that are not. Gives all back once no such session is left; at once, if
  // there is none.
  void Withhold(std::map<uint32_t, ReaderRow> readers, std::vector<PartRef> parts,
                std::vector<Room> rooms);
  // The process of that session has ended.
  void ReaderEnded(uint32_t number);
  // A process says of its old session that it reads no more under it.
  void ReaderFinished(const SessionToken& token, pid_t pid);

  // Gives back a turn's worth of what is no longer withheld.
  void Poll();
  bool busy() const { return readers_.empty() && (!parts_.empty() || !rooms_.empty()); }

  // --- counting (any thread) ---------------------------------------------------------------------

  // What a restart found; set once.
  struct Restored {
    SharedCount blocks;
    SharedCount bytes;
    SharedCount parts_dropped;  // No parent, incomplete, or no place for them.
    SharedCount rows_damaged;   // Slots of which nothing was known.
    SharedCount cold;           // 1: there was an arena, and it could not be taken over.
  };
  Restored& restored() { return restored_; }
  const Restored& restored() const { return restored_; }
  uint64_t unrecorded_parts() const {
    return unrecorded_parts_;
  }                                                   // For want of memory, since start.
  uint64_t readers() const { return reader_count_; }  // Of before, that may still read.
  uint64_t withheld() const { return withheld_; }     // Parts and rooms.

 private:
  void Forget(std::map<uint32_t, ReaderRow>::iterator reader);

  SlotTable& table_;
  Store& store_;
  const std::function<std::string(DomainId)> domain_name_;
  std::vector<uint32_t> scopes_;  // By namespace: rows.

  std::map<uint32_t, ReaderRow> readers_;
  std::vector<PartRef> parts_;
  std::vector<Room> rooms_;

  Restored restored_;
  SharedCount unrecorded_parts_;
  SharedCount reader_count_;
  SharedCount withheld_;
};

}  // namespace kvd
