// A device by its path: what is made, what is kept, what is refused and in which words; and what is
// used instead where the system refuses something. File systems and refusals are had in a child
// process with mounts and filters of its own.

#include "tiers/open_device.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/types/host_memory.h"
#include "tiers/device_file.h"

namespace kvd {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

constexpr uint64_t kMiB = 1u << 20;

const SystemClock& TheClock() {
  static const auto& clock = *new SystemClock();
  return clock;
}

// What `body` returns in a process of its own; empty if it could not `prepare` there, for want of
// rights.
std::optional<std::string> InChild(const std::function<bool()>& prepare,
                                   const std::function<std::string()>& body) {
  int ends[2];
  EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const pid_t child = fork();
  if (child == 0) {
    if (!prepare()) _exit(1);
    const std::string text = body();
    _exit(write(ends[1], text.data(), text.size()) == static_cast<ssize_t>(text.size()) ? 0 : 2);
  }
  close(ends[1]);
  std::string text(4096, '\0');
  const ssize_t got = read(ends[0], text.data(), text.size());
  close(ends[0]);
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 1) return std::nullopt;
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  text.resize(got > 0 ? static_cast<size_t>(got) : 0);
  return text;
}

class OpenDeviceTest : public testing::Test {
 protected:
  OpenDeviceTest() {
    std::string folder = testing::TempDir() + "/kvd-open-XXXXXX";
    EXPECT_NE(mkdtemp(folder.data()), nullptr);
    folder_ = folder;
    path_ = folder + "/device";
  }
  ~OpenDeviceTest() override { std::filesystem::remove_all(folder_); }

  absl::StatusOr<OpenedNvmeDevice> Open(uint64_t size_bytes) const {
    return OpenNvmeDevice({.path = path_, .size_bytes = size_bytes}, TheClock());
  }
  // The error, or the engine and the notes.
  std::string Outcome(const NvmeDeviceOptions& options) const {
    absl::StatusOr<OpenedNvmeDevice> opened = OpenNvmeDevice(options, TheClock());
    if (!opened.ok()) return opened.status().ToString();
    return absl::StrCat(std::string(opened->device->engine()), "\n",
                        absl::StrJoin(opened->notes, "\n"));
  }
  std::string ErrorOf(uint64_t size_bytes) const {
    const auto opened = Open(size_bytes);
    return opened.ok() ? "opened" : opened.status().ToString();
  }
  // Mounts a file system over the folder, for this process alone.
  std::function<bool()> Mounting(const char* type, unsigned long flags, const char* options) {
    return [this, type, flags, options] {
      return (unshare(CLONE_NEWNS) == 0 || unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0) &&
             mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
             mount("none", folder_.c_str(), type, flags, options) == 0;
    };
  }
  std::string ReadFile() const {
    std::ifstream file(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void WriteFile(const std::string& bytes) const {
    std::ofstream(path_, std::ios::binary) << bytes;
  }

  std::string folder_;
  std::string path_;
};

TEST_F(OpenDeviceTest, AFileThatIsNotThereIsMadeAndAllocatedForUsAlone) {
  const auto opened = Open(8 * kMiB + 1000);
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ(opened->device->size_bytes(), 8 * kMiB);  // Whole pages.
  struct stat status = {};
  ASSERT_EQ(stat(path_.c_str(), &status), 0);
  EXPECT_EQ(status.st_size, static_cast<off_t>(8 * kMiB));
  EXPECT_GE(status.st_blocks * 512, static_cast<off_t>(8 * kMiB));
  EXPECT_EQ(status.st_mode & 0777, 0600u);
}

TEST_F(OpenDeviceTest, AnEmptyFileIsAsGoodAsNone) {
  WriteFile("");
  ASSERT_TRUE(Open(kMiB).ok());
  EXPECT_EQ(std::filesystem::file_size(path_), kMiB);
}

TEST_F(OpenDeviceTest, AFileKeepsItsBytes) {
  const std::string bytes(kMiB, 'x');
  WriteFile(bytes);
  {
    const auto opened = Open(kMiB);
    ASSERT_TRUE(opened.ok()) << opened.status();
    EXPECT_THAT(opened->notes, IsEmpty());
  }
  EXPECT_EQ(ReadFile(), bytes);
}

TEST_F(OpenDeviceTest, OfALargerFileTheBeginningIsUsedAndThatIsSaid) {
  WriteFile(std::string(2 * kMiB, 'x'));
  const auto opened = Open(kMiB);
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ(opened->device->size_bytes(), kMiB);
  EXPECT_THAT(opened->notes, testing::ElementsAre(HasSubstr("only the first 1048576 are used")));
  EXPECT_EQ(std::filesystem::file_size(path_), 2 * kMiB);
}

TEST_F(OpenDeviceTest, ASmallerFileIsRefusedAndKept) {
  WriteFile("something of somebody's");
  EXPECT_EQ(ErrorOf(kMiB), "INVALID_ARGUMENT: " + path_ +
                               ": has 23 bytes, 1048576 are asked for; it is not grown in place");
  EXPECT_EQ(ReadFile(), "something of somebody's");
}

TEST_F(OpenDeviceTest, AFileNeedsASize) {
  EXPECT_EQ(ErrorOf(0), "INVALID_ARGUMENT: " + path_ + ": a file needs a size");
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(OpenDeviceTest, AMissingFolderIsNamed) {
  path_ = folder_ + "/none/device";
  EXPECT_EQ(ErrorOf(kMiB),
            "NOT_FOUND: " + path_ + ": cannot be made: there is no folder " + folder_ + "/none");
  WriteFile("");
  path_ = folder_ + "/file/device";
  std::ofstream(folder_ + "/file") << "x";
  EXPECT_THAT(ErrorOf(kMiB), HasSubstr("there is no folder " + folder_ + "/file"));
}

TEST_F(OpenDeviceTest, WhatIsNoFileIsRefusedUntouched) {
  const std::string error = "INVALID_ARGUMENT: " + path_ + ": is neither a file nor a block device";
  ASSERT_EQ(mkdir(path_.c_str(), 0700), 0);
  EXPECT_EQ(ErrorOf(kMiB), error);
  ASSERT_EQ(rmdir(path_.c_str()), 0);
  ASSERT_EQ(mkfifo(path_.c_str(), 0600), 0);  // Does not hang, either.
  EXPECT_EQ(ErrorOf(kMiB), error);
}

TEST_F(OpenDeviceTest, TheSecondOpenerIsRefusedUntilTheFirstIsGone) {
  {
    const auto first = Open(kMiB);
    ASSERT_TRUE(first.ok());
    EXPECT_THAT(Outcome({.path = path_, .size_bytes = kMiB, .lock_wait = 20 * kMillisecond}),
                "ABORTED: " + path_ + ": is in use by another process");
    EXPECT_EQ(std::filesystem::file_size(path_), kMiB);
  }
  EXPECT_TRUE(Open(kMiB).ok());
}

TEST_F(OpenDeviceTest, AKilledHolderDoesNotStopTheNext) {
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const pid_t holder = fork();
  if (holder == 0) {
    const auto opened = Open(kMiB);
    const char ok = opened.ok() ? 'y' : 'n';
    if (write(ends[1], &ok, 1) == 1) pause();
    _exit(1);
  }
  char ok = 'n';
  ASSERT_EQ(read(ends[0], &ok, 1), 1);
  ASSERT_EQ(ok, 'y');
  ASSERT_EQ(kill(holder, SIGKILL), 0);
  ASSERT_EQ(waitpid(holder, nullptr, 0), holder);
  EXPECT_EQ(ErrorOf(kMiB), "opened");
  close(ends[0]);
  close(ends[1]);
}

TEST_F(OpenDeviceTest, AFileThatMayNotBeWritten) {
  WriteFile(std::string(kMiB, 'x'));
  ASSERT_EQ(chmod(path_.c_str(), 0444), 0);
  ASSERT_EQ(chmod(folder_.c_str(), 0755), 0);
  // Of whom the mode bits stop.
  const auto text = InChild([] { return geteuid() != 0 || setresuid(65534, 65534, 65534) == 0; },
                            [this] { return ErrorOf(kMiB); });
  ASSERT_TRUE(text.has_value());
  EXPECT_EQ(*text,
            "PERMISSION_DENIED: " + path_ + ": may not be read and written: Permission denied");
}

TEST_F(OpenDeviceTest, AFullDiskIsSaidAndNothingStaysBehind) {
  const auto text = InChild(Mounting("tmpfs", 0, "size=2m"), [this] {
    return absl::StrCat(ErrorOf(64 * kMiB), std::filesystem::exists(path_) ? " left" : "");
  });
  if (!text.has_value()) GTEST_SKIP() << "may not mount";
  EXPECT_EQ(*text, "RESOURCE_EXHAUSTED: " + path_ + ": the disk has no room for 67108864 bytes");
}

TEST_F(OpenDeviceTest, AReadOnlyFileSystemIsSaid) {
  const auto text = InChild(Mounting("tmpfs", MS_RDONLY, ""), [this] { return ErrorOf(kMiB); });
  if (!text.has_value()) GTEST_SKIP() << "may not mount";
  EXPECT_EQ(*text, "FAILED_PRECONDITION: " + path_ + ": the file system is read-only");
}

TEST_F(OpenDeviceTest, WhereDirectIoAndAllocatingAreRefusedItGoesThroughThePageCache) {
  // ramfs has neither.
  const auto text = InChild(Mounting("ramfs", 0, ""), [this] {
    auto opened = Open(kMiB);
    if (!opened.ok()) return opened.status().ToString();
    MappedArray<std::byte> memory(2 * kNvmePageBytes, Touch::kNow);
    memory[5] = std::byte{42};
    const absl::Status written = opened->device->WriteNow(0, {&memory[0], kNvmePageBytes});
    const absl::Status read = opened->device->ReadNow(0, {&memory[kNvmePageBytes], kNvmePageBytes});
    return absl::StrCat(absl::StrJoin(opened->notes, "|"), "|", written.ToString(), read.ToString(),
                        static_cast<int>(memory[kNvmePageBytes + 5]));
  });
  if (!text.has_value()) GTEST_SKIP() << "may not mount";
  EXPECT_EQ(*text, path_ +
                       ": this file system refuses O_DIRECT; reads and writes go through the page "
                       "cache|" +
                       path_ +
                       ": this file system cannot allocate ahead; a full disk will show as write "
                       "errors|OKOK42");
}

// --- engines -------------------------------------------------------------------------------------

// Makes the kernel answer EPERM to io_uring_setup from here on, as container runtimes do.
bool RefuseUring() {
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program = {4, code};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

TEST_F(OpenDeviceTest, IoUringIsTheFirstChoice) {
  EXPECT_EQ(Outcome({.path = path_, .size_bytes = kMiB}), "io_uring\n");
}

TEST_F(OpenDeviceTest, ThreadsServeWhereIoUringIsRefusedAndThatIsSaid) {
  const auto text =
      InChild(RefuseUring, [this] { return Outcome({.path = path_, .size_bytes = kMiB}); });
  ASSERT_TRUE(text.has_value());
  EXPECT_EQ(*text, "threads\n" + path_ +
                       ": io_uring is refused here (kernel.io_uring_disabled, a seccomp filter or "
                       "a limit): Operation not permitted; a pool of threads serves it instead");
}

TEST_F(OpenDeviceTest, ThreadsServeWhereTheyAreAskedFor) {
  EXPECT_EQ(Outcome({.path = path_, .size_bytes = kMiB, .may_use_uring = false}), "threads\n");
}

TEST_F(OpenDeviceTest, MemoryThatMayNotBePinnedIsNotRegisteredAndThatIsSaid) {
  MappedArray<std::byte> memory(4 * kMiB, Touch::kNow);
  ASSERT_EQ(chmod(folder_.c_str(), 0777), 0);
  const auto text = InChild(
      [] {
        const rlimit limit = {64 << 10, 64 << 10};
        return setrlimit(RLIMIT_MEMLOCK, &limit) == 0 &&
               (geteuid() != 0 || setresuid(65534, 65534, 65534) == 0);
      },
      [&] {
        return Outcome(
            {.path = path_, .size_bytes = kMiB, .memory = {{&memory[0], memory.size()}}});
      });
  ASSERT_TRUE(text.has_value());
  EXPECT_EQ(*text, "io_uring\n" + path_ +
                       ": memory is not registered with io_uring: RLIMIT_MEMLOCK is too small for "
                       "it");
}

}  // namespace
}  // namespace kvd
