// The index in RocksDB by itself, and the twelve ways in which a directory of it is damaged: each
// time the tier starts, and has all that is on the media.

#include "tiers/rocks_index.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "tests/testing/nvme_harness.h"

namespace kvd {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

// A folder of the test's own, removed with it.
class ScratchFolder {
 public:
  ScratchFolder() {
    std::string name = testing::TempDir() + "kvd_index_XXXXXX";
    KVD_CHECK(mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~ScratchFolder() {
    std::error_code error;
    fs::remove_all(path_, error);
  }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

struct Loaded {
  std::map<uint32_t, SegmentRow> segments;
  std::map<std::pair<uint32_t, uint32_t>, uint64_t> records;  // Place to sequence.
  uint32_t damaged = 0;
};

Loaded LoadAll(RocksIndex& index) {
  Loaded loaded;
  const absl::Status status =
      index.Load({.segment = [&](const SegmentRow& row) { loaded.segments[row.segment] = row; },
                  .record =
                      [&](RecordPlace place, const RecordHeader& header) {
                        loaded.records[{place.segment, place.page}] = header.sequence;
                      },
                  .damaged = [&] { ++loaded.damaged; }});
  KVD_CHECK(status.ok()) << status;
  return loaded;
}

PackedHeader HeaderAt(RecordPlace place, uint64_t sequence) {
  RecordHeader header;
  header.info.scope = 1;
  header.info.length = 4096;
  header.incarnation = 5;
  header.sequence = sequence;
  header.place = place;
  return PackHeader(header);
}

class RocksIndexTest : public testing::Test {
 protected:
  std::unique_ptr<RocksIndex> MustOpen(RocksIndexOptions options = {}) {
    options.path = folder_ / "index";
    moved_to_.clear();
    auto index = RocksIndex::Open(options, &moved_to_);
    KVD_CHECK(index.ok()) << index.status();
    return *std::move(index);
  }
  ScratchFolder folder_;
  std::string moved_to_;
};

TEST_F(RocksIndexTest, KeepsWhatWasPut) {
  {
    const auto index = MustOpen();
    EXPECT_EQ(index->owner(), "");
    index->SetOwner("set");
    index->PutSegment({.segment = 3, .incarnation = 5});
    for (uint32_t page = 0; page < 500; page += 5) {
      index->PutRecord({3, page}, HeaderAt({3, page}, page + 1));
    }
    index->EraseRecord({3, 10});
    index->PutSegment({.segment = 3, .incarnation = 5, .sealed = true, .has_trailer = false});
    index->PutSegment({.segment = 4, .incarnation = 6, .freed = true});
  }
  const auto index = MustOpen();
  EXPECT_EQ(moved_to_, "");
  EXPECT_EQ(index->owner(), "set");
  const Loaded loaded = LoadAll(*index);
  EXPECT_EQ(loaded.records.size(), 99u);
  EXPECT_FALSE(loaded.records.contains({3, 10}));
  EXPECT_EQ(loaded.records.at({3, 495}), 496u);
  EXPECT_TRUE(loaded.segments.at(3).sealed);
  EXPECT_FALSE(loaded.segments.at(3).freed);
  EXPECT_TRUE(loaded.segments.at(4).freed);
  EXPECT_FALSE(loaded.segments.at(3).has_trailer);
  EXPECT_EQ(loaded.segments.at(3).incarnation, 5u);
  EXPECT_EQ(loaded.damaged, 0u);
}

TEST_F(RocksIndexTest, ErasesASegmentWithAllItsRecords) {
  const auto index = MustOpen();
  for (const uint32_t segment : {0u, 1u, 255u, 256u, UINT32_MAX}) {
    index->PutSegment({.segment = segment, .incarnation = 5});
    for (const uint32_t page : {0u, 255u, 256u, 16'000u}) {
      index->PutRecord({segment, page}, HeaderAt({segment, page}, 1));
    }
  }
  index->EraseSegment(255);
  index->PutRecord({255, 7}, HeaderAt({255, 7}, 2));  // Of its next life.
  index->EraseSegment(UINT32_MAX);
  const Loaded loaded = LoadAll(*index);
  EXPECT_EQ(loaded.segments.size(), 3u);
  EXPECT_EQ(loaded.records.size(), 13u);
  EXPECT_TRUE(loaded.records.contains({255, 7}));
}

TEST_F(RocksIndexTest, WhereTooMuchWaitsTheSegmentIsNotToldComplete) {
  const auto index = MustOpen({.waiting_max = 10, .batch_rows = 1'000'000, .batch_ms = 100'000});
  index->PutSegment({.segment = 1, .incarnation = 5});
  for (uint32_t page = 0; page < 20; ++page) {
    index->PutRecord({1, page}, HeaderAt({1, page}, page + 1));
  }
  index->PutSegment({.segment = 1, .incarnation = 5, .sealed = true});
  EXPECT_GT(index->stats().rows_dropped, 0u);
  Loaded loaded = LoadAll(*index);
  EXPECT_LT(loaded.records.size(), 20u);
  EXPECT_FALSE(loaded.segments.at(1).sealed);
  // Its next life begins with nothing lost.
  index->EraseSegment(1);
  index->PutRecord({1, 0}, HeaderAt({1, 0}, 100));
  index->PutSegment({.segment = 1, .incarnation = 6, .sealed = true});
  loaded = LoadAll(*index);
  EXPECT_TRUE(loaded.segments.at(1).sealed);
  EXPECT_EQ(loaded.records.size(), 1u);
}

TEST_F(RocksIndexTest, ResetForgetsAllButTheOwner) {
  auto index = MustOpen();
  index->SetOwner("set");
  index->PutRecord({1, 1}, HeaderAt({1, 1}, 1));
  ASSERT_TRUE(index->Reset().ok());
  EXPECT_TRUE(LoadAll(*index).records.empty());
  index->PutRecord({2, 1}, HeaderAt({2, 1}, 1));
  index.reset();
  index = MustOpen();
  EXPECT_EQ(index->owner(), "set");
  EXPECT_EQ(LoadAll(*index).records.size(), 1u);
}

TEST_F(RocksIndexTest, OneDamagedIndexIsKept) {
  for (int round = 1; round <= 3; ++round) {
    MustOpen()->PutRecord({1, 1}, HeaderAt({1, 1}, 1));
    fs::remove(folder_ / "index/CURRENT");
    MustOpen();
    EXPECT_EQ(moved_to_, folder_ / ("index.damaged-" + std::to_string(round)));
    EXPECT_TRUE(fs::exists(moved_to_));
  }
  int kept = 0;
  for (const auto& entry : fs::directory_iterator(folder_.path())) {
    kept += entry.path().filename().string().find("damaged") != std::string::npos;
  }
  EXPECT_EQ(kept, 1);
}

TEST_F(RocksIndexTest, ALockOfAnotherProcessIsRefused) {
  int ready[2];
  int finish[2];
  ASSERT_EQ(pipe(ready), 0);
  ASSERT_EQ(pipe(finish), 0);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  char byte = 0;
  if (child == 0) {
    const auto index = MustOpen();
    if (write(ready[1], "r", 1) != 1 || read(finish[0], &byte, 1) != 1) _exit(1);
    _exit(0);
  }
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  const auto second = RocksIndex::Open({.path = folder_ / "index"}, nullptr);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(second.status().message()),
              HasSubstr("in use by process " + std::to_string(child)));
  ASSERT_EQ(write(finish[1], "f", 1), 1);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  MustOpen();  // The lock was that process's, and ended with it.
  EXPECT_EQ(moved_to_, "");
}

TEST_F(RocksIndexTest, WithoutItsParentItIsNotMade) {
  const auto index = RocksIndex::Open({.path = folder_ / "absent/index"}, nullptr);
  EXPECT_EQ(index.status().code(), absl::StatusCode::kNotFound);
}

TEST_F(RocksIndexTest, AFolderThatCannotBeWrittenIsLeftAlone) {
  if (geteuid() == 0) GTEST_SKIP() << "root writes anywhere";
  MustOpen()->PutRecord({1, 1}, HeaderAt({1, 1}, 1));
  ASSERT_EQ(chmod((folder_ / "index").c_str(), 0500), 0);
  const auto index = RocksIndex::Open({.path = folder_ / "index"}, nullptr);
  EXPECT_EQ(index.status().code(), absl::StatusCode::kPermissionDenied);
  ASSERT_EQ(chmod((folder_ / "index").c_str(), 0700), 0);
  EXPECT_EQ(LoadAll(*MustOpen()).records.size(), 1u);
}

// --- F08 -----------------------------------------------------------------------------------------

using Recipe = std::pair<std::string, void (*)(const std::string& index, std::mt19937_64&)>;

// The file that is not empty and whose name begins and ends so; of several, a random one.
std::string FileOf(const std::string& index, const std::string& begin, const std::string& end,
                   std::mt19937_64& random) {
  std::vector<std::string> files;
  for (const auto& entry : fs::directory_iterator(index)) {
    const std::string name = entry.path().filename().string();
    const bool named = name.starts_with(begin) && name.ends_with(end);
    if (named && entry.file_size() > 0) files.push_back(entry.path().string());
  }
  KVD_CHECK(!files.empty()) << "no " << begin << "*" << end << " in " << index;
  std::sort(files.begin(), files.end());
  return files[random() % files.size()];
}
void FlipIn(const std::string& file, std::mt19937_64& random) {
  const auto size = static_cast<int64_t>(fs::file_size(file));
  KVD_CHECK(size > 0) << file;
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  const auto at = static_cast<int64_t>(random() % static_cast<uint64_t>(size));
  stream.seekg(at);
  char byte = 0;
  stream.get(byte);
  stream.seekp(at);
  stream.put(static_cast<char>(byte ^ static_cast<char>(1 + random() % 255)));
}
void Truncate(const std::string& file, std::mt19937_64& random) {
  fs::resize_file(file, random() % std::max<uint64_t>(fs::file_size(file), 1));
}
void Overwrite(const std::string& file, const std::string& text) {
  std::ofstream(file, std::ios::trunc) << text;
}

const Recipe kRecipes[] = {
    {"current_gone", [](const std::string& d, std::mt19937_64&) { fs::remove(d + "/CURRENT"); }},
    {"current_empty",
     [](const std::string& d, std::mt19937_64&) { Overwrite(d + "/CURRENT", ""); }},
    {"current_names_nothing",
     [](const std::string& d, std::mt19937_64&) {
       Overwrite(d + "/CURRENT", "MANIFEST-999999\n");
     }},
    {"manifest_gone",
     [](const std::string& d, std::mt19937_64& r) { fs::remove(FileOf(d, "MANIFEST-", "", r)); }},
    {"manifest_truncated",
     [](const std::string& d, std::mt19937_64& r) { Truncate(FileOf(d, "MANIFEST-", "", r), r); }},
    {"manifest_flipped",
     [](const std::string& d, std::mt19937_64& r) { FlipIn(FileOf(d, "MANIFEST-", "", r), r); }},
    {"table_gone",
     [](const std::string& d, std::mt19937_64& r) { fs::remove(FileOf(d, "", ".sst", r)); }},
    {"table_truncated",
     [](const std::string& d, std::mt19937_64& r) { Truncate(FileOf(d, "", ".sst", r), r); }},
    {"table_flipped",
     [](const std::string& d, std::mt19937_64& r) { FlipIn(FileOf(d, "", ".sst", r), r); }},
    {"log_torn",
     [](const std::string& d, std::mt19937_64& r) { Truncate(FileOf(d, "", ".log", r), r); }},
    {"log_flipped",
     [](const std::string& d, std::mt19937_64& r) { FlipIn(FileOf(d, "", ".log", r), r); }},
    {"folder_empty",
     [](const std::string& d, std::mt19937_64&) {
       fs::remove_all(d);
       fs::create_directory(d);
     }},
    {"folder_gone", [](const std::string& d, std::mt19937_64&) { fs::remove_all(d); }},
    {"a_file_in_its_place",
     [](const std::string& d, std::mt19937_64&) {
       fs::remove_all(d);
       Overwrite(d, "not an index");
     }},
    {"stale_lock", [](const std::string& d, std::mt19937_64&) { Overwrite(d + "/LOCK", "stale"); }},
    {"all_but_the_tables_gone",
     [](const std::string& d, std::mt19937_64&) {
       for (const auto& entry : fs::directory_iterator(d)) {
         if (entry.path().extension() != ".sst") fs::remove(entry.path());
       }
     }},
};

class DamagedIndexTest : public testing::TestWithParam<Recipe> {};

TEST_P(DamagedIndexTest, TheTierStartsWithAllThatIsOnTheMedia) {
  constexpr uint64_t kRecords = 60;
  constexpr int kSeeds = 3;
  const ScratchFolder folder;
  const std::string path = folder / "index";
  NvmeHarness h;
  const auto fill = [&](uint64_t from, uint64_t to) {
    for (uint64_t key = from; key < to; ++key) {
      h.MustAppend(key, 200'000);
      h.clock.Advance(50 * kMillisecond);
    }
  };
  const auto open = [&] {
    auto index = RocksIndex::Open({.path = path}, nullptr);
    KVD_CHECK(index.ok()) << index.status();
    h.options.index = index->get();
    const absl::Status status = h.Restart();
    KVD_CHECK(status.ok()) << status;
    return *std::move(index);
  };
  auto index = open();
  h.MustAddScope();
  fill(0, kRecords / 2);
  h.tier.reset();
  index.reset();
  index = open();  // Now some rows are in a table, and the next ones in the log.
  fill(kRecords / 2, kRecords);
  ASSERT_TRUE(index->Flush().ok());
  // As a kill leaves it: a copy of the folder while it is open.
  fs::copy(path, folder / "killed", fs::copy_options::recursive);
  h.tier.reset();
  index.reset();
  for (int seed = 0; seed < kSeeds; ++seed) {
    std::mt19937_64 random(seed);
    fs::remove_all(path);
    fs::copy(folder / "killed", path, fs::copy_options::recursive);
    GetParam().second(path, random);
    index = open();
    EXPECT_EQ(h.found.size(), kRecords) << "seed " << seed;
    EXPECT_EQ(h.ReadAll(), h.found.size());
    EXPECT_EQ(h.report.from_index + h.report.from_footers + h.report.from_headers, kRecords);
    h.tier.reset();
    index.reset();
    // The next start has it all from the index.
    index = open();
    EXPECT_EQ(h.found.size(), kRecords);
    EXPECT_EQ(h.report.from_index, kRecords) << "seed " << seed;
    h.tier.reset();
    index.reset();
  }
}

INSTANTIATE_TEST_SUITE_P(F08, DamagedIndexTest, testing::ValuesIn(kRecipes),
                         [](const auto& info) { return info.param.first; });

}  // namespace
}  // namespace kvd
