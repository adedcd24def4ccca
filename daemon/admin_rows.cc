#include "daemon/admin_rows.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace kvd {
namespace {

std::string_view StateName(BlockState state) {
  switch (state) {
    case BlockState::kFree:
      return "free";
    case BlockState::kProducing:
      return "producing";
    case BlockState::kParked:
      return "parked";
    case BlockState::kVisible:
      return "visible";
    case BlockState::kStub:
      return "stub";
  }
  return "unknown";
}

std::string Text(std::string_view view) { return std::string(view); }

uint64_t Milliseconds(Nanos time) {
  return static_cast<uint64_t>(std::max<Nanos>(0, time) / kMillisecond);
}

void AddProblem(v1::StatusReply& status, const char* code, const char* severity,
                std::string message) {
  v1::Problem& problem = *status.add_problems();
  problem.set_code(code);
  problem.set_severity(severity);
  problem.set_message(std::move(message));
}

uint64_t CounterOf(const v1::StatusReply& status, std::string_view name) {
  for (const v1::Counter& counter : status.counters()) {
    if (counter.name() == name) return counter.value();
  }
  return 0;
}

}  // namespace

void Write(const SessionRow& row, const DomainName& name, v1::SessionStatus& out) {
  out.set_serial(row.serial);
  out.set_domain(name(row.domain));
  out.set_transport(row.pid == 0 ? "stream" : "shm");
  out.set_uid(row.uid);
  out.set_pid(static_cast<uint32_t>(row.pid));
  out.set_age_ms(Milliseconds(row.age));
  out.set_leases(row.leases);
  out.set_holds(row.extents);
  out.set_held_bytes(row.held_bytes);
  out.set_reservations(row.reservations);
  out.set_staging_bytes(row.staging_bytes);
  out.set_ended(row.ended);
}

void Write(const LeaseRow& row, const DomainName& name, v1::LeaseStatus& out) {
  out.set_lease_id(row.id);
  out.set_kind(row.pin ? "pin" : "lease");
  out.set_domain(name(row.domain));
  out.set_namespace_id(row.ns);
  out.set_key(row.key);
  out.set_depth(row.depth);
  out.set_owner(row.owner);
  out.set_session(row.session);
  out.set_expires_in_ms(Milliseconds(row.left));
  out.set_bytes(row.bytes);
}

void Write(const NamespaceRow& row, const DomainName& name, v1::NamespaceStatus& out) {
  out.set_namespace_id(row.id);
  out.set_domain(name(row.domain));
  const auto fingerprint = row.descriptor.Fingerprint();
  out.set_fingerprint(fingerprint.data(), fingerprint.size());
  const NamespaceDescriptor& from = row.descriptor;
  v1::NamespaceDescriptor& to = *out.mutable_describes();
  to.set_model(from.model);
  to.set_weights_revision(from.weights_revision);
  to.set_kv_dtype(from.kv_dtype);
  to.set_quantization(from.quantization);
  to.set_page_layout(from.page_layout);
  to.set_engine_family(from.engine_family);
  to.set_draft_model(from.draft_model);
  to.set_hash_algorithm(from.hash_algorithm);
  to.set_hash_seed(from.hash_seed);
  to.set_hash_bytes(from.hash_bytes);
  to.set_tensor_parallel(from.tensor_parallel);
  to.set_pipeline_parallel(from.pipeline_parallel);
  to.set_context_parallel(from.context_parallel);
  for (const GroupDescriptor& group : from.groups) {
    v1::Group& added = *to.add_groups();
    added.set_kind(static_cast<v1::GroupKind>(group.kind));
    added.set_window_tokens(group.window_tokens);
    added.set_shards(group.shards);
    added.set_block_tokens(group.block_tokens);
    added.set_part_bytes(group.part_bytes);
  }
  for (const auto& [key, value] : from.extra) (*to.mutable_extra())[key] = value;
  out.set_blocks(row.blocks);
  out.set_bytes(row.bytes);
}

void Write(const BlockRow& row, const DomainName& name, v1::BlockStatus& out) {
  out.set_namespace_id(row.ns);
  out.set_domain(name(row.domain));
  out.set_key(row.key);
  out.set_parent(row.parent);
  out.set_depth(row.depth);
  out.set_state(Text(StateName(row.state)));
  out.set_bytes(row.bytes);
  out.set_nvme_bytes(row.nvme_bytes);
  out.set_children(row.children);
  out.set_leases(row.leases);
  for (const PartRow& part : row.parts) {
    v1::PartStatus& added = *out.add_parts();
    added.set_group(part.id.group);
    added.set_shard(part.id.shard);
    added.set_tier(part.on_nvme ? "nvme" : "dram");
    added.set_region(part.region);
    added.set_offset(part.offset);
    added.set_length(part.length);
    added.set_generation(part.generation);
    added.set_crc32c(part.sum);
    added.set_holds(part.holds);
    added.set_state(part.committed ? "committed" : part.on_nvme ? "writing" : "reserved");
  }
}

void Write(const DomainRow& row, const DomainName& name, v1::DomainUse& out) {
  out.set_domain(name(row.domain));
  out.set_sessions(row.sessions);
  out.set_lookups(row.lookups);
  out.set_lookup_blocks(row.lookup_blocks);
  out.set_hit_blocks(row.hit_blocks);
  out.set_used_bytes(row.used_bytes);
  out.set_leases(row.leases);
  out.set_pins(row.pins);
  out.set_held_bytes(row.held_bytes);
  out.set_committed_blocks(row.committed_blocks);
  out.set_rejected_blocks(row.rejected_blocks);
}

void Write(const Quarantined& entry, uint32_t key_bytes, uint64_t unix_ms, const DomainName& name,
           v1::QuarantineEntry& out) {
  out.set_number(entry.number);
  out.set_unix_ms(unix_ms);
  out.set_domain(name(entry.domain));
  out.set_namespace_id(entry.ns);
  out.set_key(entry.key.bytes.data(), key_bytes);
  out.set_depth(entry.depth);
  out.set_group(entry.id.group);
  out.set_shard(entry.id.shard);
  out.set_tier(entry.on_nvme ? "nvme" : "dram");
  out.set_region(entry.region);
  out.set_offset(entry.offset);
  out.set_length(entry.length);
  out.set_crc32c(entry.sum);
  out.set_found_by(Text(FinderName(entry.found_by)));
}

namespace {

const char* TierNames(TierSet tiers) {
  constexpr const char* kNames[] = {"", "dram", "nvme", "dram,nvme"};
  return kNames[tiers & 3];
}

}  // namespace

void Write(const Event& event, uint32_t key_bytes, const DomainName& name, v1::Event& out) {
  const auto write = [key_bytes](const ChainHash& hash) {
    return std::string(reinterpret_cast<const char*>(hash.bytes.data()), key_bytes);
  };
  out.set_kind(Text(EventKindName(event.kind)));
  if (event.domain != kNoDomain) out.set_domain(name(event.domain));
  out.set_namespace_id(event.ns);
  out.set_detail(Text(EventReasonName(event.reason)));
  out.set_number(event.number);
  switch (event.kind) {
    case EventKind::kStored:
    case EventKind::kEvicted:
    case EventKind::kDamaged:
    case EventKind::kPartDamaged:
    case EventKind::kMoved:
    case EventKind::kAnnounced:
      out.set_key(write(event.key));
      if (event.has_parent) out.set_parent(write(event.parent));
      out.set_tier(TierNames(event.kind == EventKind::kAnnounced ? event.tiers : event.where));
      if (event.kind == EventKind::kMoved) {
        out.set_detail((event.tiers & event.where) != 0 ? "entered" : "left");
      }
      break;
    case EventKind::kLeaseExpired:
    case EventKind::kPinGranted:
    case EventKind::kPinEnded:
      out.set_key(write(event.key));
      break;
    default:
      break;
  }
}

void AddProblems(v1::StatusReply& status, uint64_t capacity_bytes) {
  if (status.draining()) {
    AddProblem(status, "KVD1001", "warn",
               "the daemon drains: it takes no new leases, holds and reservations; 'kvctl undrain' "
               "takes that back");
  }
  const uint64_t records = CounterOf(status, "nvme_damaged_records");
  if (const uint64_t all = CounterOf(status, "damage_confirmed"); all > records) {
    AddProblem(status, "KVD1002", "error",
               absl::StrCat(all - records,
                            " parts in DRAM were found damaged since start (none was "
                            "served): test the memory of this node, 'kvctl drain' it first"));
  }
  if (records > 0) {
    AddProblem(status, "KVD1007", "error",
               absl::StrCat(records,
                            " records on NVMe were found damaged since start (none was served): "
                            "'kvctl quarantine' says where, 'smartctl -a' what the drive says"));
  }
  if (status.quarantined_bytes() > capacity_bytes / 100) {
    AddProblem(status, "KVD1003", "warn",
               absl::StrCat(status.quarantined_bytes(),
                            " bytes are quarantined: clients hold room of blocks that have gone; "
                            "'kvctl sessions' says who holds, and ending that process frees it"));
  }
  if (const uint64_t refused = CounterOf(status, "leases_refused"); refused > 0) {
    AddProblem(
        status, "KVD1004", "warn",
        absl::StrCat(refused,
                     " leases were refused since start because a session, a user or "
                     "the daemon had as many as it may; 'kvctl leases' says who keeps them"));
  }
  if (CounterOf(status, "nvme_out") > 0) {
    AddProblem(
        status, "KVD1005", "error",
        "the NVMe tier takes no reads: the log says why ('nvme.out'); it is tried again every "
        "few seconds, and memory serves meanwhile");
  }
  if (const uint64_t withheld = CounterOf(status, "withheld_parts");
      CounterOf(status, "former_readers") > 0 && withheld > 0) {
    AddProblem(status, "KVD1006", "warn",
               absl::StrCat(withheld, " parts wait for ", CounterOf(status, "former_readers"),
                            " sessions of before the restart: their room is used again when those "
                            "processes have ended or connected anew"));
  }
}

}  // namespace kvd
