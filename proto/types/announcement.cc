#include "proto/types/announcement.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "proto/types/msgpack.h"
#include "proto/types/view.h"

namespace kvd {
namespace {

constexpr std::string_view kOfTheDaemon[] = {
    "type",       "medium",     "locality",  "event_id",  "event_type",
    "seq_hashes", "backend_id", "tenant_id", "timestamp", "base_block_idx",
};

absl::Status Wrong(std::string_view key, std::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(View(key), View(what)));
}

// How many integers the array has; `*failed` where it is none or has something else.
uint32_t CountIntegers(MsgpackReader& reader) {
  const uint32_t count = reader.Array();
  for (uint32_t i = 0; i < count && !reader.failed(); ++i) reader.Integer();
  return count;
}

}  // namespace

absl::StatusOr<Announcement> ReadAnnouncement(std::string_view bytes) {
  MsgpackReader reader(bytes);
  Announcement read{.entry_count = reader.Map()};
  if (reader.failed()) return Wrong("", "not a MessagePack map");
  if (read.entry_count > kMaxAnnouncedEntries) return Wrong("", "more than 32 entries");
  read.entries = reader.rest();

  uint64_t tokens = 0;
  uint64_t block_size = 0;
  bool has_parent = false;
  for (uint32_t i = 0; i < read.entry_count; ++i) {
    const std::string_view key = reader.Str();
    if (reader.failed()) return Wrong("", "a key is not a string");
    if (std::find(std::begin(kOfTheDaemon), std::end(kOfTheDaemon), key) !=
        std::end(kOfTheDaemon)) {
      return Wrong(key, " is written by the daemon");
    }
    const std::string_view value = reader.rest();
    const bool again =
        (key == "block_hashes" && read.blocks > 0) || (key == "token_ids" && tokens > 0);
    if (again) return Wrong(key, " is there twice");
    if (key == "block_hashes") {
      read.blocks = CountIntegers(reader);
      read.hashes = value.substr(0, value.size() - reader.rest().size());
    } else if (key == "token_ids") {
      tokens = CountIntegers(reader);
    } else if (key == "block_size") {
      block_size = reader.Integer();
    } else if (key == "parent_block_hash") {
      has_parent = true;
      if (!reader.Nil()) reader.Integer();
    } else if (key == "group_idx") {
      read.group = reader.Any();
    } else {
      reader.Any();
    }
    if (reader.failed()) return Wrong(key, " has a value that does not belong there");
  }
  if (!reader.at_end()) return Wrong("", "bytes after the end of the map");
  if (read.blocks == 0) return Wrong("block_hashes", " must have one or more");
  if (!has_parent) return Wrong("parent_block_hash", " must be there; nil for a root");
  if (block_size == 0 || block_size > UINT32_MAX || tokens != block_size * read.blocks) {
    return Wrong("token_ids", " must have block_size for each of block_hashes");
  }
  return read;
}

std::string WriteAnnouncement(const AnnouncedBlock& block) {
  std::string bytes;
  MsgpackWriter writer(bytes);
  writer.Map(6);
  writer.Str("block_hashes");
  writer.Array(static_cast<uint32_t>(block.hashes.size()));
  for (const uint64_t hash : block.hashes) writer.Uint(hash);
  writer.Str("parent_block_hash");
  if (block.parent != nullptr) {
    writer.Uint(*block.parent);
  } else {
    writer.Nil();
  }
  writer.Str("token_ids");
  writer.Array(static_cast<uint32_t>(block.tokens.size()));
  for (const uint32_t token : block.tokens) writer.Uint(token);
  writer.Str("block_size");
  writer.Uint(block.block_tokens);
  writer.Str("lora_id");  // vLLM's decoders of before 2025-10 want it, and its name.
  writer.Nil();
  writer.Str("lora_name");
  if (block.lora_name.empty()) {
    writer.Nil();
  } else {
    writer.Str(block.lora_name);
  }
  return bytes;
}

}  // namespace kvd
