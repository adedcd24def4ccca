#include "bench/crash.h"

#include <algorithm>
#include <cmath>
#include <csignal>
#include <iostream>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <utility>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "bench/child_process.h"
#include "bench/commands.h"
#include "bench/crash_account.h"
#include "bench/crash_client.h"
#include "bench/crash_daemon.h"
#include "bench/stats.h"
#include "nlohmann/json.hpp"
#include "proto/types/kill_point.h"

namespace kvd {
namespace {

constexpr Nanos kAcknowledgedBefore = kSecond;
constexpr absl::Duration kPointPatience = absl::Milliseconds(1500);  // For a point to be passed.
constexpr absl::Duration kStep = absl::Milliseconds(4);
constexpr uint32_t kDroppedBlocks = 8;
// Of DRAM, that is put before the daemon is asked again whether it has made room: two thirds of
// what it keeps free where there is NVMe, as parts do not fill their slots.
constexpr uint64_t kGrantShare = 24;
constexpr double kDramBar = 0.99;
constexpr double kNvmeBar = 0.999;

// Those that can be passed at all.
std::vector<std::string> PointsOf(const CrashOptions& options) {
  constexpr std::string_view kOfNvme[] = {
      "demote.", "index.", "nvme.", "promote.", "reclaim.",    "record.",
      "recover", "scope.", "seal.", "segment.", "superblock.", "start.nvme_opened"};
  if (!options.only.empty()) return {options.only};
  std::vector<std::string> points;
  for (const std::string_view point : kKillPoints) {
    const bool of_nvme = std::any_of(
        std::begin(kOfNvme), std::end(kOfNvme),
        [point](std::string_view prefix) { return point.substr(0, prefix.size()) == prefix; });
    if (!of_nvme || options.nvme_bytes > 0) points.emplace_back(point);
  }
  return points;
}

// What beside the clients gives the daemon something to do: the operator, sessions that come and
// go, a process that dies.
class SideShow {
 public:
  SideShow(CrashAccount& account, CrashDaemon& daemon, CrashClients& clients, uint64_t live_bytes,
           uint64_t seed)
      : account_(account),
        daemon_(daemon),
        clients_(clients),
        live_bytes_(live_bytes),
        random_(seed) {}

  // Some of it. Nothing of this fails: the daemon may be killed at any time.
  void Step(bool with_process) {
    switch (random_() % 16) {
      case 0:
        DropAll();
        break;
      case 1:
        ComeAndGo();
        break;
      default:
        break;
    }
    if (account_.leaving_bytes() == 0 && account_.live_bytes() > live_bytes_ / 10 * 9) RetireOne();
    if (account_.leaving_bytes() > 0) EvictTheRest();
    if (with_process && peer_ == nullptr) StartPeer();
  }
  // Evicts all that nobody expects: chains that were to go and were held, or the daemon was killed;
  // what was put and nobody was told; what a process stored that is dead. Left where it is, it
  // would fill the memory, and what is expected to stay would leave for it by right.
  void EvictTheRest() {
    const absl::StatusOr<std::vector<CrashDaemon::Block>> blocks = daemon_.Blocks();
    if (!blocks.ok()) return;
    // Asked after the list was made: a chain is in the account before it is in the daemon.
    const std::set<std::string_view> live = account_.LiveRoots();
    uint64_t leaving = 0;
    for (const CrashDaemon::Block& block : *blocks) {
      if (!block.root || live.contains(block.key)) continue;
      const absl::StatusOr<uint64_t> kept = daemon_.Evict(block);
      if (absl::IsNotFound(kept.status())) continue;
      if (!kept.ok()) return;  // The daemon was killed: the next one is asked.
      leaving += *kept * std::max(block.dram_bytes, block.nvme_bytes);
    }
    account_.SetLeaving(leaving);
  }
  // The process that lives beside us, if there is one, is killed.
  void EndPeer() { peer_.reset(); }

  // Chains whose namespace was dropped, and the daemon said so: whoever has looked forgets them.
  std::vector<CrashChain*>& dropped() { return dropped_; }

 private:
  void RetireOne() {
    std::vector<CrashChain*> live;
    for (size_t i = 0; i < account_.chains(); ++i) {
      if (account_.chain(i).StoredBy(INT64_MAX) > 0) live.push_back(&account_.chain(i));
    }
    if (!live.empty()) account_.Retire(*live[random_() % live.size()]);
  }

  // A namespace is filled, and goes as a whole.
  void DropAll() {
    if (!clients_.Take(kDroppedBlocks * CrashBlockBytes(CrashNamespace::kDropped))) return;
    CrashSession session(account_, daemon_.endpoint());
    CrashChain* chain = account_.NewChain(CrashNamespace::kDropped, 0);
    session.Put(*chain, 0, kDroppedBlocks);
    const bool was_there = session.Get(*chain, kDroppedBlocks, "get before the drop") > 0;
    account_.Retire(*chain);
    session.client().Flush().IgnoreError();  // What is held does not go.
    if (was_there && daemon_.Drop(CrashNamespace::kDropped).ok()) dropped_.push_back(chain);
  }

  void ComeAndGo() {
    CrashSession session(account_, daemon_.endpoint());
    CrashChain& chain = account_.chain(random_() % account_.chains());
    if (chain.ns != CrashNamespace::kDropped) session.Get(chain, 4, "get by a newcomer");
  }

  void StartPeer() {
    absl::StatusOr<std::unique_ptr<ChildProcess>> peer =
        ChildProcess::Start({"/proc/self/exe", "crash-peer", daemon_.endpoint()});
    if (peer.ok()) peer_ = *std::move(peer);
  }

  CrashAccount& account_;
  CrashDaemon& daemon_;
  CrashClients& clients_;
  const uint64_t live_bytes_;
  std::mt19937_64 random_;
  std::vector<CrashChain*> dropped_;
  std::unique_ptr<ChildProcess> peer_;
};

CrashDaemon::Options DaemonOptions(const CrashOptions& options, const std::string& folder) {
  return {.program = options.program,
          .folder = folder,
          .dram_bytes = options.dram_bytes,
          .nvme_bytes = options.nvme_bytes};
}

class CrashRun {
 public:
  CrashRun(const CrashOptions& options, std::string folder)
      : options_(options),
        points_(PointsOf(options)),
        random_(options.seed),
        // Well below the room, or evictions would be seen: parts do not fill their slots and
        // records, pools share regions, and what was dropped may come back.
        live_bytes_(options.dram_bytes / 3 + options.nvme_bytes / 8),
        account_(options.seed),
        daemon_(DaemonOptions(options, folder)),
        endpoint_(absl::StrCat("unix:", folder, "/kvd.sock")),
        auditor_(account_, endpoint_),
        clients_(account_, endpoint_, options.clients, options.seed, live_bytes_),
        side_show_(account_, daemon_, clients_, live_bytes_, options.seed) {}
  ~CrashRun() {
    if (daemon_.running()) daemon_.Kill();
    if (options_.folder.empty()) daemon_.RemoveAll();
  }

  absl::StatusOr<CrashResult> Run() {
    for (const std::string& point : points_) result_.kills_by_point[point] = 0;
    result_.kills_by_point["random"] = 0;
    for (; result_.cycles < options_.cycles; ++result_.cycles) {
      if (absl::Status status = Cycle(); !status.ok()) return status;
    }
    result_.blocks_verified = account_.blocks_verified;
    result_.wrong_blocks += account_.wrong_blocks;
    return std::move(result_);
  }

 private:
  uint64_t Dice(uint64_t sides) { return random_() % sides; }

  // The point at which this cycle ends; empty: at a random instant.
  std::string PointOfCycle() {
    if (!options_.only.empty()) return options_.only;
    if (result_.cycles % 2 == 0) return "";
    return points_[result_.cycles / 2 % points_.size()];
  }

  absl::Status Cycle() {
    const std::string point = PointOfCycle();
    const bool loses_arena =
        point.empty() ? options_.nvme_bytes > 0 && Dice(4) == 0 : point == "restore.table_created";
    if (has_data_ && loses_arena) {
      daemon_.RemoveArena();
      arena_lost_ = true;
    }
    if (!Start(point)) return absl::OkStatus();
    if (result_.failed_starts > 0 && !daemon_.running()) {
      return has_data_ ? absl::OkStatus() : absl::UnavailableError(result_.first_failure);
    }
    // What a reader of before may read cannot leave.
    if (point.empty() || account_.leaving_bytes() > 0) clients_.Greet();
    auditor_.Greet();
    if (point.empty()) TakeAccount();
    CheckWhatWasDropped();
    side_show_.EvictTheRest();
    Load(point);
    return absl::OkStatus();
  }

  // False: it does not run: it was killed at the point, or could not start.
  bool Start(const std::string& point) {
    // Once at the first passing, later anywhere.
    std::string kill_at;
    if (!point.empty()) {
      const uint64_t passing = result_.kills_by_point[point] == 0 ? 1 : 1 + Dice(24);
      kill_at = absl::StrCat(point, ":", passing);
    }
    const absl::Status started = daemon_.Start(kill_at);
    if (started.ok()) {
      if (has_data_) result_.restart_ms.push_back(daemon_.start_ms());
      has_data_ = true;
      return true;
    }
    if (absl::IsAborted(started) && !point.empty()) {
      ++result_.kills_by_point[point];
      return false;
    }
    Fail(started);
    ++result_.failed_starts;
    daemon_.RemoveAll();
    ForgetAll();
    return false;
  }

  void Fail(const absl::Status& status) {
    if (result_.first_failure.empty()) {
      result_.first_failure =
          absl::StrCat("cycle ", result_.cycles, ": ", std::string(status.message()));
    }
  }

  // What was acknowledged long enough before the last kill is there.
  void TakeAccount() {
    const Nanos by = last_kill_ - kAcknowledgedBefore;
    const uint64_t expected_before = result_.dram.expected + result_.nvme.expected;
    const uint64_t found_before = result_.dram.found + result_.nvme.found;
    for (size_t i = 0; i < account_.chains(); ++i) {
      CrashChain& chain = account_.chain(i);
      if (chain.retired) continue;
      if (auditor_.Get(chain, kCrashChainBlocks, "get after a restart") < 0) continue;
      const uint32_t found = auditor_.found();
      const uint32_t expected = chain.StoredBy(by);
      for (uint32_t block = 0; block < expected; ++block) {
        CrashResult::Hits& hits = chain.on_nvme[block] ? result_.nvme : result_.dram;
        // Without its ancestors in the arena, a block of it cannot be expected either.
        if (arena_lost_ && !chain.on_nvme[block]) break;
        ++hits.expected;
        hits.found += block < found;
      }
      for (uint32_t block = found; block < kCrashChainBlocks; ++block) {
        account_.Lost(chain, block);
        chain.on_nvme[block] = false;
      }
    }
    const uint64_t expected_now = result_.dram.expected + result_.nvme.expected - expected_before;
    const uint64_t found_now = result_.dram.found + result_.nvme.found - found_before;
    if (found_now < expected_now) {
      std::cerr << absl::StrCat("kvd-bench: cycle ", result_.cycles, ", after ", last_end_, ": ",
                                expected_now - found_now, " of ", expected_now,
                                " blocks are not found", arena_lost_ ? ", without the arena" : "",
                                "\n");
    }
    if (options_.nvme_bytes > 0) NoteWhatIsOnNvme();
    if (absl::Status audit = daemon_.Audit(); absl::IsInternal(audit)) Fail(audit);
    arena_lost_ = false;
  }

  void CheckWhatWasDropped() {
    std::erase_if(side_show_.dropped(), [this](CrashChain* chain) {
      const int there = auditor_.Get(*chain, kDroppedBlocks, "get after a drop");
      if (there > 0) {
        account_.Wrong(*chain, 0, "its namespace was dropped before the daemon was killed");
      }
      return there >= 0;
    });
  }

  void NoteWhatIsOnNvme() {
    const absl::StatusOr<std::vector<CrashDaemon::Block>> blocks = daemon_.Blocks();
    if (!blocks.ok()) return;
    std::set<std::string_view> on_nvme;
    for (const CrashDaemon::Block& block : *blocks) {
      if (block.nvme_bytes > 0) on_nvme.insert(block.key);
    }
    for (size_t i = 0; i < account_.chains(); ++i) {
      CrashChain& chain = account_.chain(i);
      if (chain.retired) continue;
      for (uint32_t block = 0; block < kCrashChainBlocks; ++block) {
        chain.on_nvme[block] = on_nvme.contains(chain.key(block));
      }
    }
  }

  void Load(const std::string& point) {
    const bool ends_by_signal = point.rfind("stop.", 0) == 0 || (point.empty() && Dice(16) == 0);
    const bool pressure =
        point == "region.emptied" || point == "nvme.evicted" || (point.empty() && Dice(40) == 0);
    const bool process = point == "session.process_exited" || Dice(32) == 0;
    const bool long_life = point.empty() && Dice(40) == 0;
    clients_.SetPressure(pressure);
    clients_.Grant(0);
    GrantRoom();
    clients_.Resume();
    const absl::Time begin = absl::Now();
    const absl::Duration life = !point.empty() && !ends_by_signal ? kPointPatience
                                : long_life                       ? absl::Milliseconds(1300)
                                                                  : absl::Milliseconds(Dice(60));
    while (absl::Now() - begin < life && !daemon_.WaitForExit(kStep)) {
      GrantRoom();
      side_show_.Step(process && absl::Now() - begin < life / 2);
      if (absl::Now() - begin > life / 4) side_show_.EndPeer();
    }
    End(point, ends_by_signal);
    clients_.Pause();
    side_show_.EndPeer();
    if (pressure) ForgetAll();
  }

  // A put does not wait for the disk: who puts more than is kept free for it pushes out what is not
  // on NVMe yet, and that is lost, but not by a kill.
  void GrantRoom() {
    const absl::StatusOr<bool> roomy = daemon_.HasMadeRoom();
    if (roomy.ok() && *roomy) clients_.Grant(options_.dram_bytes / kGrantShare);
  }

  // The end of a life, however it comes.
  void End(const std::string& point, bool by_signal) {
    if (by_signal && !daemon_.WaitForExit(absl::ZeroDuration())) {
      kill(daemon_.pid(), SIGTERM);
      daemon_.WaitForExit(absl::Seconds(10));
    }
    const bool by_itself = daemon_.WaitForExit(absl::ZeroDuration());
    last_kill_ = clock_.Now();
    last_end_ = by_signal ? "a drain" : point.empty() ? "a random kill" : point;
    if (!by_itself) {
      daemon_.Kill();
      ++result_.kills_by_point["random"];
      return;
    }
    if (daemon_.was_killed() && !point.empty()) {
      daemon_.Kill();  // It has ended; nothing is left to be killed.
      ++result_.kills_by_point[point];
      return;
    }
    if (absl::Status stopped = daemon_.Stop(); !stopped.ok() || !by_signal) {
      Fail(stopped.ok() ? absl::InternalError("the daemon ended by itself") : stopped);
      ++result_.failed_starts;
    }
  }

  void ForgetAll() {
    for (size_t i = 0; i < account_.chains(); ++i) account_.Retire(account_.chain(i));
    side_show_.dropped().clear();
  }

  const CrashOptions options_;
  const std::vector<std::string> points_;
  std::mt19937_64 random_;
  SystemClock clock_;
  const uint64_t live_bytes_;
  CrashAccount account_;
  CrashDaemon daemon_;
  const std::string endpoint_;
  CrashSession auditor_;
  CrashClients clients_;
  SideShow side_show_;
  CrashResult result_;
  bool has_data_ = false;
  bool arena_lost_ = false;
  Nanos last_kill_ = 0;
  std::string last_end_;
};

nlohmann::json NumberOrNull(double value) {
  return std::isnan(value) ? nlohmann::json() : nlohmann::json(value);
}

// A process that has a session and holds, until it is killed.
absl::Status BeCrashPeer(const std::string& endpoint) {
  CrashAccount account(std::random_device{}());
  CrashSession session(account, endpoint);
  CrashChain* chain = account.NewChain(CrashNamespace::kPlain, 0);
  session.Put(*chain, 0, 4);
  const LoadResult held = session.client().Load(session.ns(chain->ns), chain->Keys(0, 4));
  while (true) pause();
}

}  // namespace

double CrashResult::Hits::ratio() const {
  return expected == 0 ? std::numeric_limits<double>::quiet_NaN()
                       : static_cast<double>(found) / static_cast<double>(expected);
}

absl::StatusOr<CrashResult> RunCrash(const CrashOptions& options) {
  std::unique_ptr<TemporaryFolder> fresh;
  std::string folder = options.folder;
  if (folder.empty()) {
    absl::StatusOr<std::unique_ptr<TemporaryFolder>> created = TemporaryFolder::Create();
    if (!created.ok()) return created.status();
    fresh = *std::move(created);
    folder = fresh->path();
  }
  return CrashRun(options, folder).Run();
}

std::string CrashJson(const CrashResult& result) {
  nlohmann::json json;
  json["cycles"] = result.cycles;
  json["kills_by_point"] = result.kills_by_point;
  json["blocks_verified"] = result.blocks_verified;
  json["hits_after_restart_ratio"] = {{"dram", NumberOrNull(result.dram.ratio())},
                                      {"nvme", NumberOrNull(result.nvme.ratio())}};
  json["wrong_blocks"] = result.wrong_blocks;
  json["failed_starts"] = result.failed_starts;
  json["restart_ms"] = {{"p50", NumberOrNull(Median(result.restart_ms))},
                        {"max", NumberOrNull(Max(result.restart_ms))}};
  return json.dump(2);
}

absl::Status JudgeCrash(const CrashResult& result) {
  if (result.wrong_blocks > 0) {
    return absl::DataLossError(absl::StrCat(result.wrong_blocks, " wrong blocks"));
  }
  if (result.failed_starts > 0 || !result.first_failure.empty()) {
    return absl::DataLossError(
        absl::StrCat(result.failed_starts, " failed starts; ", result.first_failure));
  }
  if (result.dram.ratio() < kDramBar || result.nvme.ratio() < kNvmeBar) {
    return absl::DataLossError(absl::StrCat(
        "of blocks acknowledged a second before a kill, found after it: DRAM ", result.dram.found,
        " of ", result.dram.expected, ", NVMe ", result.nvme.found, " of ", result.nvme.expected));
  }
  if (result.cycles >= 4 * result.kills_by_point.size()) {
    for (const auto& [point, kills] : result.kills_by_point) {
      if (kills == 0) {
        return absl::DataLossError(absl::StrCat("nothing passed the kill point ", point));
      }
    }
  }
  return absl::OkStatus();
}

void AddCrashCommand(CLI::App& app) {
  auto options = std::make_shared<CrashOptions>();
  auto json = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand(
      "crash", "Kills a daemon under load and checks what is left, again and again");
  command->add_option("--cycles", options->cycles, "How often")->capture_default_str();
  command->add_option("--seed", options->seed, "Of what the clients do")->capture_default_str();
  std::vector<std::string> points(std::begin(kKillPoints), std::end(kKillPoints));
  command->add_option("--only", options->only, "This kill point, every time")
      ->check(CLI::IsMember(points).description(""));
  command->add_option("--clients", options->clients, "Threads that store and read")
      ->check(CLI::Range(1u, 64u).description(""))
      ->capture_default_str();
  command->add_option("--nvme-bytes", options->nvme_bytes, "Of the NVMe tier; 0: none")
      ->capture_default_str();
  command->add_option("--daemon", options->program, "kvd; default: the one beside this program");
  command->add_option("--folder", options->folder,
                      "For socket, log and data, which stay; default: a fresh one that goes");
  command->add_flag("--json", *json, "Prints JSON");
  command->callback([options, json] {
    const absl::StatusOr<CrashResult> result = RunCrash(*options);
    FinishCommand(result.status());
    std::cout << CrashJson(*result) << std::endl;
    FinishCommand(JudgeCrash(*result));
  });
}

void AddCrashPeerCommand(CLI::App& app) {
  auto endpoint = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("crash-peer", "What crash starts")->group("");
  command->add_option("endpoint", *endpoint)->required();
  command->callback([endpoint] { FinishCommand(BeCrashPeer(*endpoint)); });
}

}  // namespace kvd
