#include "bench/hostile.h"

#include <grpcpp/create_channel.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iostream>
#include <memory>
#include <utility>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "bench/child_process.h"
#include "bench/commands.h"
#include "bench/daemon_process.h"
#include "bench/hostile_peer.h"
#include "bench/micro_forest.h"
#include "bench/stats.h"
#include "bench/table.h"
#include "client/client.h"
#include "nlohmann/json.hpp"
#include "proto/admin.grpc.pb.h"

namespace kvd {
namespace {

constexpr uint64_t kDaemonDescriptors = 256;
constexpr absl::Duration kStartTimeout = absl::Seconds(30);
constexpr absl::Duration kSettleTimeout = absl::Seconds(10);
// What has gone is not at once given back: the daemon trims its heap every two seconds.
constexpr absl::Duration kMemorySettles = absl::Seconds(4);
constexpr absl::Duration kPoll = absl::Milliseconds(2);
constexpr int kAttackerNice = 19;

struct PhaseSpec {
  const char* name;
  std::vector<Attack> attacks;
};

// The first is what the others are compared with, the last what is compared for memory.
const std::vector<PhaseSpec>& PhaseSpecs() {
  static const auto* const kSpecs = new std::vector<PhaseSpec>{
      {"quiet", {}},
      {"session_churn", {Attack::kChurn}},
      {"malformed_calls", {Attack::kMalformed}},
      {"slow_readers", {Attack::kSlow}},
      {"oversized_messages", {Attack::kOversized}},
      {"descriptors", {Attack::kDescriptors}},
      {"all",
       {Attack::kChurn, Attack::kMalformed, Attack::kSlow, Attack::kOversized,
        Attack::kDescriptors}},
      {"quiet_again", {}},
  };
  return *kSpecs;
}

std::vector<PhaseSpec> SpecsOf(const std::vector<std::string>& only) {
  std::vector<PhaseSpec> specs;
  for (const PhaseSpec& spec : PhaseSpecs()) {
    if (only.empty() || spec.attacks.empty() ||
        std::find(only.begin(), only.end(), spec.name) != only.end()) {
      specs.push_back(spec);
    }
  }
  return specs;
}

absl::StatusOr<v1::StatusReply> AskStatus(const std::string& endpoint) {
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // A connection of its own.
  const auto stub = v1::Admin::NewStub(
      grpc::CreateCustomChannel(endpoint + ".admin", grpc::InsecureChannelCredentials(), args));
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(5)));
  context.set_wait_for_ready(true);
  v1::StatusReply reply;
  const grpc::Status status = stub->Status(&context, {}, &reply);
  if (!status.ok()) return absl::UnavailableError("admin: " + status.error_message());
  return reply;
}

// Whether somebody who was not there before is served, on every socket.
std::string Newcomer(const std::string& endpoint) {
  for (const std::string& door : {endpoint, "stream:" + endpoint}) {
    Client client({.endpoint = door, .timeout = absl::Seconds(5)});
    const absl::StatusOr<Namespace> ns =
        client.RegisterNamespace(MicroNamespace(kHostilePartBytes, 1));
    if (!ns.ok()) return absl::StrCat(door, ": ", ns.status().message());
    const LookupResult found = client.Lookup(*ns, HostileKeys(0, 0, kHostileChainBlocks));
    if (!found.status.ok()) return absl::StrCat(door, ": ", found.status.message());
  }
  return "";
}

class Run {
 public:
  explicit Run(const HostileOptions& options)
      : options_(options),
        specs_(SpecsOf(options.only)),
        phase_time_(options.time / static_cast<double>(specs_.size())) {}

  absl::StatusOr<HostileResult> All();

 private:
  absl::Status Start();
  absl::StatusOr<std::unique_ptr<ChildProcess>> StartPeer(std::string_view kind, uint32_t index);
  absl::Status RunPhase(uint32_t number);
  absl::Status CheckClients();
  absl::Status Rest();
  absl::StatusOr<v1::StatusReply> StatusAtRest();
  template <typename Field>
  uint64_t Sum(Field field) const {
    uint64_t sum = 0;
    for (const HostileBoard::Client& client : board_->clients) sum += (client.*field).load();
    return sum;
  }
  std::vector<double> SamplesOf(uint32_t phase) const;

  const HostileOptions& options_;
  const std::vector<PhaseSpec> specs_;
  const absl::Duration phase_time_;
  std::unique_ptr<TemporaryFolder> folder_;
  std::unique_ptr<DaemonProcess> daemon_;
  std::string endpoint_;
  HostileBoard* board_ = nullptr;
  std::vector<std::unique_ptr<ChildProcess>> clients_;
  HostileResult result_;
};

absl::StatusOr<std::unique_ptr<ChildProcess>> Run::StartPeer(std::string_view kind,
                                                             uint32_t index) {
  const absl::StatusOr<std::string> program = ProgramBesideThis("kvd-bench");
  if (!program.ok()) return program.status();
  return ChildProcess::Start({*program, "hostile-peer", std::string(kind), endpoint_,
                              folder_->path() + "/board", absl::StrCat(index)});
}

absl::Status Run::Start() {
  endpoint_ = options_.daemon;
  if (endpoint_.empty()) {
    auto daemon = DaemonProcess::Start({.program = options_.program,
                                        .arguments = {"--dram", "256MiB", "--log-level", "error"},
                                        .max_descriptors = kDaemonDescriptors});
    if (!daemon.ok()) return daemon.status();
    daemon_ = *std::move(daemon);
    endpoint_ = daemon_->endpoint();
  } else if (!endpoint_.starts_with("unix:")) {
    return absl::InvalidArgumentError("--daemon: not unix:PATH: " + endpoint_);
  }
  absl::StatusOr<std::unique_ptr<TemporaryFolder>> folder = TemporaryFolder::Create();
  if (!folder.ok()) return folder.status();
  folder_ = *std::move(folder);
  const absl::StatusOr<HostileBoard*> board =
      HostileBoard::Map(folder_->path() + "/board", HostileBoard::How::kCreate);
  if (!board.ok()) return board.status();
  board_ = *board;
  for (uint32_t i = 0; i < kHostileClients; ++i) {
    absl::StatusOr<std::unique_ptr<ChildProcess>> client = StartPeer("client", i);
    if (!client.ok()) return client.status();
    clients_.push_back(*std::move(client));
  }
  return absl::OkStatus();
}

absl::Status Run::CheckClients() {
  for (const auto& client : clients_) {
    if (!client->running()) return absl::InternalError("a well-behaved client ended");
  }
  return absl::OkStatus();
}

// Every client is paused and has nothing in its hands.
absl::Status Run::Rest() {
  board_->phase.store(HostileBoard::kPaused);
  const absl::Time deadline = absl::Now() + kStartTimeout;
  for (const HostileBoard::Client& client : board_->clients) {
    while (client.paused.load() == 0) {
      if (absl::Status status = CheckClients(); !status.ok()) return status;
      if (absl::Now() > deadline) return absl::DeadlineExceededError("a client does not pause");
      absl::SleepFor(kPoll);
    }
  }
  return absl::OkStatus();
}

// At rest, and after the same wait whenever it is asked for. What the daemon has yet to take back
// from those that are gone has some more time.
absl::StatusOr<v1::StatusReply> Run::StatusAtRest() {
  if (absl::Status status = Rest(); !status.ok()) return status;
  absl::SleepFor(kMemorySettles);
  const absl::Time settled = absl::Now() + kSettleTimeout;
  while (true) {
    absl::StatusOr<v1::StatusReply> status = AskStatus(endpoint_);
    if (!status.ok() || absl::Now() > settled) return status;
    if (status->sessions() == kHostileClients && status->holds() == 0 && status->leases() == 0 &&
        status->reservations() == 0) {
      return status;
    }
    absl::SleepFor(kPoll);
  }
}

absl::Status Run::RunPhase(uint32_t number) {
  const PhaseSpec& spec = specs_[number];
  const uint64_t failed_before = Sum(&HostileBoard::Client::failed_calls);
  std::vector<std::unique_ptr<ChildProcess>> attackers;
  for (const Attack attack : spec.attacks) {
    absl::StatusOr<std::unique_ptr<ChildProcess>> attacker =
        StartPeer(kAttackNames[static_cast<size_t>(attack)], 0);
    if (!attacker.ok()) return attacker.status();
    attackers.push_back(*std::move(attacker));
  }
  board_->phase.store(HostileBoard::kFirstPhase + number);
  absl::SleepFor(phase_time_);
  board_->phase.store(HostileBoard::kRunning);
  attackers.clear();  // Killed in the middle of whatever they do.

  HostilePhase phase{.name = spec.name};
  const std::vector<double> us = SamplesOf(number);
  phase.samples = us.size();
  phase.p50_us = Percentile(us, 50);
  phase.p99_us = Percentile(us, 99);
  phase.ratio_p99 = number == 0 ? 1 : phase.p99_us / result_.phases.front().p99_us;
  phase.failed_calls = Sum(&HostileBoard::Client::failed_calls) - failed_before;
  for (const Attack attack : spec.attacks) phase.oversized |= attack == Attack::kOversized;
  result_.phases.push_back(std::move(phase));
  return CheckClients();
}

std::vector<double> Run::SamplesOf(uint32_t phase) const {
  std::vector<double> us;
  for (const HostileBoard::Client& client : board_->clients) {
    const uint64_t samples = client.samples.load();
    for (uint64_t i = 0; i < samples; ++i) {
      if (client.sample[i].phase == HostileBoard::kFirstPhase + phase) {
        us.push_back(client.sample[i].us);
      }
    }
  }
  return us;
}

absl::StatusOr<HostileResult> Run::All() {
  if (absl::Status status = Start(); !status.ok()) return status;
  // Both have stored their chains when they have paused.
  if (absl::Status status = Rest(); !status.ok()) return status;
  // What serves the doors has its threads before the memory is read for the first time.
  if (std::string why = Newcomer(endpoint_); !why.empty()) return absl::UnavailableError(why);
  board_->phase.store(HostileBoard::kRunning);
  absl::SleepFor(phase_time_ / 4);  // Warm.

  v1::StatusReply before;
  const uint32_t phases = static_cast<uint32_t>(specs_.size());
  for (uint32_t number = 0; number < phases; ++number) {
    if (absl::Status status = RunPhase(number); !status.ok()) return status;
    if (number != 0 && number != phases - 1) continue;
    const absl::StatusOr<v1::StatusReply> status = StatusAtRest();
    if (!status.ok()) return status.status();
    if (number == 0) {
      before = *status;
      board_->phase.store(HostileBoard::kRunning);
      continue;
    }
    result_.memory_before = before.memory_beside_arena_bytes();
    result_.memory_after = status->memory_beside_arena_bytes();
    const auto left = [](uint64_t then, uint64_t now) {
      return static_cast<int64_t>(now) - static_cast<int64_t>(then);
    };
    result_.left_sessions = left(before.sessions(), status->sessions());
    result_.left_holds = left(before.holds(), status->holds());
    result_.left_leases = left(before.leases(), status->leases());
    result_.left_reservations = left(before.reservations(), status->reservations());
  }
  result_.newcomer = Newcomer(endpoint_);
  result_.gets = Sum(&HostileBoard::Client::gets);
  result_.blocks_checked = Sum(&HostileBoard::Client::blocks_checked);
  result_.wrong_blocks = Sum(&HostileBoard::Client::wrong_blocks);
  result_.missed_blocks = Sum(&HostileBoard::Client::missed_blocks);
  for (uint32_t i = 0; i < kAttacks; ++i) result_.attacks[i] = board_->attacks[i].load();
  clients_.clear();
  if (daemon_ != nullptr) {
    if (absl::Status status = daemon_->Stop(); !status.ok()) return status;
  }
  return std::move(result_);
}

double MemoryRatio(const HostileResult& result) {
  return static_cast<double>(result.memory_after) / static_cast<double>(result.memory_before);
}

// NaN, which is "no samples", is no JSON.
nlohmann::json NumberOrNull(double value) {
  return std::isnan(value) ? nlohmann::json() : nlohmann::json(value);
}

absl::Status BePeer(const std::string& kind, const std::string& endpoint, const std::string& path,
                    uint32_t index) {
  const absl::StatusOr<HostileBoard*> board = HostileBoard::Map(path, HostileBoard::How::kOpen);
  if (!board.ok()) return board.status();
  if (kind == "client") return BehaveWell(endpoint, index, **board);
  // What is measured is the daemon, not whether the attackers leave the clients a CPU.
  setpriority(PRIO_PROCESS, 0, kAttackerNice);
  constexpr absl::Status (*kAttackers[])(const std::string&, HostileBoard&) = {
      ChurnSessions, CallMalformed, ReadSlowly, SendOversized, ExhaustDescriptors};
  static_assert(std::size(kAttackers) == kAttacks);
  for (uint32_t i = 0; i < kAttacks; ++i) {
    // One that loses its session, as it may while descriptors are out, comes again.
    while (kind == kAttackNames[i]) {
      kAttackers[i](endpoint, **board).IgnoreError();
      absl::SleepFor(absl::Milliseconds(20));
    }
  }
  return absl::InvalidArgumentError("no such peer: " + kind);
}

}  // namespace

absl::StatusOr<HostileResult> RunHostile(const HostileOptions& options) {
  return Run(options).All();
}

std::vector<std::string> MissedHostileBars(const HostileResult& result) {
  std::vector<std::string> missed;
  for (const HostilePhase& phase : result.phases) {
    const bool kept = phase.ratio_p99 <= kHostileMaxP99Ratio ||
                      (phase.oversized && phase.p99_us <= kHostileMaxOversizedP99Us);
    if (!kept) {  // Also where there is no figure.
      missed.push_back(absl::StrFormat("%s: lookup p99 %.0f us, %.1f of the quiet phase's",
                                       phase.name, phase.p99_us, phase.ratio_p99));
    }
  }
  if (result.wrong_blocks != 0) {
    missed.push_back(absl::StrCat(result.wrong_blocks, " blocks had wrong bytes"));
  }
  if (result.blocks_checked == 0) missed.push_back("no block was checked");
  if (!(MemoryRatio(result) <= kHostileMaxMemoryRatio)) {
    missed.push_back(absl::StrFormat("memory is %.3f of what it was", MemoryRatio(result)));
  }
  for (const auto& [count, what] : {std::pair{result.left_sessions, "sessions"},
                                    {result.left_holds, "holds"},
                                    {result.left_leases, "leases"},
                                    {result.left_reservations, "reservations"}}) {
    if (count != 0) missed.push_back(absl::StrCat(count, " ", what, " are left over"));
  }
  if (!result.newcomer.empty()) {
    missed.push_back("a client that came afterwards was not served: " + result.newcomer);
  }
  return missed;
}

std::string HostileTable(const HostileResult& result) {
  Table phases({"phase", "lookup p50", "lookup p99", "of quiet", "samples", "failed calls"});
  for (const HostilePhase& phase : result.phases) {
    phases.AddRow({phase.name, absl::StrFormat("%.0f us", phase.p50_us),
                   absl::StrFormat("%.0f us", phase.p99_us),
                   absl::StrFormat("%.2fx", phase.ratio_p99), WithCommas(phase.samples),
                   WithCommas(phase.failed_calls)});
  }
  Table attacks({"attack", "times"});
  for (uint32_t i = 0; i < kAttacks; ++i) {
    attacks.AddRow({kAttackNames[i], WithCommas(result.attacks[i])});
  }
  return absl::StrCat(
      phases.ToString(), "\n", attacks.ToString(), "\n", WithCommas(result.blocks_checked),
      " blocks checked in ", WithCommas(result.gets), " gets: ", result.wrong_blocks, " wrong, ",
      WithCommas(result.missed_blocks), " missed\n",
      absl::StrFormat("memory beside the arena: %.1f MiB before, %.1f MiB after, ratio %.3f\n",
                      static_cast<double>(result.memory_before) / (1 << 20),
                      static_cast<double>(result.memory_after) / (1 << 20), MemoryRatio(result)),
      "left over: ", result.left_sessions, " sessions, ", result.left_holds, " holds, ",
      result.left_leases, " leases, ", result.left_reservations, " reservations\n");
}

std::string HostileJson(const HostileResult& result) {
  nlohmann::json json;
  json["phases"] = nlohmann::json::array();
  for (const HostilePhase& phase : result.phases) {
    json["phases"].push_back(
        {{"name", phase.name},
         {"lookup_us", {{"p50", NumberOrNull(phase.p50_us)}, {"p99", NumberOrNull(phase.p99_us)}}},
         {"ratio_p99", NumberOrNull(phase.ratio_p99)},
         {"samples", phase.samples},
         {"failed_calls", phase.failed_calls}});
  }
  for (uint32_t i = 0; i < kAttacks; ++i) json["attacks"][kAttackNames[i]] = result.attacks[i];
  json["gets"] = result.gets;
  json["blocks_checked"] = result.blocks_checked;
  json["wrong_blocks"] = result.wrong_blocks;
  json["missed_blocks"] = result.missed_blocks;
  json["memory"] = {{"before", result.memory_before},
                    {"after", result.memory_after},
                    {"ratio", NumberOrNull(MemoryRatio(result))}};
  json["left_over"] = {{"sessions", result.left_sessions},
                       {"holds", result.left_holds},
                       {"leases", result.left_leases},
                       {"reservations", result.left_reservations}};
  json["newcomer"] = result.newcomer;
  json["missed_bars"] = MissedHostileBars(result);
  return json.dump(2);
}

void AddHostileCommand(CLI::App& app) {
  auto options = std::make_shared<HostileOptions>();
  auto seconds = std::make_shared<double>(absl::ToDoubleSeconds(options->time));
  auto json = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand(
      "hostile", "Measures what well-behaved clients feel while others abuse the daemon");
  command->add_option("--seconds", *seconds, "Of all phases together")
      ->check(CLI::Range(4.0, 3600.0).description(""))
      ->capture_default_str();
  command->add_option(
      "--daemon", options->daemon,
      "unix:PATH of a running daemon; default: one of our own, with 256 descriptors");
  std::vector<std::string> names;
  for (const PhaseSpec& spec : PhaseSpecs()) names.push_back(spec.name);
  command
      ->add_option("--only", options->only, "Phases beside the quiet ones, by commas; default: all")
      ->delimiter(',')
      ->check(CLI::IsMember(names).description(""));
  command->add_flag("--json", *json, "Prints JSON");
  command->callback([options, seconds, json] {
    options->time = absl::Seconds(*seconds);
    const absl::StatusOr<HostileResult> result = RunHostile(*options);
    FinishCommand(result.status());
    std::cout << (*json ? HostileJson(*result) + "\n" : HostileTable(*result)) << std::flush;
    const std::vector<std::string> missed = MissedHostileBars(*result);
    if (!missed.empty()) FinishCommand(absl::InternalError(absl::StrJoin(missed, "; ")));
  });
}

void AddHostilePeerCommand(CLI::App& app) {
  auto kind = std::make_shared<std::string>();
  auto endpoint = std::make_shared<std::string>();
  auto board = std::make_shared<std::string>();
  auto index = std::make_shared<uint32_t>(0);
  CLI::App* command = app.add_subcommand("hostile-peer", "What hostile starts")->group("");
  command->add_option("kind", *kind)->required();
  command->add_option("endpoint", *endpoint)->required();
  command->add_option("board", *board)->required();
  command->add_option("index", *index)->check(CLI::Range(0u, kHostileClients - 1));
  command->callback(
      [kind, endpoint, board, index] { FinishCommand(BePeer(*kind, *endpoint, *board, *index)); });
}

}  // namespace kvd
