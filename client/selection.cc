#include "client/selection.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "client/convert.h"
#include "proto/types/limits.h"

namespace kvd {

absl::StatusOr<uint32_t> Milliseconds(absl::Duration duration, uint64_t max, const char* field) {
  if (duration < absl::ZeroDuration() || duration > absl::Milliseconds(max)) {
    return absl::InvalidArgumentError(absl::StrCat(field, ": must be 0 to ", max, " ms"));
  }
  return static_cast<uint32_t>(
      absl::ToInt64Milliseconds(absl::Ceil(duration, absl::Milliseconds(1))));
}

absl::StatusOr<uint32_t> CountKeys(const KnownNamespace& ns, std::string_view keys, uint32_t max) {
  const uint32_t hash_bytes = ns.descriptor.hash_bytes;
  const size_t count = keys.size() / hash_bytes;
  if (count == 0 || keys.size() % hash_bytes != 0 || count > max) {
    return absl::InvalidArgumentError(
        absl::StrCat("keys: must be 1 to ", max, " hashes of ", hash_bytes, " bytes"));
  }
  return static_cast<uint32_t>(count);
}

absl::Status CheckParent(const KnownNamespace& ns, std::string_view parent) {
  if (parent.empty() || parent.size() == ns.descriptor.hash_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError("parent: must be empty or one hash");
}

uint32_t PageBlocks(size_t parts) {
  return std::min<uint32_t>(kMaxPageBlocks, kMaxPageExtents / static_cast<uint32_t>(parts));
}

Selection SelectAll(const KnownNamespace& ns) {
  Selection all;
  all.bytes = ns.value.part_bytes;
  for (PartId part : ns.value.parts) all.groups.push_back(&ns.descriptor.groups[part.group]);
  return all;
}

absl::StatusOr<Selection> Select(const KnownNamespace& ns, const std::vector<PartId>& parts) {
  if (parts.empty()) return ns.all;
  Selection selection;
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::vector<PartId>& known = ns.value.parts;
    const auto found = std::find(known.begin(), known.end(), parts[i]);
    if (found == known.end()) return absl::InvalidArgumentError("parts: not of this namespace");
    if (std::find(parts.begin(), parts.begin() + i, parts[i]) != parts.begin() + i) {
      return absl::InvalidArgumentError("parts: one is named twice");
    }
    selection.bytes.push_back(ns.value.part_bytes[found - known.begin()]);
    selection.groups.push_back(&ns.descriptor.groups[parts[i].group]);
  }
  selection.packed = PackParts(parts);
  return selection;
}

uint32_t ServableBlocks(const Selection& parts, const std::vector<bool>& usable, uint32_t blocks) {
  std::vector<uint32_t> run(parts.size(), 0);  // Usable blocks on end, up to the one looked at.
  uint32_t servable = 0;
  for (uint32_t block = 0; block < blocks; ++block) {
    bool all = true;
    for (size_t part = 0; part < parts.size(); ++part) {
      run[part] = usable[block * parts.size() + part] ? run[part] + 1 : 0;
      const GroupDescriptor& group = *parts.groups[part];
      uint32_t needed = 1;
      if (group.kind == GroupKind::kFull) needed = block + 1;
      if (group.kind == GroupKind::kWindow) {
        needed = std::min(block + 1, group.window_blocks());
      }
      all &= run[part] >= needed;
    }
    if (all) servable = block + 1;
  }
  return servable;
}

}  // namespace kvd
