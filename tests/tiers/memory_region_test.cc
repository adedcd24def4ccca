// Clients can do nothing but read: every way that we know to write, shrink or unseal a region
// through its read-only descriptor is tried, from this user id and, where we may, from another one.

#include "tiers/memory_region.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "tests/testing/memory_folder.h"

namespace kvd {
namespace {

constexpr uint64_t kSize = 1u << 20;

MemoryRegion MustCreate() {
  absl::StatusOr<MemoryRegion> region = MemoryRegion::Create(kSize, PageKind::kSmall);
  EXPECT_TRUE(region.ok()) << region.status();
  std::memcpy(region->data(), "payload", 7);
  return *std::move(region);
}

std::string ProcPath(int fd) { return "/proc/self/fd/" + std::to_string(fd); }

// Tries to make a writable mapping of `fd`, and to write through it.
bool MapsWritable(int fd) {
  void* memory = mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) return false;
  std::memcpy(memory, "WRITTEN", 7);
  return true;
}

// Every attack on the descriptor of a region; the name of the first one that succeeded, or null.
const char* FirstAttackThatWorks(int fd) {
  if (MapsWritable(fd)) return "a writable mapping of the descriptor";
  if (pwrite(fd, "WRITTEN", 7, 0) >= 0) return "pwrite";
  if (ftruncate(fd, 0) == 0) return "ftruncate to nothing";
  if (ftruncate(fd, 2 * kSize) == 0) return "ftruncate to more";
  if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) == 0) return "punch hole";
  if (fallocate(fd, 0, 0, 2 * kSize) == 0) return "fallocate";
  if (fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == 0) return "F_ADD_SEALS";

  void* readable = mmap(nullptr, kSize, PROT_READ, MAP_SHARED, fd, 0);
  if (readable == MAP_FAILED) return "not even reading (no attack, a fault)";
  if (std::memcmp(readable, "payload", 7) != 0) return "the bytes read are not those written";
  if (mprotect(readable, kSize, PROT_READ | PROT_WRITE) == 0) return "mprotect";
  munmap(readable, kSize);

  for (const int flags : {O_RDWR, O_WRONLY, O_RDWR | O_TRUNC}) {
    const int again = open(ProcPath(fd).c_str(), flags | O_CLOEXEC);
    if (again < 0) continue;  // Another user; or the kernel says no.
    // The owner may reopen it; the seals must hold.
    if (MapsWritable(again)) return "a writable mapping through /proc";
    if (pwrite(again, "WRITTEN", 7, 0) >= 0) return "pwrite through /proc";
    if (ftruncate(again, 0) == 0) return "ftruncate through /proc";
    if (ftruncate(again, 2 * kSize) == 0) return "growing through /proc";
    if (fallocate(again, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) == 0) {
      return "punch hole through /proc";
    }
    if (fcntl(again, F_ADD_SEALS, F_SEAL_WRITE) == 0) return "F_ADD_SEALS through /proc";
    close(again);
  }
  return nullptr;
}

TEST(MemoryRegionTest, TheDaemonWritesAndTheDescriptorReads) {
  const MemoryRegion region = MustCreate();
  EXPECT_EQ(region.size_bytes(), kSize);
  char bytes[7];
  ASSERT_EQ(pread(region.read_only_fd(), bytes, 7, 0), 7);
  EXPECT_EQ(std::memcmp(bytes, "payload", 7), 0);
  std::memcpy(region.data(), "another", 7);  // The daemon's mapping stays writable.
  ASSERT_EQ(pread(region.read_only_fd(), bytes, 7, 0), 7);
  EXPECT_EQ(std::memcmp(bytes, "another", 7), 0);
}

TEST(MemoryRegionTest, IsSealedAgainstWritingShrinkingGrowingAndNewSeals) {
  const MemoryRegion region = MustCreate();
  const int seals = fcntl(region.read_only_fd(), F_GET_SEALS);
  EXPECT_EQ(seals & (F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL),
            F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  struct stat info;
  ASSERT_EQ(fstat(region.read_only_fd(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  EXPECT_EQ(fcntl(region.read_only_fd(), F_GETFL) & O_ACCMODE, O_RDONLY);
}

TEST(MemoryRegionTest, NoAttackOfTheSameUserWorks) {
  const MemoryRegion region = MustCreate();
  EXPECT_STREQ(FirstAttackThatWorks(region.read_only_fd()), nullptr);
  // The owner may change the mode; it helps neither him nor others to write.
  EXPECT_EQ(fchmod(region.read_only_fd(), 0666), 0);
  EXPECT_STREQ(FirstAttackThatWorks(region.read_only_fd()), nullptr);
  EXPECT_EQ(std::memcmp(region.data(), "payload", 7), 0);
}

TEST(MemoryRegionTest, NoAttackOfAnotherUserWorks) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can become another user";
  const MemoryRegion region = MustCreate();
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    if (setgroups(0, nullptr) != 0 || setresgid(65534, 65534, 65534) != 0 ||
        setresuid(65534, 65534, 65534) != 0) {
      _exit(3);
    }
    const int fd = region.read_only_fd();
    if (fchmod(fd, 0666) == 0) _exit(1);
    if (open(ProcPath(fd).c_str(), O_RDWR | O_CLOEXEC) >= 0) _exit(2);
    _exit(FirstAttackThatWorks(fd) == nullptr ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 3) GTEST_SKIP() << "this machine lets nobody become another user";
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_EQ(std::memcmp(region.data(), "payload", 7), 0);
}

TEST(MemoryRegionTest, HugePagesAreAWishOnly) {
  const absl::StatusOr<MemoryRegion> region = MemoryRegion::Create(2u << 20, PageKind::kHugetlb);
  ASSERT_TRUE(region.ok()) << region.status();
  EXPECT_FALSE(PageKindName(region->page_kind()).empty());
  EXPECT_STREQ(FirstAttackThatWorks(region->read_only_fd()),
               "the bytes read are not those written");  // It is zeroed, and no attack came before.
}

TEST(MemoryRegionTest, SaysThatThereIsNoMemory) {
  EXPECT_EQ(MemoryRegion::Create(uint64_t{1} << 60, PageKind::kSmall).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(MemoryRegionTest, MovesWithItsMemory) {
  MemoryRegion from = MustCreate();
  std::byte* const data = from.data();
  const MemoryRegion to = std::move(from);
  EXPECT_EQ(to.data(), data);
  EXPECT_EQ(std::memcmp(to.data(), "payload", 7), 0);
}

// ---- with a name --------------------------------------------------------------------------------

TEST(NamedRegionTest, IsAllThereAndNobodyElsesToOpen) {
  const MemoryFolder parent;
  const ArenaFolder folder = *ArenaFolder::Open(parent.path(), "arena");
  const auto region = MemoryRegion::CreateNamed(folder, 7, 1u << 20);
  ASSERT_TRUE(region.ok()) << region.status();
  EXPECT_EQ(region->number(), 7u);
  struct stat info;
  ASSERT_EQ(fstatat(folder.fd(), "region-7", &info, 0), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  EXPECT_EQ(info.st_size, 1 << 20);
  EXPECT_GE(info.st_blocks * 512, 1 << 20);
  EXPECT_EQ(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, region->read_only_fd(), 0),
            MAP_FAILED);
  EXPECT_EQ(ftruncate(region->read_only_fd(), 0), -1);
  EXPECT_EQ(MemoryRegion::CreateNamed(folder, 7, 1u << 20).status().code(),
            absl::StatusCode::kAlreadyExists);
}

TEST(NamedRegionTest, MoreThanTheFileSystemHasIsRefusedAndLeavesNothing) {
  const MemoryFolder parent;
  const ArenaFolder folder = *ArenaFolder::Open(parent.path(), "arena");
  const auto region = MemoryRegion::CreateNamed(folder, 1, uint64_t{1} << 46);
  EXPECT_EQ(region.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(region.status().message()), testing::HasSubstr(folder.path()));
  EXPECT_TRUE(folder.RegionNumbers().empty());
}

TEST(NamedRegionTest, OnlyAWholeRegionIsAttached) {
  const MemoryFolder parent;
  const ArenaFolder folder = *ArenaFolder::Open(parent.path(), "arena");
  const std::string path = folder.path() + "/region-1";
  ASSERT_TRUE(MemoryRegion::CreateNamed(folder, 1, 1u << 20).ok());
  EXPECT_TRUE(MemoryRegion::Attach(folder, 1, 1u << 20).ok());
  EXPECT_EQ(MemoryRegion::Attach(folder, 2, 1u << 20).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(MemoryRegion::Attach(folder, 1, 2u << 20).status().code(), absl::StatusCode::kDataLoss);
  ASSERT_EQ(truncate(path.c_str(), 1u << 19), 0);
  EXPECT_EQ(MemoryRegion::Attach(folder, 1, 1u << 20).status().code(), absl::StatusCode::kDataLoss);
  ASSERT_EQ(truncate(path.c_str(), 1u << 20), 0);  // Whole again, with a hole.
  EXPECT_EQ(MemoryRegion::Attach(folder, 1, 1u << 20).status().code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace kvd
