#include "proto/types/namespace_descriptor.h"

#include <openssl/sha.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"

namespace kvd {
namespace {

constexpr std::string_view kCanonicalPrefix = "kvd-namespace-1";

// Tag, length, bytes. The tag makes fields self-describing, the length makes the whole injective.
void Append(std::string& out, uint8_t tag, std::string_view bytes) {
  out.push_back(static_cast<char>(tag));
  const auto size = static_cast<uint32_t>(bytes.size());
  for (int shift = 0; shift < 32; shift += 8) out.push_back(static_cast<char>(size >> shift));
  out.append(bytes);
}

void Append(std::string& out, uint8_t tag, uint32_t value) {
  char bytes[4];
  for (int i = 0; i < 4; ++i) bytes[i] = static_cast<char>(value >> (8 * i));
  Append(out, tag, std::string_view(bytes, 4));
}

// Takes the next field off `in`. False: that is none.
bool Take(std::string_view& in, uint8_t& tag, std::string_view& bytes) {
  if (in.size() < 5) return false;
  tag = static_cast<uint8_t>(in[0]);
  uint32_t size = 0;
  for (int i = 0; i < 4; ++i) size |= uint32_t{static_cast<uint8_t>(in[1 + i])} << (8 * i);
  if (in.size() - 5 < size) return false;
  bytes = in.substr(5, size);
  in.remove_prefix(5 + size_t{size});
  return true;
}

uint32_t Number(std::string_view bytes) {
  uint32_t value = 0;
  for (size_t i = 0; i < bytes.size() && i < 4; ++i) {
    value |= uint32_t{static_cast<uint8_t>(bytes[i])} << (8 * i);
  }
  return value;
}

absl::Status Bad(std::string_view field, std::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat("descriptor.",
                                                 absl::string_view(field.data(), field.size()),
                                                 ": ", absl::string_view(why.data(), why.size())));
}

absl::Status ValidateGroup(const GroupDescriptor& group, const std::string& name) {
  if (group.block_tokens == 0 || group.block_tokens > (1u << 20)) {
    return Bad(name + ".block_tokens", "must be 1 to 1048576");
  }
  switch (group.kind) {
    case GroupKind::kFull:
    case GroupKind::kState:
      if (group.window_tokens != 0) return Bad(name + ".window_tokens", "only a window has one");
      break;
    case GroupKind::kWindow:
      if (group.window_tokens == 0) return Bad(name + ".window_tokens", "a window needs one");
      // A lookup looks at every block of a window. What is wider is needed whole: a full group.
      if (group.window_blocks() > kMaxLookupBlocks) {
        return Bad(name + ".window_tokens", "more than 32768 blocks; declare the group full");
      }
      break;
    default:
      return Bad(name + ".kind", "unknown");
  }
  if (group.shards == 0 || group.shards > kMaxPartsPerBlock) {
    return Bad(name + ".shards", "must be 1 to 256");
  }
  if (group.part_bytes == 0 || group.part_bytes > kMaxPartBytes) {
    return Bad(name + ".part_bytes", "must be 1 to 64 MiB");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status NamespaceDescriptor::Validate() const {
  const std::pair<std::string_view, const std::string*> strings[] = {
      {"model", &model},
      {"weights_revision", &weights_revision},
      {"kv_dtype", &kv_dtype},
      {"quantization", &quantization},
      {"page_layout", &page_layout},
      {"engine_family", &engine_family},
      {"draft_model", &draft_model},
      {"hash_algorithm", &hash_algorithm},
      {"hash_seed", &hash_seed}};
  for (const auto& [name, value] : strings) {
    if (value->size() > kMaxNameBytes) return Bad(name, "longer than 256 bytes");
  }
  if (model.empty()) return Bad("model", "is empty");
  if (hash_bytes < kMinHashBytes || hash_bytes > kMaxHashBytes) {
    return Bad("hash_bytes", "must be 8 to 32");
  }
  if (tensor_parallel == 0) return Bad("tensor_parallel", "must be at least 1");
  if (pipeline_parallel == 0) return Bad("pipeline_parallel", "must be at least 1");
  if (context_parallel == 0) return Bad("context_parallel", "must be at least 1");
  if (groups.empty() || groups.size() > kMaxGroups) return Bad("groups", "must be 1 to 16");
  bool has_full = false;
  for (size_t i = 0; i < groups.size(); ++i) {
    if (absl::Status status = ValidateGroup(groups[i], absl::StrCat("groups[", i, "]"));
        !status.ok()) {
      return status;
    }
    if (groups[i].block_tokens != groups[0].block_tokens) {
      return Bad(absl::StrCat("groups[", i, "].block_tokens"), "differs from that of groups[0]");
    }
    has_full |= groups[i].kind == GroupKind::kFull;
  }
  // Prefix closure is a property of full parts: without one, nothing would make a block visible.
  if (!has_full) return Bad("groups", "needs at least one of kind full");
  if (parts_per_block() > kMaxPartsPerBlock) return Bad("groups", "more than 256 parts per block");
  if (extra.size() > kMaxExtra) return Bad("extra", "more than 64 entries");
  for (const auto& [key, value] : extra) {
    if (key.empty() || key.size() > kMaxNameBytes || value.size() > kMaxNameBytes) {
      return Bad("extra", "a key or value is empty or longer than 256 bytes");
    }
  }
  return absl::OkStatus();
}

std::string NamespaceDescriptor::Canonical() const {
  std::string out(kCanonicalPrefix);
  Append(out, 1, model);
  Append(out, 2, weights_revision);
  Append(out, 3, kv_dtype);
  Append(out, 4, quantization);
  Append(out, 5, page_layout);
  Append(out, 6, engine_family);
  Append(out, 7, draft_model);
  Append(out, 8, hash_algorithm);
  Append(out, 9, hash_seed);
  Append(out, 10, hash_bytes);
  Append(out, 11, tensor_parallel);
  Append(out, 12, pipeline_parallel);
  Append(out, 13, context_parallel);
  for (const GroupDescriptor& group : groups) {
    Append(out, 14, static_cast<uint32_t>(group.kind));
    Append(out, 15, group.window_tokens);
    Append(out, 16, group.shards);
    Append(out, 17, group.block_tokens);
    Append(out, 18, group.part_bytes);
  }
  for (const auto& [key, value] : extra) {  // A std::map, so in the order of the keys.
    Append(out, 19, key);
    Append(out, 20, value);
  }
  return out;
}

absl::StatusOr<NamespaceDescriptor> NamespaceDescriptor::FromCanonical(std::string_view canonical) {
  NamespaceDescriptor read;
  std::string_view rest = canonical;
  rest.remove_prefix(std::min(rest.size(), kCanonicalPrefix.size()));
  uint8_t tag = 0;
  std::string_view bytes;
  std::string key;
  while (Take(rest, tag, bytes)) {
    if (tag == 14) read.groups.emplace_back();
    if (tag > 14 && tag <= 18 && read.groups.empty()) break;
    switch (tag) {
      // clang-format off
      case 1: read.model = bytes; break;
      case 2: read.weights_revision = bytes; break;
      case 3: read.kv_dtype = bytes; break;
      case 4: read.quantization = bytes; break;
      case 5: read.page_layout = bytes; break;
      case 6: read.engine_family = bytes; break;
      case 7: read.draft_model = bytes; break;
      case 8: read.hash_algorithm = bytes; break;
      case 9: read.hash_seed = bytes; break;
      case 10: read.hash_bytes = Number(bytes); break;
      case 11: read.tensor_parallel = Number(bytes); break;
      case 12: read.pipeline_parallel = Number(bytes); break;
      case 13: read.context_parallel = Number(bytes); break;
      case 14: read.groups.back().kind = static_cast<GroupKind>(Number(bytes)); break;
      case 15: read.groups.back().window_tokens = Number(bytes); break;
      case 16: read.groups.back().shards = Number(bytes); break;
      case 17: read.groups.back().block_tokens = Number(bytes); break;
      case 18: read.groups.back().part_bytes = Number(bytes); break;
      case 19: key = bytes; break;
      case 20: read.extra[key] = bytes; break;
      default: break;
        // clang-format on
    }
  }
  // Whatever was skipped, cut or out of order shows here: the encoding is injective.
  if (read.Canonical() != canonical) {
    return absl::InvalidArgumentError("not the canonical form of a namespace");
  }
  if (absl::Status status = read.Validate(); !status.ok()) return status;
  return read;
}

std::array<uint8_t, 16> NamespaceDescriptor::Fingerprint() const {
  const std::string canonical = Canonical();
  uint8_t digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const uint8_t*>(canonical.data()), canonical.size(), digest);
  std::array<uint8_t, 16> fingerprint;
  std::copy(digest, digest + fingerprint.size(), fingerprint.begin());
  return fingerprint;
}

uint32_t NamespaceDescriptor::parts_per_block() const {
  uint32_t parts = 0;
  for (const GroupDescriptor& group : groups) parts += group.shards;
  return parts;
}

}  // namespace kvd
