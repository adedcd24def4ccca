#include "proto/types/namespace_descriptor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <functional>
#include <set>
#include <string>
#include <vector>

namespace kvd {
namespace {

using testing::HasSubstr;

std::string Hex(const std::array<uint8_t, 16>& bytes) {
  std::string hex;
  for (const uint8_t byte : bytes) {
    char digits[3];
    std::snprintf(digits, sizeof digits, "%02x", byte);
    hex += digits;
  }
  return hex;
}

NamespaceDescriptor Small() {
  NamespaceDescriptor descriptor;
  descriptor.model = std::string("m");
  descriptor.groups = {{.block_tokens = 16, .part_bytes = 4096}};
  return descriptor;
}

NamespaceDescriptor Hybrid() {
  NamespaceDescriptor descriptor;
  descriptor.model = "acme/Hybrid-70B";
  descriptor.weights_revision = "9f1c2ab";
  descriptor.kv_dtype = "fp8_e4m3";
  descriptor.quantization = "per-tensor";
  descriptor.page_layout = "NHD";
  descriptor.engine_family = "vllm";
  descriptor.draft_model = "acme/Draft-1B";
  descriptor.hash_algorithm = "sha256_cbor";
  descriptor.hash_seed = std::string("0");
  descriptor.hash_bytes = 16;
  descriptor.tensor_parallel = 2;
  descriptor.pipeline_parallel = 3;
  descriptor.context_parallel = 4;
  descriptor.groups = {
      {.kind = GroupKind::kFull, .shards = 2, .block_tokens = 64, .part_bytes = 1u << 20},
      {.kind = GroupKind::kWindow,
       .window_tokens = 4096,
       .shards = 2,
       .block_tokens = 64,
       .part_bytes = 1u << 19},
      {.kind = GroupKind::kState, .block_tokens = 64, .part_bytes = 1u << 16}};
  descriptor.extra = {{"lora", "none"}, {"rope", "yarn"}};
  return descriptor;
}

// These values are part of what is stored: when this fails, what was stored is lost.
TEST(NamespaceDescriptorTest, FingerprintsAreGolden) {
  EXPECT_EQ(Hex(Small().Fingerprint()), "e28e5e004a8126c7476061ef852c6f04");
  EXPECT_EQ(Hex(Hybrid().Fingerprint()), "c0120814638ec98cbd4bc9b977d1f942");
}

TEST(NamespaceDescriptorTest, TheCanonicalFormIsGolden) {
  NamespaceDescriptor descriptor;
  descriptor.model = std::string("m");
  const std::string expected = std::string("kvd-namespace-1") + std::string("\x01\x01\0\0\0m", 6) +
                               std::string("\x02\0\0\0\0\x03\0\0\0\0\x04\0\0\0\0\x05\0\0\0\0", 20) +
                               std::string("\x06\0\0\0\0\x07\0\0\0\0\x08\0\0\0\0\x09\0\0\0\0", 20) +
                               std::string("\x0a\x04\0\0\0\x20\0\0\0\x0b\x04\0\0\0\x01\0\0\0", 18) +
                               std::string("\x0c\x04\0\0\0\x01\0\0\0\x0d\x04\0\0\0\x01\0\0\0", 18);
  EXPECT_EQ(descriptor.Canonical(), expected);
}

TEST(NamespaceDescriptorTest, EveryFieldCounts) {
  const std::vector<std::function<void(NamespaceDescriptor&)>> changes = {
      [](auto& d) { d.model.push_back('x'); },
      [](auto& d) { d.weights_revision.push_back('x'); },
      [](auto& d) { d.kv_dtype.push_back('x'); },
      [](auto& d) { d.quantization.push_back('x'); },
      [](auto& d) { d.page_layout.push_back('x'); },
      [](auto& d) { d.engine_family.push_back('x'); },
      [](auto& d) { d.draft_model.push_back('x'); },
      [](auto& d) { d.hash_algorithm.push_back('x'); },
      [](auto& d) { d.hash_seed.push_back('x'); },
      [](auto& d) { ++d.hash_bytes; },
      [](auto& d) { ++d.tensor_parallel; },
      [](auto& d) { ++d.pipeline_parallel; },
      [](auto& d) { ++d.context_parallel; },
      [](auto& d) { d.groups[0].kind = GroupKind::kState; },
      [](auto& d) { ++d.groups[1].window_tokens; },
      [](auto& d) { ++d.groups[0].shards; },
      [](auto& d) { ++d.groups[0].block_tokens; },
      [](auto& d) { ++d.groups[0].part_bytes; },
      [](auto& d) { d.groups.pop_back(); },
      [](auto& d) { d.groups.push_back(d.groups.back()); },
      [](auto& d) { std::swap(d.groups[0], d.groups[1]); },
      [](auto& d) { d.extra["lora"].assign("some"); },
      [](auto& d) { d.extra.erase("lora"); },
      [](auto& d) { d.extra["more"].clear(); },
  };
  std::set<std::string> seen = {Hex(Hybrid().Fingerprint())};
  for (size_t i = 0; i < changes.size(); ++i) {
    NamespaceDescriptor changed = Hybrid();
    changes[i](changed);
    EXPECT_TRUE(seen.insert(Hex(changed.Fingerprint())).second) << "change " << i;
  }
}

// Bytes that move from one field to the next make another namespace, whatever they are.
TEST(NamespaceDescriptorTest, TheCanonicalFormIsInjective) {
  std::vector<std::string NamespaceDescriptor::*> fields = {
      &NamespaceDescriptor::model,       &NamespaceDescriptor::weights_revision,
      &NamespaceDescriptor::kv_dtype,    &NamespaceDescriptor::quantization,
      &NamespaceDescriptor::page_layout, &NamespaceDescriptor::engine_family,
      &NamespaceDescriptor::draft_model, &NamespaceDescriptor::hash_algorithm,
      &NamespaceDescriptor::hash_seed};
  // Text that looks like the encoding itself is the hardest.
  const std::string text = std::string("a\x02\0\0\0\0\x03\x01\0\0\0b", 12);
  std::set<std::string> seen;
  for (size_t field = 0; field + 1 < fields.size(); ++field) {
    for (size_t cut = 0; cut <= text.size(); ++cut) {
      NamespaceDescriptor descriptor = Small();
      descriptor.model = std::string("x");
      descriptor.*fields[field] = text.substr(0, cut);
      descriptor.*fields[field + 1] = text.substr(cut);
      const bool whole_in_one = cut == 0 || cut == text.size();  // Met again at the next field.
      EXPECT_TRUE(seen.insert(descriptor.Canonical()).second || whole_in_one)
          << field << " " << cut;
    }
  }
  NamespaceDescriptor one = Small();
  one.extra = {{"ab", "c"}};
  NamespaceDescriptor other = Small();
  other.extra = {{"a", "bc"}};
  EXPECT_NE(one.Canonical(), other.Canonical());
}

TEST(NamespaceDescriptorTest, CountsParts) {
  EXPECT_EQ(Small().parts_per_block(), 1u);
  EXPECT_EQ(Hybrid().parts_per_block(), 5u);
}

TEST(NamespaceDescriptorTest, ValidateAcceptsTheBoundsAndNamesWhatIsBeyond) {
  EXPECT_TRUE(Small().Validate().ok());
  EXPECT_TRUE(Hybrid().Validate().ok());
  using Change = std::function<void(NamespaceDescriptor&)>;
  const std::vector<Change> good = {
      [](auto& d) { d.model = std::string(256, 'm'); },
      [](auto& d) { d.hash_bytes = 8; },
      [](auto& d) { d.hash_bytes = 32; },
      [](auto& d) { d.groups[0].shards = 256; },
      [](auto& d) { d.groups[0].block_tokens = 1u << 20; },
      [](auto& d) { d.groups[0].part_bytes = 64u << 20; },
      [](auto& d) { d.groups.resize(16, d.groups[0]); },
      [](auto& d) {
        for (int i = 0; i < 64; ++i)
          d.extra[std::string("key").append(std::to_string(i))] = std::string(256, 'v');
      },
  };
  for (size_t i = 0; i < good.size(); ++i) {
    NamespaceDescriptor descriptor = Small();
    good[i](descriptor);
    EXPECT_TRUE(descriptor.Validate().ok()) << i << " " << descriptor.Validate();
  }
  const std::vector<std::pair<const char*, Change>> bad = {
      {"model", [](auto& d) { d.model.clear(); }},
      {"model", [](auto& d) { d.model = std::string(257, 'm'); }},
      {"weights_revision", [](auto& d) { d.weights_revision = std::string(257, 'm'); }},
      {"kv_dtype", [](auto& d) { d.kv_dtype = std::string(257, 'm'); }},
      {"quantization", [](auto& d) { d.quantization = std::string(257, 'm'); }},
      {"page_layout", [](auto& d) { d.page_layout = std::string(257, 'm'); }},
      {"engine_family", [](auto& d) { d.engine_family = std::string(257, 'm'); }},
      {"draft_model", [](auto& d) { d.draft_model = std::string(257, 'm'); }},
      {"hash_algorithm", [](auto& d) { d.hash_algorithm = std::string(257, 'm'); }},
      {"hash_seed", [](auto& d) { d.hash_seed = std::string(257, 'm'); }},
      {"hash_bytes", [](auto& d) { d.hash_bytes = 7; }},
      {"hash_bytes", [](auto& d) { d.hash_bytes = 33; }},
      {"tensor_parallel", [](auto& d) { d.tensor_parallel = 0; }},
      {"pipeline_parallel", [](auto& d) { d.pipeline_parallel = 0; }},
      {"context_parallel", [](auto& d) { d.context_parallel = 0; }},
      {"groups", [](auto& d) { d.groups.clear(); }},
      {"groups", [](auto& d) { d.groups.resize(17, d.groups[0]); }},
      {"groups", [](auto& d) { d.groups[0].kind = GroupKind::kState; }},  // No full one.
      {"groups",
       [](auto& d) {
         d.groups.push_back(d.groups[0]);
         d.groups[0].shards = 256;
       }},
      {"groups[0].kind", [](auto& d) { d.groups[0].kind = static_cast<GroupKind>(9); }},
      {"groups[0].window_tokens", [](auto& d) { d.groups[0].window_tokens = 1; }},
      {"groups[0].window_tokens", [](auto& d) { d.groups[0].kind = GroupKind::kWindow; }},
      {"groups[0].window_tokens",  // Rounding up to blocks must not wrap around to none.
       [](auto& d) {
         d.groups[0].kind = GroupKind::kWindow;
         d.groups[0].window_tokens = UINT32_MAX;
       }},
      {"groups[0].shards", [](auto& d) { d.groups[0].shards = 0; }},
      {"groups[0].shards", [](auto& d) { d.groups[0].shards = 257; }},
      {"groups[0].block_tokens", [](auto& d) { d.groups[0].block_tokens = 0; }},
      {"groups[0].block_tokens", [](auto& d) { d.groups[0].block_tokens = (1u << 20) + 1; }},
      {"groups[1].block_tokens",
       [](auto& d) {
         d.groups.push_back(d.groups[0]);
         d.groups[1].block_tokens = 32;
       }},
      {"groups[0].part_bytes", [](auto& d) { d.groups[0].part_bytes = 0; }},
      {"groups[0].part_bytes", [](auto& d) { d.groups[0].part_bytes = (64u << 20) + 1; }},
      {"extra", [](auto& d) { d.extra[std::string()].assign("value"); }},
      {"extra", [](auto& d) { d.extra[std::string(257, 'k')] = "value"; }},
      {"extra", [](auto& d) { d.extra["key"] = std::string(257, 'v'); }},
      {"extra",
       [](auto& d) {
         for (int i = 0; i < 65; ++i) d.extra[std::string("key").append(std::to_string(i))].clear();
       }},
  };
  for (const auto& [field, change] : bad) {
    NamespaceDescriptor descriptor = Small();
    change(descriptor);
    const absl::Status status = descriptor.Validate();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << field;
    EXPECT_THAT(std::string(status.message()), HasSubstr(std::string("descriptor.") + field + ":"));
  }
}

TEST(NamespaceDescriptorTest, AWindowIsRoundedUpToBlocksAndHasABound) {
  EXPECT_EQ((GroupDescriptor{.window_tokens = 1, .block_tokens = 16}).window_blocks(), 1u);
  EXPECT_EQ((GroupDescriptor{.window_tokens = 16, .block_tokens = 16}).window_blocks(), 1u);
  EXPECT_EQ((GroupDescriptor{.window_tokens = 17, .block_tokens = 16}).window_blocks(), 2u);
  NamespaceDescriptor descriptor = Small();
  descriptor.groups.push_back(descriptor.groups[0]);
  descriptor.groups[1].kind = GroupKind::kWindow;
  descriptor.groups[1].window_tokens = kMaxLookupBlocks * descriptor.groups[1].block_tokens;
  EXPECT_TRUE(descriptor.Validate().ok());
  ++descriptor.groups[1].window_tokens;
  EXPECT_FALSE(descriptor.Validate().ok());
}

TEST(NamespaceDescriptorTest, TheEncodingReadsBackAndNothingElseDoes) {
  NamespaceDescriptor descriptor = Small();
  descriptor.draft_model = "tiny";
  descriptor.hash_seed = std::string("\0\xff", 2);
  descriptor.groups.push_back(descriptor.groups[0]);
  descriptor.groups[1].kind = GroupKind::kWindow;
  descriptor.groups[1].window_tokens = 1000;
  descriptor.extra = {{"a", "1"}, {"b", ""}};
  const std::string canonical = descriptor.Canonical();
  const absl::StatusOr<NamespaceDescriptor> read = NamespaceDescriptor::FromCanonical(canonical);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(*read, descriptor);
  for (size_t size = 0; size < canonical.size(); ++size) {
    // Without its last entries it may be another namespace's, never this one's.
    const auto cut = NamespaceDescriptor::FromCanonical(canonical.substr(0, size));
    if (!cut.ok()) continue;
    EXPECT_EQ(cut->Canonical(), canonical.substr(0, size));
  }
  EXPECT_FALSE(NamespaceDescriptor::FromCanonical(canonical + "x").ok());
  for (size_t at = 0; at < canonical.size(); ++at) {
    std::string damaged = canonical;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x40);
    const auto other = NamespaceDescriptor::FromCanonical(damaged);
    if (!other.ok()) continue;
    EXPECT_EQ(other->Canonical(), damaged) << at;  // Another name, not this one.
  }
}

TEST(NamespaceDescriptorTest, AnEncodingOfWhatIsNotValidIsRefused) {
  NamespaceDescriptor descriptor = Small();
  descriptor.groups[0].shards = 0;
  EXPECT_FALSE(NamespaceDescriptor::FromCanonical(descriptor.Canonical()).ok());
}

}  // namespace
}  // namespace kvd
