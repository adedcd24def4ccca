// What moves between DRAM and NVMe, and when: the control thread's side of the tier.
//
// Demotion keeps a little room free in DRAM, for each pool that has blocks, so that puts do not
// wait for the disk: the policy's next victims leave ahead. One that is on NVMe leaves at once; one
// that admission declines leaves altogether; of an admitted one the chain is written from the root,
// as far as it is not there yet, and it leaves when its record is. Who finds no room all the same
// evicts, and what was not on NVMe is lost and counted: then demotion is behind.
//
// A block that is in DRAM alone above others that are on NVMe, as after damage, is no victim: what
// is below it would be lost. It is written as soon as that is seen, whatever admission says: it
// said so of what is below. Then it may leave like any other.
//
// Promotion takes room in DRAM and reads into it, once for all who wait for the block. It pushes
// out copies of what NVMe has; for what it has not, it waits until that is written. Who waits, and
// for how long, is daemon/control.h's.
//
// What was read and is damaged, or cannot be read though the device works, is told to the listener,
// and the block falls back to DRAM's copy or becomes a stub.
//
// Threads: one, the control thread. Nothing blocks; work of one turn is bounded.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "daemon/metrics.h"
#include "daemon/residency.h"
#include "daemon/store.h"
#include "policy/admission.h"
#include "proto/types/clock.h"
#include "tiers/nvme_tier.h"

namespace kvd {

class Movement final : private NvmeTier::Owner, private Store::Listener {
 public:
  struct Options {
    // Room that is kept free in DRAM: a share of it, and not more than so much.
    uint32_t free_share = 16;
    uint64_t free_bytes_max = 256u << 20;
    uint64_t demotion_bytes = 64u << 20;    // On their way to NVMe; at most an eighth of DRAM.
    uint64_t promotion_bytes = 256u << 20;  // On their way from it; at most a quarter of DRAM.
    uint64_t prefetch_bytes = 64u << 20;    // Of those, for whom nobody waits yet.
    Nanos write_patience = 5 * kSecond;     // For the tier to take a chain, before it is given up.
    uint32_t victims_per_turn = 64;
  };

  class Listener {
   public:
    virtual ~Listener() = default;
    // A promotion has ended. Not `arrived`: the block is not in DRAM.
    virtual void Landed(BlockRef block, bool arrived) = 0;
    // Something has left DRAM, or will not: who was told kBusy may try again.
    virtual void RoomMade() = 0;
    // A record turned out to be damaged; it is given up right after this.
    enum class Finder : uint8_t { kRead, kCheck, kReclaim };
    virtual void RecordDamaged(const Block& block, const ColdPart& cold, Finder finder) = 0;
    // A check has ended.
    virtual void RecordChecked(ColdRef cold, NvmeOutcome outcome) = 0;
  };

  // Collaborators must outlive this, and the tier must have ended its jobs before this goes.
  Movement(Store& store, NvmeTier& tier, AdmissionPolicy& admission, const Clock& clock,
           Listener& listener, MovementCounters& counters, const Options& options);
  ~Movement() override;

  // What the tier is to tell: the owner of its records.
  NvmeTier::Owner& owner() { return *this; }

  // Blocks of `ns` are stored under this scope. 0: not at all.
  void SetScope(NamespaceId ns, ScopeNumber scope);
  // Makes what media have of `ns` dead for good. Requires: it has no blocks.
  void PurgeScope(NamespaceId ns);
  ScopeNumber scope(NamespaceId ns) const { return ns < scopes_.size() ? scopes_[ns] : 0; }

  // Lets the tier run, takes in what has ended, lets victims leave and starts what is due. `asked`:
  // who waited for what has landed has had a turn of its own since; until then it stays.
  void Turn(Nanos now, bool asked = true);
  Nanos NextDeadline() const;

  enum class Fetch : uint8_t {
    kThere,     // All of the block that can be had is in DRAM.
    kUnderWay,  // The listener will be told.
    kBusy,  // As much is on its way as may be, or has to leave first; the listener is told when.
    kNo,    // No room in DRAM, or no tier that can be read.
  };
  // Brings what NVMe has of a visible block and DRAM has not. `deadline` is the caller's.
  Fetch Promote(BlockRef block, Nanos deadline) { return Begin(block, deadline); }
  bool promoting(BlockRef block) const { return promotions_.contains(block); }
  // The same, for the blocks of a prefix from number `from` on, as far as that may go now: nobody
  // waits for them yet.
  void Prefetch(const Residency::Prefix& prefix, uint32_t from);

  enum class Leave : uint8_t {
    kLeft,      // It is not in DRAM any more.
    kUnderWay,  // It is being written; evictable() again when that has ended, and then on NVMe.
    kBusy,      // As much is on its way as may be.
  };
  // Lets a block leave DRAM because an operator wants it empty: to NVMe, if admission wants it and
  // the tier takes writes. Requires: it is evictable.
  Leave LetLeave(BlockRef block, Nanos now);

  // Reads a record to look at it; the listener is told. False: not now. Requires: it is there.
  bool Check(ColdRef cold);

  // A block was stored by somebody, for the admission policy.
  void Stored(BlockRef block);

  // Moves under way, or due: 0 when nothing moves until the next call.
  uint64_t moves() const { return jobs_.size() + promotions_.size() + behind_; }
  const NvmeTier& tier() const { return tier_; }
  NvmeTier& tier() { return tier_; }
  const AdmissionPolicy& admission() const { return admission_; }

 private:
  // A victim whose chain is being written. It is leased, and its parts are held.
  struct Job {
    BlockRef victim = 0;      // 0: let go of.
    uint32_t next_depth = 0;  // Of the chain, to be written.
    uint32_t writing = 0;     // Records.
    bool failed = false;
    Nanos deadline = 0;
    uint64_t bytes = 0;  // Of the victim.
    std::vector<PartRef> held;
  };
  using JobPtr = std::list<Job>::iterator;
  // A block on its way to DRAM. It is leased.
  struct Promotion {
    uint32_t parts = 0;  // Not ended yet.
    bool failed = false;
    uint64_t bytes = 0;
    Nanos deadline = 0;
  };
  // One job of the tier's; its tag is its number.
  struct Op {
    enum class Kind : uint8_t { kFree, kWrite, kRead, kCheck };
    Kind kind = Kind::kFree;
    PartRef part = 0;
    ColdRef cold = 0;
    BlockRef block = 0;
    uint32_t length = 0;
    JobPtr job;
    std::unique_ptr<std::byte, void (*)(void*)> buffer{nullptr, std::free};  // Of a check.
  };
  struct Read {  // Not taken by the tier yet.
    BlockRef block = 0;
    PartRef part = 0;
    ColdRef cold = 0;
  };
  // What the tier told during Poll(), in order; taken in after it.
  struct Told {
    uint32_t number = 0;  // Of an op, or of a cold part that is lost.
    NvmeOutcome outcome = NvmeOutcome::kOk;
    bool lost = false;
  };

  void NvmeEnded(const NvmeTier::Completion& completion) override;
  void NvmeMoved(uint32_t occupant, RecordPlace to) override;
  void NvmeLost(uint32_t occupant, NvmeOutcome outcome) override;
  void FreeRecord(const ColdPart& cold) override;
  void Lost(const Block& block) override;
  bool GiveWay() override;

  uint32_t NewOp(Op op);
  void EndWrite(const Op& op, NvmeOutcome outcome);
  void EndRead(const Op& op, NvmeOutcome outcome);
  void EndCheck(const Op& op, NvmeOutcome outcome);
  bool IsDamage(NvmeOutcome outcome) const;
  void Damaged(ColdRef cold, Listener::Finder finder);
  void ForgetOp(uint32_t tag);
  void EndPromotionPart(BlockRef block, bool arrived);
  RecordInfo InfoOf(const ColdPart& cold) const;

  uint64_t FreeTarget() const;
  uint64_t WritingMost() const;
  bool WantsRoom() const;
  bool WantsRoom(EvictionPolicy::Pool pool) const;
  bool MayBeginJob() const;
  void MakeRoomAhead(Nanos now);
  bool MakeRoomInPool(EvictionPolicy::Pool pool, uint32_t& victims, Nanos now);
  bool Demote(BlockRef victim, Nanos now, EvictReason reason = EvictReason::kPressure);
  void BeginJob(BlockRef victim, Nanos now);
  bool IsBridge(BlockRef block) const;
  void NoteBridge(BlockRef block);
  void LookForBridges(Nanos now);
  void WriteBridges(Nanos now);
  void LetGo(BlockRef victim, EvictReason reason);
  bool Admitted(BlockRef victim, Nanos now);
  bool WriteJobs(Nanos now);
  bool WriteChain(JobPtr job);
  bool WriteBlock(JobPtr job, BlockRef block, bool& wrote);
  bool WritePart(JobPtr job, BlockRef block, PartRef part);
  bool MakeNvmeRoom(uint32_t length);
  bool Written(const Job& job) const;
  void LetGoOf(Job& job);
  void EndJob(JobPtr job);
  Fetch Begin(BlockRef block, Nanos deadline);
  bool RoomIsComing() const;
  PartRef TakeRoom(BlockRef block, const ColdPart& record);
  void Undo(BlockRef block, size_t first_read);
  void SubmitReads();

  Store& store_;
  Residency& residency_;
  NvmeTier& tier_;
  AdmissionPolicy& admission_;
  const Clock& clock_;
  Listener& listener_;
  MovementCounters& counters_;
  const Options options_;

  std::vector<ScopeNumber> scopes_;  // By namespace.
  std::vector<Op> ops_;              // By tag.
  std::vector<uint32_t> free_ops_;
  std::vector<Told> told_;
  std::vector<Told> taking_in_;  // Scratch of Turn().

  std::list<Job> jobs_;         // Oldest first.
  uint64_t leaving_bytes_ = 0;  // Of the victims of jobs_.
  uint64_t writing_bytes_ = 0;
  bool declining_ = false;                     // What is lost now, admission has declined.
  uint64_t behind_ = 0;                        // 1: more victims are due than one turn may take.
  uint64_t reserved_when_roomy_ = UINT64_MAX;  // Of the arena, when every pool had room.

  // In DRAM alone, above what is on NVMe; may be another block by now. What it has no room for, or
  // what could not be written, is looked for when nothing else may leave.
  std::deque<BlockRef> bridges_;
  bool no_victims_ = false;      // Room is wanted, and nothing may leave.
  uint32_t next_looked_at_ = 1;  // The block.
  Nanos look_at_ = INT64_MAX;    // When to go on looking.

  absl::flat_hash_map<BlockRef, Promotion> promotions_;
  std::deque<Read> reads_;
  uint64_t promoting_bytes_ = 0;
  // Held until who waited for them has been asked and takes them: or the room that is made ahead
  // would be theirs, and they would have to be read again, and again.
  std::vector<PartRef> landed_;
};

}  // namespace kvd
