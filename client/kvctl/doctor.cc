#include "client/kvctl/doctor.h"

#include <google/protobuf/util/message_differencer.h>
#include <pwd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/kvctl/engine_flags.h"
#include "client/kvctl/table.h"
#include "client/kvctl/units.h"
#include "client/kvctl/verbs.h"

namespace kvd::kvctl {
namespace {

using v1::Admin;

constexpr uint64_t kEnoughDescriptors = 16'384;  // Sessions, staging, regions and their channels.
constexpr uint64_t kFewestDescriptors = 1024;
constexpr uint64_t kEnoughMemlock = 64u << 20;
constexpr uint64_t kTellingLookups = 1000;     // Without a single hit, something is wrong.
constexpr uint64_t kBesideArena = 256u << 20;  // What a daemon may need besides its arena.

std::string UserName(uid_t uid) {
  const passwd* user = getpwuid(uid);
  return user != nullptr ? std::string(user->pw_name) : absl::StrCat("uid ", uid);
}

class Examination {
 public:
  Examination(const MachineFacts& machine, const DaemonFacts& daemon, const std::string& version)
      : m_(machine), d_(daemon), client_version_(version) {}

  std::vector<Finding> Findings() {
    Daemon();
    Tenants();
    Engines();
    Directory();
    Sockets();
    HugePages();
    Memory();
    Seals();
    IoUring();
    Limits();
    Clocks();
    Cpu();
    Ptrace();
    return std::move(findings_);
  }

 private:
  bool up() const { return d_.reached.ok(); }

  void Ok(const char* check, std::string text) {
    findings_.push_back({Level::kOk, check, std::move(text), ""});
  }
  void Warn(const char* check, std::string text, std::string advice) {
    findings_.push_back({Level::kWarn, check, std::move(text), std::move(advice)});
  }
  void Fail(const char* check, std::string text, std::string advice) {
    findings_.push_back({Level::kFail, check, std::move(text), std::move(advice)});
  }

  void Daemon() {
    if (!up()) {
      return Fail("daemon", std::string(d_.reached.message()),
                  "start kvd, or name its socket with --endpoint; what follows is of this machine "
                  "alone");
    }
    const v1::StatusReply& s = d_.status;
    Ok("daemon", absl::StrCat("answers: pid ", s.pid(), ", up ", Age(s.uptime_ms())));
    if (s.version() == client_version_) {
      Ok("version", absl::StrCat("kvd and kvctl are both ", client_version_));
    } else {
      Warn("version", absl::StrCat("kvd is ", s.version(), ", kvctl is ", client_version_),
           "install both from one version, and restart kvd after an upgrade (kvctl drain)");
    }
    for (const v1::Problem& problem : s.problems()) {
      const std::string text = absl::StrCat(problem.code(), " ", problem.message());
      const char* advice = "see its section in the run book";
      if (problem.severity() == "error") {
        Fail("problems", text, advice);
      } else {
        Warn("problems", text, advice);
      }
    }
    if (s.problems().empty()) Ok("problems", "the daemon reports none");
    if (s.draining()) {
      Warn("draining", "the daemon gives no new leases, holds and reservations",
           "kvctl undrain, unless it is meant to end");
    }
  }

  // What operators of other caches found out late: everything runs, and nothing is ever found.
  void Tenants() {
    if (!up()) return;
    const auto& spaces = d_.namespaces.namespaces();
    bool seeds = false;
    for (int i = 0; i < spaces.size(); ++i) {
      for (int j = i + 1; j < spaces.size() && !seeds; ++j) {
        if (spaces[i].domain() != spaces[j].domain()) continue;
        v1::NamespaceDescriptor a = spaces[i].describes();
        v1::NamespaceDescriptor b = spaces[j].describes();
        a.clear_hash_seed();
        b.clear_hash_seed();
        if (!google::protobuf::util::MessageDifferencer::Equals(a, b)) continue;
        seeds = true;
        Fail("hash_seed",
             absl::StrCat("namespaces ", spaces[i].namespace_id(), " and ",
                          spaces[j].namespace_id(), " of ", spaces[i].domain(),
                          " differ in the hash seed alone, so they share nothing"),
             "give all engines and ranks the same seed (with vLLM: PYTHONHASHSEED)");
      }
    }
    bool cold = false;
    for (const v1::DomainUse& use : d_.status.domains()) {
      if (use.lookups() < kTellingLookups || use.hit_blocks() > 0) continue;
      cold = true;
      Warn("hits", absl::StrCat(use.domain(), ": ", Count(use.lookups()), " lookups, no hit"),
           use.committed_blocks() > 0
               ? "what it puts is not what it asks for: compare hash seed, block size and model of "
                 "its engines (kvctl namespaces)"
               : "it never puts anything: is its connector set to store?");
    }
    if (!seeds && !cold) Ok("hits", "no tenant looks up in vain");
  }

  // Those of this machine that can be seen, whether or not they ever came to the daemon.
  void Engines() {
    for (const ProcessFacts& process : m_.inference_engines) {
      const std::optional<EngineFlags> flags = LookAtFlags(process.words);
      if (!flags) continue;
      const std::string who = absl::StrCat("pid ", process.pid, ", ", flags->engine);
      if (flags->lacks.empty()) {
        Ok("engines", absl::StrCat(who, ": its flags lack nothing"));
        continue;
      }
      const char* text = flags->uses_kvd ? ": its flags lack something" : ": does not use kvd";
      for (const std::string& flag : flags->lacks) {
        Warn("engines", absl::StrCat(who, text), absl::StrCat("add ", flag));
      }
    }
  }

  void Directory() {
    if (!m_.directory_exists) {
      return Fail("directory", absl::StrCat(m_.directory, " does not exist"),
                  "make it, owned by kvd's user, or name another place with --listen");
    }
    const std::string where = absl::StrCat(m_.directory, " is on ", m_.file_system);
    for (const char* remote : {"nfs", "cifs", "smb2", "ceph", "lustre"}) {
      if (m_.file_system == remote) {
        return Fail("directory",
                    absl::StrCat(where, ": other hosts see the socket and cannot use it"),
                    "listen in /run or another local file system");
      }
    }
    for (const char* doubtful : {"9p", "fuse"}) {
      if (m_.file_system == doubtful) {
        return Warn("directory", absl::StrCat(where, ", which may not carry sockets"),
                    "listen in /run or another local file system");
      }
    }
    const bool anybody_writes = (m_.directory_mode & 0002) != 0;
    const bool sticky = (m_.directory_mode & 01000) != 0;
    if (anybody_writes && !sticky) {
      return Fail("directory",
                  absl::StrFormat("%s has mode %04o: anybody can put another socket there",
                                  m_.directory, m_.directory_mode),
                  absl::StrCat("chmod o-w ", m_.directory));
    }
    if (anybody_writes) {
      return Warn("directory",
                  absl::StrCat(where, " and open to all: another user can take the name first"),
                  "listen in a directory of kvd's own, such as /run/kvd");
    }
    Ok("directory", where);
  }

  void Sockets() {
    bool good = true;
    for (const SocketFacts* socket : {&m_.engines, &m_.sessions, &m_.operators}) {
      if (!socket->exists) {
        if (!up()) continue;  // Said already.
        good = false;
        Fail("sockets", absl::StrCat(socket->path, " is gone, although the daemon answers"),
             "somebody removed it: restart kvd");
      } else if (!socket->is_socket) {
        good = false;
        Fail("sockets", absl::StrCat(socket->path, " is no socket"),
             "move it away and restart kvd");
      } else if (socket->uid != m_.operators.uid) {
        good = false;
        Warn("sockets",
             absl::StrCat(socket->path, " belongs to ", UserName(socket->uid), ", the others to ",
                          UserName(m_.operators.uid)),
             "is there a second daemon? stop both and start one");
      }
    }
    if (m_.operators.is_socket && (m_.operators.mode & 0077) != 0) {
      good = false;
      Fail("sockets",
           absl::StrFormat("%s has mode %04o: others can evict and drain", m_.operators.path,
                           m_.operators.mode),
           absl::StrCat("chmod 0600 ", m_.operators.path));
    }
    if (m_.engines.is_socket && (m_.engines.mode & 0007) != 0) {
      good = false;
      Warn("sockets",
           absl::StrFormat("%s has mode %04o: every user of this machine may connect",
                           m_.engines.path, m_.engines.mode),
           "use --socket-mode 0660 and --socket-group for the engines' group");
    }
    if (m_.engines.is_socket && m_.sessions.is_socket && m_.engines.mode != m_.sessions.mode) {
      good = false;
      Fail("sockets",
           absl::StrFormat("%s has mode %04o and %s has %04o: engines need both", m_.engines.path,
                           m_.engines.mode, m_.sessions.path, m_.sessions.mode),
           "give both the same mode, or restart kvd");
    }
    if (good && m_.engines.is_socket) {
      Ok("sockets", absl::StrFormat("engines %04o, operators %04o, of %s", m_.engines.mode,
                                    m_.operators.mode, UserName(m_.engines.uid)));
    }
  }

  void HugePages() {
    const std::string reserved = absl::StrCat(Count(m_.huge_pages), " pages of 2 MiB reserved, ",
                                              Count(m_.huge_pages_free), " free");
    const std::string advice =
        "reserve 2 MiB pages for the whole --dram (sysctl vm.nr_hugepages=N) before kvd starts, or "
        "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled, and restart kvd";
    if (up()) {
      const std::string& kind = d_.status.page_kind();
      if (absl::StartsWith(kind, "4 KiB")) {
        Warn("huge_pages", absl::StrCat("kvd got pages of ", kind, "; ", reserved), advice);
      } else {
        Ok("huge_pages", absl::StrCat("kvd got ", kind));
      }
    } else if (m_.huge_pages_free > 0) {
      Ok("huge_pages", reserved);
    }
    const bool transparent = m_.shmem_huge == "advise" || m_.shmem_huge == "always" ||
                             m_.shmem_huge == "within_size" || m_.shmem_huge == "force";
    if (transparent) {
      Ok("shmem_huge", absl::StrCat("transparent huge pages for shared memory: ", m_.shmem_huge));
    } else if (m_.huge_pages > 0) {
      Ok("shmem_huge", absl::StrCat("transparent huge pages for shared memory: ",
                                    m_.shmem_huge.empty() ? "not in this kernel" : m_.shmem_huge,
                                    "; not needed, pages are reserved"));
    } else if (!up()) {
      Warn("huge_pages", absl::StrCat(reserved, ", and no transparent ones for shared memory"),
           advice);
    } else {
      Warn("shmem_huge",
           absl::StrCat("transparent huge pages for shared memory: ",
                        m_.shmem_huge.empty() ? "not in this kernel" : m_.shmem_huge),
           "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled");
    }
  }

  void Memory() {
    uint64_t arena = 0;
    for (const v1::TierStatus& tier : d_.tiers.tiers()) {
      if (tier.name() == "dram") arena = tier.capacity_bytes();
    }
    const std::string group = m_.cgroup_limit_bytes.has_value()
                                  ? absl::StrCat(Size(*m_.cgroup_limit_bytes), " in its cgroup")
                                  : std::string("no limit by cgroup");
    const std::string text = absl::StrCat(Size(m_.memory_bytes), " in the machine, ",
                                          Size(m_.memory_available_bytes), " available, ", group);
    if (up() && m_.cgroup_limit_bytes.has_value() &&
        arena + kBesideArena > *m_.cgroup_limit_bytes) {
      return Fail("memory",
                  absl::StrCat("the arena takes ", Size(arena), " of ", group,
                               ": the kernel will kill kvd"),
                  absl::StrCat("raise MemoryMax to at least ", Size(arena + kBesideArena),
                               ", or lower --dram"));
    }
    if (up() && arena > m_.memory_bytes / 10 * 9) {
      return Warn("memory", absl::StrCat("the arena takes ", Size(arena), " of ", text),
                  "leave a tenth to engines and the kernel: lower --dram");
    }
    Ok("memory", up() ? absl::StrCat("arena ", Size(arena), "; ", text) : text);
  }

  void Seals() {
    if (m_.seals_error != 0) {
      return Fail("seals",
                  absl::StrCat("a memfd cannot be sealed: ", std::strerror(m_.seals_error)),
                  "kvd needs Linux 5.1 or newer, and a sandbox that allows memfd_create");
    }
    if (!m_.seals_hold) {
      return Fail("seals", "a sealed memfd can still be mapped writable",
                  "this kernel does not keep engines from writing into the arena: use Linux 5.1 or "
                  "newer, not an emulation of it");
    }
    Ok("seals", "shared memory can be sealed, and the seals hold");
  }

  void IoUring() {
    if (m_.io_uring_error == 0) return Ok("io_uring", "allowed");
    std::string advice =
        "needed once there is an NVMe tier; allow it in the container's seccomp profile";
    if (m_.io_uring_switch == "1" || m_.io_uring_switch == "2") {
      advice =
          "needed once there is an NVMe tier: sysctl kernel.io_uring_disabled=0, or 1 with "
          "kernel.io_uring_group set to kvd's group";
    }
    Warn("io_uring", absl::StrCat("not allowed: ", std::strerror(m_.io_uring_error)), advice);
  }

  void Limits() {
    const std::string whose = m_.limits_are_of_daemon ? "of kvd" : "of this shell";
    if (!m_.memlock_bytes.has_value() || *m_.memlock_bytes >= kEnoughMemlock) {
      Ok("memlock",
         absl::StrCat(m_.memlock_bytes.has_value() ? Size(*m_.memlock_bytes) : "unlimited", ", ",
                      whose));
    } else {
      Warn("memlock", absl::StrCat(Size(*m_.memlock_bytes), ", ", whose),
           "LimitMEMLOCK=infinity in kvd's unit, or ulimit -l unlimited: pinned and registered "
           "memory counts against it");
    }
    if (!m_.descriptors.has_value() || *m_.descriptors >= kEnoughDescriptors) {
      Ok("descriptors",
         absl::StrCat(m_.descriptors.has_value() ? Count(*m_.descriptors) : "unlimited", ", ",
                      whose));
    } else {
      const std::string text = absl::StrCat(Count(*m_.descriptors), ", ", whose);
      const std::string advice = "LimitNOFILE=65536 in kvd's unit, or ulimit -Hn 65536";
      if (*m_.descriptors < kFewestDescriptors) {
        Fail("descriptors", text, advice);
      } else {
        Warn("descriptors", text, advice);
      }
    }
  }

  void Clocks() {
    const absl::Time earliest = absl::FromCivil(absl::CivilSecond(2025), absl::UTCTimeZone());
    if (m_.now < earliest) {
      Fail("clock", absl::StrCat("it is ", absl::FormatTime(m_.now, absl::UTCTimeZone()), " here"),
           "set the clock: certificates look not yet valid");
    } else if (!m_.clock_is_set) {
      Warn("clock", "not synchronised",
           "run chrony or systemd-timesyncd: times of events and logs differ between nodes (leases "
           "do not depend on it)");
    } else {
      Ok("clock", "synchronised");
    }
    if (m_.clock_source.empty()) return;
    for (const char* slow : {"hpet", "acpi_pm", "refined-jiffies", "jiffies", "pit"}) {
      if (m_.clock_source == slow) {
        return Warn("clock_source", absl::StrCat(slow, ": each look at the clock is a system call"),
                    "boot with clocksource=tsc if the CPU's is stable");
      }
    }
    Ok("clock_source", m_.clock_source);
  }

  void Cpu() {
    const std::string text =
        absl::StrCat(m_.cpus, " CPUs; copy loops: ", absl::StrJoin(m_.copy_loops, ", "));
    if (m_.copy_loops.size() <= 1) {
      Warn("cpu", text,
           "no vector loop runs here, so copies are slow: use x86-64 with SSE 4.2, and let the "
           "virtual machine show its host's CPU");
    } else {
      Ok("cpu", text);
    }
  }

  void Ptrace() {
    if (up()) {
      for (const v1::SessionStatus& session : d_.sessions.sessions()) {
        if (session.transport() != "shm" || session.uid() != m_.operators.uid) continue;
        Warn("users",
             absl::StrCat("pid ", session.pid(), " is an engine under kvd's own user, ",
                          UserName(session.uid())),
             "run engines under users of their own: under one, the admin socket is theirs, too");
        break;
      }
    }
    if (m_.ptrace_scope.empty() || m_.ptrace_scope == "0") {
      Warn("ptrace",
           m_.ptrace_scope.empty() ? "no Yama: a process may read others of its user"
                                   : "ptrace_scope 0: a process may read others of its user",
           "sysctl kernel.yama.ptrace_scope=1, or run each tenant's engines under a user of its "
           "own");
    } else {
      Ok("ptrace", absl::StrCat("ptrace_scope ", m_.ptrace_scope));
    }
  }

  const MachineFacts& m_;
  const DaemonFacts& d_;
  const std::string& client_version_;
  std::vector<Finding> findings_;
};

DaemonFacts AskDaemon(Connection& daemon) {
  DaemonFacts facts;
  absl::StatusOr<v1::StatusReply> status = daemon.Ask(&Admin::Stub::Status);
  facts.reached = status.status();
  if (!status.ok()) return facts;
  facts.status = *std::move(status);
  // An older daemon may not know all of these; what it does not tell is not judged.
  if (auto tiers = daemon.Ask(&Admin::Stub::Tiers); tiers.ok()) facts.tiers = *std::move(tiers);
  if (auto sessions = daemon.Ask(&Admin::Stub::Sessions); sessions.ok()) {
    facts.sessions = *std::move(sessions);
  }
  if (auto spaces = daemon.Ask(&Admin::Stub::Namespaces); spaces.ok()) {
    facts.namespaces = *std::move(spaces);
  }
  return facts;
}

const char* WordOf(Level level) {
  return level == Level::kFail ? "FAIL" : level == Level::kWarn ? "WARN" : "OK";
}

absl::StatusOr<ExitCode> Doctor(Call& call, bool strict) {
  const DaemonFacts daemon = AskDaemon(call.daemon);
  const absl::StatusOr<std::string> path = PathOf(call.options.endpoint);
  if (!path.ok()) return path.status();
  const std::vector<Finding> findings =
      Examine(LookAtMachine(*path, daemon.status.pid()), daemon, KVD_VERSION);

  int counts[3] = {};
  Tree tree = {{"findings", Tree::array()}};
  for (const Finding& finding : findings) {
    ++counts[static_cast<int>(finding.level)];
    tree["findings"].push_back({{"level", absl::AsciiStrToLower(WordOf(finding.level))},
                                {"check", finding.check},
                                {"text", finding.text},
                                {"advice", finding.advice}});
  }
  tree["ok"] = counts[0];
  tree["warn"] = counts[1];
  tree["fail"] = counts[2];
  const bool degraded = counts[2] > 0 || (strict && counts[1] > 0);
  const ExitCode code = degraded ? kDegraded : kOk;
  if (call.Printed(tree)) return code;
  for (const Finding& finding : findings) {
    const Tone tone = finding.level == Level::kFail   ? Tone::kBad
                      : finding.level == Level::kWarn ? Tone::kWarn
                                                      : Tone::kGood;
    const std::string word = WordOf(finding.level);
    call.out() << Paint(word, tone, call.color()) << std::string(6 - word.size(), ' ')
               << finding.check << std::string(14 - std::min<size_t>(13, finding.check.size()), ' ')
               << Printable(finding.text) << "\n";
    if (!finding.advice.empty()) {
      call.out() << std::string(20, ' ') << Paint("-> " + finding.advice, Tone::kDim, call.color())
                 << "\n";
    }
  }
  call.out() << counts[2] << " FAIL  " << counts[1] << " WARN  " << counts[0] << " OK\n";
  return code;
}

}  // namespace

std::vector<Finding> Examine(const MachineFacts& machine, const DaemonFacts& daemon,
                             const std::string& client_version) {
  return Examination(machine, daemon, client_version).Findings();
}

void AddDoctor(CommandLine& line) {
  auto strict = std::make_shared<bool>(false);
  line.Add(line.app(), "doctor",
           "Is this machine right for kvd, and the daemon right on it; exit 3 if something FAILs",
           "kvctl doctor\nkvctl doctor --strict\nkvctl doctor -o json | jq '.findings[] | "
           "select(.level != \"ok\")'",
           Repeat::kYes, [strict](Call& call) { return Doctor(call, *strict); })
      ->add_flag("--strict", *strict, "Exit 3 for a WARN, too");
}

}  // namespace kvd::kvctl
