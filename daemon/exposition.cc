#include "daemon/exposition.h"

#include <dirent.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <initializer_list>
#include <limits>
#include <string_view>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "daemon/nvme_stack.h"
#include "prometheus/client_metric.h"
#include "prometheus/text_serializer.h"
#include "proto/types/limits.h"

namespace kvd {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::initializer_list<std::pair<std::string_view, std::string_view>>;

constexpr std::string_view kEvictReasonNames[] = {"pressure", "admin", "purge", "corrupt",
                                                  "reclaim"};
static_assert(std::size(kEvictReasonNames) == kEvictReasons);

// The families in the order in which they are made.
class Families {
 public:
  // What is added after this belongs to this family.
  Families& Counter(std::string name, std::string help) {
    return Begin(std::move(name), std::move(help), MetricType::Counter);
  }
  Families& Gauge(std::string name, std::string help) {
    return Begin(std::move(name), std::move(help), MetricType::Gauge);
  }
  Families& Histograms(std::string name, std::string help) {
    return Begin(std::move(name), std::move(help), MetricType::Histogram);
  }

  Families& Add(double value, Labels labels = {}) {
    ClientMetric& metric = Next(labels);
    (families_.back().type == MetricType::Counter ? metric.counter.value : metric.gauge.value) =
        value;
    return *this;
  }
  Families& Add(uint64_t value, Labels labels = {}) {
    return Add(static_cast<double>(value), labels);
  }
  // `per_unit`: how many of what the histogram counts make one of what is shown, as 1e9
  // nanoseconds.
  template <typename Buckets>
  Families& Add(const Histogram<Buckets>& histogram, double per_unit, Labels labels = {}) {
    ClientMetric::Histogram& shown = Next(labels).histogram;
    uint64_t count = 0;
    for (size_t i = 0; i < Buckets::kBounds.size(); ++i) {
      count += histogram.count(i);
      shown.bucket.push_back({count, static_cast<double>(Buckets::kBounds[i]) / per_unit});
    }
    count += histogram.count(Buckets::kBounds.size());
    shown.bucket.push_back({count, std::numeric_limits<double>::infinity()});
    shown.sample_count = count;
    shown.sample_sum = static_cast<double>(histogram.sum()) / per_unit;
    return *this;
  }

  std::vector<MetricFamily> Take() { return std::move(families_); }

 private:
  Families& Begin(std::string name, std::string help, MetricType type) {
    families_.push_back({std::move(name), std::move(help), type, {}});
    return *this;
  }
  ClientMetric& Next(Labels labels) {
    ClientMetric& metric = families_.back().metric.emplace_back();
    for (const auto& [name, value] : labels) {
      metric.label.push_back({std::string(name), std::string(value)});
    }
    return metric;
  }

  std::vector<MetricFamily> families_;
};

constexpr std::string_view kOtherTenants = "_other";

struct Tenant {
  std::string name;
  const TenantCounters& counters;
};

std::vector<Tenant> TenantsOf(const MetricsSource& source) {
  const ControlMetrics& metrics = source.control->metrics();
  std::vector<Tenant> tenants;
  const uint32_t named = metrics.tenants();
  for (uint32_t i = 0; i < named; ++i) {
    std::string name = source.tenant_name(metrics.domain(i));
    // A series that is there twice would spoil the whole scrape: rules may change while we run.
    const bool taken = name == kOtherTenants ||
                       std::any_of(tenants.begin(), tenants.end(),
                                   [&name](const Tenant& tenant) { return tenant.name == name; });
    if (taken) absl::StrAppend(&name, "#", metrics.domain(i));
    tenants.push_back({std::move(name), metrics.tenant(i)});
  }
  // Always there, so that nothing appears in mid-life with a value that is not zero.
  tenants.push_back({std::string(kOtherTenants), metrics.others()});
  return tenants;
}

void AddDemand(const MetricsSource& source, const std::vector<Tenant>& tenants, Families& out) {
  const ControlMetrics& metrics = source.control->metrics();
  if (source.count_operations) {
    out.Counter("kvd_lookup_requests_total", "Lookups, by how much of what they asked was there.");
    for (const Tenant& t : tenants) {
      out.Add(t.counters.lookups_full, {{"tenant", t.name}, {"outcome", "full"}});
      out.Add(t.counters.lookups_partial, {{"tenant", t.name}, {"outcome", "partial"}});
      out.Add(t.counters.lookups_none, {{"tenant", t.name}, {"outcome", "none"}});
    }
    out.Counter("kvd_lookup_blocks_total",
                "Blocks that lookups asked for, each once: by the tier that had it, or miss.");
    for (const Tenant& t : tenants) {
      out.Add(t.counters.lookup_dram_blocks, {{"tenant", t.name}, {"tier", "dram"}});
      out.Add(t.counters.lookup_nvme_blocks, {{"tenant", t.name}, {"tier", "nvme"}});
      out.Add(t.counters.lookup_miss_blocks, {{"tenant", t.name}, {"tier", "miss"}});
    }
    out.Counter("kvd_lookup_tokens_total", "The same in tokens.");
    for (const Tenant& t : tenants) {
      out.Add(t.counters.lookup_dram_tokens, {{"tenant", t.name}, {"tier", "dram"}});
      out.Add(t.counters.lookup_nvme_tokens, {{"tenant", t.name}, {"tier", "nvme"}});
      out.Add(t.counters.lookup_miss_tokens, {{"tenant", t.name}, {"tier", "miss"}});
    }
    out.Histograms("kvd_prefix_match_ratio", "Share of a lookup's blocks that was there.")
        .Add(metrics.match_share, 1e3);
    out.Histograms("kvd_request_prompt_tokens", "Tokens that a lookup asked for.")
        .Add(metrics.prompt_tokens, 1);
  }
  const ControlCounters& c = metrics.counters;
  out.Counter("kvd_get_blocks_total",
              "Blocks whose extents were asked for, by what became of them; of nvme those that "
              "were brought to memory for that.");
  out.Add(c.load_blocks, {{"tier", "dram"}, {"outcome", "ok"}});
  out.Add(c.load_miss_blocks, {{"tier", "dram"}, {"outcome", "miss"}});
  out.Add(metrics.damage[0][static_cast<size_t>(FoundBy::kClient)],
          {{"tier", "dram"}, {"outcome", "checksum"}});
  if (source.nvme != nullptr) {
    out.Add(metrics.movement.promoted_blocks, {{"tier", "nvme"}, {"outcome", "ok"}});
    out.Add(metrics.movement.promotions_without_room, {{"tier", "nvme"}, {"outcome", "no_room"}});
    out.Add(metrics.damage[1][static_cast<size_t>(FoundBy::kRead)],
            {{"tier", "nvme"}, {"outcome", "checksum"}});
  }
  out.Counter("kvd_prefill_tokens_saved_total",
              "Tokens of blocks that loads named: nobody has to compute them again.");
  for (const Tenant& t : tenants) {
    out.Add(t.counters.saved_tokens, {{"tenant", t.name}, {"tier", "dram"}});
  }
}

std::string_view NvmeState(const NvmeStack* nvme) {
  if (nvme == nullptr || nvme->numbers().readable == 0) return "offline";
  return nvme->numbers().writable != 0 ? "online" : "degraded";
}

void AddTiers(const MetricsSource& source, Families& out) {
  const Control& control = *source.control;
  const Arena& arena = control.store().arena();
  const Residency::Counts& counts = control.store().residency().counts();
  const ControlCounters& c = control.counters();
  const NvmeNumbers* nvme = source.nvme == nullptr ? nullptr : &source.nvme->numbers();
  out.Gauge("kvd_tier_capacity_bytes", "Room of a tier; of nvme what live records may take.")
      .Add(arena.capacity_bytes(), {{"tier", "dram"}});
  if (nvme != nullptr) out.Add(nvme->live_capacity_bytes, {{"tier", "nvme"}});
  // Read one after the other while blocks come and go: what is left over is not below zero.
  const uint64_t reserved = arena.reserved_bytes();
  const uint64_t writing = std::min<uint64_t>(counts.reserved_bytes, reserved);
  const uint64_t quarantine = std::min<uint64_t>(counts.quarantined_bytes, reserved - writing);
  out.Gauge("kvd_tier_used_bytes",
            "Room of a tier by what it is used for; the states together are its capacity.");
  out.Add(reserved - writing - quarantine, {{"tier", "dram"}, {"state", "committed"}});
  out.Add(writing, {{"tier", "dram"}, {"state", "writing"}});
  out.Add(quarantine, {{"tier", "dram"}, {"state", "quarantine"}});
  out.Add(arena.capacity_bytes() - reserved, {{"tier", "dram"}, {"state", "free"}});
  if (nvme != nullptr) {
    const uint64_t live = std::min<uint64_t>(nvme->live_bytes, nvme->live_capacity_bytes);
    out.Add(live, {{"tier", "nvme"}, {"state", "committed"}});
    out.Add(nvme->live_capacity_bytes - live, {{"tier", "nvme"}, {"state", "free"}});
  }
  out.Gauge("kvd_tier_blocks", "Blocks that can be found in a tier.")
      .Add(counts.visible, {{"tier", "dram"}});
  if (nvme != nullptr) out.Add(counts.cold_blocks, {{"tier", "nvme"}});
  out.Gauge("kvd_tier_state", "1 for the state that a tier is in.")
      .Add(uint64_t{1}, {{"tier", "dram"}, {"state", "online"}});
  if (nvme != nullptr || source.nvme_refused) {
    out.Add(uint64_t{1}, {{"tier", "nvme"}, {"state", NvmeState(source.nvme)}});
  }
  out.Gauge("kvd_tier_regions_free", "Regions that no layout uses.")
      .Add(uint64_t{arena.free_regions()}, {{"tier", "dram"}});
  out.Gauge("kvd_index_blocks", "Blocks that the index knows, in any state.").Add(counts.used);
  out.Gauge("kvd_index_capacity_blocks", "Blocks that the index has room for.")
      .Add(uint64_t{control.store().residency().max_blocks()});
  out.Gauge("kvd_index_stubs", "Blocks whose bytes are gone, kept for what lies below.")
      .Add(counts.stubs);
  out.Gauge("kvd_quarantined_bytes", "Room of damaged parts that somebody may still be reading.")
      .Add(counts.quarantined_bytes);
  out.Counter("kvd_transfer_bytes_total", "Payload by where it went and why.");
  out.Add(c.committed_bytes, {{"from", "client"}, {"to", "dram"}, {"reason", "put"}});
  out.Add(c.load_bytes, {{"from", "dram"}, {"to", "client"}, {"reason", "get"}});
  if (nvme != nullptr) {
    const MovementCounters& m = control.metrics().movement;
    out.Add(m.demoted_bytes, {{"from", "dram"}, {"to", "nvme"}, {"reason", "demote"}});
    out.Add(m.promoted_bytes, {{"from", "nvme"}, {"to", "dram"}, {"reason", "promote"}});
  }
}

// What a restart found, and whom it still waits for.
void AddRestart(const MetricsSource& source, Families& out) {
  if (source.record == nullptr) return;
  const ArenaRecord& record = *source.record;
  const ArenaRecord::Restored& restored = record.restored();
  out.Gauge("kvd_restored_blocks", "Blocks that this start found in either tier.")
      .Add(restored.blocks);
  out.Gauge("kvd_restored_bytes", "Payload that this start found in memory.").Add(restored.bytes);
  out.Gauge("kvd_restore_lost", "What this start could not take over, by why.");
  out.Add(restored.parts_dropped, {{"reason", "incomplete"}});
  out.Add(restored.rows_damaged, {{"reason", "damaged"}});
  out.Gauge("kvd_restore_cold", "1: there was an arena, and it could not be taken over.")
      .Add(restored.cold);
  out.Gauge("kvd_former_readers", "Sessions of the process before that may still read.")
      .Add(record.readers());
  out.Gauge("kvd_withheld_parts", "Parts and rooms that wait for such readers.")
      .Add(record.withheld());
  out.Counter("kvd_unrecorded_parts_total", "Parts that a restart would not find.")
      .Add(record.unrecorded_parts());
}

// How much of the segments in use is live: what reclaiming has to copy.
double LiveShare(const NvmeNumbers::Device& device) {
  uint64_t all = 0;
  for (const SharedCount& segments : device.segments) all += segments;
  const uint64_t used = all - device.segments[static_cast<size_t>(SegmentState::kFree)];
  if (used == 0) return 0;
  const double bytes = static_cast<double>(device.capacity_bytes) / static_cast<double>(all) *
                       static_cast<double>(used);
  return static_cast<double>(device.live_bytes) / bytes;
}

constexpr std::string_view kSegmentStateNames[] = {"free",   "open",       "sealing",
                                                   "sealed", "reclaiming", "drained"};
static_assert(std::size(kSegmentStateNames) == kSegmentStates);

void AddDevices(const NvmeNumbers& n, Families& out) {
  out.Gauge("kvd_nvme_device_up", "1: the device takes reads and writes.");
  for (const auto& device : n.devices) {
    out.Add(uint64_t{device->out == 0}, {{"device", device->name}, {"engine", device->engine}});
  }
  out.Gauge("kvd_nvme_device_segments", "Segments of a device by state.");
  for (const auto& device : n.devices) {
    for (size_t state = 0; state < kSegmentStates; ++state) {
      out.Add(device->segments[state],
              {{"device", device->name}, {"state", kSegmentStateNames[state]}});
    }
  }
  out.Gauge("kvd_nvme_device_capacity_bytes", "Room of a device in segments.");
  for (const auto& device : n.devices) out.Add(device->capacity_bytes, {{"device", device->name}});
  out.Gauge("kvd_nvme_device_live_bytes", "Of that, records that can be found.");
  for (const auto& device : n.devices) out.Add(device->live_bytes, {{"device", device->name}});
  out.Gauge("kvd_nvme_device_writing_bytes", "Bytes on their way to a device, now.");
  for (const auto& device : n.devices) {
    out.Add(device->write_bytes_in_flight, {{"device", device->name}});
  }
  out.Gauge("kvd_segment_live_ratio", "Live bytes of the segments in use: what reclaiming copies.");
  for (const auto& device : n.devices) out.Add(LiveShare(*device), {{"device", device->name}});
}

// What left memory for NVMe, or came back.
void AddMovement(const MovementCounters& m, Families& out) {
  out.Counter("kvd_demotion_blocks_total",
              "Blocks that left memory, by how: written, clean (there before), declined by "
              "admission, failed to be written, lost (somebody needed the room first).");
  out.Add(m.demoted_blocks, {{"outcome", "written"}});
  out.Add(m.clean_blocks, {{"outcome", "clean"}});
  out.Add(m.declined_blocks, {{"outcome", "declined"}});
  out.Add(m.failed_blocks, {{"outcome", "failed"}});
  out.Add(m.lost_blocks, {{"outcome", "lost"}});
  out.Counter("kvd_prefetch_issued_total", "Blocks that were brought before anybody waited.")
      .Add(m.prefetched_blocks, {{"trigger", "lookup"}});
  out.Counter("kvd_load_waits_total",
              "Loads that met a block on NVMe: waited for it, or were too many to wait.");
  out.Add(m.load_waits, {{"outcome", "waited"}});
  out.Add(m.load_waits_refused, {{"outcome", "refused"}});
  out.Counter("kvd_load_joins_total", "Of those that waited, for what was on its way already.")
      .Add(m.joined_waits);
}

void AddNvme(const MetricsSource& source, Families& out) {
  if (source.nvme == nullptr) return;
  const NvmeNumbers& n = source.nvme->numbers();
  const MovementCounters& m = source.control->metrics().movement;
  AddDevices(n, out);
  out.Counter("kvd_nvme_breaker_changes_total", "Times that a device was taken out or came back.")
      .Add(n.breaker_changes);
  out.Counter("kvd_nvme_written_bytes_total", "Bytes that devices were written, by why.");
  out.Add(n.appended_bytes, {{"reason", "demotion"}});
  out.Add(n.copied_bytes, {{"reason", "reclaim"}});
  out.Counter("kvd_nvme_read_bytes_total", "Payload that was read.").Add(n.read_bytes);
  out.Gauge("kvd_nvme_jobs", "Reads and writes under way, now.").Add(n.in_flight);
  out.Counter("kvd_nvme_errors_total", "What went wrong with devices and records, by kind.");
  out.Add(n.append_errors, {{"kind", "write"}});
  out.Add(n.read_errors, {{"kind", "read"}});
  out.Add(n.reads_corrupt, {{"kind", "checksum"}});
  out.Add(n.reads_expired, {{"kind", "expired"}});
  out.Add(n.sync_errors, {{"kind", "sync"}});
  out.Add(n.superblock_errors, {{"kind", "superblock"}});
  out.Add(n.lost_records, {{"kind", "reclaim"}});
  out.Add(n.given_up_records, {{"kind", "no_free_segment"}});
  out.Counter("kvd_nvme_segments_freed_total", "Segments that were reclaimed.")
      .Add(n.segments_freed);
  out.Counter("kvd_nvme_segments_bad_total", "Segments that are not used again, after errors.")
      .Add(n.segments_bad);
  out.Counter("kvd_nvme_syncs_total", "Times that what was written was made durable.").Add(n.syncs);
  out.Counter("kvd_nvme_index_errors_total", "Rows that the index does not have, by why.");
  out.Add(n.index_rows_dropped, {{"reason", "overload"}});
  out.Add(n.index_write_errors, {{"reason", "write"}});
  const BudgetedAdmission::Counts& a = source.nvme->admission().counts();
  out.Counter(
      "kvd_admission_blocks_total",
      "Blocks that were about to leave memory, by what admission to NVMe said; admitted ones "
      "with their ancestors.");
  out.Add(a.admitted_blocks, {{"outcome", "admitted"}});
  out.Add(a.declined_blocks, {{"outcome", "declined"}});
  out.Add(a.over_budget_blocks, {{"outcome", "over_budget"}});
  out.Counter("kvd_admission_bytes_total",
              "The same in bytes of records, as far as they were wanted.");
  out.Add(a.admitted_bytes, {{"outcome", "admitted"}});
  out.Add(a.over_budget_bytes, {{"outcome", "over_budget"}});
  out.Gauge("kvd_nvme_write_budget_bytes", "Bytes a day that may be written; 0: no limit.")
      .Add(source.nvme->admission().bytes_per_day());
  out.Gauge("kvd_nvme_write_budget_remaining_bytes",
            "What may be written now, of a minute's share; not there without a limit.");
  if (source.nvme->admission().bytes_per_day() != 0) out.Add(n.write_budget_remaining_bytes);
  AddMovement(m, out);
  out.Counter("kvd_declined_hit_blocks_total",
              "Blocks on NVMe that lookups were not told of: slower than computing, or the tier is "
              "out.")
      .Add(m.declined_hit_blocks);
  const RecoveryReport& r = source.nvme->recovery();
  out.Gauge("kvd_nvme_recovered_records", "Records that this start found, by where.");
  out.Add(r.from_index, {{"source", "index"}});
  out.Add(r.from_footers, {{"source", "footers"}});
  out.Add(r.from_headers, {{"source", "headers"}});
  out.Gauge("kvd_nvme_recovery_damage", "What this start found damaged, by kind.");
  out.Add(uint64_t{r.index_damaged || !source.nvme->index_moved_to().empty()}, {{"kind", "index"}});
  out.Add(r.damaged_rows + r.rows_without_data, {{"kind", "row"}});
  out.Add(uint64_t{r.footers_damaged}, {{"kind", "footer"}});
  out.Add(uint64_t{r.superblock_copies_lost}, {{"kind", "superblock"}});
  out.Add(uint64_t{r.read_errors}, {{"kind", "read"}});
  out.Gauge("kvd_nvme_recovery_seconds", "Time that finding them took.")
      .Add(static_cast<double>(r.took_ms) / 1e3);
}

void AddEviction(const MetricsSource& source, Families& out) {
  const Residency::Counts& counts = source.control->store().residency().counts();
  out.Counter("kvd_evicted_blocks_total",
              "Blocks whose last copy was dropped, by the tier that had it and why; reclaim: nvme "
              "had no free segment to copy it to.");
  const size_t tiers = source.nvme == nullptr ? 1 : kTiers;
  for (size_t tier = 0; tier < tiers; ++tier) {
    for (size_t i = 0; i < kEvictReasons; ++i) {
      out.Add(counts.evicted_from[tier].blocks[i],
              {{"tier", kTierNames[tier]}, {"reason", kEvictReasonNames[i]}});
    }
  }
  out.Counter("kvd_evicted_bytes_total", "Payload of such blocks.");
  for (size_t tier = 0; tier < tiers; ++tier) {
    for (size_t i = 0; i < kEvictReasons; ++i) {
      out.Add(counts.evicted_from[tier].bytes[i],
              {{"tier", kTierNames[tier]}, {"reason", kEvictReasonNames[i]}});
    }
  }
  out.Counter("kvd_regions_emptied_total", "Regions taken from one layout for another.")
      .Add(source.control->store().regions_emptied());
}

void AddPuts(const MetricsSource& source, const std::vector<Tenant>& tenants, Families& out) {
  const ControlCounters& c = source.control->counters();
  out.Counter("kvd_reserve_blocks_total",
              "Blocks that were to be stored, by the answer; of a list that finds no room or no "
              "parent the first counts.");
  out.Add(c.reserve_granted_blocks, {{"outcome", "granted"}});
  out.Add(c.reserve_present_blocks, {{"outcome", "present"}});
  out.Add(c.reserve_in_production_blocks, {{"outcome", "in_production"}});
  out.Add(c.reserve_no_room_blocks, {{"outcome", "no_room"}});
  out.Add(c.reserve_no_parent_blocks, {{"outcome", "no_parent"}});
  out.Counter("kvd_dedup_hits_total", "Blocks that need not be sent: present, or on their way.")
      .Add(c.reserve_present_blocks + c.reserve_in_production_blocks);
  out.Counter("kvd_dedup_saved_bytes_total", "Payload of such blocks.").Add(c.dedup_saved_bytes);
  out.Counter("kvd_committed_blocks_total", "Blocks that became visible.");
  for (const Tenant& t : tenants) out.Add(t.counters.committed_blocks, {{"tenant", t.name}});
  out.Counter("kvd_rejected_blocks_total", "Blocks that found no room.");
  for (const Tenant& t : tenants) out.Add(t.counters.rejected_blocks, {{"tenant", t.name}});
  out.Counter("kvd_reservations_ended_total", "Reservations that ended without all their blocks.");
  out.Add(c.reservations_expired, {{"reason", "expired"}});
  out.Add(c.reservations_aborted, {{"reason", "aborted"}});
}

void AddPromises(const MetricsSource& source, const std::vector<Tenant>& tenants, Families& out) {
  const Control& control = *source.control;
  const ControlCounters& c = control.counters();
  uint64_t leases = 0;
  uint64_t pins = 0;
  for (const Tenant& t : tenants) {
    leases += t.counters.leases;
    pins += t.counters.pins;
  }
  out.Gauge("kvd_leases", "Promises that a chain stays findable, now.");
  out.Add(leases, {{"kind", "lease"}});
  out.Add(pins, {{"kind", "pin"}});
  out.Gauge("kvd_tenant_leases", "Leases of a tenant, now.");
  for (const Tenant& t : tenants) out.Add(t.counters.leases, {{"tenant", t.name}});
  out.Gauge("kvd_pins", "Pins of a tenant, now.");
  for (const Tenant& t : tenants) out.Add(t.counters.pins, {{"tenant", t.name}});
  out.Counter("kvd_leases_granted_total", "Leases and pins that were granted.");
  out.Add(c.leases_granted, {{"kind", "lease"}});
  out.Add(c.pins_granted, {{"kind", "pin"}});
  out.Counter("kvd_lease_revoked_total", "Leases and pins that ended without being given back.");
  out.Add(c.leases_expired, {{"reason", "expired"}});
  out.Add(c.leases_ended_with_session, {{"reason", "session_ended"}});
  out.Gauge("kvd_held_extents", "Extents that clients read now, or have not given back.");
  for (const Tenant& t : tenants) out.Add(t.counters.held_extents, {{"tenant", t.name}});
  out.Gauge("kvd_held_bytes", "Room of such extents.").Add(control.holds().total_bytes());
  out.Gauge("kvd_sessions", "Clients that are connected, now.");
  for (const Tenant& t : tenants) {
    out.Add(t.counters.shm_sessions, {{"transport", "shm"}, {"tenant", t.name}});
    out.Add(t.counters.stream_sessions, {{"transport", "stream"}, {"tenant", t.name}});
  }
  out.Counter("kvd_sessions_opened_total", "Clients that came.").Add(c.sessions_opened);
}

void AddTrouble(const MetricsSource& source, Families& out) {
  const ControlCounters& c = source.control->counters();
  const ServiceMetrics& service = *source.service;
  const size_t tiers = source.nvme == nullptr ? 1 : kTiers;
  const ControlMetrics& metrics = source.control->metrics();
  out.Counter(
      "kvd_checksum_failures_total",
      "Parts whose stored bytes were not those that were committed, or could not be read, by "
      "who found it.");
  for (size_t tier = 0; tier < tiers; ++tier) {
    for (size_t finder = 0; finder < kFinders; ++finder) {
      out.Add(metrics.damage[tier][finder],
              {{"tier", kTierNames[tier]}, {"found_by", kFinderNames[finder]}});
    }
  }
  out.Counter("kvd_scrub_bytes_total", "Stored bytes that were read to check them.");
  for (size_t tier = 0; tier < tiers; ++tier) {
    out.Add(metrics.scrub.tiers[tier].bytes, {{"tier", kTierNames[tier]}});
  }
  out.Counter("kvd_scrub_parts_total",
              "Parts that were to be checked; skipped: read by too many, or too much waited.");
  for (size_t tier = 0; tier < tiers; ++tier) {
    out.Add(metrics.scrub.tiers[tier].parts, {{"tier", kTierNames[tier]}, {"outcome", "checked"}});
    out.Add(metrics.scrub.tiers[tier].skipped,
            {{"tier", kTierNames[tier]}, {"outcome", "skipped"}});
  }
  out.Counter("kvd_scrub_passes_total", "Times that the background has checked all blocks.")
      .Add(metrics.scrub.passes);
  out.Counter("kvd_log_events_total", "What happened, as `kvctl events` tells it.")
      .Add(source.control->events().published());
  out.Counter("kvd_log_event_gaps_total", "Times that a reader was too slow and missed events.")
      .Add(source.control->events().gaps());
  out.Counter("kvd_damage_reported_total",
              "Parts that clients called damaged; each is summed again before it is believed.")
      .Add(c.damage_reported);
  out.Counter("kvd_put_sums_differ_total",
              "Parts that changed in staging after the client had summed them.")
      .Add(c.put_sums_differ);
  out.Counter("kvd_auth_failures_total", "Calls and connections that were not let in.");
  for (size_t i = 0; i < kStrangerNames.size(); ++i) {
    const auto why = static_cast<Stranger>(i);
    uint64_t count = source.strangers->count(why);
    if (why == Stranger::kSession) count += c.unknown_sessions;
    out.Add(count, {{"reason", kStrangerNames[i]}});
  }
  out.Counter("kvd_calls_refused_total", "Calls with a mistake, or beyond a bound.")
      .Add(c.calls_refused);
  out.Counter("kvd_admission_rejected_total", "Calls that did not get what they asked, by want.");
  out.Add(c.leases_refused, {{"op", "lookup"}, {"reason", "leases"}});
  out.Add(c.hold_budget_refusals, {{"op", "load"}, {"reason", "holds"}});
  out.Add(c.reserves_refused, {{"op", "reserve"}, {"reason", "room"}});
  out.Add(c.reservations_refused, {{"op", "reserve"}, {"reason", "reservations"}});
  out.Add(c.puts_refused, {{"op", "commit"}, {"reason", "copiers"}});
  out.Add(c.pins_refused, {{"op", "pin"}, {"reason", "pins"}});
  out.Add(c.namespaces_refused, {{"op", "register_namespace"}, {"reason", "namespaces"}});
  out.Add(service.calls_refused, {{"op", "any"}, {"reason", "calls"}});
  out.Add(c.drain_refusals, {{"op", "any"}, {"reason", "draining"}});
}

// Calls of one way in.
struct Transport {
  std::string_view name;
  const ServiceMetrics& metrics;

  bool Has(size_t op) const {
    const bool streams = op == static_cast<size_t>(Op::kGet) || op == static_cast<size_t>(Op::kPut);
    return name == "stream" || !streams;
  }
};

void AddCalls(const MetricsSource& source, Families& out) {
  const ServiceMetrics& service = *source.service;
  const Transport transports[] = {{"shm", service}, {"stream", source.gateway->numbers()}};
  const auto each = [&transports](auto add) {
    for (const Transport& transport : transports) {
      for (size_t op = 0; op < kOps; ++op) {
        if (transport.Has(op)) add(transport.name, kOpNames[op], transport.metrics.ops[op]);
      }
    }
  };
  using OfOp = ServiceMetrics::OfOp;
  if (source.count_operations) {
    out.Histograms("kvd_op_duration_seconds",
                   "Time of a call from its arrival until its answer was sent; of a reserve with "
                   "what it waited for others, at its caller's wish, of a stream with all its "
                   "bytes.");
    each([&out](std::string_view transport, std::string_view op, const OfOp& counts) {
      out.Add(counts.duration, 1e9, {{"op", op}, {"tier", "dram"}, {"transport", transport}});
    });
    if (source.nvme != nullptr) {
      const MovementCounters& m = source.control->metrics().movement;
      for (const auto& [op, duration] :
           {std::pair("nvme_read", &m.read_time), std::pair("nvme_write", &m.write_time)}) {
        out.Add(*duration, 1e9, {{"op", op}, {"tier", "nvme"}, {"transport", "device"}});
      }
    }
  }
  out.Counter("kvd_op_answers_total", "Calls that were answered, by gRPC's status code.");
  each([&out](std::string_view transport, std::string_view op, const OfOp& counts) {
    for (size_t code = 0; code < ServiceMetrics::kCodes; ++code) {
      const uint64_t answers = counts.answers[code];
      if (answers == 0 && code != 0) continue;
      out.Add(answers, {{"op", op}, {"code", kCodeNames[code]}, {"transport", transport}});
    }
  });
  out.Counter("kvd_deadline_exceeded_total",
              "Calls whose caller had given up, by how far they came.");
  each([&out](std::string_view transport, std::string_view op, const OfOp& counts) {
    out.Add(counts.late, {{"op", op}, {"stage", "arrival"}, {"transport", transport}});
  });
  out.Gauge("kvd_queue_depth", "What waits, now.");
  out.Add(service.calls, {{"queue", "calls"}});
  out.Add(service.slices, {{"queue", "slices"}});
  out.Add(source.control->metrics().waiting_calls, {{"queue", "waiting"}});
  if (source.nvme != nullptr) {
    out.Add(source.control->metrics().movement.moves, {{"queue", "moves"}});
    out.Add(source.nvme->numbers().index_rows_waiting, {{"queue", "nvme_index"}});
  }
}

struct ProcessMemory {
  uint64_t resident_kib = 0;
  uint64_t private_kib = 0;
  uint64_t virtual_kib = 0;
};

ProcessMemory ReadProcessMemory() {
  ProcessMemory memory;
  if (std::FILE* status = std::fopen("/proc/self/status", "re")) {
    const absl::Cleanup close = [status] { std::fclose(status); };
    char line[256];
    while (std::fgets(line, sizeof line, status) != nullptr) {
      std::sscanf(line, "VmSize: %" SCNu64, &memory.virtual_kib);
      std::sscanf(line, "VmRSS: %" SCNu64, &memory.resident_kib);
      std::sscanf(line, "RssAnon: %" SCNu64, &memory.private_kib);
    }
  }
  return memory;
}

uint64_t OpenDescriptors() {
  DIR* folder = opendir("/proc/self/fd");
  if (folder == nullptr) return 0;
  uint64_t count = 0;
  while (readdir(folder) != nullptr) ++count;
  closedir(folder);
  return count - std::min<uint64_t>(count, 3);  // Not ".", ".." and the folder itself.
}

// Seconds since 1970 at which this process started; 0: the kernel did not tell.
double ProcessStart() {
  uint64_t ticks = 0;
  double booted = 0;
  if (std::FILE* stat = std::fopen("/proc/self/stat", "re")) {
    // The 22nd field; the second one, the name, is in brackets and has no space: it is ours.
    if (std::fscanf(stat,
                    "%*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s "
                    "%*s %*s %" SCNu64,
                    &ticks) != 1) {
      ticks = 0;
    }
    std::fclose(stat);
  }
  if (std::FILE* stat = std::fopen("/proc/stat", "re")) {
    char line[4096];
    while (std::fgets(line, sizeof line, stat) != nullptr) {
      if (std::sscanf(line, "btime %lf", &booted) == 1) break;
    }
    std::fclose(stat);
  }
  if (ticks == 0 || booted == 0) return 0;
  return booted + static_cast<double>(ticks) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

void AddEvents(const MetricsSource& source, Families& out) {
  const Announcements& announcements = source.control->announcements();
  out.Gauge("kvd_announced_bytes", "Memory of what engines announced their blocks by.")
      .Add(announcements.bytes());
  out.Counter("kvd_announce_refused_total",
              "Blocks whose announcement found no room: stored, and routers do not hear of them.")
      .Add(announcements.refused());
  if (source.events == nullptr) return;
  const EventMetrics& events = *source.events;
  out.Gauge("kvd_events_blocks", "Blocks of which routers know that they are here.")
      .Add(events.blocks);
  out.Counter("kvd_events_published_total", "KV events for routers, by type.")
      .Add(events.stored, {{"type", "stored"}})
      .Add(events.removed, {{"type", "removed"}});
  out.Counter("kvd_events_messages_total", "Messages of them.").Add(events.messages);
  out.Counter("kvd_events_dropped_messages_total",
              "Messages that some subscriber did not get, because it reads too slowly.")
      .Add(events.dropped_messages);
  out.Counter("kvd_event_gaps_total",
              "Times that events were forgotten before they were published: all was told anew.")
      .Add(events.losses);
  out.Counter("kvd_events_unannounced_total",
              "Blocks that became findable and that nobody had announced: routers do not hear of "
              "them.")
      .Add(events.unannounced);
  out.Counter("kvd_events_requests_total", "What routers asked for that had missed something.")
      .Add(events.replays, {{"outcome", "replay"}})
      .Add(events.snapshots, {{"outcome", "snapshot"}})
      .Add(events.refused_requests, {{"outcome", "refused"}});
}

void AddProcess(const MetricsSource& source, Families& out) {
  static const double started = ProcessStart();
  const ProcessMemory memory = ReadProcessMemory();
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  rlimit descriptors{};
  getrlimit(RLIMIT_NOFILE, &descriptors);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
  };
  out.Gauge("kvd_build_info", "1; what this daemon is.")
      .Add(uint64_t{1},
           {{"version", source.version}, {"protocol", std::to_string(kProtocolVersion)}});
  out.Gauge("kvd_memory_beside_arena_bytes", "Resident memory without arena and staging.")
      .Add(memory.private_kib * 1024);
  out.Counter("process_cpu_seconds_total", "CPU time of this process.")
      .Add(seconds(usage.ru_utime) + seconds(usage.ru_stime));
  out.Gauge("process_resident_memory_bytes", "Resident memory, arena and staging included.")
      .Add(memory.resident_kib * 1024);
  out.Gauge("process_virtual_memory_bytes", "Address space.").Add(memory.virtual_kib * 1024);
  out.Gauge("process_open_fds", "Open descriptors.").Add(OpenDescriptors());
  out.Gauge("process_max_fds", "Descriptors that may be open.")
      .Add(static_cast<uint64_t>(descriptors.rlim_cur));
  out.Gauge("process_start_time_seconds", "When this process started, since 1970.").Add(started);
}

}  // namespace

uint64_t PrivateBytes() { return ReadProcessMemory().private_kib * 1024; }

std::vector<MetricFamily> CollectMetrics(const MetricsSource& source) {
  const std::vector<Tenant> tenants = TenantsOf(source);
  Families out;
  AddDemand(source, tenants, out);
  AddTiers(source, out);
  AddPuts(source, tenants, out);
  AddEviction(source, out);
  AddNvme(source, out);
  AddRestart(source, out);
  AddPromises(source, tenants, out);
  AddCalls(source, out);
  AddTrouble(source, out);
  AddEvents(source, out);
  AddProcess(source, out);
  return out.Take();
}

std::string MetricsText(const MetricsSource& source) {
  return prometheus::TextSerializer().Serialize(CollectMetrics(source));
}

}  // namespace kvd
