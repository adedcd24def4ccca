// What doctor makes of a machine, one fact at a time.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <string>

#include "client/kvctl/doctor.h"
#include "client/kvctl/engine_flags.h"
#include "client/kvctl/machine.h"

namespace kvd::kvctl {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

// A machine on which nothing is wrong.
MachineFacts GoodMachine() {
  MachineFacts m;
  m.cpus = 64;
  m.copy_loops = {"nt4-fold", "plain"};
  m.huge_pages = m.huge_pages_free = 100;
  m.shmem_huge = "advise";
  m.seals_hold = true;
  m.ptrace_scope = "1";
  m.now = absl::FromCivil(absl::CivilSecond(2026, 11, 21), absl::UTCTimeZone());
  m.clock_is_set = true;
  m.clock_source = "tsc";
  m.memory_bytes = m.memory_available_bytes = 256ull << 30;
  m.directory = "/run/kvd";
  m.directory_exists = true;
  m.directory_mode = 0755;
  m.file_system = "tmpfs";
  m.engines = {"/run/kvd/kvd.sock", true, true, 0660, 100, 100};
  m.sessions = {"/run/kvd/kvd.sock.session", true, true, 0660, 100, 100};
  m.operators = {"/run/kvd/kvd.sock.admin", true, true, 0600, 100, 100};
  return m;
}

DaemonFacts GoodDaemon() {
  DaemonFacts d;
  d.status.set_version("1.0");
  d.status.set_page_kind("hugetlb 2 MiB");
  v1::TierStatus& dram = *d.tiers.add_tiers();
  dram.set_name("dram");
  dram.set_capacity_bytes(64ull << 30);
  return d;
}

Level Worst(const std::vector<Finding>& findings, const std::string& check) {
  Level worst = Level::kOk;
  for (const Finding& finding : findings) {
    if (finding.check == check) worst = std::max(worst, finding.level);
  }
  return worst;
}

TEST(DoctorTest, AGoodMachineIsFine) {
  for (const Finding& finding : Examine(GoodMachine(), GoodDaemon(), "1.0")) {
    EXPECT_EQ(finding.level, Level::kOk) << finding.check << ": " << finding.text;
    EXPECT_EQ(finding.advice, "") << finding.check;
  }
}

TEST(DoctorTest, EachFaultIsFoundWithAdvice) {
  struct Case {
    const char* check;
    Level level;
    std::function<void(MachineFacts&, DaemonFacts&)> break_it;
  };
  const Case cases[] = {
      {"daemon", Level::kFail, [](auto&, auto& d) { d.reached = absl::UnavailableError("away"); }},
      {"version", Level::kWarn, [](auto&, auto& d) { d.status.set_version("0.9"); }},
      {"draining", Level::kWarn, [](auto&, auto& d) { d.status.set_draining(true); }},
      {"problems", Level::kWarn,
       [](auto&, auto& d) { d.status.add_problems()->set_severity("warn"); }},
      {"problems", Level::kFail,
       [](auto&, auto& d) { d.status.add_problems()->set_severity("error"); }},
      {"directory", Level::kFail, [](auto& m, auto&) { m.directory_exists = false; }},
      {"directory", Level::kFail, [](auto& m, auto&) { m.file_system = std::string("nfs"); }},
      {"directory", Level::kWarn, [](auto& m, auto&) { m.file_system = std::string("fuse"); }},
      {"directory", Level::kFail, [](auto& m, auto&) { m.directory_mode = 0777; }},
      {"directory", Level::kWarn, [](auto& m, auto&) { m.directory_mode = 01777; }},
      {"sockets", Level::kFail, [](auto& m, auto&) { m.operators.mode = 0660; }},
      {"sockets", Level::kFail, [](auto& m, auto&) { m.sessions.exists = false; }},
      {"sockets", Level::kFail, [](auto& m, auto&) { m.engines.is_socket = false; }},
      {"sockets", Level::kFail, [](auto& m, auto&) { m.sessions.mode = 0600; }},
      {"sockets", Level::kWarn, [](auto& m, auto&) { m.engines.mode = m.sessions.mode = 0666; }},
      {"sockets", Level::kWarn, [](auto& m, auto&) { m.engines.uid = 7; }},
      {"huge_pages", Level::kWarn, [](auto&, auto& d) { d.status.set_page_kind("4 KiB"); }},
      {"shmem_huge", Level::kWarn,
       [](auto& m, auto&) {
         m.huge_pages = 0;
         m.shmem_huge = std::string("never");
       }},
      {"memory", Level::kFail, [](auto& m, auto&) { m.cgroup_limit_bytes = 64ull << 30; }},
      {"memory", Level::kWarn, [](auto& m, auto&) { m.memory_bytes = 65ull << 30; }},
      {"seals", Level::kFail, [](auto& m, auto&) { m.seals_hold = false; }},
      {"seals", Level::kFail, [](auto& m, auto&) { m.seals_error = EPERM; }},
      {"io_uring", Level::kWarn, [](auto& m, auto&) { m.io_uring_error = EPERM; }},
      {"memlock", Level::kWarn, [](auto& m, auto&) { m.memlock_bytes = 65'536; }},
      {"descriptors", Level::kWarn, [](auto& m, auto&) { m.descriptors = 4096; }},
      {"descriptors", Level::kFail, [](auto& m, auto&) { m.descriptors = 256; }},
      {"clock", Level::kFail, [](auto& m, auto&) { m.now = absl::UnixEpoch(); }},
      {"clock", Level::kWarn, [](auto& m, auto&) { m.clock_is_set = false; }},
      {"clock_source", Level::kWarn, [](auto& m, auto&) { m.clock_source = std::string("hpet"); }},
      {"cpu", Level::kWarn, [](auto& m, auto&) { m.copy_loops = {"plain"}; }},
      {"ptrace", Level::kWarn, [](auto& m, auto&) { m.ptrace_scope = std::string("0"); }},
      {"users", Level::kWarn,
       [](auto&, auto& d) {
         v1::SessionStatus& session = *d.sessions.add_sessions();
         session.set_transport("shm");
         session.set_uid(100);
       }},
      {"hits", Level::kWarn,
       [](auto&, auto& d) { d.status.add_domains()->set_lookups(1'000'000); }},
      {"engines", Level::kWarn,
       [](auto& m, auto&) {
         m.inference_engines = {{.pid = 7, .words = {"vllm", "serve", "m"}}};
       }},
      {"hash_seed", Level::kFail,
       [](auto&, auto& d) {
         for (const char* seed : {"1", "2"}) {
           v1::NamespaceStatus& space = *d.namespaces.add_namespaces();
           space.mutable_describes()->set_model("m");
           space.mutable_describes()->set_hash_seed(seed);
         }
       }},
  };
  for (const Case& c : cases) {
    MachineFacts machine = GoodMachine();
    DaemonFacts daemon = GoodDaemon();
    c.break_it(machine, daemon);
    const std::vector<Finding> findings = Examine(machine, daemon, "1.0");
    EXPECT_EQ(Worst(findings, c.check), c.level) << c.check;
    for (const Finding& finding : findings) {
      EXPECT_EQ(finding.advice.empty(), finding.level == Level::kOk) << finding.check;
    }
  }
}

TEST(DoctorTest, TenantsThatDifferInTheModelAreNotAccusedOfTheirSeed) {
  DaemonFacts daemon = GoodDaemon();
  for (const char* model : {"a", "b"}) {
    v1::NamespaceStatus& space = *daemon.namespaces.add_namespaces();
    space.mutable_describes()->set_model(model);
    space.mutable_describes()->set_hash_seed(model);
  }
  EXPECT_EQ(Worst(Examine(GoodMachine(), daemon, "1.0"), "hash_seed"), Level::kOk);
}

std::vector<std::string> Lacks(const std::vector<std::string>& words) {
  const std::optional<EngineFlags> flags = LookAtFlags(words);
  return flags ? flags->lacks : std::vector<std::string>{"no engine"};
}

TEST(EngineFlagsTest, WhatIsNoEngineOfOursIsLeftAlone) {
  for (const std::vector<std::string>& words :
       std::vector<std::vector<std::string>>{{},
                                             {"vllm"},
                                             {"serve", "vllm"},
                                             {"python", "-m", "http.server"},
                                             {"/bin/python", "/bin/kvd-run", "vllm", "serve", "m"},
                                             {"python", "-m", "kvd.run", "vllm", "serve", "m"}}) {
    EXPECT_EQ(LookAtFlags(words), std::nullopt);
  }
}

TEST(EngineFlagsTest, VllmWithoutItsConnectorAndWithoutThePolicy) {
  const std::string half = R"({"kv_connector_module_path":"kvd.vllm"})";
  const std::string whole =
      R"({"kv_connector_module_path":"kvd.vllm","kv_load_failure_policy":"recompute"})";
  EXPECT_THAT(Lacks({"/opt/bin/vllm", "serve", "m"}),
              ElementsAre(HasSubstr("--kv-transfer-config '")));
  EXPECT_THAT(Lacks({"vllm", "serve", "m", "--kv-transfer-config", half}),
              ElementsAre(HasSubstr("kv_load_failure_policy")));
  EXPECT_THAT(Lacks({"vllm", "serve", "m", "--kv-transfer-config"}), SizeIs(1));
  EXPECT_THAT(Lacks({"vllm", "serve", "m", "--kv-transfer-config=" + whole}), IsEmpty());
  EXPECT_THAT(
      Lacks({"python", "-m", "vllm.entrypoints.openai.api_server", "--kv-transfer-config", whole}),
      IsEmpty());
}

TEST(EngineFlagsTest, SglangFlagByFlag) {
  const std::vector<std::string> bare = {"python", "-m", "sglang.launch_server"};
  EXPECT_THAT(Lacks(bare), ElementsAre(HasSubstr("--hicache-storage-backend dynamic")));
  std::vector<std::string> words = bare;
  words.push_back(R"(--hicache-storage-backend-extra-config={"module_path":"kvd.sglang"})");
  EXPECT_THAT(Lacks(words),
              ElementsAre(HasSubstr("--enable-hierarchical-cache"),
                          HasSubstr("--hicache-storage-backend"), HasSubstr("--page-size"),
                          HasSubstr("hicache_storage_pass_prefix_keys"), HasSubstr("allocator")));
  const std::vector<std::string> rest = {"--enable-hierarchical-cache", "--hicache-storage-backend",
                                         "dynamic", "--page-size", "64"};
  words.back() = "--hicache-storage-backend-extra-config=@file.json";
  words.insert(words.end(), rest.begin(), rest.end());
  EXPECT_THAT(Lacks(words), ElementsAre(HasSubstr("not as a file")));
  words[bare.size()] =
      R"(--hicache-storage-backend-extra-config={"module_path":"kvd.sglang","hicache_storage_pass_prefix_keys":true,"allocator":"shm"})";
  EXPECT_THAT(Lacks(words), IsEmpty());
}

// /proc and /sys of a machine, as files below a folder of ours.
class MachineTest : public testing::Test {
 protected:
  MachineTest() {
    char name[] = "/tmp/kvctl-machine-XXXXXX";
    root_ = mkdtemp(name);
  }
  ~MachineTest() override { std::filesystem::remove_all(root_); }
  void Write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text << std::endl;
  }
  std::string root_;
};

TEST_F(MachineTest, FactsAreReadFromTheKernelsFiles) {
  Write("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "512");
  Write("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "12");
  Write("/sys/kernel/mm/transparent_hugepage/shmem_enabled",
        "always within_size [advise] never deny force");
  Write("/proc/sys/kernel/yama/ptrace_scope", "2");
  Write("/proc/meminfo", "MemTotal:       1024 kB\nMemAvailable:   512 kB");
  Write("/proc/77/limits",
        "Limit                     Soft Limit           Hard Limit           Units\n"
        "Max open files            1024                 524288               files\n"
        "Max locked memory         65536                unlimited            bytes");
  Write("/proc/77/cgroup", "0::/system.slice/kvd.service");
  Write("/sys/fs/cgroup/system.slice/memory.max", "1000000");
  Write("/sys/fs/cgroup/system.slice/kvd.service/memory.max", "max");
  const MachineFacts facts = LookAtMachine(root_ + "/kvd.sock", 77, root_);
  EXPECT_EQ(facts.huge_pages, 512u);
  EXPECT_EQ(facts.huge_pages_free, 12u);
  EXPECT_EQ(facts.shmem_huge, "advise");
  EXPECT_EQ(facts.ptrace_scope, "2");
  EXPECT_EQ(facts.memory_bytes, 1u << 20);
  EXPECT_TRUE(facts.limits_are_of_daemon);
  EXPECT_EQ(facts.descriptors, 524288u);
  EXPECT_EQ(facts.memlock_bytes, std::nullopt);
  EXPECT_EQ(facts.cgroup_limit_bytes, 1000000u);  // Of the group above.
  EXPECT_TRUE(facts.directory_exists);
  EXPECT_FALSE(facts.engines.exists);
}

TEST_F(MachineTest, EnginesAreFoundByTheirCommandLines) {
  const std::string vllm("python\0vllm\0serve\0m\0", 20);
  Write("/proc/12/cmdline", std::string("sh\0-c\0", 6));
  Write("/proc/9/cmdline", vllm);
  Write("/proc/bus/cmdline", vllm);
  const MachineFacts facts = LookAtMachine("/nowhere/kvd.sock", 0, root_);
  ASSERT_EQ(facts.inference_engines.size(), 1u);
  EXPECT_EQ(facts.inference_engines[0].pid, 9u);
  EXPECT_EQ(facts.inference_engines[0].words,
            (std::vector<std::string>{"python", "vllm", "serve", "m"}));
}

TEST_F(MachineTest, AnEmptyMachineHasNoFactsAndNoCrash) {
  const MachineFacts facts = LookAtMachine("/nowhere/at/all/kvd.sock", 0, root_);
  EXPECT_FALSE(facts.directory_exists);
  EXPECT_FALSE(facts.limits_are_of_daemon);
  EXPECT_EQ(facts.cgroup_limit_bytes, std::nullopt);
  EXPECT_EQ(facts.shmem_huge, "");
  EXPECT_FALSE(facts.copy_loops.empty());
}

TEST_F(MachineTest, TheOlderCgroupsAreReadToo) {
  Write("/proc/77/cgroup", "5:cpu,memory:/docker/abc\n0::/");
  Write("/sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "4096");
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712");
  EXPECT_EQ(LookAtMachine("/x/kvd.sock", 77, root_).cgroup_limit_bytes, 4096u);
}

}  // namespace
}  // namespace kvd::kvctl
