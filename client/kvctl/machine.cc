#include "client/kvctl/machine.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timex.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "client/kvctl/engine_flags.h"
#include "proto/types/copy_loops.h"

namespace kvd::kvctl {
namespace {

std::string ReadFile(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  std::string all = text.str();
  absl::StripTrailingAsciiWhitespace(&all);
  return all;
}

uint64_t ReadNumber(const std::string& path) {
  uint64_t value = 0;
  return absl::SimpleAtoi(ReadFile(path), &value) ? value : 0;
}

// "always [advise] never": what is in the brackets.
std::string Chosen(const std::string& list) {
  const size_t open = list.find('[');
  const size_t close = list.find(']');
  if (open == std::string::npos || close == std::string::npos || close < open) return "";
  return list.substr(open + 1, close - open - 1);
}

// A line of /proc/PID/limits: "Max locked memory  65536  65536  bytes"; the last but one is the
// hard limit. False: it is not there.
bool ReadLimit(const std::string& limits, const std::string& name, std::optional<uint64_t>& hard) {
  for (const absl::string_view line : absl::StrSplit(limits, '\n')) {
    if (!absl::StartsWith(line, name)) continue;
    const std::vector<std::string> words =
        absl::StrSplit(line.substr(name.size()), ' ', absl::SkipWhitespace());
    if (words.size() < 2) return false;
    uint64_t value = 0;
    hard.reset();
    if (absl::SimpleAtoi(words[1], &value)) hard = value;  // Else "unlimited".
    return true;
  }
  return false;
}

std::optional<uint64_t> OwnLimit(__rlimit_resource what) {
  rlimit limit{};
  if (getrlimit(what, &limit) != 0 || limit.rlim_max == RLIM_INFINITY) return std::nullopt;
  return limit.rlim_max;
}

int TryIoUring() {
  std::array<char, 120> parameters{};  // sizeof(io_uring_params), all zeros: the defaults.
  const long ring = syscall(SYS_io_uring_setup, 1, parameters.data());
  if (ring < 0) return errno;
  close(static_cast<int>(ring));
  return 0;
}

// Seals a page as the arena is sealed, and tries to get at it as an engine could not.
void TrySeals(MachineFacts& facts) {
  const int fd = memfd_create("kvctl-doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) {
    facts.seals_error = errno;
    return;
  }
  const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL;
  if (ftruncate(fd, 4096) != 0 || fcntl(fd, F_ADD_SEALS, seals) != 0) {
    facts.seals_error = errno;
  } else {
    void* writable = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    facts.seals_hold = writable == MAP_FAILED && ftruncate(fd, 8192) != 0;
    if (writable != MAP_FAILED) munmap(writable, 4096);
  }
  close(fd);
}

std::string NameOfFileSystem(int64_t magic) {
  constexpr std::pair<int64_t, const char*> kNames[] = {
      {0x01021994, "tmpfs"},   {0xef53, "ext4"},      {0x58465342, "xfs"},  {0x9123683e, "btrfs"},
      {0x794c7630, "overlay"}, {0x2fc12fc1, "zfs"},   {0x6969, "nfs"},      {0xff534d42, "cifs"},
      {0xfe534d42, "smb2"},    {0x01021997, "9p"},    {0x65735546, "fuse"}, {0x00c36400, "ceph"},
      {0x858458f6, "ramfs"},   {0x0bd00bd0, "lustre"}};
  for (const auto& [number, name] : kNames) {
    if (number == magic) return name;
  }
  return absl::StrCat("0x", absl::Hex(magic));
}

SocketFacts LookAtSocket(const std::string& path) {
  SocketFacts facts{.path = path};
  struct stat status {};
  if (stat(path.c_str(), &status) != 0) return facts;
  facts.exists = true;
  facts.is_socket = S_ISSOCK(status.st_mode);
  facts.mode = status.st_mode & 07777;
  facts.uid = status.st_uid;
  facts.gid = status.st_gid;
  return facts;
}

// The tightest limit of memory from the process's group up. Both versions of cgroups.
std::optional<uint64_t> CgroupLimit(const std::string& root, const std::string& process) {
  std::optional<uint64_t> tightest;
  for (const absl::string_view line : absl::StrSplit(ReadFile(process + "/cgroup"), '\n')) {
    const std::vector<std::string> fields = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (fields.size() != 3) continue;
    const bool second = fields[1].empty();
    const std::vector<std::string> controllers = absl::StrSplit(fields[1], ',');
    if (!second &&
        std::find(controllers.begin(), controllers.end(), "memory") == controllers.end()) {
      continue;
    }
    const std::string base = root + (second ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory");
    const std::string file = second ? "/memory.max" : "/memory.limit_in_bytes";
    std::string group = fields[2];
    while (true) {
      uint64_t limit = 0;
      // Version 1 writes "no limit" as a number that no machine has.
      if (absl::SimpleAtoi(ReadFile(absl::StrCat(base, group, file)), &limit) &&
          limit < (1ull << 60)) {
        tightest = std::min(limit, tightest.value_or(limit));
      }
      const size_t slash = group.rfind('/');
      if (group.empty() || slash == std::string::npos) break;
      group.resize(slash);
    }
  }
  return tightest;
}

uint64_t MeminfoBytes(const std::string& meminfo, const std::string& name) {
  for (const absl::string_view line : absl::StrSplit(meminfo, '\n')) {
    if (!absl::StartsWith(line, name + ":")) continue;
    const std::vector<std::string> words = absl::StrSplit(line, ' ', absl::SkipWhitespace());
    uint64_t kib = 0;
    if (words.size() >= 2 && absl::SimpleAtoi(words[1], &kib)) return kib * 1024;
  }
  return 0;
}

constexpr size_t kMaxEngines = 64;

std::vector<ProcessFacts> EnginesOf(const std::string& root) {
  std::vector<ProcessFacts> engines;
  std::error_code error;
  for (std::filesystem::directory_iterator at(root + "/proc", error), end;
       !error && at != end && engines.size() < kMaxEngines; at.increment(error)) {
    uint32_t pid = 0;
    if (!absl::SimpleAtoi(at->path().filename().string(), &pid)) continue;
    const std::string line = ReadFile(at->path().string() + "/cmdline");
    std::vector<std::string> words = absl::StrSplit(line, '\0', absl::SkipEmpty());
    if (LookAtFlags(words)) engines.push_back({.pid = pid, .words = std::move(words)});
  }
  std::sort(engines.begin(), engines.end(),
            [](const ProcessFacts& a, const ProcessFacts& b) { return a.pid < b.pid; });
  return engines;
}

}  // namespace

MachineFacts LookAtMachine(const std::string& path, uint32_t daemon_pid, const std::string& root) {
  MachineFacts facts;
  facts.uid = getuid();

  facts.cpus = sysconf(_SC_NPROCESSORS_ONLN);
  for (const CopyLoop& loop : CopyLoops()) {
    if (loop.use == CopyUse::kMemory) facts.copy_loops.emplace_back(loop.name);
  }

  const std::string pages = root + "/sys/kernel/mm/hugepages/hugepages-2048kB/";
  facts.huge_pages = ReadNumber(pages + "nr_hugepages");
  facts.huge_pages_free = ReadNumber(pages + "free_hugepages");
  facts.shmem_huge = Chosen(ReadFile(root + "/sys/kernel/mm/transparent_hugepage/shmem_enabled"));

  const std::string process =
      root + "/proc/" + (daemon_pid == 0 ? std::string("self") : absl::StrCat(daemon_pid));
  const std::string limits = ReadFile(process + "/limits");
  facts.limits_are_of_daemon = daemon_pid != 0 &&
                               ReadLimit(limits, "Max locked memory", facts.memlock_bytes) &&
                               ReadLimit(limits, "Max open files", facts.descriptors);
  if (!facts.limits_are_of_daemon) {
    facts.memlock_bytes = OwnLimit(RLIMIT_MEMLOCK);
    facts.descriptors = OwnLimit(RLIMIT_NOFILE);
  }

  facts.io_uring_error = TryIoUring();
  facts.io_uring_switch = ReadFile(root + "/proc/sys/kernel/io_uring_disabled");
  TrySeals(facts);
  facts.ptrace_scope = ReadFile(root + "/proc/sys/kernel/yama/ptrace_scope");

  facts.now = absl::Now();
  timex clock{};
  facts.clock_is_set = adjtimex(&clock) != TIME_ERROR;
  facts.clock_source =
      ReadFile(root + "/sys/devices/system/clocksource/clocksource0/current_clocksource");

  const std::string meminfo = ReadFile(root + "/proc/meminfo");
  facts.memory_bytes = MeminfoBytes(meminfo, "MemTotal");
  facts.memory_available_bytes = MeminfoBytes(meminfo, "MemAvailable");
  facts.cgroup_limit_bytes = CgroupLimit(root, process);

  const size_t slash = path.rfind('/');
  facts.directory = slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
  struct stat status {};
  struct statfs system {};
  facts.directory_exists =
      stat(facts.directory.c_str(), &status) == 0 && statfs(facts.directory.c_str(), &system) == 0;
  if (facts.directory_exists) {
    facts.directory_mode = status.st_mode & 07777;
    facts.file_system = NameOfFileSystem(static_cast<uint32_t>(system.f_type));
  }
  facts.engines = LookAtSocket(path);
  facts.sessions = LookAtSocket(path + ".session");
  facts.operators = LookAtSocket(path + ".admin");
  facts.inference_engines = EnginesOf(root);
  return facts;
}

}  // namespace kvd::kvctl
