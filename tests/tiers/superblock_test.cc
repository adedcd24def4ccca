#include "tiers/superblock.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <cstring>

#include "proto/types/checksum.h"
#include "tests/testing/memory_nvme_device.h"

namespace kvd {
namespace {

using testing::HasSubstr;

Superblock SomeSuperblock(uint64_t generation) {
  Superblock superblock;
  superblock.device[0] = 1;
  superblock.set[0] = 2;
  superblock.ordinal = 3;
  superblock.devices = 4;
  superblock.segment_bytes = 4u << 20;
  superblock.generation = generation;
  superblock.run = 9;
  superblock.scopes = {{"tenant", std::string("a\0b", 3), 1}, {"", "", 7}};
  return superblock;
}

class SuperblockTest : public testing::Test {
 protected:
  void Store(uint64_t generation, uint32_t copy) {
    ASSERT_TRUE(StoreSuperblock(device_, SomeSuperblock(generation), copy).ok());
  }
  std::byte& At(uint64_t offset) { return device_.media()[offset]; }
  // What Load() says; the media are the same before and after.
  absl::StatusOr<std::optional<LoadedSuperblock>> Load() {
    const std::vector<std::byte> before = device_.media();
    const uint32_t writes = device_.writes_now;
    auto loaded = LoadSuperblock(device_);
    EXPECT_EQ(before, device_.media());
    EXPECT_EQ(device_.writes_now, writes);
    return loaded;
  }
  void ExpectGeneration(uint64_t generation, uint32_t next_copy, bool copy_lost) {
    const auto loaded = Load();
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    ASSERT_TRUE(loaded->has_value());
    EXPECT_EQ((*loaded)->superblock.generation, generation);
    EXPECT_EQ((*loaded)->next_copy, next_copy);
    EXPECT_EQ((*loaded)->copy_lost, copy_lost);
  }
  void ExpectRefused(absl::StatusCode code, const std::string& text) {
    const auto loaded = Load();
    EXPECT_EQ(loaded.status().code(), code);
    EXPECT_THAT(std::string(loaded.status().message()), HasSubstr(text));
  }

  MemoryNvmeDevice device_{NewMedia(kSuperblockBytes + 4096), "the-device"};
};

TEST_F(SuperblockTest, ZerosAreNew) {
  const auto loaded = Load();
  ASSERT_TRUE(loaded.ok());
  EXPECT_FALSE(loaded->has_value());
}

TEST_F(SuperblockTest, SaysWhatWasStored) {
  Store(5, 0);
  const auto loaded = Load();
  ASSERT_TRUE(loaded.ok() && loaded->has_value());
  const Superblock& found = (*loaded)->superblock;
  const Superblock stored = SomeSuperblock(5);
  EXPECT_EQ(EncodeSuperblock(found), EncodeSuperblock(stored));
  EXPECT_EQ(found.scopes[0].canonical, stored.scopes[0].canonical);
  EXPECT_EQ(found.scopes[1].epoch, 7u);
}

TEST_F(SuperblockTest, TheNewerCopyCounts) {
  Store(5, 0);
  ExpectGeneration(5, 1, false);
  Store(6, 1);
  ExpectGeneration(6, 0, false);
  Store(7, 0);
  ExpectGeneration(7, 1, false);
}

TEST_F(SuperblockTest, ALostCopyIsReplacedByTheOther) {
  Store(5, 0);
  Store(6, 1);
  At(kSuperblockCopyBytes + 60) ^= std::byte{1};
  ExpectGeneration(5, 1, true);
  At(kSuperblockCopyBytes + 60) ^= std::byte{1};
  At(70) ^= std::byte{1};
  ExpectGeneration(6, 0, true);
  std::memset(&At(0), 0x5a, kNvmePageBytes);  // Not even the magic is left.
  ExpectGeneration(6, 0, true);
}

TEST_F(SuperblockTest, ATornWriteLeavesTheOtherCopy) {
  Store(5, 0);
  Store(6, 1);
  MemoryNvmeDevice whole(NewMedia(kSuperblockBytes));
  Superblock large = SomeSuperblock(7);
  large.scopes.assign(200, {"tenant", std::string(100, 'x'), 1});
  ASSERT_TRUE(StoreSuperblock(whole, large, 0).ok());
  const size_t size = EncodeSuperblock(large)->size();
  const std::vector<std::byte> before = device_.media();
  for (size_t kept = 512; kept < size; kept += 512) {
    std::copy(before.begin(), before.end(), device_.media().begin());
    std::memcpy(&At(0), whole.media().data(), kept);
    const auto loaded = LoadSuperblock(device_);
    ASSERT_TRUE(loaded.ok() && loaded->has_value()) << kept;
    ASSERT_EQ((*loaded)->superblock.generation, 6u) << kept;
  }
}

TEST_F(SuperblockTest, EveryFlippedByteIsSeen) {
  Store(5, 0);
  const size_t size = EncodeSuperblock(SomeSuperblock(5))->size();
  for (size_t at = 0; at < size; ++at) {
    At(at) ^= std::byte{0x20};
    EXPECT_FALSE(LoadSuperblock(device_).ok()) << at;
    At(at) ^= std::byte{0x20};
  }
}

TEST_F(SuperblockTest, BothCopiesDamagedIsRefused) {
  Store(5, 0);
  Store(6, 1);
  At(60) ^= std::byte{1};
  At(kSuperblockCopyBytes + 60) ^= std::byte{1};
  ExpectRefused(absl::StatusCode::kDataLoss, "the-device: both copies");
}

TEST_F(SuperblockTest, ForeignContentsAreRefusedWhereverTheyBegin) {
  for (const uint64_t at : {uint64_t{0}, uint64_t{1080}, uint64_t{100'000},
                            kSuperblockCopyBytes + 1, kSuperblockBytes - 1}) {
    At(at) = std::byte{1};
    ExpectRefused(absl::StatusCode::kFailedPrecondition, "not kvd's");
    At(at) = std::byte{0};
  }
}

// Whoever knows a newer format wrote its sum as this one would.
TEST_F(SuperblockTest, ANewerFormatIsRefusedThoughTheOtherCopyIsOurs) {
  Store(5, 0);
  Store(6, 1);
  const uint32_t newer = kSuperblockFormat + 1;
  const uint32_t zero = 0;
  std::byte* copy = &At(kSuperblockCopyBytes);
  std::memcpy(copy + 8, &newer, 4);
  std::memcpy(copy + 12, &zero, 4);
  const uint32_t sum = Crc32c({copy, EncodeSuperblock(SomeSuperblock(6))->size()});
  std::memcpy(copy + 12, &sum, 4);
  ExpectRefused(absl::StatusCode::kFailedPrecondition, "newer kvd");
}

TEST_F(SuperblockTest, ADeviceThatCannotBeReadIsNotNew) {
  device_.read_now_error = EIO;
  EXPECT_FALSE(LoadSuperblock(device_).ok());
}

TEST_F(SuperblockTest, WhatDoesNotFitIsNotWritten) {
  Superblock huge = SomeSuperblock(1);
  huge.scopes.assign(kSuperblockCopyBytes / 1000, {"tenant", std::string(1000, 'x'), 1});
  EXPECT_EQ(StoreSuperblock(device_, huge, 0).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(device_.writes_now, 0u);
}

TEST_F(SuperblockTest, AFailedWriteIsTold) {
  device_.write_now_error = ENOSPC;
  EXPECT_FALSE(StoreSuperblock(device_, SomeSuperblock(1), 0).ok());
}

// It is a power cut's unit, so a first one is whole or not there.
TEST_F(SuperblockTest, OneWithoutScopesFitsIntoASector) {
  Superblock first = SomeSuperblock(1);
  first.scopes.clear();
  EXPECT_LE(EncodeSuperblock(first)->size(), 512u);
}

}  // namespace
}  // namespace kvd
