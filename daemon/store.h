// Blocks with room: the index and the arena together, and how room is made.
//
// Eviction happens here and only here, at admission, never by a timer: a reservation that finds no
// index entry or no slot evicts what the policy names, until it has room or nothing may leave. A
// slot size without room of its own takes the region that eviction empties cheapest.
//
// With NVMe (daemon/movement.h) what leaves DRAM may stay there; a reservation that finds no room
// does not wait for it.
//
// Threads: one, the control thread.

#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <vector>

#include "daemon/residency.h"
#include "policy/eviction.h"
#include "tiers/arena.h"

namespace kvd {

// Told what lies in the arena's room, so that a process that comes after this one finds it.
class RoomObserver {
 public:
  virtual ~RoomObserver() = default;
  // `parent`: null for a root.
  virtual void PartCommitted(const Block& block, const ChainHash* parent, const Part& part) = 0;
  virtual void PartQuarantined(const Part& part) = 0;
  virtual void RoomFreed(const Part& part) = 0;  // Before it can be taken again.
};

class Store final : private RoomOwner {
 public:
  // Asks for a new region for another domain, to replace `region`; the answer comes by
  // arena().FinishRenewal() or CancelRenewal() later.
  using Renew = std::function<void(uint32_t region, uint64_t bytes)>;

  // Hears what goes, where there is NVMe.
  class Listener {
   public:
    virtual ~Listener() = default;
    // A record is dead.
    virtual void FreeRecord(const ColdPart& cold) = 0;
    // A block that could be found leaves for want of room in DRAM, and is not on NVMe.
    virtual void Lost(const Block& block) = 0;
    // A reservation finds nothing that may leave: lets go of something that is kept for a move.
    // False: there is nothing.
    virtual bool GiveWay() = 0;
  };

  // `cold_policy` orders NVMe; null: there is none.
  Store(EvictionPolicy& policy, Arena& arena, const Residency::Options& options, Renew renew,
        EvictionPolicy* cold_policy = nullptr);
  void Listen(Listener* listener) { listener_ = listener; }

  // From now on tells `observer`, which must outlive this.
  void Observe(RoomObserver& observer) { observer_ = &observer; }

  Residency& residency() { return residency_; }
  const Residency& residency() const { return residency_; }
  Arena& arena() { return arena_; }
  const Arena& arena() const { return arena_; }

  // Makes sure that one block can be added. False: the index is full and nothing may leave.
  bool MakeIndexRoom();

  enum class MayLeave : uint8_t {
    kAnything,
    kCopies,  // Blocks of which NVMe has all: nothing is lost.
  };
  // Adds a reserved part to a block, with room. 0: no room, and nothing that may leave helps now.
  // The block itself never leaves for it: it has a part in production, or a lease.
  PartRef TakePart(BlockRef block, PartId id, uint32_t part_bytes,
                   MayLeave may_leave = MayLeave::kAnything);

  std::byte* Address(const Part& part) const { return arena_.Address(part.region, part.slot); }

  // Has new memory made for regions that nothing came back to after a restart.
  void RenewInherited();

  uint64_t regions_emptied() const { return regions_emptied_; }  // Any thread.

  // The slots that blocks of a pool were given last, before a restart or since.
  struct Layout {
    DomainId domain = 0;
    uint32_t slot_bytes = 0;  // 0: none were.
  };
  const Layout& layout(EvictionPolicy::Pool pool) const { return layouts_[pool]; }
  void SetLayout(EvictionPolicy::Pool pool, const Layout& layout) { layouts_[pool] = layout; }
  // Bytes of such slots that a reservation could have without making room. O(regions).
  uint64_t RoomFor(const Layout& layout) const;

 private:
  void FreeRecord(const ColdPart& cold) override {
    if (listener_ != nullptr) listener_->FreeRecord(cold);
  }
  void Lost(const Block& block) override {
    if (listener_ != nullptr) listener_->Lost(block);
  }
  BlockRef WarmChild(BlockRef block) const;
  void FreeRoom(const Part& part) override;
  void PartCommitted(const Block& block, const Part& part) override;
  void PartQuarantined(const Part& part) override;
  std::optional<Arena::Room> FindRoom(const NamespaceShape& shape, uint32_t slot_bytes);
  std::optional<Arena::Room> FindRoomOfCopies(const NamespaceShape& shape, uint32_t slot_bytes);
  bool Helps(BlockRef block, DomainId domain, uint32_t slot_bytes) const;
  bool GiveWay() { return listener_ != nullptr && listener_->GiveWay(); }
  bool EvictNeighbour(DomainId domain, uint32_t slot_bytes);
  bool EmptyARegion(DomainId domain, uint32_t slot_bytes);
  bool RenewARegion(DomainId domain);
  bool EmptyRegion(uint32_t region);

  Arena& arena_;
  Residency residency_;
  Renew renew_;
  Listener* listener_ = nullptr;
  std::array<Layout, EvictionPolicy::kMaxPools> layouts_{};
  RoomObserver* observer_ = nullptr;
  SharedCount regions_emptied_;
  std::vector<uint32_t> in_the_way_;  // By region: a slot that kept it from being emptied.
  // By pool: blocks evicted although another pool had an older one, since it last took a region.
  std::array<uint32_t, EvictionPolicy::kMaxPools> younger_evicted_{};
};

}  // namespace kvd
