// What the daemon counts about itself, in the form in which it is counted: plain numbers that the
// control thread changes and the thread that answers a scrape reads, without a turn of the control
// thread. daemon/exposition.h gives them their names.
//
// Each block that a lookup asks for is attributed once, to the tier that has it or to a miss, when
// the lookup is decided: so tiers and misses together are what was asked.
//
// Threads: one writer, the control thread, where nothing else is said; reading is safe from any.

#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "absl/synchronization/mutex.h"
#include "daemon/quarantine.h"
#include "daemon/tier_index.h"
#include "proto/types/block.h"
#include "proto/types/clock.h"
#include "proto/types/shared_count.h"

namespace kvd {

// How often a value fell into each of some buckets. `Buckets` has kBounds, ascending: the largest
// value of each bucket; what is larger than all has a bucket of its own.
template <typename Buckets>
class Histogram {
 public:
  static constexpr size_t kBuckets = Buckets::kBounds.size() + 1;

  // A scan from the smallest: what is frequent is there, and 20 bounds are three cache lines.
  void Observe(uint64_t value) {
    size_t bucket = 0;
    while (bucket < Buckets::kBounds.size() && value > Buckets::kBounds[bucket]) ++bucket;
    ++counts_[bucket];
    sum_ += value;
  }
  uint64_t count(size_t bucket) const { return counts_[bucket]; }
  uint64_t sum() const { return sum_; }

 private:
  SharedCount sum_;
  std::array<SharedCount, kBuckets> counts_;
};

// Nanoseconds, 1 us to 10 s. A call over a socket takes some tens of microseconds; what the control
// thread adds to it is mostly less than ten.
struct DurationBuckets {
  static constexpr std::array<uint64_t, 22> kBounds = {
      1'000,         2'500,         5'000,         10'000,        25'000,      50'000,
      100'000,       250'000,       500'000,       1'000'000,     2'500'000,   5'000'000,
      10'000'000,    25'000'000,    50'000'000,    100'000'000,   250'000'000, 500'000'000,
      1'000'000'000, 2'500'000'000, 5'000'000'000, 10'000'000'000};
};
// Tokens of one prompt.
struct TokenBuckets {
  static constexpr std::array<uint64_t, 12> kBounds = {
      64, 256, 1'024, 2'048, 4'096, 8'192, 16'384, 32'768, 65'536, 131'072, 262'144, 1'048'576};
};
// The value below which a share of all lies, 0 to 1, as if values were spread evenly in each
// bucket; 0: there are none. What is beyond the largest bound counts as that.
template <typename Buckets>
double Quantile(const Histogram<Buckets>& histogram, double share) {
  uint64_t all = 0;
  for (size_t i = 0; i < histogram.kBuckets; ++i) all += histogram.count(i);
  double left = share * static_cast<double>(all);
  double lower = 0;
  for (size_t i = 0; i < Buckets::kBounds.size(); ++i) {
    const auto upper = static_cast<double>(Buckets::kBounds[i]);
    const auto count = static_cast<double>(histogram.count(i));
    if (count > 0 && left <= count) return lower + (upper - lower) * left / count;
    left -= count;
    lower = upper;
  }
  return all == 0 ? 0 : lower;
}

// Thousandths of what was asked.
struct ShareBuckets {
  static constexpr std::array<uint64_t, 8> kBounds = {0, 100, 250, 500, 750, 900, 990, 1'000};
};

// What the calls of one tenant did and what it has now. The first line of cache is a lookup's.
struct alignas(64) TenantCounters {
  SharedCount lookups_full;  // Everything asked was there.
  SharedCount lookups_partial;
  SharedCount lookups_none;
  SharedCount lookup_dram_blocks;
  SharedCount lookup_miss_blocks;
  SharedCount lookup_dram_tokens;
  SharedCount lookup_miss_tokens;
  SharedCount leases;  // Now; without pins.
  // The second line.
  SharedCount shm_sessions;     // Now.
  SharedCount stream_sessions;  // Now.
  SharedCount pins;             // Now.
  SharedCount held_extents;     // Now.
  SharedCount saved_tokens;     // Of blocks that loads named: nobody computes them again.
  SharedCount committed_blocks;
  SharedCount rejected_blocks;  // Reserve found no room; of a list, the first.
  SharedCount lookup_nvme_blocks;
  SharedCount lookup_nvme_tokens;
};

// Counters since start. Names on the wire are these, see Control::Counters().
struct ControlCounters {
  SharedCount lookups;
  SharedCount lookup_blocks;
  SharedCount lookup_hit_blocks;
  SharedCount loads;
  SharedCount load_blocks;
  SharedCount load_miss_blocks;  // Asked for and not there any more.
  SharedCount load_bytes;        // That loads and lookups named: what clients may read.
  SharedCount hold_budget_refusals;
  SharedCount reserves;
  SharedCount reserve_granted_blocks;
  SharedCount reserve_present_blocks;
  SharedCount reserve_in_production_blocks;
  SharedCount reserve_no_room_blocks;
  SharedCount reserve_no_parent_blocks;
  SharedCount reserves_refused;      // For want of room for some block.
  SharedCount reservations_refused;  // As many are open as may be.
  SharedCount dedup_saved_bytes;     // Of blocks that reserve named present or in production.
  SharedCount reserve_waits;
  SharedCount reservations_expired;
  SharedCount reservations_aborted;
  SharedCount commits;
  SharedCount commit_waits;      // For fills that they had overtaken.
  SharedCount committed_blocks;  // Made visible.
  SharedCount committed_bytes;   // Of parts.
  SharedCount parked_blocks;
  SharedCount put_sums_differ;  // Parts whose staged bytes were not those that were summed.
  SharedCount puts_refused;     // Too many wait for the copiers.
  SharedCount leases_granted;
  SharedCount leases_refused;
  SharedCount leases_expired;
  SharedCount leases_ended_with_session;
  SharedCount pins_granted;
  SharedCount pins_refused;
  SharedCount namespaces_refused;  // As many as there may be.
  SharedCount damage_reported;
  SharedCount damage_confirmed;  // Whoever found it, in whatever tier.
  SharedCount sessions_opened;
  SharedCount sessions_ended;
  SharedCount unknown_sessions;  // Calls that named none of ours.
  SharedCount calls_refused;     // Unknown session, bad field, a bound.
  SharedCount drain_refusals;    // Calls that wanted something new while the daemon drains.
};

// What moved between DRAM and NVMe, since start but for `moves`. All zero without NVMe.
struct MovementCounters {
  SharedCount moves;                // Now: under way or due.
  SharedCount demoted_blocks;       // Left DRAM when their record was there.
  SharedCount clean_blocks;         // Left DRAM ahead, and were on NVMe already.
  SharedCount declined_blocks;      // Left DRAM ahead: admission did not want them.
  SharedCount lost_blocks;          // Were not on NVMe when somebody needed the room: behind.
  SharedCount failed_blocks;        // Victims whose chain could not be written.
  SharedCount written_blocks;       // With ancestors.
  SharedCount written_bytes;        // With headers.
  SharedCount failed_writes;        // Records.
  SharedCount nvme_evicted_blocks;  // Left NVMe to make room for others.
  SharedCount demoted_bytes;        // Payload of records that were written.
  SharedCount promoted_blocks;
  SharedCount promoted_bytes;
  SharedCount prefetched_blocks;  // Of those, before anybody waited.
  SharedCount joined_waits;       // Calls that waited for a block that was on its way already.
  SharedCount promotions_without_room;
  SharedCount failed_reads;  // Records, damaged ones among them.
  SharedCount damaged_records;
  SharedCount load_waits;                 // Calls that waited for a promotion, ...
  SharedCount load_waits_refused;         // ... and that did not: too many wait already.
  SharedCount declined_hit_blocks;        // Slower to load than to compute, or the tier is out.
  Histogram<DurationBuckets> write_time;  // Nanoseconds, of records.
  Histogram<DurationBuckets> read_time;
};

// What walks over stored bytes saw, since start: the background's and those of operators.
struct ScrubCounters {
  struct OfTier {
    SharedCount parts;  // Looked at, ...
    SharedCount bytes;
    SharedCount skipped;  // ... and not: they are held too often, or too much waits already.
  };
  std::array<OfTier, kTiers> tiers;
  SharedCount passes;  // Of the background's walk over all blocks, ended.
};

// What routers were told; the publisher's thread writes.
struct EventMetrics {
  SharedCount stored;
  SharedCount removed;
  SharedCount messages;
  SharedCount dropped_messages;  // That some subscriber did not get: it reads too slowly.
  SharedCount losses;            // Events were forgotten before they were read: all was told anew.
  SharedCount unannounced;       // Blocks became findable that nobody had announced.
  SharedCount replays;           // Asked for and answered, ...
  SharedCount snapshots;
  SharedCount refused_requests;  // ... or not: malformed, or too many at a time.
  SharedCount blocks;            // Announced, now, in any tier.
};

// Of the control thread's decisions.
class ControlMetrics {
 public:
  // Tenants with numbers of their own, by first come; the others share one. Bounded, because each
  // is a series of everything that has the label.
  static constexpr uint32_t kMaxTenants = 32;

  ControlCounters counters;
  MovementCounters movement;
  ScrubCounters scrub;
  // Parts that were found damaged, by where and by whom.
  std::array<std::array<SharedCount, kFinders>, kTiers> damage;
  Histogram<TokenBuckets> prompt_tokens;
  Histogram<ShareBuckets> match_share;
  SharedCount waiting_calls;  // Now: for producers, or for copiers.

  // The numbers of a domain that has just come. Control thread; keep what it answers.
  TenantCounters& AddTenant(DomainId domain) {
    const uint32_t n = tenants_.load(std::memory_order_relaxed);
    if (n == kMaxTenants) return slots_[kMaxTenants];
    domains_[n] = domain;
    tenants_.store(n + 1, std::memory_order_release);  // Pairs with tenants().
    return slots_[n];
  }

  uint32_t tenants() const { return tenants_.load(std::memory_order_acquire); }
  DomainId domain(uint32_t i) const { return domains_[i]; }  // Requires: i < tenants().
  const TenantCounters& tenant(uint32_t i) const { return slots_[i]; }
  const TenantCounters& others() const { return slots_[kMaxTenants]; }

 private:
  std::atomic<uint32_t> tenants_{0};
  std::array<DomainId, kMaxTenants> domains_{};
  std::array<TenantCounters, kMaxTenants + 1> slots_;
};

// Methods of the engine-facing services.
enum class Op : uint8_t {
  kLookup,
  kLoad,
  kRelease,
  kReserve,
  kCommit,
  kAbort,
  kPin,
  kUnpin,
  kRegisterNamespace,
  kOther,  // Not in this version.
  kGet,    // Streams, which the gateway alone has.
  kPut,
};
inline constexpr size_t kOps = static_cast<size_t>(Op::kPut) + 1;
inline constexpr std::array<std::string_view, kOps> kOpNames = {
    "lookup", "load", "release", "reserve", "commit", "abort", "pin", "unpin", "register_namespace",
    "other",  "get",  "put"};

// gRPC's status codes, by number, as its documentation writes them.
inline constexpr std::array<std::string_view, 17> kCodeNames = {
    "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
    "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
    "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
    "DATA_LOSS", "UNAUTHENTICATED"};

// Of a front end: calls from their arrival to their answer.
struct ServiceMetrics {
  static constexpr size_t kCodes = kCodeNames.size();

  struct OfOp {
    Histogram<DurationBuckets> duration;      // Nanoseconds; only when operations are counted.
    std::array<SharedCount, kCodes> answers;  // By status code.
    SharedCount late;                         // Arrived after the caller's deadline.
  };
  std::array<OfOp, kOps> ops;
  SharedCount calls;          // Now: accepted and not answered.
  SharedCount slices;         // Now: calls that want another turn.
  SharedCount calls_refused;  // More under way than there may be.
};

// The same of the gateway, whose calls end on many threads. They are few and long, so a mutex is
// nothing to them; the numbers have one writer at a time.
class GatewayMetrics {
 public:
  // `took`: null where calls are not timed. Any thread.
  void Answered(Op op, int code, const Nanos* took) {
    absl::MutexLock lock(&mu_);
    ServiceMetrics::OfOp& counts = numbers_.ops[static_cast<size_t>(op)];
    ++counts.answers[static_cast<size_t>(code)];
    if (took != nullptr) counts.duration.Observe(static_cast<uint64_t>(*took));
  }
  void Late(Op op) {
    absl::MutexLock lock(&mu_);
    ++numbers_.ops[static_cast<size_t>(op)].late;
  }
  const ServiceMetrics& numbers() const { return numbers_; }  // Any thread.

 private:
  absl::Mutex mu_;  // Of writers.
  ServiceMetrics numbers_;
};

// Why somebody was not let in.
enum class Stranger : uint8_t {
  kSession,      // Named no session of ours, or another's.
  kUser,         // A user id and groups that are in no domain.
  kCertificate,  // A certificate that names nobody.
  kIdentity,     // One that names somebody who is in no domain.
};
inline constexpr std::array<std::string_view, 4> kStrangerNames = {"session", "user", "certificate",
                                                                   "identity"};

// Who was not let in at the doors; what the control thread refuses is in its counters. Any thread.
class StrangerCounts {
 public:
  void Count(Stranger why) {
    counts_[static_cast<size_t>(why)].fetch_add(1, std::memory_order_relaxed);
  }
  uint64_t count(Stranger why) const {
    return counts_[static_cast<size_t>(why)].load(std::memory_order_relaxed);
  }

 private:
  std::array<std::atomic<uint64_t>, kStrangerNames.size()> counts_{};
};

}  // namespace kvd
