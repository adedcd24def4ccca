// The other process of the end-to-end tests: one errand for each run, told by the arguments, lines
// of text in and out. It exits 0 when it did its errand, whatever came of it.
//
//   e2e_peer PATH PART_BYTES FIRST COUNT ERRAND [...]
//
//   put | get | load    with the client library; says how many blocks, and how many were wrong
//   reserve             by hand; waits for the line "commit", and any other ends it
//   hold                loads, closes its session socket, and answers "check" by looking again
//   walk STEP           puts and gets by hand, says "at STEP" there, and waits to be killed
//   stranger REGION TOKEN   what a foreign region and a foreign session are good for
//   attack PID          tries to write the arena that its session can read

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <thread>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "client/client.h"
#include "proto/types/check.h"
#include "proto/types/verified_copy.h"
#include "tests/e2e/raw_session.h"

namespace kvd {
namespace {

void Say(const std::string& line) { std::cout << line << std::endl; }

struct Errand {
  std::string path;
  uint32_t part_bytes = 0;
  int first = 0;
  int count = 0;

  std::string keys() const { return TestKeys(first, count); }
  bool Right(int block, absl::Span<const std::byte> bytes) const {
    return bytes == absl::MakeConstSpan(TestBytes(TestKey(first + block), part_bytes));
  }
};

// ---- with the client library --------------------------------------------------------------------

int WithClient(const Errand& errand, const std::string& verb) {
  Client client({.endpoint = "unix:" + errand.path, .timeout = kPatience});
  const absl::StatusOr<Namespace> ns = client.RegisterNamespace(TestModel(errand.part_bytes));
  if (!ns.ok()) {
    Say(std::string(ns.status().message()));
    return 1;
  }
  std::vector<std::vector<std::byte>> bytes;
  for (int i = 0; i < errand.count; ++i) {
    bytes.push_back(verb == "put" ? TestBytes(TestKey(errand.first + i), errand.part_bytes)
                                  : std::vector<std::byte>(errand.part_bytes));
  }
  uint32_t wrong = 0;
  if (verb == "put") {
    const std::vector<absl::Span<const std::byte>> sources(bytes.begin(), bytes.end());
    const PutResult put = client.Put(*ns, errand.keys(), sources);
    Say(absl::StrCat("stored ", put.stored, " present ", put.present));
  } else if (verb == "get") {
    std::vector<absl::Span<std::byte>> targets;
    for (auto& block : bytes) targets.push_back(absl::MakeSpan(block));
    const GetResult got = client.Get(*ns, errand.keys(), targets);
    for (uint32_t i = 0; i < got.blocks; ++i) wrong += !errand.Right(static_cast<int>(i), bytes[i]);
    Say(absl::StrCat("blocks ", got.blocks, " wrong ", wrong));
  } else {
    LoadResult loaded = client.Load(*ns, errand.keys());
    for (uint32_t i = 0; i < loaded.chain.blocks(); ++i) {
      wrong +=
          !loaded.chain.Verify(i, 0) || !errand.Right(static_cast<int>(i), loaded.chain.part(i, 0));
    }
    Say(absl::StrCat("blocks ", loaded.chain.blocks(), " wrong ", wrong));
  }
  return 0;
}

// ---- by hand ------------------------------------------------------------------------------------

// A session that puts and gets step by step. Every step either works or ends the process.
class Walker {
 public:
  explicit Walker(const Errand& errand) : errand_(errand) {}

  void Open() { session_ = Must(RawSession::Open(errand_.path)); }
  void Register() {
    ns_ = session_->Register(TestModel(errand_.part_bytes));
    KVD_CHECK(ns_ != 0);
  }
  void OpenStaging() { staging_ = Must(RawStaging::Open(*session_, StagedBytes())); }
  void Reserve() {
    v1::ReserveRequest request;
    request.set_namespace_id(ns_);
    request.set_keys(errand_.keys());
    Ok(session_->Call(&v1::Engine::Stub::Reserve, request, &reserved_));
  }
  void Stage() {
    for (int i = 0; i < errand_.count; ++i) {
      const auto bytes = TestBytes(TestKey(errand_.first + i), errand_.part_bytes);
      std::memcpy(staging_->data() + Offset(i), bytes.data(), bytes.size());
    }
  }
  void SendFills(int from, int to) {
    std::vector<FillRequest> fills;
    for (int i = from; i < to; ++i) {
      fills.push_back(
          {reserved_.reservation_id(), Offset(i), static_cast<uint32_t>(i), errand_.part_bytes});
    }
    KVD_CHECK(staging_->Send(fills));
  }
  void ReceiveFills(int count) {
    const auto replies = staging_->Receive(static_cast<size_t>(count));
    KVD_CHECK(replies.size() == static_cast<size_t>(count));
    for (const FillReply& reply : replies) KVD_CHECK(reply.status == FillStatus::kOk);
  }
  uint32_t Commit(int from, int to) {
    v1::CommitRequest request;
    request.set_reservation_id(reserved_.reservation_id());
    request.set_first_block(static_cast<uint32_t>(from));
    request.set_blocks(static_cast<uint32_t>(to - from));
    v1::CommitReply reply;
    Ok(session_->Call(&v1::Engine::Stub::Commit, request, &reply));
    return reply.stored();
  }
  // A put in one call, on a thread of its own: the process is to be killed before it ends.
  void CommitInlineAside() {
    v1::CommitRequest request;
    request.set_namespace_id(ns_);
    request.set_keys(errand_.keys());
    for (int i = 0; i < errand_.count; ++i) {
      const PackedStaged staged{Offset(i), errand_.part_bytes, 0};
      request.mutable_staged()->append(reinterpret_cast<const char*>(&staged), sizeof staged);
    }
    std::thread([this, request] {
      v1::CommitReply reply;
      session_->Call(&v1::Engine::Stub::Commit, request, &reply);
    }).detach();
  }
  // The same chain from a second session, which waits for the first.
  void ReserveAsideAndWait() {
    other_ = Must(RawSession::Open(errand_.path));
    std::thread([this] {
      v1::ReserveRequest request;
      request.set_namespace_id(ns_);
      request.set_keys(errand_.keys());
      request.set_wait_ms(600'000);
      v1::ReserveReply reply;
      other_->Call(&v1::Engine::Stub::Reserve, request, &reply);
    }).detach();
  }
  void LookupAndLease() {
    v1::LookupRequest request;
    request.set_namespace_id(ns_);
    request.set_keys(errand_.keys());
    request.set_lease_ms(600'000);
    v1::LookupReply reply;
    Ok(session_->Call(&v1::Engine::Stub::Lookup, request, &reply));
    lease_id_ = reply.lease_id();
  }
  void Load() {
    v1::LoadRequest request;
    request.set_namespace_id(ns_);
    request.set_keys(errand_.keys());
    Ok(session_->Call(&v1::Engine::Stub::Load, request, &loaded_));
    for (uint32_t i = 0; i < loaded_.blocks(); ++i) {
      const auto extent = UnpackAt<PackedExtent>(loaded_.extents(), i);
      if (regions_.count(extent.region) != 0) continue;
      auto answer = Must(session_->AskForRegion(extent.region));
      KVD_CHECK(answer.status == SessionStatus::kOk);
      regions_[extent.region] =
          Must(Mapping::Map(answer.fd.get(), answer.size_bytes, Mapping::Access::kRead));
    }
  }
  // Whether the bytes under the holds are what was put.
  bool Intact() const {
    for (uint32_t i = 0; i < loaded_.blocks(); ++i) {
      const auto extent = UnpackAt<PackedExtent>(loaded_.extents(), i);
      const absl::Span<const std::byte> bytes{regions_.at(extent.region).data() + extent.offset,
                                              extent.stored_length};
      if (!errand_.Right(static_cast<int>(i), bytes)) return false;
    }
    return true;
  }
  void Release() {
    v1::ReleaseRequest request;
    request.mutable_releases()->add_hold_ids(loaded_.hold_id());
    request.mutable_releases()->add_lease_ids(lease_id_);
    v1::ReleaseReply reply;
    Ok(session_->Call(&v1::Engine::Stub::Release, request, &reply));
  }

  RawSession& session() { return *session_; }
  uint32_t granted() const { return reserved_.granted(); }
  uint32_t loaded() const { return loaded_.blocks(); }
  PackedExtent extent(uint32_t i) const { return UnpackAt<PackedExtent>(loaded_.extents(), i); }

 private:
  template <typename T>
  static T Must(absl::StatusOr<T> value) {
    KVD_CHECK(value.ok()) << value.status();
    return *std::move(value);
  }
  static void Ok(const grpc::Status& status) { KVD_CHECK(status.ok()) << status.error_message(); }
  uint64_t Offset(int block) const { return uint64_t{errand_.part_bytes} * block; }
  uint64_t StagedBytes() const { return Offset(errand_.count); }

  const Errand errand_;
  std::unique_ptr<RawSession> session_;
  std::unique_ptr<RawSession> other_;
  std::unique_ptr<RawStaging> staging_;
  uint32_t ns_ = 0;
  v1::ReserveReply reserved_;
  v1::LoadReply loaded_;
  uint64_t lease_id_ = 0;
  std::map<uint32_t, Mapping> regions_;
};

int Walk(const Errand& errand, const std::string& step) {
  Walker walker(errand);
  const auto at = [&step](const char* here) {
    if (step != here) return;
    Say(absl::StrCat("at ", here));
    while (true) pause();
  };
  const int n = errand.count;
  walker.Open();
  at("hello");
  walker.Register();
  at("registered");
  walker.OpenStaging();
  at("staging");
  walker.Stage();
  if (step == "inline-put") walker.CommitInlineAside();
  at("inline-put");
  walker.Reserve();
  at("reserved");
  if (step == "another-waits") walker.ReserveAsideAndWait();
  at("another-waits");
  walker.SendFills(0, n / 2);
  at("half-the-fills-sent");
  walker.ReceiveFills(n / 2);
  at("half-filled");
  walker.SendFills(n / 2, n);
  at("all-fills-sent");
  walker.ReceiveFills(n - n / 2);
  at("filled");
  walker.Commit(0, n / 2);
  at("half-committed");
  walker.Commit(n / 2, n);
  at("committed");
  walker.LookupAndLease();
  at("leased");
  walker.Load();
  at("loaded");
  KVD_CHECK(walker.loaded() > 0 && walker.Intact());
  at("read");
  walker.Release();
  at("released");
  walker.session().CloseSocket();
  at("hung-up");
  Say("no such step");
  return 1;
}

int Reserve(const Errand& errand) {
  Walker walker(errand);
  walker.Open();
  walker.Register();
  walker.OpenStaging();
  walker.Reserve();
  Say(absl::StrCat("granted ", walker.granted()));
  std::string line;
  if (!std::getline(std::cin, line) || line != "commit") return 0;
  walker.Stage();
  walker.SendFills(0, errand.count);
  walker.ReceiveFills(errand.count);
  Say(absl::StrCat("stored ", walker.Commit(0, errand.count)));
  std::getline(std::cin, line);
  return 0;
}

int Hold(const Errand& errand) {
  Walker walker(errand);
  walker.Open();
  walker.Register();
  walker.Load();
  walker.session().CloseSocket();
  Say(absl::StrCat("held ", walker.loaded()));
  for (std::string line; std::getline(std::cin, line) && line == "check";) {
    Say(walker.Intact() ? "intact" : "changed");
  }
  return 0;
}

// ---- what must not work -------------------------------------------------------------------------

int Stranger(const Errand& errand, const std::string& region, const std::string& token) {
  auto session = RawSession::Open(errand.path);
  if (!session.ok()) {
    Say(absl::StrCat("session ", absl::StatusCodeToString(session.status().code())));
    return 0;
  }
  Say("session OK");
  const uint32_t ns = (*session)->Register(TestModel(errand.part_bytes));
  v1::LookupRequest lookup;
  lookup.set_namespace_id(ns);
  lookup.set_keys(errand.keys());
  v1::LookupReply found;
  (*session)->Call(&v1::Engine::Stub::Lookup, lookup, &found);
  Say(absl::StrCat("hits ", found.hit_blocks()));
  const auto answer =
      (*session)->AskForRegion(static_cast<uint32_t>(std::strtoul(region.c_str(), nullptr, 10)));
  Say(absl::StrCat("region ", answer.ok() ? static_cast<int>(answer->status) : -1, " fd ",
                   answer.ok() ? answer->fd.get() : -1));
  // The first namespace of the daemon is the other's.
  lookup.set_namespace_id(1);
  Say(absl::StrCat("namespace ",
                   (*session)->Call(&v1::Engine::Stub::Lookup, lookup, &found).error_code()));
  // A token that leaked still opens no region: descriptors go to the socket that asks.
  lookup.set_session(absl::HexStringToBytes(token));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoSeconds(kPatience));
  lookup.mutable_session()->back() = static_cast<char>(lookup.session().back() ^ 1);
  Say(absl::StrCat("token ", (*session)->stub().Lookup(&context, lookup, &found).error_code()));
  return 0;
}

void Report(const std::string& attempt, bool allowed) {
  Say(absl::StrCat(attempt, allowed ? " ALLOWED" : " denied"));
}

// Everything that could change a file through a descriptor. Whatever works, changes it.
void AttackDescriptor(const std::string& name, int fd, uint64_t size) {
  void* mapped = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  Report(name + " mmap", mapped != MAP_FAILED);
  if (mapped != MAP_FAILED) std::memset(mapped, 0xee, size);
  mapped = mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  if (mapped != MAP_FAILED) {
    const bool writable = mprotect(mapped, size, PROT_READ | PROT_WRITE) == 0;
    Report(name + " mprotect", writable);
    if (writable) std::memset(mapped, 0xee, size);
    Report(name + " madvise", madvise(mapped, size, MADV_REMOVE) == 0);
    munmap(mapped, size);
  }
  const std::vector<char> junk(4096, '\xee');
  Report(name + " pwrite", pwrite(fd, junk.data(), junk.size(), 0) > 0);
  Report(name + " shrink", ftruncate(fd, 0) == 0);
  Report(name + " grow", ftruncate(fd, static_cast<off_t>(size) * 2) == 0);
  const auto length = static_cast<off_t>(size);
  Report(name + " punch",
         fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, length) == 0);
  Report(name + " zero", fallocate(fd, FALLOC_FL_ZERO_RANGE, 0, length) == 0);
  Report(name + " allocate", fallocate(fd, 0, 0, length * 2) == 0);
  Report(name + " seal", fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == 0);
}

void AttackPath(const std::string& name, const std::string& path, uint64_t size) {
  for (const int flags : {O_RDWR, O_WRONLY, O_RDWR | O_TRUNC}) {
    const UniqueFd fd(open(path.c_str(), flags | O_CLOEXEC));
    if (fd.get() < 0) {
      Report(absl::StrCat(name, " open ", flags), false);
      continue;
    }
    AttackDescriptor(absl::StrCat(name, " open ", flags), fd.get(), size);
  }
}

// The memory of the daemon itself. Requires: no privileges, or it would of course work.
void AttackMemory(pid_t daemon) {
  const std::string proc = absl::StrCat("/proc/", daemon);
  uint64_t address = 0x10000;
  uint64_t size = 4096;
  std::ifstream maps(proc + "/maps");
  for (std::string line; std::getline(maps, line);) {
    uint64_t end = 0;
    if (line.find("kvd-arena") == std::string::npos) continue;
    if (std::sscanf(line.c_str(), "%lx-%lx", &address, &end) == 2) size = end - address;
    break;
  }
  std::string junk(4096, '\xee');
  const UniqueFd mem(open((proc + "/mem").c_str(), O_RDWR | O_CLOEXEC));
  Report("mem", mem.get() >= 0 &&
                    pwrite(mem.get(), junk.data(), junk.size(), static_cast<off_t>(address)) > 0);
  const iovec local{junk.data(), junk.size()};
  const iovec remote{reinterpret_cast<void*>(address), junk.size()};
  Report("process_vm_writev", process_vm_writev(daemon, &local, 1, &remote, 1, 0) > 0);
  Report("ptrace", ptrace(PTRACE_SEIZE, daemon, nullptr, nullptr) == 0);
  const UniqueFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, daemon, 0)));
  bool stolen = false;
  for (int fd = 0; fd < 256; ++fd) {
    const UniqueFd theirs(static_cast<int>(syscall(SYS_pidfd_getfd, pidfd.get(), fd, 0)));
    stolen |= theirs.get() >= 0;
  }
  Report("pidfd_getfd", stolen);
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(proc + "/map_files", error)) {
    AttackPath("map_files", entry.path(), size);
  }
  Report("map_files", !error);
}

int Attack(const Errand& errand, pid_t daemon) {
  Walker walker(errand);
  walker.Open();
  walker.Register();
  walker.Load();
  KVD_CHECK(walker.loaded() > 0);
  const auto answer = walker.session().AskForRegion(walker.extent(0).region);
  KVD_CHECK(answer.ok() && answer->fd.get() >= 0);
  AttackDescriptor("descriptor", answer->fd.get(), answer->size_bytes);
  AttackPath("reopened", absl::StrCat("/proc/self/fd/", answer->fd.get()), answer->size_bytes);
  for (int fd = 0; fd < 256; ++fd) {
    const std::string path = absl::StrCat("/proc/", daemon, "/fd/", fd);
    std::error_code error;
    const std::string target = std::filesystem::read_symlink(path, error);
    if (error || target.find("kvd-arena") != std::string::npos) {
      AttackPath(absl::StrCat("theirs ", fd), path, answer->size_bytes);
    }
  }
  if (geteuid() == 0) {
    Say("mem skipped: root may do anything");
  } else {
    AttackMemory(daemon);
  }
  Say(walker.Intact() ? "intact" : "changed");
  return 0;
}

int Main(int argc, char** argv) {
  KVD_CHECK(argc >= 6) << "usage: see the top of this file";
  const Errand errand{argv[1], static_cast<uint32_t>(std::atoi(argv[2])), std::atoi(argv[3]),
                      std::atoi(argv[4])};
  const std::string verb = argv[5];
  if (verb == "put" || verb == "get" || verb == "load") return WithClient(errand, verb);
  if (verb == "reserve") return Reserve(errand);
  if (verb == "hold") return Hold(errand);
  if (verb == "walk" && argc == 7) return Walk(errand, argv[6]);
  if (verb == "stranger" && argc == 8) return Stranger(errand, argv[6], argv[7]);
  if (verb == "attack" && argc == 7) return Attack(errand, std::atoi(argv[6]));
  std::cerr << "e2e_peer: no errand " << verb << "\n";
  return 2;
}

}  // namespace
}  // namespace kvd

int main(int argc, char** argv) { return kvd::Main(argc, argv); }
