// The control thread's mind: sessions, namespaces, and what every call means for index, leases,
// holds and reservations. It decides and counts; it never touches payload, never blocks, and is
// told the time, so it runs unchanged under a manual clock and fake movers.
//
// The life of a call: `service.cc` fills a struct of requests.h and calls the verb; kMore and kWait
// ask to be called again (see there). Errors are those of kvd.proto.
//
// What operators ask (admin.proto) is in control_admin.cc: each function there is one turn of some
// 50 us at most; who wants more calls again with the cursor that the last call gave.
//
// Threads: one, the control thread. Other threads post to the Inbox.

#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "daemon/announcements.h"
#include "daemon/arena_record.h"
#include "daemon/events.h"
#include "daemon/fill_board.h"
#include "daemon/hold_table.h"
#include "daemon/inbox.h"
#include "daemon/lease_table.h"
#include "daemon/metrics.h"
#include "daemon/movement.h"
#include "daemon/mover.h"
#include "daemon/operator.h"
#include "daemon/quarantine.h"
#include "daemon/requests.h"
#include "daemon/scrubber.h"
#include "daemon/store.h"
#include "proto/types/clock.h"
#include "proto/types/namespace_descriptor.h"
#include "proto/types/packed.h"
#include "proto/types/thread_role.h"

namespace kvd {

// What the sessions of one domain have together, and what was done for them since start.
struct DomainUse {
  TenantCounters* tenant = nullptr;  // The same for monitors, who share one beyond some tenants.
  uint32_t sessions = 0;             // Whose socket is open.
  uint32_t leases = 0;
  uint32_t holds = 0;
  uint32_t extents = 0;
  uint32_t reservations = 0;
  uint32_t namespaces = 0;
  uint32_t layouts = 0;
  uint32_t pins = 0;
  uint64_t lookups = 0;
  uint64_t lookup_blocks = 0;  // Asked for, ...
  uint64_t hit_blocks = 0;     // ... and found.
  uint64_t committed_blocks = 0;
  uint64_t rejected_blocks = 0;  // Reserve found no room.
  uint32_t calls = 0;            // Under way; the front end's.
};

class Control : private Movement::Listener {
 public:
  struct Options {
    uint32_t max_leases = 1u << 16;
    uint32_t session_leases = 1u << 14;
    HoldTable::Options holds;
    uint64_t session_hold_bytes = 0;  // 0: a quarter of the arena.
    uint32_t max_reservations = 1024;
    uint32_t session_reservations = 64;
    uint32_t max_waiters = 256;       // Of reservations, ...
    uint32_t max_load_waiters = 256;  // ... and of loads,
    uint32_t block_waiters = 64;      // of those, for one block.
    uint32_t domain_load_waiters = 128;
    Movement::Options movement;
    Scrubber::Options scrubber;
    // Told of everything that is found damaged, once. May be empty.
    std::function<void(const Quarantined&)> damage_found;
    uint32_t max_namespaces = 1024;
    uint32_t max_pins = 4096;
    // Of one domain, so that a tenant who uses up what it may leaves something to the others.
    uint32_t domain_leases = 1u << 15;
    uint32_t domain_holds = 1u << 15;
    uint32_t domain_extents = 1u << 19;  // Under holds.
    uint32_t domain_reservations = 512;
    uint32_t domain_waiters = 128;
    uint32_t domain_namespaces = 512;
    uint32_t domain_layouts = EvictionPolicy::kMaxPools / 2;
    uint32_t domain_pins = 2048;
    Nanos reservation_life = 30 * kSecond;
    double load_bytes_per_us = 10000;  // Measured: what a client's verified copy reaches.
    uint32_t slice_blocks = 128;       // Of one call, before others have their turn, ...
    uint32_t slice_extents = 512;      // ... or fewer, to name no more than so many parts.
    // Attribute lookups to tenants, and their lengths to histograms.
    bool count_operations = true;
    // Told when a session is over: ended, and nothing is held under it. May be empty.
    std::function<void(uint32_t serial)> session_over;
    // Told once, when a drain that ends the daemon is over. May be empty.
    std::function<void()> drained;
    uint32_t events = EventRing::kDefaultCapacity;  // That are remembered; a power of two.
    uint64_t announce_bytes = uint64_t{64} << 20;   // Of announcements that are kept.
    ArenaRecord* record = nullptr;  // Of an arena that outlives us; null: it does not.
  };

  // Collaborators must outlive this.
  Control(Store& store, FillBoard& board, Mover& mover, Inbox& inbox, const Clock& clock,
          const Options& options);

  ~Control() override;

  // From now on blocks leave DRAM for `tier`, as `admission` wants it, and come back. Before the
  // first call; collaborators must outlive this, and the tier must have ended its jobs before this
  // goes. `domain_name` is what media know a domain by.
  void AttachNvme(NvmeTier& tier, AdmissionPolicy& admission,
                  std::function<std::string(DomainId)> domain_name);
  // Null: there is no NVMe.
  Movement* movement() { return movement_.get(); }
  const Movement* movement() const { return movement_.get(); }

  // --- calls (kvd.proto says what they mean) -----------------------------------------------------

  struct RegisteredNamespace {
    NamespaceId id = 0;
    std::array<uint8_t, 16> fingerprint{};
    bool created = false;
  };
  absl::StatusOr<RegisteredNamespace> RegisterNamespace(std::string_view session,
                                                        const NamespaceDescriptor& descriptor);
  // The same for a domain of which nobody has come yet: what a restart found of it.
  absl::StatusOr<RegisteredNamespace> RestoreNamespace(DomainId domain,
                                                       const NamespaceDescriptor& descriptor);
  uint64_t NextTick() { return ++tick_; }  // For what is restored, in the order of its age.
  // A process of before has ended, by the number of its session (arena_record.h).
  void FormerReaderEnded(uint32_t number) { options_.record->ReaderEnded(number); }

  absl::StatusOr<Step> Lookup(LookupCall& call);
  absl::StatusOr<Step> Load(LoadCall& call);
  absl::StatusOr<uint32_t> Release(std::string_view session, const ReleaseList& releases);
  absl::StatusOr<Step> Reserve(ReserveCall& call);
  absl::StatusOr<Step> Commit(CommitCall& call);
  absl::Status Abort(std::string_view session, uint64_t reservation_id);
  absl::Status Pin(PinCall& call);
  absl::Status Unpin(std::string_view session, LeaseId pin_id);
  absl::Status CheckSession(std::string_view session);
  // Counts the calls under way of the domain of `session`, for the front end, which keeps it. Calls
  // that name no living session share one. Good as long as this.
  uint32_t& CallsUnderWay(std::string_view session);

  // --- the loop ----------------------------------------------------------------------------------

  // Takes in what other threads posted, and ends what has had its time.
  void Poll();
  // When Poll() was called last: what came in with it arrived then, near enough, and it costs no
  // second look at the clock.
  Nanos polled_at() const { return polled_at_; }
  // The next waiting call that can go on; null: none.
  Resumable* NextReady();
  // Ends all waits, and those of calls to come: they answer with what there is.
  void EndWaits();
  // When Poll() has something to do at the latest; INT64_MAX: nothing is due.
  Nanos NextDeadline() const;

  // --- draining ----------------------------------------------------------------------------------

  // From now on no new lease, hold, pin or reservation: kUnavailable. What is under way goes on,
  // and lookups without a lease are answered. To exit, calls that wait end now, and
  // Options::drained is called when nothing is left that is waited for, or after `patience`:
  // kExit waits for holds and reservations, kExitPromptly for holds and for copies under way,
  // neither for leases and pins. A later call replaces how the daemon ends, but for kStay.
  enum class DrainEnd : uint8_t { kStay, kExit, kExitPromptly };
  DrainProgress Drain(DrainEnd end, Nanos patience);
  // kFailedPrecondition: too late, the daemon ends already.
  absl::Status Undrain();
  bool draining() const { return draining_.load(std::memory_order_relaxed); }  // Any thread.

  // --- the operator's verbs (admin.proto says what they mean) ------------------------------------

  // One turn each: appends rows from index `from` on (1: from the start) and returns where the next
  // turn goes on; 0: that was all.
  uint32_t ListSessions(uint32_t from, std::vector<SessionRow>& rows) const;
  uint32_t ListLeases(uint32_t from, size_t most, std::vector<LeaseRow>& rows) const;
  uint32_t ListNamespaces(uint32_t from, std::vector<NamespaceRow>& rows) const;
  uint32_t ListBlocks(const BlockFilter& filter, uint32_t from, size_t most,
                      std::vector<BlockRow>& rows) const;
  // The blocks of whole key filter.key_prefix, found without a walk: one in a namespace.
  uint32_t FindBlocks(const BlockFilter& filter, uint32_t from, size_t most,
                      std::vector<BlockRow>& rows) const;
  std::vector<DomainRow> ListDomains() const;

  absl::Status PinChain(OperatorPin& pin);
  absl::Status UnpinChain(LeaseId pin_id);

  absl::StatusOr<Sweep> BeginEvict(NamespaceId ns, std::string_view key) const;
  absl::StatusOr<Sweep> BeginDrop(NamespaceId ns) const;
  // kNotFound: there is no such tier.
  absl::StatusOr<Sweep> BeginFlush(TierIndex tier) const;
  // One turn. True: it is done; a namespace whose last block has left is dropped then.
  bool Continue(Sweep& sweep);

  // Checks the chain that ends at `key`, or, without one, all blocks of `ns` (0: of all), against
  // their sums. Continue with the answer, a turn each, until it is done.
  absl::StatusOr<Scrubber::RunId> BeginVerify(NamespaceId ns, std::string_view key);
  absl::StatusOr<Scrubber::Progress> ContinueVerify(Scrubber::RunId run);
  // What was found damaged lately.
  const QuarantineList& quarantine() const { return quarantine_; }
  const Scrubber& scrubber() const { return scrubber_; }
  // Of the walk in the background, from now on; 0: there is none.
  void SetScrubBandwidth(uint64_t bytes_per_second);

  void ConfigReloaded();  // What is live in the configuration has changed; for the events.

  EventRing& events() { return event_ring_; }
  const EventRing& events() const { return event_ring_; }
  const Announcements& announcements() const { return announcements_; }

  // --- following (residency_follower.h) ----------------------------------------------------------

  // Up to `most` events from `from` on, or from the oldest that is known; of blocks that are still
  // known with what they are announced by.
  struct FollowedEvent {
    Event event;
    uint8_t key_bytes = 0;
    AnnouncementPtr announcement;  // Null: there is none, or the block has gone.
  };
  struct FollowedBatch {
    uint64_t first = 0;  // Number of the first event; beyond what was asked for: a gap.
    std::vector<FollowedEvent> events;
  };
  FollowedBatch FollowEvents(uint64_t from, size_t most) const;
  // What can be found among the blocks numbered from `from` on (1: from the start), a turn's worth,
  // as events kStored that bring nothing new. Returns where the next turn goes on; 0: that was all.
  uint32_t FollowBlocks(uint32_t from, std::vector<FollowedEvent>& found) const;

  Nanos now() const { return clock_.Now(); }

  // --- looking -----------------------------------------------------------------------------------

  const ControlCounters& counters() const { return counters_; }
  const ControlMetrics& metrics() const { return metrics_; }  // Any thread.
  std::vector<std::pair<std::string, uint64_t>> Counters() const;
  const Store& store() const { return store_; }
  // Bytes of one key of a namespace, also of one that was dropped. Requires: it was registered.
  uint32_t hash_bytes(NamespaceId ns) const { return namespaces_[ns].descriptor.hash_bytes; }
  // The same.
  const NamespaceDescriptor& descriptor(NamespaceId ns) const { return namespaces_[ns].descriptor; }
  uint32_t sessions() const { return static_cast<uint32_t>(by_token_.size()); }
  uint32_t leases() const { return leases_.size() - pins(); }
  uint32_t pins() const { return static_cast<uint32_t>(pins_.size()); }
  uint32_t namespaces() const { return static_cast<uint32_t>(namespace_ids_.size()); }
  const HoldTable& holds() const { return holds_; }
  uint32_t reservations() const { return static_cast<uint32_t>(reservations_.size()); }
  // Every domain that ever came.
  const std::map<DomainId, DomainUse>& domain_uses() const { return uses_; }

 private:
  struct NamespaceInfo {
    DomainId domain = 0;
    NamespaceDescriptor descriptor;
    std::vector<PartId> parts;
    std::vector<uint32_t> group_part_bytes;
    std::vector<uint32_t> slots;  // Sizes, of its pool.
    uint64_t block_bytes = 0;
    bool dropped = false;  // Its number is never used again.
  };
  struct Pool {
    EvictionPolicy::Pool number = 0;
    uint32_t namespaces = 0;
  };
  struct Session {
    DomainUse* use = nullptr;
    uint32_t serial = 0;
    uint32_t index = 0;  // Dense; for the tables.
    SessionToken token{};
    DomainId domain = 0;
    uid_t uid = 0;
    pid_t pid = 0;
    Nanos opened = 0;
    std::shared_ptr<const StagedBytes> staging;
    uint32_t reservations = 0;
    uint32_t recorded = SlotTable::kNone;  // For the next process.
    bool ended = false;
    bool exited = false;
  };
  struct Reservation {
    DomainUse* use = nullptr;
    uint32_t session = 0;  // Serial.
    NamespaceId ns = 0;
    absl::InlinedVector<PartId, 4> parts;
    std::vector<BlockRef> blocks;        // By position in the list; 0: not granted, or committed.
    std::string states;                  // ReserveState, by position.
    std::vector<PartRef> part_refs;      // Blocks times parts; 0: nothing to fill.
    std::vector<FillBoard::Room> rooms;  // Of one block; scratch.
    BlockRef anchor = 0;                 // Leased: what the next block hangs below.
    BlockRef last = 0;                   // The block that the next one must follow.
    bool root = false;                   // `last` 0 means: the next block is a root.
    bool closing = false;                // Waits for copies to end.
    Nanos expires = 0;
  };
  struct PinInfo {
    DomainId domain = 0;
    std::string owner;
    uint64_t bytes = 0;
  };
  // A key list of the right shape, and what it names.
  struct Chain {
    KeyList keys;
    bool has_parent = false;
    ChainHash parent;
    const NamespaceInfo* info = nullptr;
    Session* session = nullptr;
  };

  struct PinOrder {
    NamespaceId ns = 0;
    ChainHash key;
    std::string_view owner;
    uint64_t budget_bytes = 0;
    uint64_t ttl_ms = 0;
  };

  DomainUse& UseOf(DomainId domain);
  absl::StatusOr<RegisteredNamespace> AddNamespace(DomainId domain, DomainUse& use,
                                                   const NamespaceDescriptor& descriptor);
  absl::StatusOr<Session*> FindSession(std::string_view token);
  absl::StatusOr<Chain> ResolveChain(const CallHeader& header, uint32_t max_blocks);
  absl::StatusOr<absl::InlinedVector<PartId, 4>> ResolveParts(const NamespaceInfo& info,
                                                              std::string_view parts) const;
  uint32_t ApplyReleases(Session& session, const ReleaseList& releases);
  void ReportDamage(Session& session, const DamageReport& report);
  void CloseHold(Session& session, HoldId hold);
  void DrainHolds();
  uint32_t WaitersOf(DomainId domain) const;
  uint32_t LoadWaiters() const;
  uint32_t SliceBlocks(size_t parts) const;
  bool EndLease(LeaseId id, EventReason why = EventReason::kGivenBack);
  absl::StatusOr<LeaseId> AddPin(const PinOrder& order, uint32_t& blocks, uint64_t& bytes);
  absl::Status CheckDraining();
  void EndDrainIfOver(Nanos now);
  LeaseId AddLease(Session& session, BlockRef block, uint32_t lease_ms, LeaseOutcome& outcome);
  void CountLookup(const Chain& chain, uint32_t hit_blocks, uint32_t nvme_blocks);
  uint64_t LoadUs(const NamespaceInfo& info, uint32_t blocks, uint32_t nvme_blocks) const;
  Residency::Prefix Offered(LookupCall& call, const NamespaceInfo& info, Residency::Prefix prefix);
  bool PartsInDram(BlockRef block, const ExtentCursor& cursor) const;
  bool Fetch(ExtentCursor& cursor, absl::Span<const BlockRef> blocks, uint64_t block_bytes);
  bool AwaitPromotion(LoadCall& call, const Chain& chain);
  void Landed(BlockRef block, bool arrived) override;
  void RoomMade() override { Landed(0, /*arrived=*/true); }  // For those who wait for no block.
  void RecordDamaged(const Block& block, const ColdPart& cold, Finder finder) override;
  void RecordChecked(ColdRef cold, NvmeOutcome outcome) override;
  void Quarantine(Quarantined entry);
  void NameOnMedia(NamespaceId ns);
  Step FillExtents(const Chain& chain, ExtentCursor& cursor, std::string& extents);
  Step FillSlice(const Chain& chain, ExtentCursor& cursor, std::string& extents);
  void DropEmptyHold(const Chain& chain, ExtentCursor& cursor);

  absl::Status StartReservation(ReserveCall& call, const Chain& chain);
  Step ReserveBlocks(ReserveCall& call, const Chain& chain);
  bool Lacks(BlockRef block, PartId id) const;
  bool GrantParts(Reservation& reservation, const NamespaceInfo& info, BlockRef block,
                  size_t first_part);
  ReserveState ReserveBlock(Reservation& reservation, const Chain& chain, uint32_t position);
  void Announce(BlockRef block, std::string_view bytes);
  void Anchor(Reservation& reservation, BlockRef block);
  void FinishReserve(ReserveCall& call);
  absl::StatusOr<Step> CommitReserved(CommitCall& call, Session& session);
  absl::StatusOr<Step> CommitInline(CommitCall& call, Session& session);
  absl::StatusOr<Step> StartInlineFills(CommitCall& call, Session& session);
  absl::Status CheckFills(const CommitCall& call) const;
  bool AwaitFills(CommitCall& call);
  Step CommitBlocks(CommitCall& call, uint64_t id, Reservation& reservation);
  CommitResult CommitBlock(CommitCall& call, uint64_t id, Reservation& reservation,
                           uint32_t position);
  void CloseReservation(uint64_t id);
  void FinishClosing(uint64_t id, Reservation& reservation);
  void ProductionChanged();

  const NamespaceInfo* FindNamespace(NamespaceId ns) const;
  std::string KeyOf(BlockRef block) const;
  BlockRow RowOf(BlockRef block, const BlockFilter& filter, uint32_t& work) const;
  bool ContinueChain(Sweep& sweep);
  bool ContinueSlots(Sweep& sweep);
  bool ContinueFlush(Sweep& sweep);
  bool EndFlushWalk(Sweep& sweep);
  bool LeaveTier(Sweep& sweep, BlockRef block);
  void DropNamespace(NamespaceId ns);
  void Record(EventKind kind, DomainId domain, uint64_t number, NamespaceId ns = 0);
  void RecordChain(EventKind kind, LeaseId id, BlockRef block,
                   EventReason why = EventReason::kNone);

  void OnEvent(SessionOpened& event);
  void OnEvent(StagingOpened& event);
  void OnEvent(SessionEnded& event);
  void OnEvent(ProcessExited& event);
  void OnEvent(FillsDone& event);
  void OnEvent(Verified& event);
  void OnEvent(RegionMade& event);
  void OnEvent(Task& event) { event.run(*this); }
  void DropHoldsOf(Session& session);
  void ForgetSessionIfOver(uint32_t serial);
  void ExpireLeases(int most);

  Store& store_;
  Residency& residency_;
  FillBoard& board_;
  Mover& mover_;
  Inbox& inbox_;
  const Clock& clock_;
  const Options options_;

  // Control thread only.
  ThreadRole control_;
  LeaseTable leases_;
  HoldTable holds_;
  EventRing event_ring_;
  Announcements announcements_;
  ControlMetrics metrics_;
  ControlCounters& counters_ = metrics_.counters;
  uint64_t tick_ = 0;  // Counts uses; the policy's time.
  Nanos polled_at_ = 0;

  std::vector<NamespaceInfo> namespaces_;                                  // [0] is unused.
  std::map<std::pair<DomainId, std::string>, NamespaceId> namespace_ids_;  // By canonical form.
  std::map<std::pair<DomainId, std::vector<uint32_t>>, Pool> pools_;
  std::vector<EvictionPolicy::Pool> free_pools_;  // Numbers below pools_.size() that are free.

  uint32_t stranger_calls_ = 0;         // Under way; the front end's.
  std::map<DomainId, DomainUse> uses_;  // Of every domain that ever came; they never move.
  absl::flat_hash_map<uint32_t, std::unique_ptr<Session>> by_serial_;
  absl::flat_hash_map<std::string, Session*> by_token_;  // Living ones.
  std::vector<Session*> by_index_;
  std::vector<uint32_t> free_session_indexes_;
  uint32_t session_indexes_ = 0;

  absl::flat_hash_map<uint64_t, std::unique_ptr<Reservation>> reservations_;
  std::vector<std::unique_ptr<Reservation>> spare_reservations_;  // Keep their memory.
  Nanos next_expiry_ = INT64_MAX;  // Of the reservations; may be early, never late.

  std::unique_ptr<Movement> movement_;  // Null: there is no NVMe.
  Scrubber scrubber_;
  QuarantineList quarantine_;
  std::function<std::string(DomainId)> domain_name_;

  struct Waiter {
    // Waits for producers, or for a block to come from NVMe; both null: a commit waits for copiers.
    ReserveCall* call = nullptr;
    LoadCall* load = nullptr;
    uint64_t reservation_id = 0;  // That the commit waits for.
    Resumable* resumable = nullptr;
    Nanos until = INT64_MAX;
  };
  std::vector<Waiter> waiters_;
  bool waits_ended_ = false;
  std::atomic<bool> draining_{false};  // Written by the control thread.
  DrainEnd drain_end_ = DrainEnd::kStay;
  bool drain_over_ = false;  // Options::drained was called.
  Nanos drain_deadline_ = INT64_MAX;
  Nanos drain_look_ = INT64_MAX;  // When Poll() looks at the latest whether it is over.
  std::deque<Resumable*> ready_;
  std::vector<std::pair<BlockRef, ChainHash>> orphans_;  // Producer gone, waiters not asked yet.

  absl::flat_hash_map<LeaseId, PinInfo> pins_;
  std::map<std::pair<DomainId, std::string>, uint64_t> pinned_bytes_;  // By owner.
  std::vector<InboxEvent> events_;                                     // Scratch of Poll().
};

}  // namespace kvd
