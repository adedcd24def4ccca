// Golden frames: the payload of a message, byte by byte as Python's msgpack writes it.

#include "daemon/kv_events.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "proto/types/msgpack.h"

namespace kvd {
namespace {

// cleared, stored and removed are the maps that the comments at Stored(), Removed() and Cleared()
// name; msgpack.packb([1.5, [cleared, stored, removed], None]).hex()
constexpr const char* kGolden =
    "93cb3ff800000000000093"
    "84a474797065b0416c6c426c6f636b73436c6561726564aa6576656e745f74797065a7636c6561726564"
    "aa6261636b656e645f6964a56b7664406ea86576656e745f696400"
    "8fa474797065ab426c6f636b53746f726564ac626c6f636b5f68617368657391cfffffffffffffffff"
    "b1706172656e745f626c6f636b5f6861736807a9746f6b656e5f6964739201cd012c"
    "aa626c6f636b5f73697a6502a76c6f72615f6964c0a96c6f72615f6e616d65c0"
    "ae626173655f626c6f636b5f69647801a66d656469756da3435055a86c6f63616c697479a54c4f43414c"
    "aa6576656e745f74797065a673746f726564aa7365715f68617368657391cfffffffffffffffff"
    "aa6261636b656e645f6964a56b7664406ea974656e616e745f6964a174a86576656e745f696403"
    "8aa474797065ac426c6f636b52656d6f766564ac626c6f636b5f68617368657391cfffffffffffffffff"
    "a967726f75705f69647802a66d656469756da753544f52414745a86c6f63616c697479a54c4f43414c"
    "aa6576656e745f74797065a772656d6f766564aa7365715f68617368657391cfffffffffffffffff"
    "aa6261636b656e645f6964a56b7664406ea974656e616e745f6964a174a86576656e745f696404"
    "c0";

TEST(KvEventBatchTest, TheBytesAreThoseOfVllmWithTheKeysOfOthers) {
  const std::vector<uint64_t> hashes = {UINT64_MAX};
  const std::vector<uint32_t> tokens = {1, 300};
  const uint64_t parent = 7;
  const std::string bytes =
      WriteAnnouncement({.hashes = hashes, .parent = &parent, .tokens = tokens, .block_tokens = 2});
  Announcement announced = *ReadAnnouncement(bytes);

  KvEventBatch batch("kvd@n");
  batch.Cleared(0);
  batch.Stored({.announced = announced, .depth = 2, .tier = kDramTier, .tenant = "t"}, 3);
  announced.group = "\x02";
  batch.Removed({.announced = announced, .depth = 2, .tier = kNvmeTier, .tenant = "t"}, 4);

  EXPECT_EQ(batch.events(), 3u);
  EXPECT_EQ(absl::BytesToHexString(batch.Take(1.5)), kGolden);
  EXPECT_EQ(batch.events(), 0u);
  EXPECT_EQ(absl::BytesToHexString(batch.Take(1.5)), "93cb3ff800000000000090c0");
}

TEST(KvEventBatchTest, ABlockOfSeveralHashesStandsAtTheirDepth) {
  const std::vector<uint64_t> hashes = {1, 2, 3};
  const std::vector<uint32_t> tokens = {1, 2, 3};
  const std::string bytes =
      WriteAnnouncement({.hashes = hashes, .tokens = tokens, .block_tokens = 1});
  KvEventBatch batch("b");
  batch.Stored({.announced = *ReadAnnouncement(bytes), .depth = 3, .tier = kDramTier}, 0);
  // "base_block_idx": 6
  EXPECT_NE(batch.Take(0).find(absl::HexStringToBytes("ae626173655f626c6f636b5f69647806")),
            std::string::npos);
}

}  // namespace
}  // namespace kvd
