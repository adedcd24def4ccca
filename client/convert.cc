#include "client/convert.h"

#include "absl/strings/cord.h"
#include "proto/types/session_wire.h"

namespace kvd {

v1::NamespaceDescriptor ToProto(const NamespaceDescriptor& descriptor) {
  v1::NamespaceDescriptor message;
  message.set_model(descriptor.model);
  message.set_weights_revision(descriptor.weights_revision);
  message.set_kv_dtype(descriptor.kv_dtype);
  message.set_quantization(descriptor.quantization);
  message.set_page_layout(descriptor.page_layout);
  message.set_engine_family(descriptor.engine_family);
  message.set_draft_model(descriptor.draft_model);
  message.set_hash_algorithm(descriptor.hash_algorithm);
  message.set_hash_seed(descriptor.hash_seed);
  message.set_hash_bytes(descriptor.hash_bytes);
  message.set_tensor_parallel(descriptor.tensor_parallel);
  message.set_pipeline_parallel(descriptor.pipeline_parallel);
  message.set_context_parallel(descriptor.context_parallel);
  for (const GroupDescriptor& group : descriptor.groups) {
    v1::Group* added = message.add_groups();
    added->set_kind(static_cast<v1::GroupKind>(group.kind));
    added->set_window_tokens(group.window_tokens);
    added->set_shards(group.shards);
    added->set_block_tokens(group.block_tokens);
    added->set_part_bytes(group.part_bytes);
  }
  for (const auto& [key, value] : descriptor.extra) (*message.mutable_extra())[key] = value;
  return message;
}

static_assert(static_cast<int>(GroupKind::kFull) == v1::GROUP_KIND_FULL);
static_assert(static_cast<int>(GroupKind::kWindow) == v1::GROUP_KIND_WINDOW);
static_assert(static_cast<int>(GroupKind::kState) == v1::GROUP_KIND_STATE);

v1::Releases ToProto(const Owed& owed) {
  v1::Releases message;
  message.mutable_hold_ids()->Add(owed.hold_ids.begin(), owed.hold_ids.end());
  message.mutable_lease_ids()->Add(owed.lease_ids.begin(), owed.lease_ids.end());
  for (const DamagedExtents& damaged : owed.damaged) {
    v1::Damage* added = message.add_damaged();
    added->set_hold_id(damaged.hold_id);
    added->mutable_extents()->Add(damaged.extents.begin(), damaged.extents.end());
  }
  return message;
}

std::string PackParts(absl::Span<const PartId> parts) {
  std::string packed;
  packed.reserve(2 * parts.size());
  for (PartId part : parts) {
    packed.push_back(static_cast<char>(part.group));
    packed.push_back(static_cast<char>(part.shard));
  }
  return packed;
}

absl::Status ToAbsl(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

absl::Status EndOf(const grpc::ClientContext& context, const grpc::Status& status) {
  absl::Status end = ToAbsl(status);
  if (!end.ok() && context.GetServerTrailingMetadata().count(kDrainingKey) > 0) {
    end.SetPayload(kDrainingKey, absl::Cord());
  }
  return end;
}

bool IsDraining(const absl::Status& status) { return status.GetPayload(kDrainingKey).has_value(); }

}  // namespace kvd
