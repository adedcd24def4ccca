// The one index: which blocks are known, how they hang together, where their parts lie, and what
// keeps them from leaving.
//
// It is a forest of blocks over a hash table. Its invariant is prefix closure: a block can be found
// only if its parent can be found, or is a stub. Blocks enter below their parents, and only leaves
// leave. So the longest stored prefix of n keys takes about log2 n probes, and a lease on the
// deepest block keeps its whole chain at the cost of one count.
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
#include "policy/eviction.h"
#include "proto/types/block.h"
#include "proto/types/host_memory.h"
#include "proto/types/shared_count.h"

namespace kvd {

using BlockRef = uint32_t;  // Number of a block; 0: none. Reused after the block has gone.
using PartRef = uint32_t;   // Number of a part; 0: none.

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
};
inline constexpr size_t kEvictReasons = 4;

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
  uint32_t depth = 0;            // 0 at the root.
  uint64_t digest = 0;           // Of the keys from the root to here, under a secret.
  uint32_t leases = 0;           // Leases, pins and reservations that end exactly here.
  uint32_t holds = 0;            // On its parts.
  uint16_t complete_groups = 0;  // Bit g: every shard of group g is committed.
  uint16_t reserved_parts = 0;   // Not committed yet.
  BlockState state = BlockState::kFree;
  bool offered = false;  // To the policy.
  bool gap = false;      // Was seen and is not now: visible blocks may hang below.
};
static_assert(sizeof(Block) == 88);

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

// Takes back the room of parts that have gone, and is told what lies in it meanwhile.
class RoomOwner {
 public:
  virtual ~RoomOwner() = default;
  virtual void FreeRoom(const Part& part) = 0;
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
    uint64_t secret = 0;  // Of the process: nobody can choose keys that collide.
  };

  // Collaborators must outlive this.
  Residency(EvictionPolicy& policy, RoomOwner& room, const Options& options);

  // From now on tells `events` which blocks become findable, and which stop being so.
  void Observe(EventRing& events) { events_ = &events; }

  // Namespaces are numbered from 1 in the order of registration.
  NamespaceId AddNamespace(NamespaceShape shape);
  const NamespaceShape& shape(NamespaceId ns) const { return shapes_[ns]; }
  uint32_t namespaces() const { return static_cast<uint32_t>(shapes_.size() - 1); }

  // --- finding -----------------------------------------------------------------------------------

  const Block& block(BlockRef block) const { return blocks_[block]; }
  const Part& part(PartRef part) const { return parts_[part]; }

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

  // Gives a reserved part up. A block without any part stays in production: Abandon() it, unless
  // somebody else will produce it.
  void DropReserved(PartRef part);

  // Gives up a block in production that has no parts: what is parked below it is dropped, and it
  // stays as a stub only for what others produce or have stored below. Nothing happens to others.
  void Abandon(BlockRef block);

  // Gives up a parked block, and what is parked below it. Requires: state kParked.
  void DropParked(BlockRef block);

  // --- using -------------------------------------------------------------------------------------

  void Use(BlockRef block, uint64_t tick) { policy_.Use(block, tick); }
  void Lease(BlockRef block);
  void Unlease(BlockRef block);
  // False when the part has as many holds as can be counted.
  bool Hold(PartRef part);
  // A quarantined part goes with its last hold.
  void Unhold(PartRef part);

  // --- leaving -----------------------------------------------------------------------------------

  // Drops a block and its room. Requires: it may leave (it is offered to the policy).
  void Evict(BlockRef block, EvictReason reason = EvictReason::kPressure);
  bool evictable(BlockRef block) const { return blocks_[block].offered; }

  // Evicts the block of `pool`, or of any pool, that the policy names. False: none may leave.
  bool EvictNext(EvictionPolicy::Pool pool);
  bool EvictNext();
  // The policy's next of one pool, or of all pools; empty: none may leave.
  std::optional<EvictionPolicy::Victim> NextVictim(EvictionPolicy::Pool pool) const {
    return policy_.Next(pool);
  }
  std::optional<EvictionPolicy::Victim> NextVictim() const;

  // The bytes of a part are damaged: its block becomes a stub (or goes, if a leaf without leases);
  // held room is quarantined. A damaged part of a window or state only goes. Requires: committed.
  void MarkDamaged(PartRef part);

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
    SharedCount evicted;         // Blocks, since start.
    std::array<SharedCount, kEvictReasons> evicted_for;
    std::array<SharedCount, kEvictReasons> evicted_bytes_for;
  };
  const Counts& counts() const { return counts_; }
  struct NamespaceUse {
    uint64_t visible = 0;
    uint64_t used = 0;   // In any state.
    uint64_t bytes = 0;  // Payload of committed parts.
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

  void UpdateOffer(BlockRef block);
  void Show(BlockRef block, uint64_t tick);
  uint32_t ShowWithParked(BlockRef block, uint64_t tick);
  void UnlinkPart(Part& part, PartRef ref);
  void ReleasePart(PartRef ref);
  void DropParts(BlockRef block);
  void DropParkedBelow(BlockRef block);
  void Remove(BlockRef block);
  void BecomeStubOrGo(BlockRef block);
  void SetGap(Block& block, bool gap);
  void Record(EventKind kind, BlockRef block, EventReason why = EventReason::kNone) const;

  EvictionPolicy& policy_;
  RoomOwner& room_;
  EventRing* events_ = nullptr;
  const uint64_t secret_;
  std::array<uint64_t, 4> digest_secret_;
  const uint32_t bucket_mask_;

  MappedArray<Block> blocks_;  // [0] is unused.
  MappedArray<Part> parts_;    // [0] is unused; pages are touched by use.
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
  mutable uint64_t path_bits_;      // Where the stretch of Confirm() lies.
  Counts counts_;
};

}  // namespace kvd
