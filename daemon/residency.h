// The one index: which blocks are known, how they hang together, where their parts lie, and what
// keeps them from leaving.
//
// It is a forest of blocks over a hash table. Its invariant is prefix closure: a block can be found
// only if its parent can be found, or is a stub. Blocks enter below their parents, and only leaves
// leave. So the longest stored prefix of n keys takes about log2 n probes, and a lease on the
// deepest block keeps its whole chain at the cost of one count.
//
// A block may be in two tiers: its parts in DRAM, its cold parts on NVMe. It serves a group when
// either tier has all shards of it, and leaves one tier for itself when the other has it all; the
// closure is that of the union. In each tier alone, leaves leave first. Without NVMe there are no
// cold parts, and nothing else is different.
//
// It decides nothing and moves no byte: daemon/store.h finds room, daemon/control.h answers calls.
// All memory is set aside by the constructor; no call allocates.
//
// Threads: one, the control thread (or the simulator).

#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "daemon/events.h"
#include "daemon/tier_index.h"
#include "policy/eviction.h"
#include "proto/types/block.h"
#include "proto/types/host_memory.h"
#include "proto/types/shared_count.h"
#include "tiers/nvme_tier.h"

namespace kvd {

class Announcements;

using BlockRef = uint32_t;  // Number of a block; 0: none. Reused after the block has gone.
using PartRef = uint32_t;   // Number of a part; 0: none.
using ColdRef = uint32_t;   // Number of a cold part; 0: none.

enum class BlockState : uint8_t {
  kFree = 0,
  kProducing = 1,  // Some full part is not committed yet. Not found.
  kParked = 2,     // Complete, below a parent that is not visible yet. Not found.
  kVisible = 3,
  kStub = 4,  // Bytes gone or never came, kept for what lies below. Not found.
};

enum class PartState : uint32_t {
  kReserved = 0,  // Room is set aside.
  kCommitted = 1,
  kQuarantined = 2,  // Belongs to no block any more; its room waits for its holds to end.
};

// Why a block left.
enum class EvictReason : uint8_t {
  kPressure,  // Somebody needed the room.
  kAdmin,     // An operator said so.
  kPurge,     // Its namespace is dropped.
  kCorrupt,   // Its bytes were damaged; the block may stay as a stub.
  kReclaim,   // Its segment was reclaimed and there was no other to copy it to; as with kCorrupt.
};
inline constexpr size_t kEvictReasons = 5;

// What the index must know of a namespace.
struct NamespaceShape {
  struct Window {
    uint16_t group = 0;
    uint32_t blocks = 0;  // That must be there before the end of a prefix.
  };
  DomainId domain = 0;
  EvictionPolicy::Pool pool = 0;
  uint16_t full_groups = 1;   // Bit g: group g is full.
  uint16_t state_groups = 0;  // Bit g: group g is a state.
  std::vector<Window> windows;
  std::vector<uint16_t> shards = {1};  // By group.
};

struct Block {
  ChainHash key;
  NamespaceId ns = 0;
  BlockRef parent = 0;       // 0 at the root.
  BlockRef jump = 0;         // An ancestor further up; any ancestor takes O(log depth) steps.
  BlockRef first_child = 0;  // Of any state.
  BlockRef next_sibling = 0;
  BlockRef prev_sibling = 0;
  PartRef first_part = 0;
  uint32_t depth = 0;   // 0 at the root.
  uint64_t digest = 0;  // Of the keys from the root to here, under a secret.
  uint32_t leases = 0;  // Leases, pins and reservations that end exactly here.
  uint32_t holds = 0;   // On its parts.
  ColdRef first_cold = 0;
  uint32_t warm_children = 0;    // That have parts, in any state.
  uint32_t cold_children = 0;    // That have cold parts, in any state.
  uint16_t complete_groups = 0;  // Bit g: every shard of group g is committed in DRAM.
  uint16_t cold_groups = 0;      // Bit g: every shard of group g is on NVMe.
  uint16_t reserved_parts = 0;   // Not committed yet.
  BlockState state = BlockState::kFree;
  bool offered = false;        // To the policy of DRAM.
  bool cold_offered = false;   // To the policy of NVMe.
  bool ordered = false;        // Known to the policy of DRAM.
  bool gap : 1 = false;        // Was seen and is not now: visible blocks may hang below.
  TierSet told_tiers : 2 = 0;  // As events have it.
  uint8_t uses = 0;            // Lookups that found it since it entered DRAM, saturating.

  // Groups that one tier or the other can serve.
  uint16_t served_groups() const { return complete_groups | cold_groups; }
};
static_assert(sizeof(Block) == 104);

struct Part {
  BlockRef block = 0;  // 0 when quarantined.
  PartRef next = 0;    // Of the same block.
  uint32_t region = 0;
  uint32_t slot = 0;  // In the region.
  uint32_t generation = 0;
  uint32_t sum = 0;          // CRC32C of the bytes.
  uint32_t length : 30 = 0;  // Bytes.
  uint32_t state : 2 = 0;    // PartState.
  uint16_t holds = 0;
  PartId id;
};
static_assert(sizeof(Part) == 32);

enum class ColdState : uint8_t {
  kWriting = 0,    // The record is on its way.
  kCommitted = 1,  // The record is there.
};

// A part on NVMe: a record.
struct ColdPart {
  BlockRef block = 0;  // 0: given up while it was written or read; it goes when that has ended.
  ColdRef next = 0;    // Of the same block.
  RecordPlace place;
  uint32_t length = 0;  // Bytes of payload.
  uint32_t sum = 0;     // CRC32C of the payload.
  uint32_t generation = 0;
  PartId id;
  ColdState state = ColdState::kWriting;
  uint8_t readers = 0;
};
static_assert(sizeof(ColdPart) == 32);

// Takes back the room of parts that have gone, is told what lies in it meanwhile, and hears what
// was lost.
class RoomOwner {
 public:
  virtual ~RoomOwner() = default;
  virtual void FreeRoom(const Part& part) = 0;
  // A record that was written, or whose write has ended, is dead.
  virtual void FreeRecord(const ColdPart& /*cold*/) {}
  // A block that could be found leaves DRAM for want of room and is not on NVMe.
  virtual void Lost(const Block& /*block*/) {}
  // The bytes of `part`, which is one of `block`, are all there from now on.
  virtual void PartCommitted(const Block& /*block*/, const Part& /*part*/) {}
  // `part` belongs to no block any more; its room is freed when its holds end.
  virtual void PartQuarantined(const Part& /*part*/) {}
};

class Residency {
 public:
  struct Options {
    uint32_t max_blocks = 1u << 16;
    uint64_t max_parts = 1u << 16;
    uint64_t max_cold_parts = 0;  // 0: there is no NVMe.
    uint64_t secret = 0;          // Of the process: nobody can choose keys that collide.
  };

  // Collaborators must outlive this. `cold_policy` orders NVMe, all in pool 0; required when there
  // may be cold parts.
  Residency(EvictionPolicy& policy, RoomOwner& room, const Options& options,
            EvictionPolicy* cold_policy = nullptr);

  // From now on tells `events` which blocks become findable, where they are, and which stop being
  // so; and `announcements` which blocks have gone. Null: there are none.
  void Observe(EventRing& events, Announcements* announcements = nullptr) {
    events_ = &events;
    announcements_ = announcements;
  }
  // As which event a block that is found would be told now, and is not.
  Event Describe(EventKind kind, BlockRef block) const;
  // Tells of a block that is found what it is announced by, if that came after its bytes.
  void TellAnnounced(BlockRef block);
  // Where events say that the block is; none: it is not found.
  TierSet tiers(BlockRef block) const;

  // Namespaces are numbered from 1 in the order of registration.
  NamespaceId AddNamespace(NamespaceShape shape);
  const NamespaceShape& shape(NamespaceId ns) const { return shapes_[ns]; }
  uint32_t namespaces() const { return static_cast<uint32_t>(shapes_.size() - 1); }

  // --- finding -----------------------------------------------------------------------------------

  const Block& block(BlockRef block) const { return blocks_[block]; }
  const Part& part(PartRef part) const { return parts_[part]; }
  const ColdPart& cold(ColdRef cold) const { return colds_[cold]; }

  // In any state; 0: unknown.
  BlockRef Find(NamespaceId ns, const ChainHash& key) const;

  struct Prefix {
    uint32_t blocks = 0;
    BlockRef deepest = 0;  // The last of them; 0 when there are none.
  };
  // The longest prefix of `keys` that is stored and that every group can serve. `parent`, when not
  // null, must be the parent of the first key.
  //
  // The length is searched, then confirmed by a keyed digest that every block carries of its whole
  // chain. Up to kExactBlocks keys the digest covers all of them: a list that is not a stored chain
  // gets the length up to where it leaves one. Of a longer list it covers a stretch of 1,024 that
  // the caller cannot predict, and a path of ancestors above and below it; a list that fails there
  // is compared key by key. Loading is exact in any case.
  Prefix LongestPrefix(NamespaceId ns, const KeyList& keys, const ChainHash* parent) const;
  static constexpr uint32_t kExactBlocks = 4096;

  // Like LongestPrefix() of the first found.size() keys, always key by key, and without asking what
  // the groups can serve; names the blocks. Returns how many.
  uint32_t Scan(NamespaceId ns, const KeyList& keys, const ChainHash* parent,
                absl::Span<BlockRef> found) const;

  // The part `id` of a block; 0: it has none.
  PartRef FindPart(BlockRef block, PartId id) const;
  ColdRef FindCold(BlockRef block, PartId id) const;

  // How many blocks of the prefix, from its start, DRAM alone can serve, if the tiers nest: cold
  // blocks above warm ones are not looked for. O(log depth).
  uint32_t WarmBlocks(const Prefix& prefix) const;
  // The first `blocks` of a prefix, or fewer: as many as every group can serve.
  Prefix Shorten(const Prefix& prefix, uint32_t blocks) const;
  // Whether DRAM alone, or NVMe alone, has all that the block has.
  bool InDram(BlockRef block) const { return InDram(blocks_[block]); }
  bool OnNvme(BlockRef block) const { return OnNvme(blocks_[block]); }
  // `block` or its nearest ancestor with cold parts, if the tiers nest; 0: none. O(log depth).
  BlockRef NearestCold(BlockRef block) const;

  // The ancestor of `block` at `depth`, or itself. Requires: it is at least that deep.
  BlockRef AncestorAt(BlockRef block, uint32_t depth) const;

  // --- growing -----------------------------------------------------------------------------------

  bool full() const { return free_block_ == 0; }

  // A new block in state kProducing below `parent` (0: a root), without parts: reserve one or
  // Abandon() it. Requires: !full(), unknown key, depth below kMaxChainDepth.
  BlockRef Add(NamespaceId ns, const ChainHash& key, BlockRef parent, uint64_t tick);

  // A new part, reserved. Requires: the block has no such part; !parts_full().
  PartRef AddPart(BlockRef block, PartId id, uint32_t region, uint32_t slot, uint32_t length,
                  uint32_t generation);
  uint64_t parts_left() const { return parts_.size() - 1 - counts_.parts; }
  bool parts_full() const { return free_part_ == 0 && parts_used_ + 1 >= parts_.size(); }

  // The bytes are there. Returns how many blocks became visible (with it, what was parked below).
  uint32_t CommitPart(PartRef part, uint32_t sum, uint64_t tick);

  // A new cold part, being written. Requires: the block has no such cold part; !colds_full().
  ColdRef AddCold(BlockRef block, PartId id, uint32_t length, uint32_t sum, uint32_t generation);
  bool colds_full() const { return free_cold_ == 0 && colds_used_ + 1 >= colds_.size(); }
  uint64_t colds_left() const { return colds_.size() - 1 - counts_.cold_parts; }
  // Where its record is, or was copied to.
  void MoveCold(ColdRef cold, RecordPlace place) { colds_[cold].place = place; }
  // The record is there. Returns how many blocks became visible, as CommitPart() does. One that was
  // given up meanwhile goes.
  uint32_t CommitCold(ColdRef cold, uint64_t tick);
  // The record is not there: its write failed, or did not begin. Requires: it is being written.
  void DropCold(ColdRef cold);

  // Gives a reserved part up. A block without any part stays in production: Abandon() it, unless
  // somebody else will produce it.
  void DropReserved(PartRef part);

  // Gives up a block in production that has no parts: what is parked below it is dropped, and it
  // stays as a stub only for what others produce or have stored below. Nothing happens to others.
  void Abandon(BlockRef block);

  // Gives up a parked block, and what is parked below it. Requires: state kParked.
  void DropParked(BlockRef block);

  // --- using -------------------------------------------------------------------------------------

  // The chain that ends at `block` was found.
  void Use(BlockRef block, uint64_t tick) {
    tick_ = tick;
    if (cold_policy_ == nullptr) {
      policy_.Use(block, tick);
    } else {
      UseInTiers(block, tick);
    }
  }
  uint64_t tick() const { return tick_; }  // Of the last use.
  void Lease(BlockRef block);
  void Unlease(BlockRef block);
  // False when the part has as many holds as can be counted.
  bool Hold(PartRef part);
  // A quarantined part goes with its last hold.
  void Unhold(PartRef part);
  // While a record is read it stays. False: as many read it as can be counted.
  bool BeginRead(ColdRef cold);
  void EndRead(ColdRef cold);

  // --- leaving -----------------------------------------------------------------------------------

  // Drops a block, its room and its records. Requires: removable().
  void Evict(BlockRef block, EvictReason reason = EvictReason::kPressure);
  // Nothing hangs below the block, and nobody leases, holds or produces it.
  bool removable(BlockRef block) const { return Removable(blocks_[block]); }

  // Drops the parts of a block from DRAM; one that is not on NVMe leaves altogether, for `reason`.
  // Requires: evictable(), which the policy of DRAM knows as well.
  void LeaveDram(BlockRef block, EvictReason reason = EvictReason::kPressure);
  bool evictable(BlockRef block) const { return blocks_[block].offered; }
  // The same of NVMe. Requires: it is offered to the policy of NVMe.
  void LeaveNvme(BlockRef block, EvictReason reason = EvictReason::kPressure);
  bool cold_evictable(BlockRef block) const { return blocks_[block].cold_offered; }

  // Lets the block of `pool`, or of any pool, leave DRAM that the policy names. False: none may.
  bool EvictNext(EvictionPolicy::Pool pool);
  bool EvictNext();
  // The policy's next of one pool, or of all pools; empty: none may leave.
  std::optional<EvictionPolicy::Victim> NextVictim(EvictionPolicy::Pool pool) const {
    return policy_.Next(pool);
  }
  std::optional<EvictionPolicy::Victim> NextVictim() const;
  // Lets the block leave NVMe that its policy names. False: none may.
  bool EvictNextCold();

  // The bytes of a part are damaged: where the other tier does not have the block, it becomes a
  // stub (or goes, if a leaf without leases); held room is quarantined. A damaged part of a window
  // or state only goes. Requires: committed.
  void MarkDamaged(PartRef part);
  // The same of a record. Requires: its block has not given it up.
  void MarkColdDamaged(ColdRef cold);
  // The same of a record that NVMe had no room to copy to; nothing is wrong with its bytes.
  void GiveUpCold(ColdRef cold);

  // --- counting ----------------------------------------------------------------------------------

  // Read by any thread; changed by one.
  struct Counts {
    SharedCount visible;
    SharedCount stubs;
    SharedCount used;  // In any state.
    SharedCount parts;
    SharedCount reserved_bytes;  // Of parts that are not committed yet.
    SharedCount quarantined_parts;
    SharedCount quarantined_bytes;
    SharedCount parked_dropped;  // Since start.
    SharedCount evicted;         // Blocks that left altogether, since start.
    SharedCount left_dram;       // Blocks that stayed on NVMe, since start.
    SharedCount left_nvme;       // Blocks that stayed in DRAM, since start.
    SharedCount cold_blocks;     // With cold parts.
    SharedCount cold_parts;      // In any state.
    SharedCount cold_bytes;      // Payload of committed cold parts.
    // The same by the tier that had the last copy, and payload there.
    struct Evicted {
      std::array<SharedCount, kEvictReasons> blocks;
      std::array<SharedCount, kEvictReasons> bytes;
    };
    std::array<Evicted, kTiers> evicted_from;
  };
  const Counts& counts() const { return counts_; }
  struct NamespaceUse {
    uint64_t visible = 0;
    uint64_t used = 0;        // In any state.
    uint64_t bytes = 0;       // Payload of committed parts, in DRAM ...
    uint64_t cold_bytes = 0;  // ... and on NVMe.
  };
  const NamespaceUse& use(NamespaceId ns) const { return uses_[ns]; }
  uint32_t max_blocks() const { return static_cast<uint32_t>(blocks_.size() - 1); }

  // Checks the blocks numbered [from, from + n): stranded ones and counts that do not add up.
  struct AuditResult {
    uint64_t blocks = 0;  // Visible.
    uint64_t stranded = 0;
    uint64_t errors = 0;
    const char* first_error = nullptr;
  };
  AuditResult Audit(uint32_t from, uint32_t n) const;

 private:
  struct Bucket {
    uint32_t tag = 0;
    BlockRef block = 0;
  };

  uint32_t Tag(NamespaceId ns, const ChainHash& key) const;
  uint64_t Digest(uint64_t above, const ChainHash& key) const;
  BlockRef FindTagged(uint32_t tag, NamespaceId ns, const ChainHash& key) const;
  void InsertBucket(uint32_t tag, BlockRef block);
  void EraseBucket(uint32_t tag, BlockRef block);

  bool VisibleAt(BlockRef block, uint32_t depth) const {
    return block != 0 && blocks_[block].state == BlockState::kVisible &&
           blocks_[block].depth == depth;
  }
  Prefix Search(NamespaceId ns, const KeyList& keys, BlockRef first) const;
  bool Confirm(const KeyList& keys, const Prefix& prefix, BlockRef first) const;
  BlockRef Climb(const KeyList& keys, uint32_t base, BlockRef from, uint32_t depth) const;
  bool ConfirmStretch(const KeyList& keys, uint32_t base, BlockRef from, BlockRef to) const;
  Prefix ExactPrefix(NamespaceId ns, const KeyList& keys, const ChainHash* parent) const;
  Prefix WalkBackToServable(Prefix prefix) const;

  void UseInTiers(BlockRef block, uint64_t tick);
  template <typename Wanted>
  BlockRef Nearest(BlockRef block, Wanted wanted) const;

  bool InDram(const Block& block) const {
    const uint16_t full = shapes_[block.ns].full_groups;
    return (block.complete_groups & full) == full &&
           (block.cold_groups & ~block.complete_groups) == 0;
  }
  bool OnNvme(const Block& block) const;
  bool MayLeaveDram(const Block& block) const;
  bool MayLeaveNvme(const Block& block) const;
  static bool Removable(const Block& block) {
    return block.state != BlockState::kFree && block.state != BlockState::kStub &&
           (block.first_part != 0 || block.first_cold != 0) && block.first_child == 0 &&
           block.leases == 0 && block.holds == 0 && block.reserved_parts == 0;
  }
  // Both tiers, or one of them.
  void UpdateOffers(BlockRef block);
  void UpdateOffer(BlockRef block);
  void UpdateColdOffer(BlockRef block);
  void WithdrawBoth(Block& block, BlockRef ref);
  void Order(BlockRef block);
  void Disorder(BlockRef block);
  bool Served(const Block& block) const {
    const uint16_t full = shapes_[block.ns].full_groups;
    return (block.served_groups() & full) == full;
  }
  uint32_t ShowIfServed(BlockRef block, uint64_t tick);
  void CountEvicted(BlockRef block, EvictReason reason);
  void CountEvicted(TierIndex tier, EvictReason reason, uint64_t bytes);
  void Show(BlockRef block, uint64_t tick);
  uint32_t ShowWithParked(BlockRef block, uint64_t tick);
  void UnlinkPart(Part& part, PartRef ref);
  void ReleasePart(PartRef ref);
  void WarmthChanged(BlockRef block, bool warm);
  void ColdnessChanged(BlockRef block, bool cold);
  void UnlinkCold(ColdRef ref);
  void ReleaseCold(ColdRef ref);
  void DropColds(BlockRef block);
  void LoseCold(ColdRef cold, EvictReason reason);
  void LoseGroup(BlockRef block, uint32_t group, TierIndex tier, uint32_t length,
                 EvictReason reason);
  void DropParts(BlockRef block);
  void DropParkedBelow(BlockRef block);
  void Remove(BlockRef block);
  void BecomeStubOrGo(BlockRef block);
  void SetGap(Block& block, bool gap);
  void Record(EventKind kind, BlockRef block, TierSet where, EventReason why = EventReason::kNone);
  void RecordMove(BlockRef block);

  EvictionPolicy& policy_;
  EvictionPolicy* const cold_policy_;  // Null: there is no NVMe.
  RoomOwner& room_;
  EventRing* events_ = nullptr;
  Announcements* announcements_ = nullptr;
  const uint64_t secret_;
  std::array<uint64_t, 4> digest_secret_;
  const uint32_t bucket_mask_;

  MappedArray<Block> blocks_;    // [0] is unused.
  MappedArray<Part> parts_;      // [0] is unused; pages are touched by use.
  MappedArray<ColdPart> colds_;  // [0] is unused.
  MappedArray<Bucket>
      buckets_;  // Linear probing; at most half full, so no tombstones and no growth.
  std::vector<NamespaceShape> shapes_;
  // By namespace, blocks with `gap`: while it has any, presence is not monotone there, and lookups
  // go key by key. Those of others do not.
  std::vector<uint64_t> gaps_;
  std::vector<NamespaceUse> uses_;  // By namespace.
  EvictionPolicy::Pool pools_ = 0;  // Pools in use count from 0.
  BlockRef free_block_ = 0;         // Chained by next_sibling.
  PartRef free_part_ = 0;           // Chained by next.
  uint64_t parts_used_ = 0;         // Numbers handed out at least once.
  ColdRef free_cold_ = 0;           // Chained by next.
  uint64_t colds_used_ = 0;
  uint64_t tick_ = 0;           // Of the last use.
  mutable uint64_t path_bits_;  // Where the stretch of Confirm() lies.
  Counts counts_;
};

}  // namespace kvd
