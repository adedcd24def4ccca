// What an engine may say of a block to routers, and what is refused with which words.

#include "proto/types/announcement.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "proto/types/msgpack.h"

namespace kvd {
namespace {

const std::vector<uint64_t> kHashes = {UINT64_MAX};
const std::vector<uint32_t> kTokens = {1, 300};
constexpr uint64_t kParent = 7;

std::string Least() {
  return WriteAnnouncement(
      {.hashes = kHashes, .parent = &kParent, .tokens = kTokens, .block_tokens = 2});
}

// Python: msgpack.packb({"block_hashes": [2**64-1], "parent_block_hash": 7, "token_ids": [1, 300],
// "block_size": 2, "lora_id": None, "lora_name": None}).
TEST(AnnouncementTest, TheLeastIsTheMapOfVllm) {
  EXPECT_EQ(absl::BytesToHexString(Least()),
            "86ac626c6f636b5f68617368657391cfffffffffffffffff"
            "b1706172656e745f626c6f636b5f6861736807"
            "a9746f6b656e5f6964739201cd012c"
            "aa626c6f636b5f73697a6502a76c6f72615f6964c0a96c6f72615f6e616d65c0");
}

TEST(AnnouncementTest, ItIsReadWithoutBeingCopied) {
  const std::string bytes = Least();
  const absl::StatusOr<Announcement> read = ReadAnnouncement(bytes);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->entry_count, 6u);
  EXPECT_EQ(read->entries, std::string_view(bytes).substr(1));
  EXPECT_EQ(absl::BytesToHexString(std::string(read->hashes)), "91cfffffffffffffffff");
  EXPECT_EQ(read->blocks, 1u);
  EXPECT_EQ(read->group, "");
}

TEST(AnnouncementTest, WhatEnginesAddLaterIsTaken) {
  std::string bytes = Least();
  bytes[0] = '\x88';
  MsgpackWriter writer(bytes);
  writer.Str("group_idx");
  writer.Uint(2);
  writer.Str("extra_keys");
  writer.Array(1);
  writer.Array(2);
  writer.Str("salt");
  writer.Uint(9);
  const absl::StatusOr<Announcement> read = ReadAnnouncement(bytes);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->group, "\x02");
  EXPECT_EQ(read->entry_count, 8u);
}

// `change` gets the writer after the head of a map of `entries`.
template <typename Change>
std::string Refusal(uint32_t entries, Change change) {
  std::string bytes;
  MsgpackWriter writer(bytes);
  writer.Map(entries);
  change(writer);
  const absl::StatusOr<Announcement> read = ReadAnnouncement(bytes);
  EXPECT_EQ(read.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(read.status().message());
}

void Write(MsgpackWriter& writer, const char* key, std::initializer_list<uint64_t> values) {
  writer.Str(key);
  writer.Array(static_cast<uint32_t>(values.size()));
  for (const uint64_t value : values) writer.Uint(value);
}
void Write(MsgpackWriter& writer, const char* key, uint64_t value) {
  writer.Str(key);
  writer.Uint(value);
}

TEST(AnnouncementTest, WhatIsWrongIsNamed) {
  EXPECT_EQ(ReadAnnouncement("").status().message(), "not a MessagePack map");
  EXPECT_EQ(ReadAnnouncement("\x93").status().message(), "not a MessagePack map");
  EXPECT_EQ(ReadAnnouncement(Least() + "x").status().message(), "bytes after the end of the map");
  EXPECT_EQ(Refusal(33, [](auto&) {}), "more than 32 entries");
  EXPECT_EQ(Refusal(1, [](auto& w) { w.Uint(1); }), "a key is not a string");
  EXPECT_EQ(Refusal(1, [](auto& w) { Write(w, "medium", 1); }), "medium is written by the daemon");
  EXPECT_EQ(Refusal(1, [](auto& w) { Write(w, "block_hashes", 1); }),
            "block_hashes has a value that does not belong there");
  EXPECT_EQ(Refusal(2,
                    [](auto& w) {
                      Write(w, "block_hashes", {1});
                      Write(w, "block_hashes", {1});
                    }),
            "block_hashes is there twice");
  EXPECT_EQ(Refusal(1, [](auto& w) { Write(w, "block_hashes", {}); }),
            "block_hashes must have one or more");
  EXPECT_EQ(Refusal(1, [](auto& w) { Write(w, "block_hashes", {1}); }),
            "parent_block_hash must be there; nil for a root");
  EXPECT_EQ(Refusal(4,
                    [](auto& w) {
                      Write(w, "block_hashes", {1, 2});
                      Write(w, "parent_block_hash", 3);
                      Write(w, "token_ids", {1, 2, 3});
                      Write(w, "block_size", 2);
                    }),
            "token_ids must have block_size for each of block_hashes");
}

TEST(AnnouncementTest, AnythingThatIsCutOffIsRefused) {
  const std::string whole = Least();
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_FALSE(ReadAnnouncement(std::string_view(whole).substr(0, size)).ok()) << size;
  }
}

}  // namespace
}  // namespace kvd
