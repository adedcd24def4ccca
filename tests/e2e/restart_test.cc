// A daemon with a data directory that ends, however it ends, and the next one: what was in memory
// is found again, byte by byte; nothing that somebody may still be reading is used again; and what
// cannot be trusted is a miss.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <regex>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/client.h"
#include "tests/e2e/daemon_process.h"
#include "tests/testing/memory_folder.h"

namespace kvd {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr uint32_t kPartBytes = 256 << 10;
constexpr int kArenaBlocks = 128;  // 32 MiB.
constexpr int kBlocks = 40;

class RestartTest : public testing::Test {
 protected:
  void Start(const std::string& dram = "32MiB") {
    auto daemon = DaemonProcess::Start({.arguments = Arguments(dram), .path = path_});
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    daemon_ = *std::move(daemon);
  }
  // What is being scrubbed cannot leave meanwhile: tests that fill all of the room would see it.
  std::vector<std::string> Arguments(const std::string& dram = "32MiB",
                                     const std::string& scrub_bandwidth = "0") const {
    return {"--dram",
            dram,
            "--data",
            data_,
            "--arena-directory",
            memory_.path(),
            "--scrub-bandwidth",
            scrub_bandwidth};
  }
  std::unique_ptr<ChildProcess> Peer(int first, int count, const std::string& errand) {
    return std::make_unique<ChildProcess>(
        KVD_PEER_PROGRAM,
        std::vector<std::string>{path_, absl::StrCat(kPartBytes), absl::StrCat(first),
                                 absl::StrCat(count), errand});
  }

  // Puts `count` blocks from `first` on, a chain of its own; how many were stored.
  uint32_t Put(int first, int count) {
    Client client({.endpoint = daemon_->endpoint(), .timeout = kPatience});
    return PutBy(client, first, count);
  }
  static uint32_t PutBy(Client& client, int first, int count) {
    const auto ns = client.RegisterNamespace(TestModel(kPartBytes));
    EXPECT_TRUE(ns.ok()) << ns.status();
    std::vector<std::vector<std::byte>> bytes;
    for (int i = 0; i < count; ++i) bytes.push_back(TestBytes(TestKey(first + i), kPartBytes));
    const std::vector<absl::Span<const std::byte>> sources(bytes.begin(), bytes.end());
    return client.Put(*ns, TestKeys(first, count), sources).stored;
  }
  // How many blocks from `first` on are there; each is checked byte by byte. A few at a time: a
  // session may hold a quarter of the arena.
  uint32_t Get(int first, int count) {
    Client client({.endpoint = daemon_->endpoint(), .timeout = kPatience});
    int found = 0;
    while (found < count) {
      const int asked = std::min(count - found, 16);
      const auto got = static_cast<int>(GetBy(client, first + found, asked).blocks);
      found += got;
      if (got < asked) break;
    }
    return static_cast<uint32_t>(found);
  }
  static GetResult GetBy(Client& client, int first, int count) {
    const auto ns = client.RegisterNamespace(TestModel(kPartBytes));
    EXPECT_TRUE(ns.ok()) << ns.status();
    std::vector<std::vector<std::byte>> bytes(count, std::vector<std::byte>(kPartBytes));
    std::vector<absl::Span<std::byte>> targets;
    for (auto& block : bytes) targets.push_back(absl::MakeSpan(block));
    GetResult got = client.Get(*ns, TestKeys(first, count), targets);
    for (uint32_t i = 0; i < got.blocks; ++i) {
      EXPECT_EQ(bytes[i], TestBytes(TestKey(first + static_cast<int>(i)), kPartBytes)) << i;
    }
    return got;
  }
  void ExpectClean() {
    const v1::AuditReply audit = daemon_->Audit();
    EXPECT_EQ(audit.errors(), 0u) << audit.first_error();
    EXPECT_EQ(audit.stranded_blocks(), 0u);
  }
  // The folder of the arena in memory.
  std::string ArenaPath() const {
    for (const auto& entry : std::filesystem::directory_iterator(memory_.path())) {
      return entry.path();
    }
    return "";
  }
  // Starts a daemon that should not; its exit status and what it logged.
  std::pair<int, std::string> FailToStart(const std::string& path) {
    std::vector<std::string> arguments = Arguments();
    arguments.insert(arguments.end(), {"--listen", "unix:" + path});
    ChildProcess other(KVD_PROGRAM, arguments);
    const int status = other.Wait();
    return {status, other.Errors()};
  }

  TestFolder folder_;
  MemoryFolder memory_;
  const std::string path_ = folder_.path() + "/kvd";
  const std::string data_ = folder_.path() + "/data";
  std::unique_ptr<DaemonProcess> daemon_;
};

TEST_F(RestartTest, WhatWasStoredIsThereAfterATerm) {
  Start();
  ASSERT_EQ(Put(0, kBlocks), uint32_t{kBlocks});
  ASSERT_EQ(Put(1000, 3), 3u);
  ASSERT_EQ(daemon_->Stop(), 0);
  Start();
  EXPECT_EQ(daemon_->Counter("restored_blocks"), kBlocks + 3u);
  EXPECT_EQ(Get(0, kBlocks), uint32_t{kBlocks});
  EXPECT_EQ(Get(1000, 3), 3u);
  EXPECT_EQ(daemon_->Counter("damage_reported"), 0u);
  ExpectClean();
  // All room can be used, and the one that was used last leaves last.
  EXPECT_EQ(Put(2000, kArenaBlocks - 3), kArenaBlocks - 3u);
  EXPECT_EQ(Get(1000, 3), 3u);
  EXPECT_EQ(Get(0, kBlocks), 0u);
  ExpectClean();
}

TEST_F(RestartTest, WhatWasStoredIsThereAfterAKillAndAfterTheNext) {
  Start();
  for (int round = 0; round < 4; ++round) {
    ASSERT_EQ(Put(100 * round, 10), 10u);
    daemon_->Kill();
    Start();
    for (int earlier = 0; earlier <= round; ++earlier) EXPECT_EQ(Get(100 * earlier, 10), 10u);
    ExpectClean();
  }
}

TEST_F(RestartTest, WithoutADataDirectoryNothingIsLeft) {
  auto daemon = DaemonProcess::Start({.arguments = {"--dram", "32MiB"}, .path = path_});
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  daemon_ = *std::move(daemon);
  ASSERT_EQ(Put(0, 3), 3u);
  daemon_->Kill();
  daemon = DaemonProcess::Start({.arguments = {"--dram", "32MiB"}, .path = path_});
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  daemon_ = *std::move(daemon);
  EXPECT_EQ(Get(0, 3), 0u);
}

TEST_F(RestartTest, WhatAReaderOfBeforeMayReadStaysUntilItEnds) {
  Start();
  ASSERT_EQ(Put(0, 4), 4u);
  const auto reader = Peer(0, 4, "hold");
  ASSERT_EQ(reader->ReadLine(), "held 4") << reader->Errors();
  daemon_->Kill();
  Start();
  EXPECT_EQ(daemon_->Counter("former_readers"), 1u);
  EXPECT_EQ(daemon_->Counter("withheld_parts"), 4u);
  // More than there is room for, twice: everything that may leave does.
  for (const int first : {1000, 2000}) {
    EXPECT_EQ(Put(first, kArenaBlocks - 4), kArenaBlocks - 4u);
  }
  EXPECT_EQ(Get(0, 4), 4u);
  reader->WriteLine("check");
  EXPECT_EQ(reader->ReadLine(), "intact");

  // And over another restart.
  daemon_->Kill();
  Start();
  EXPECT_EQ(daemon_->Counter("former_readers"), 1u);
  EXPECT_EQ(Get(0, 4), 4u);
  reader->WriteLine("check");
  EXPECT_EQ(reader->ReadLine(), "intact");

  reader->Signal(SIGKILL);
  reader->Wait();
  EXPECT_TRUE(daemon_->WaitFor([&](const auto&) {
    return daemon_->Counter("former_readers") == 0 && daemon_->Counter("withheld_parts") == 0;
  }));
  EXPECT_EQ(Put(3000, kArenaBlocks), uint32_t{kArenaBlocks});
  EXPECT_EQ(Get(0, 4), 0u);
  ExpectClean();
}

TEST_F(RestartTest, AProcessThatSaysItReadsNoMoreIsNotWaitedFor) {
  Start();
  Client client({.endpoint = daemon_->endpoint(), .timeout = kPatience});
  ASSERT_EQ(PutBy(client, 0, 4), 4u);
  daemon_->Kill();
  Start();
  EXPECT_EQ(daemon_->Counter("former_readers"), 1u) << "it lives: it is this process";
  EXPECT_EQ(daemon_->Counter("withheld_parts"), 4u);
  EXPECT_TRUE(daemon_->WaitFor([&](const auto&) {
    return GetBy(client, 0, 4).blocks == 4 && daemon_->Counter("withheld_parts") == 0;
  }));
  EXPECT_EQ(daemon_->Counter("former_readers"), 0u);
}

// Staging is never taken over: whoever still writes there writes to nobody.
TEST_F(RestartTest, ALateWriterHarmsNobody) {
  Start();
  ASSERT_EQ(Put(0, 4), 4u);
  auto session = RawSession::Open(path_);
  ASSERT_TRUE(session.ok()) << session.status();
  auto staging = RawStaging::Open(**session, 4 * kPartBytes);
  ASSERT_TRUE(staging.ok()) << staging.status();
  daemon_->Kill();
  Start();
  std::memset((*staging)->data(), 0xff, 4 * kPartBytes);
  (*staging)->Send({{1, 0, 0, kPartBytes}});
  EXPECT_EQ(Get(0, 4), 4u);
  ExpectClean();
}

TEST_F(RestartTest, AnotherGeometryIsAColdStartAndItsReadersKeepTheirs) {
  Start();
  ASSERT_EQ(Put(0, 4), 4u);
  const auto reader = Peer(0, 4, "hold");
  ASSERT_EQ(reader->ReadLine(), "held 4") << reader->Errors();
  for (const char* dram : {"64MiB", "48MiB", "32MiB"}) {
    daemon_->Kill();
    Start(dram);
    EXPECT_THAT(daemon_->child().Errors(), HasSubstr("arena.cold")) << dram;
    EXPECT_EQ(daemon_->Counter("restored_blocks"), 0u);
    EXPECT_EQ(daemon_->Counter("withheld_parts"), 0u);
    EXPECT_EQ(Get(0, 4), 0u);
    EXPECT_EQ(Put(500, 20), 20u);
    reader->WriteLine("check");
    EXPECT_EQ(reader->ReadLine(), "intact");
  }
}

TEST_F(RestartTest, OneDaemonAtATimeUsesADataDirectory) {
  Start();
  ASSERT_EQ(Put(0, 4), 4u);
  const auto [status, said] = FailToStart(folder_.path() + "/other");
  EXPECT_EQ(status, 3) << said;
  EXPECT_THAT(said, HasSubstr("another kvd uses the data directory " + data_));
  EXPECT_EQ(Get(0, 4), 4u);
}

TEST_F(RestartTest, ANewerFormatIsRefusedAndNotTouched) {
  Start();
  ASSERT_EQ(Put(0, 4), 4u);
  ASSERT_EQ(daemon_->Stop(), 0);
  const std::string name = data_ + "/identity";
  std::stringstream before;
  before << std::ifstream(name).rdbuf();
  const std::string newer = "kvd data directory, format 2\nwhatever else it says\n";
  std::ofstream(name) << newer;
  const auto [status, said] = FailToStart(path_);
  EXPECT_EQ(status, 4) << said;
  EXPECT_THAT(said, HasSubstr("of a newer format (2); this kvd knows 1"));
  std::stringstream after;
  after << std::ifstream(name).rdbuf();
  EXPECT_EQ(after.str(), newer);
  std::ofstream(name) << before.str();
  Start();
  EXPECT_EQ(Get(0, 4), 4u);
}

TEST_F(RestartTest, ADamagedIdentityIsPutAside) {
  Start();
  ASSERT_EQ(Put(0, 4), 4u);
  ASSERT_EQ(daemon_->Stop(), 0);
  std::ofstream(data_ + "/identity") << "kvd data directory, format 1\nsomething else\n";
  Start();
  EXPECT_THAT(daemon_->child().Errors(), HasSubstr("data.damaged"));
  EXPECT_TRUE(std::filesystem::exists(data_ + "/identity.damaged"));
  EXPECT_EQ(Get(0, 4), 0u);
}

TEST_F(RestartTest, AFolderThatCannotBeMadeOrIsNoMemoryIsNamed) {
  std::vector<std::string> arguments = {"--listen", "unix:" + path_, "--data", "/no/such/folder"};
  ChildProcess no_folder(KVD_PROGRAM, arguments);
  EXPECT_EQ(no_folder.Wait(), 1);
  EXPECT_THAT(no_folder.Errors(), HasSubstr("/no/such/folder"));
  arguments = {"--listen", "unix:" + path_, "--data", data_, "--arena-directory", "/proc"};
  ChildProcess no_memory(KVD_PROGRAM, arguments);
  EXPECT_EQ(no_memory.Wait(), 1);
  EXPECT_THAT(no_memory.Errors(), HasSubstr("/proc is neither a tmpfs nor a hugetlbfs"));
}

// ---- NVMe ---------------------------------------------------------------------------------------

class NvmeRestartTest : public RestartTest {
 protected:
  void StartWithNvme(const std::string& scrub_bandwidth = "0") {
    std::vector<std::string> arguments = Arguments("32MiB", scrub_bandwidth);
    arguments.insert(arguments.end(), {"--nvme", nvme_ + ":256MiB", "--admission", "all"});
    auto daemon = DaemonProcess::Start({.arguments = arguments, .path = path_});
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    daemon_ = *std::move(daemon);
  }
  static constexpr int kChains = 24;
  static constexpr int kChainBlocks = 8;
  static constexpr uint32_t kAll = kChains * kChainBlocks;  // Memory has room for two thirds.

  // Puts more than memory holds, no faster than the disk.
  void PutAll() {
    for (int chain = 0; chain < kChains; ++chain) {
      ASSERT_EQ(Put(100 * chain, kChainBlocks), uint32_t{kChainBlocks});
      ASSERT_TRUE(
          daemon_->WaitFor([&](const auto&) { return daemon_->Counter("nvme_moves") == 0; }));
    }
    EXPECT_GE(NvmeBlocks(), kAll - kArenaBlocks);
  }
  uint32_t GetAll() {
    uint32_t found = 0;
    for (int chain = 0; chain < kChains; ++chain) found += Get(100 * chain, kChainBlocks);
    return found;
  }
  uint64_t NvmeBlocks() {
    const v1::TiersReply tiers = daemon_->Tiers();
    return tiers.tiers_size() < 2 ? 0 : tiers.tiers(1).blocks();
  }

  const std::string nvme_ = folder_.path() + "/nvme0";
};

TEST_F(NvmeRestartTest, WhatLeftMemoryIsReadFromNvme) {
  StartWithNvme();
  PutAll();
  EXPECT_EQ(daemon_->Tiers().tiers(1).name(), "nvme");
  EXPECT_EQ(daemon_->Tiers().tiers(1).state(), "online");
  EXPECT_EQ(GetAll(), kAll);
  EXPECT_GT(daemon_->Counter("nvme_promoted_blocks"), 0u);
  ExpectClean();
}

TEST_F(NvmeRestartTest, WhatIsOnNvmeIsThereWithoutTheArenaAndWithoutTheIndex) {
  StartWithNvme();
  PutAll();
  const uint64_t on_nvme = NvmeBlocks();
  for (const bool killed : {false, true}) {
    if (killed) {
      daemon_->Kill();
    } else {
      ASSERT_EQ(daemon_->Stop(), 0) << daemon_->child().Errors();
    }
    std::filesystem::remove_all(ArenaPath());  // As a reboot does.
    if (killed) std::filesystem::remove_all(data_ + "/index");
    daemon_.reset();
    StartWithNvme();
    EXPECT_GE(daemon_->Counter("restored_blocks"), on_nvme) << daemon_->child().Errors();
    EXPECT_GE(GetAll(), on_nvme);
    ExpectClean();
  }
}

TEST_F(NvmeRestartTest, BothTiersComeBackTogether) {
  StartWithNvme();
  PutAll();
  for (const bool killed : {false, true}) {
    if (killed) {
      daemon_->Kill();
    } else {
      ASSERT_EQ(daemon_->Stop(), 0) << daemon_->child().Errors();
    }
    daemon_.reset();
    StartWithNvme();
    EXPECT_EQ(daemon_->Counter("restored_blocks"), kAll) << daemon_->child().Errors();
    EXPECT_EQ(GetAll(), kAll);
    ExpectClean();
  }
}

TEST_F(NvmeRestartTest, WhatIsNotKvdsIsNotWrittenAndMemoryServesAlone) {
  std::string foreign(64u << 20, 'x');
  foreign.resize(256u << 20, 'y');
  std::ofstream(nvme_) << foreign;
  StartWithNvme();
  EXPECT_THAT(daemon_->child().Errors(), HasSubstr("tier.refused tier=nvme"));
  EXPECT_EQ(Put(0, 10), 10u);
  EXPECT_EQ(Get(0, 10), 10u);
  EXPECT_EQ(NvmeBlocks(), 0u);
  ASSERT_EQ(daemon_->Stop(), 0);
  std::stringstream after;
  after << std::ifstream(nvme_).rdbuf();
  EXPECT_TRUE(after.str() == foreign);
}

TEST_F(NvmeRestartTest, ADeviceOfAnotherSetIsRefusedAndKept) {
  StartWithNvme();
  PutAll();
  ASSERT_EQ(daemon_->Stop(), 0) << daemon_->child().Errors();
  daemon_.reset();
  const std::string other = folder_.path() + "/other";
  {
    MemoryFolder memory;
    auto daemon = DaemonProcess::Start(
        {.arguments = {"--dram", "32MiB", "--data", folder_.path() + "/other-data",
                       "--arena-directory", memory.path(), "--nvme", other + ":256MiB"}});
    ASSERT_TRUE(daemon.ok()) << daemon.status();
    ASSERT_EQ((*daemon)->Stop(), 0);
  }
  const std::string kept = folder_.path() + "/kept";
  std::filesystem::rename(nvme_, kept);
  std::filesystem::rename(other, nvme_);
  StartWithNvme();
  EXPECT_THAT(daemon_->child().Errors(), HasSubstr("tier.refused tier=nvme"));
  EXPECT_THAT(daemon_->child().Errors(), HasSubstr("belongs to the set"));
  EXPECT_EQ(NvmeBlocks(), 0u);
  EXPECT_GT(GetAll(), 0u) << "what is in memory is served";
  ASSERT_EQ(daemon_->Stop(), 0);
  daemon_.reset();
  std::filesystem::rename(kept, nvme_);
  StartWithNvme();  // Neither of them was changed.
  EXPECT_GT(NvmeBlocks(), 0u);
  ExpectClean();
}

TEST_F(NvmeRestartTest, WhereTheFolderOfADeviceHasGoneMemoryServesAlone) {
  StartWithNvme();
  PutAll();
  ASSERT_EQ(daemon_->Stop(), 0) << daemon_->child().Errors();
  daemon_.reset();
  std::vector<std::string> arguments = Arguments();
  arguments.insert(arguments.end(), {"--nvme", folder_.path() + "/unmounted/nvme0:256MiB"});
  auto daemon = DaemonProcess::Start({.arguments = arguments, .path = path_});
  ASSERT_TRUE(daemon.ok()) << daemon.status();
  daemon_ = *std::move(daemon);
  EXPECT_THAT(daemon_->child().Errors(), HasSubstr("tier.refused tier=nvme"));
  EXPECT_THAT(daemon_->child().Errors(), HasSubstr("/unmounted"));
  EXPECT_GT(GetAll(), 0u);
  ASSERT_EQ(daemon_->Stop(), 0);
  daemon_.reset();
  StartWithNvme();  // It is mounted again.
  EXPECT_GT(NvmeBlocks(), 0u);
  ExpectClean();
}

// ---- damage -------------------------------------------------------------------------------------

// Changes bytes of a file of the arena, by where they are.
void Change(const std::string& path, uint64_t offset, size_t bytes) {
  const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_GE(fd, 0) << path;
  std::string old(bytes, '\0');
  ASSERT_EQ(pread(fd, old.data(), bytes, static_cast<off_t>(offset)), static_cast<ssize_t>(bytes));
  for (char& c : old) c = static_cast<char>(c ^ 0x5a);
  ASSERT_EQ(pwrite(fd, old.data(), bytes, static_cast<off_t>(offset)), static_cast<ssize_t>(bytes));
  close(fd);
}

// Where the first row of a slot lies that says `key`.
std::optional<uint64_t> Find(const std::string& path, const std::string& key) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  std::string page(4096, '\0');
  std::optional<uint64_t> found;
  for (off_t at = 0; !found.has_value() && (at = lseek(fd, at, SEEK_DATA)) >= 0; at += 4096) {
    at = at / 4096 * 4096;
    if (pread(fd, page.data(), page.size(), at) != 4096) break;
    // A row begins with 36 bytes, then comes its key; a parent's key stands elsewhere.
    for (size_t row = 0; row < page.size(); row += 128) {
      if (page.compare(row + 36, key.size(), key) == 0) {
        found = static_cast<uint64_t>(at) + row;
        break;
      }
    }
  }
  close(fd);
  return found;
}

TEST_F(RestartTest, ATornRowCostsItsBlockAndWhatHangsBelow) {
  Start();
  ASSERT_EQ(Put(0, 10), 10u);
  ASSERT_EQ(Put(100, 10), 10u);
  daemon_->Kill();
  const std::string table = ArenaPath() + "/slots";
  const std::optional<uint64_t> row = Find(table, TestKey(6));
  ASSERT_TRUE(row.has_value());
  Change(table, *row + 20, 3);
  Start();
  EXPECT_EQ(daemon_->Counter("restored_blocks"), 16u);
  EXPECT_EQ(Get(0, 10), 6u);
  EXPECT_EQ(Get(100, 10), 10u);
  // Its room, and that of the blocks below, is free again.
  EXPECT_EQ(Put(1000, kArenaBlocks), uint32_t{kArenaBlocks});
  ExpectClean();
}

TEST_F(RestartTest, DamagedBytesAreAMissAndNeverAnAnswer) {
  Start();
  ASSERT_EQ(Put(0, 10), 10u);
  daemon_->Kill();
  bool changed = false;
  for (const auto& entry : std::filesystem::directory_iterator(ArenaPath())) {
    if (!absl::StartsWith(entry.path().filename().string(), "region-")) continue;
    // The middle of every slot.
    for (uint64_t at = kPartBytes / 2; at < entry.file_size(); at += kPartBytes) {
      Change(entry.path(), at, 1);
    }
    changed = true;
  }
  ASSERT_TRUE(changed);
  Start();
  EXPECT_EQ(daemon_->Counter("restored_blocks"), 10u);
  EXPECT_EQ(Get(0, 10), 0u);
  EXPECT_TRUE(
      daemon_->WaitFor([&](const auto&) { return daemon_->Counter("damage_confirmed") > 0; }));
  // Each that is read is noticed, and can be stored again.
  EXPECT_TRUE(daemon_->WaitFor([&](const auto&) {
    Put(0, 10);
    return Get(0, 10) == 10;
  }));
  ExpectClean();
}

// Nobody asks for a block: the background finds it.
TEST_F(NvmeRestartTest, AChangedByteIsFoundInBothTiers) {
  StartWithNvme();
  PutAll();
  ASSERT_EQ(daemon_->Stop(), 0);
  uint64_t slots = 0;
  for (const auto& entry : std::filesystem::directory_iterator(ArenaPath())) {
    if (!absl::StartsWith(entry.path().filename().string(), "region-")) continue;
    for (uint64_t at = kPartBytes / 2; at < entry.file_size(); at += kPartBytes, ++slots) {
      Change(entry.path(), at, 1);
    }
  }
  ASSERT_GT(slots, 0u);
  // Behind the superblock, at less than a record's distance.
  for (uint64_t at = 16u << 20; at < 128u << 20; at += kPartBytes / 2) Change(nvme_, at + 12345, 1);
  StartWithNvme("2GiB");
  const auto logged = [&](const std::string& tier) {
    return std::regex_search(daemon_->child().Errors(),
                             std::regex("damage.found number=.* tier=" + tier + " .*=scrubber"));
  };
  EXPECT_TRUE(daemon_->WaitFor([&](const auto&) { return logged("dram") && logged("nvme"); }));
  const uint64_t records = daemon_->Counter("nvme_damaged_records");
  EXPECT_GT(records, 0u);
  EXPECT_GT(daemon_->Counter("damage_confirmed"), records);
  std::vector<std::string> codes;
  const v1::StatusReply status = daemon_->Status();
  for (const v1::Problem& problem : status.problems()) codes.push_back(problem.code());
  EXPECT_THAT(codes, testing::IsSupersetOf({"KVD1002", "KVD1007"}));
  EXPECT_EQ(daemon_->Counter("damage_reported"), 0u);
  ExpectClean();
}

TEST_F(RestartTest, AMissingOrCutRegionIsNewAndTheOthersAreWarm) {
  Start();
  ASSERT_EQ(Put(0, 40), 40u);  // Of slots of 256 KiB, eight to a region of 2 MiB.
  ASSERT_EQ(daemon_->Stop(), 0);
  const std::string arena = ArenaPath();
  ASSERT_TRUE(std::filesystem::remove(arena + "/region-4"));
  Start();
  EXPECT_THAT(daemon_->child().Errors(), HasSubstr("regions_lost=1"));
  const uint32_t left = Get(0, 40);
  EXPECT_GE(left, 8u);
  EXPECT_LT(left, 40u);
  ASSERT_EQ(daemon_->Stop(), 0);
  std::filesystem::resize_file(arena + "/region-2", 4096);
  Start();
  EXPECT_LT(Get(0, 40), left);
  EXPECT_EQ(Put(1000, kArenaBlocks), uint32_t{kArenaBlocks});
  EXPECT_EQ(Get(1000, kArenaBlocks), uint32_t{kArenaBlocks});
  ExpectClean();
}

TEST_F(RestartTest, ADamagedTableIsAColdStart) {
  Start();
  ASSERT_EQ(Put(0, 4), 4u);
  daemon_->Kill();
  Change(ArenaPath() + "/slots", 17, 1);
  Start();
  EXPECT_THAT(daemon_->child().Errors(), HasSubstr("slots is damaged"));
  EXPECT_EQ(Get(0, 4), 0u);
  ASSERT_EQ(Put(0, 4), 4u);
  daemon_->Kill();
  std::filesystem::resize_file(ArenaPath() + "/slots", 5000);
  Start();
  EXPECT_EQ(Get(0, 4), 0u);
  ASSERT_EQ(Put(0, 4), 4u);
  daemon_->Kill();
  std::filesystem::remove(ArenaPath() + "/slots");
  Start();
  EXPECT_THAT(daemon_->child().Errors(), Not(HasSubstr("arena.cold"))) << "none was there";
  EXPECT_EQ(Get(0, 4), 0u);
  EXPECT_EQ(Put(0, kArenaBlocks), uint32_t{kArenaBlocks});
}

TEST_F(RestartTest, FilesThatAreNotOursAreLeftAlone) {
  Start();
  ASSERT_EQ(daemon_->Stop(), 0);
  const std::string mine = ArenaPath() + "/mine";
  std::ofstream(mine) << "x";
  std::ofstream(data_ + "/mine") << "x";
  Start("64MiB");
  EXPECT_TRUE(std::filesystem::exists(mine));
  EXPECT_TRUE(std::filesystem::exists(data_ + "/mine"));
}

TEST_F(RestartTest, EnginesOfTheSameUserAreSaidToBeKeptApartByChecksumsOnly) {
  Start();
  EXPECT_THAT(daemon_->child().Errors(), HasSubstr("are kept apart by checksums only"));
  struct stat info;
  ASSERT_EQ(stat(ArenaPath().c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700u);
}

}  // namespace
}  // namespace kvd
