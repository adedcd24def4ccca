#include "tiers/slot_table.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "tests/testing/memory_folder.h"

namespace kvd {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Pair;

ChainHash HashOf(uint64_t key) {
  ChainHash hash;
  std::memcpy(hash.bytes.data(), &key, sizeof key);
  return hash;
}

class SlotTableTest : public testing::Test {
 protected:
  SlotTableTest() : folder_(*ArenaFolder::Open(parent_.path(), "arena")) {}

  std::unique_ptr<SlotTable> Create() {
    auto table = SlotTable::Create(folder_, geometry_);
    EXPECT_TRUE(table.ok()) << table.status();
    return *std::move(table);
  }
  std::unique_ptr<SlotTable> Attach() {
    auto table = SlotTable::Attach(folder_, geometry_);
    EXPECT_TRUE(table.ok()) << table.status();
    return table.ok() ? *std::move(table) : nullptr;
  }
  SlotRow Row(uint32_t region, uint32_t slot) {
    return {.state = SlotState::kStored,
            .id = {1, 2},
            .has_parent = true,
            .region = region,
            .slot = slot,
            .scope = 3,
            .depth = slot,
            .length = 100,
            .generation = 7,
            .sum = 9,
            .key = HashOf(slot + 1),
            .parent = HashOf(slot)};
  }
  // Slot numbers of the rows of a region; damaged ones negative.
  std::vector<int64_t> Slots(const SlotTable& table, uint32_t region) {
    std::vector<int64_t> slots;
    table.ForEach(region, [&](uint32_t slot, const SlotRow* row) {
      slots.push_back(row == nullptr ? -static_cast<int64_t>(slot) : slot);
    });
    return slots;
  }
  // The file as bytes, past the table's own mapping.
  void Flip(uint64_t offset) {
    const int fd = openat(folder_.fd(), ArenaFolder::kTableFile, O_RDWR | O_CLOEXEC);
    char byte = 0;
    ASSERT_EQ(pread(fd, &byte, 1, static_cast<off_t>(offset)), 1);
    byte = static_cast<char>(byte ^ 0x10);
    ASSERT_EQ(pwrite(fd, &byte, 1, static_cast<off_t>(offset)), 1);
    close(fd);
  }
  uint64_t MemoryOfTable() {
    struct stat info;
    EXPECT_EQ(fstatat(folder_.fd(), ArenaFolder::kTableFile, &info, 0), 0);
    return static_cast<uint64_t>(info.st_blocks) * 512;
  }

  MemoryFolder parent_;
  ArenaFolder folder_;
  SlotTable::Geometry geometry_{.region_bytes = 1u << 20, .regions = 3, .machine = {1, 2, 3}};
};

TEST_F(SlotTableTest, WhatWasPutIsThereForTheNext) {
  {
    const auto table = Create();
    table->SetRegion(1, {.number = 17, .used = true});
    EXPECT_EQ(table->AddScope({"chat", "canonical"}), 0u);
    EXPECT_EQ(table->AddScope({"batch", "canonical"}), 1u);
    EXPECT_EQ(table->AddScope({"chat", "canonical"}), 0u);
    EXPECT_EQ(table->AddSession({.token = {5}, .pid = 77, .started = 1234}), 0u);
    EXPECT_EQ(table->AddSession({.token = {6}, .pid = 78, .started = 1235}), 1u);
    table->RemoveSession(0);
    for (const uint32_t slot : {0u, 1u, 2047u}) ASSERT_TRUE(table->Put(Row(1, slot)));
    table->Clear(1, 1);
    table->Quarantine(1, 5);
  }
  const auto table = Attach();
  EXPECT_EQ(table->region(1)->number, 17u);
  EXPECT_TRUE(table->region(1)->used);
  EXPECT_EQ(table->region(0)->number, 0u);
  EXPECT_EQ(table->scope(0), (ScopeRow{"chat", "canonical"}));
  EXPECT_EQ(table->scope(1), (ScopeRow{"batch", "canonical"}));
  EXPECT_EQ(table->scope(2), std::nullopt);
  EXPECT_THAT(table->sessions(),
              ElementsAre(Pair(1u, ReaderRow{.token = {6}, .pid = 78, .started = 1235})));
  EXPECT_THAT(Slots(*table, 1), ElementsAre(0, 5, 2047));
  EXPECT_THAT(Slots(*table, 0), IsEmpty());
  table->ForEach(1, [&](uint32_t slot, const SlotRow* row) {
    if (slot == 5) {
      EXPECT_EQ(row->state, SlotState::kQuarantined);
      return;
    }
    SlotRow want = Row(1, slot);
    want.check = row->check;
    EXPECT_EQ(std::memcmp(row, &want, sizeof want), 0);
  });
}

TEST_F(SlotTableTest, MemoryIsTakenAsSlotsAreUsed) {
  geometry_.region_bytes = 64u << 20;
  const auto table = Create();
  const uint64_t before = MemoryOfTable();
  EXPECT_LE(before, 512u << 10);
  ASSERT_TRUE(table->Put(Row(0, 0)));
  EXPECT_LE(MemoryOfTable(), before + (256u << 10));
  table->Clear(2, 100'000);  // Never written: takes none.
  EXPECT_LE(MemoryOfTable(), before + (256u << 10));
}

TEST_F(SlotTableTest, AScopeThatWentLeavesItsRow) {
  const auto table = Create();
  EXPECT_EQ(table->AddScope({"a", "x"}), 0u);
  EXPECT_EQ(table->AddScope({"b", "x"}), 1u);
  table->RemoveScope(0);
  EXPECT_EQ(table->scope(0), std::nullopt);
  EXPECT_EQ(table->AddScope({"c", std::string(37'000, 'x')}), 0u);
  EXPECT_EQ(table->AddScope({"d", std::string(41'000, 'x')}), SlotTable::kNone) << "too long";
  const auto again = Attach();
  EXPECT_EQ(again->scope(0)->canonical.size(), 37'000u);
}

TEST_F(SlotTableTest, AnotherGeometryOrMachineIsNotTrusted) {
  Create();
  const SlotTable::Geometry good = geometry_;
  const auto refused = [&] { return SlotTable::Attach(folder_, geometry_).status().code(); };
  geometry_.regions = 4;
  EXPECT_EQ(refused(), absl::StatusCode::kFailedPrecondition);
  geometry_ = good;
  geometry_.region_bytes = 2u << 20;
  EXPECT_EQ(refused(), absl::StatusCode::kFailedPrecondition);
  geometry_ = good;
  geometry_.machine[0] = 9;
  EXPECT_EQ(refused(), absl::StatusCode::kFailedPrecondition);
  geometry_ = good;
  EXPECT_TRUE(SlotTable::Attach(folder_, geometry_).ok());
  folder_.Clear();
  EXPECT_EQ(refused(), absl::StatusCode::kNotFound);
}

TEST_F(SlotTableTest, MoreReadersThanRowsMeanThatNothingIsTrusted) {
  const auto table = Create();
  for (uint32_t i = 0; i < SlotTable::kMaxSessions; ++i) {
    ASSERT_EQ(table->AddSession({.pid = static_cast<pid_t>(i + 1)}), i);
  }
  EXPECT_EQ(table->AddSession({.pid = 1}), SlotTable::kNone);
  EXPECT_THAT(std::string(SlotTable::Attach(folder_, geometry_).status().message()),
              HasSubstr("does not know all who were reading"));
}

// Every byte of the file that has been written, flipped one at a time: never another row than what
// was put, and never a crash.
TEST_F(SlotTableTest, AFlippedBitIsARowThatIsNotKnown) {
  {
    const auto table = Create();
    table->SetRegion(0, {.number = 1, .used = true});
    table->AddSession({.token = {5}, .pid = 77, .started = 1234});
    table->AddScope({"chat", "canonical"});
    for (uint32_t slot = 0; slot < 20; ++slot) ASSERT_TRUE(table->Put(Row(0, slot)));
  }
  const uint64_t size = [&] {
    struct stat info;
    fstatat(folder_.fd(), ArenaFolder::kTableFile, &info, 0);
    return static_cast<uint64_t>(info.st_size);
  }();
  std::map<int, int> seen;
  for (uint64_t at = 0; at < size;) {
    char page[4096];
    const int fd = openat(folder_.fd(), ArenaFolder::kTableFile, O_RDONLY | O_CLOEXEC);
    const off_t data = lseek(fd, static_cast<off_t>(at), SEEK_DATA);
    if (data < 0) {
      close(fd);
      break;
    }
    at = static_cast<uint64_t>(data) / 4096 * 4096;
    ASSERT_EQ(pread(fd, page, sizeof page, static_cast<off_t>(at)), 4096);
    close(fd);
    for (uint32_t i = 0; i < 4096; ++i) {
      if (page[i] == 0) continue;
      Flip(at + i);
      if (const auto table = SlotTable::Attach(folder_, geometry_); !table.ok()) {
        ++seen[0];
      } else if (!(*table)->region(0).has_value()) {
        ++seen[1];
      } else {
        uint32_t intact = 0;
        (*table)->ForEach(0, [&](uint32_t slot, const SlotRow* row) {
          if (row == nullptr) return;
          SlotRow want = Row(0, slot);
          want.check = row->check;
          ASSERT_EQ(std::memcmp(row, &want, sizeof want), 0);
          ++intact;
        });
        seen[2] += intact < 20;
        const auto scope = (*table)->scope(0);
        EXPECT_TRUE(!scope.has_value() || *scope == (ScopeRow{"chat", "canonical"}));
        seen[3] += !scope.has_value();
        seen[4] += intact == 20 && scope.has_value();
      }
      Flip(at + i);
    }
    at += 4096;
  }
  EXPECT_GT(seen[0], 20);  // Header and session.
  EXPECT_GT(seen[1], 3);
  EXPECT_GT(seen[2], 300);
  EXPECT_GT(seen[3], 10);
  // A region that nobody uses, of which this test does not ask.
  EXPECT_LE(seen[4], 16);
}

TEST_F(SlotTableTest, AFolderThatOthersMayEnterIsRefused) {
  ASSERT_EQ(mkdir((parent_.path() + "/open").c_str(), 0755), 0);
  EXPECT_EQ(ArenaFolder::Open(parent_.path(), "open").status().code(),
            absl::StatusCode::kFailedPrecondition);
  ASSERT_EQ(symlink("arena", (parent_.path() + "/link").c_str()), 0);
  EXPECT_FALSE(ArenaFolder::Open(parent_.path(), "link").ok());
  EXPECT_FALSE(ArenaFolder::Open(parent_.path() + "/none", "arena").ok());
}

TEST_F(SlotTableTest, OnlyMemoryIsTakenForMemory) {
  char path[] = "/var/tmp/kvd-folder-XXXXXX";
  ASSERT_NE(mkdtemp(path), nullptr);
  const auto folder = ArenaFolder::Open(path, "arena");
  rmdir(path);
  if (folder.ok()) GTEST_SKIP() << "/var/tmp is in memory here";
  EXPECT_THAT(std::string(folder.status().message()), HasSubstr("neither a tmpfs nor a hugetlbfs"));
}

TEST_F(SlotTableTest, ClearTakesWhatIsOursAndNothingElse) {
  Create();
  for (const char* name : {"region-1", "region-77", "region-x", "mine"}) {
    close(openat(folder_.fd(), name, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
  }
  EXPECT_THAT(folder_.RegionNumbers(), ElementsAre(1, 77));
  folder_.Clear();
  EXPECT_THAT(folder_.RegionNumbers(), IsEmpty());
  EXPECT_EQ(faccessat(folder_.fd(), "slots", F_OK, 0), -1);
  EXPECT_EQ(faccessat(folder_.fd(), "mine", F_OK, 0), 0);
  EXPECT_EQ(faccessat(folder_.fd(), "region-x", F_OK, 0), 0);
}

}  // namespace
}  // namespace kvd
