#include "daemon/memory_limit.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace kvd {
namespace {

// A system of files below a folder.
class MemoryLimitTest : public testing::Test {
 protected:
  MemoryLimitTest() {
    char name[] = "/tmp/kvd-memory-XXXXXX";
    root_ = mkdtemp(name);
    Write("/proc/meminfo", "MemTotal:       16777216 kB\nMemFree:  5 kB\nHugePages_Total:  0\n");
  }
  ~MemoryLimitTest() override { std::filesystem::remove_all(root_); }

  void Write(const std::string& path, const std::string& text) {
    const std::filesystem::path file = root_ + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }

  std::string root_;
};

constexpr uint64_t kGiB = uint64_t{1} << 30;

TEST_F(MemoryLimitTest, WithoutACgroupItIsTheMachine) {
  EXPECT_EQ(FindMemoryLimit(root_).bytes, 16 * kGiB);
  EXPECT_EQ(FindMemoryLimit(root_).of, "this machine");
}

TEST_F(MemoryLimitTest, WhatCannotBeReadLimitsNothing) {
  std::filesystem::remove_all(root_ + "/proc");
  EXPECT_EQ(FindMemoryLimit(root_).bytes, UINT64_MAX);
}

TEST_F(MemoryLimitTest, TheTightestCgroupAboveCounts) {
  Write("/proc/self/cgroup", "0::/kvd.slice/kvd.service\n");
  Write("/sys/fs/cgroup/kvd.slice/kvd.service/memory.max", "max\n");
  Write("/sys/fs/cgroup/kvd.slice/memory.max", "4294967296\n");
  EXPECT_EQ(FindMemoryLimit(root_).bytes, 4 * kGiB);
  EXPECT_EQ(FindMemoryLimit(root_).of, "the cgroup /kvd.slice");
}

TEST_F(MemoryLimitTest, AContainerThatSeesOnlyItsOwnCgroup) {
  Write("/proc/self/cgroup", "0::/docker/abc\n");
  Write("/sys/fs/cgroup/memory.max", "2147483648\n");
  EXPECT_EQ(FindMemoryLimit(root_).bytes, 2 * kGiB);
}

TEST_F(MemoryLimitTest, VersionOneAndALimitAboveTheMachine) {
  Write("/proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/a/b\n0::/\n");
  Write("/sys/fs/cgroup/cpu,memory/a/memory.limit_in_bytes", "1073741824\n");
  Write("/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(FindMemoryLimit(root_).bytes, kGiB);
  EXPECT_EQ(FindMemoryLimit(root_).of, "the cgroup /a");
}

TEST_F(MemoryLimitTest, VersionTwoBesideVersionOne) {
  Write("/proc/self/cgroup", "0::/x\n");
  Write("/sys/fs/cgroup/unified/x/memory.max", "3221225472\n");
  EXPECT_EQ(FindMemoryLimit(root_).bytes, 3 * kGiB);
}

TEST_F(MemoryLimitTest, LinesThatAreNotOfCgroupsAreSkipped) {
  Write("/proc/self/cgroup", "\nnonsense\n0::relative\n0:\n");
  Write("/sys/fs/cgroup/memory.max", "1\n");
  EXPECT_EQ(FindMemoryLimit(root_).bytes, 16 * kGiB);
}

}  // namespace
}  // namespace kvd
