#include "bench/mutate.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <system_error>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "bench/child_process.h"
#include "bench/commands.h"
#include "bench/crash_account.h"
#include "bench/crash_client.h"
#include "bench/crash_daemon.h"
#include "bench/damage_list.h"
#include "bench/stored_copies.h"
#include "nlohmann/json.hpp"
#include "proto/types/checksum.h"

namespace kvd {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kSector = 512;
constexpr uint64_t kPage = 4096;

absl::Span<const std::byte> AsBytes(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

// Of what was changed in one go.
struct Touched {
  std::string file;
  ByteRange range;
};

bool Overlap(const Touched& touched, const std::string& file, const ByteRange& range) {
  return touched.file == file && touched.range.offset < range.offset + range.bytes &&
         range.offset < touched.range.offset + touched.range.bytes;
}

// A daemon with its files, life after life.
class World {
 public:
  World(const MutateOptions& options, const std::string& folder, bool nvme, MutateResult& result)
      : nvme_(nvme),
        result_(result),
        random_(options.seed + (nvme ? 1 : 0)),
        account_(options.seed),
        daemon_({.program = options.program,
                 .folder = folder,
                 .dram_bytes = nvme ? 8u << 20 : 24u << 20,
                 .nvme_bytes = nvme ? kNvmeBytes : 0}) {
    for (uint32_t i = 0; i < (nvme ? 72u : 40u); ++i) {
      account_.NewChain(i % 2 == 0 ? CrashNamespace::kPlain : CrashNamespace::kSharded, 0);
    }
  }
  ~World() {
    if (daemon_.running()) daemon_.Kill();
    daemon_.RemoveAll();
    result_.blocks_verified += account_.blocks_verified;
    result_.wrong_blocks += account_.wrong_blocks;
  }

  absl::Status Start() {
    ++result_.starts;
    if (absl::Status started = daemon_.Start(); !started.ok()) return started;
    session_.emplace(account_, daemon_.endpoint());
    return absl::OkStatus();
  }

  // One start's worth of mutations. Requires: it runs.
  absl::Status Round(uint64_t mutations) {
    Fill();
    session_.reset();  // The daemon would wait for an idle connection to end, for some time.
    if (absl::Status stopped = daemon_.Stop(); !stopped.ok()) return stopped;
    absl::StatusOr<std::vector<StoredCopy>> copies = FindCopies();
    if (!copies.ok()) return copies.status();
    const std::vector<uint32_t> before = SumsOf(*copies);
    std::vector<std::vector<Touched>> touched;
    // What is beside the parts takes all of them with it: not every time.
    beside_ = Dice(4) == 0;
    for (uint64_t i = 0; i < mutations; ++i) touched.push_back(MutateOnce(*copies));
    const std::vector<uint32_t> after = SumsOf(*copies);
    if (nvme_) daemon_.RemoveArena();

    const absl::Status started = Start();
    if (!started.ok()) {
      ++result_.crashes;
      Fail(started);
      daemon_.RemoveAll();
      return Start();
    }
    DamageList damage(daemon_.endpoint());
    const std::set<BlockOf> missed = Meet(damage);
    result_.mutations += mutations;
    Count(*copies, before, after, touched, missed, damage.found(), DroppedByRecovery());
    if (daemon_.WaitForExit(absl::ZeroDuration())) {
      ++result_.crashes;
      Fail(absl::InternalError("the daemon ended while it was read"));
      daemon_.Kill();
      return Start();
    }
    return absl::OkStatus();
  }

 private:
  using BlockOf = std::pair<CrashChain*, uint32_t>;  // Of a chain, by its number there.

  static constexpr uint64_t kNvmeBytes = 96u << 20;
  static constexpr absl::Duration kPatience = absl::Seconds(20);  // With one block.

  uint64_t Dice(uint64_t sides) { return random_() % sides; }

  void Fail(const absl::Status& status) {
    if (result_.first_failure.empty()) result_.first_failure = std::string(status.message());
  }

  // Everything is there, as far as there is room.
  void Fill() {
    for (size_t i = 0; i < account_.chains(); ++i) {
      CrashChain& chain = account_.chain(i);
      const int there = session_->Get(chain, kCrashChainBlocks, "get before damage");
      for (uint32_t at = there < 0 ? 0 : static_cast<uint32_t>(there); at < kCrashChainBlocks;
           at += 8) {
        session_->Put(chain, at, std::min(8u, kCrashChainBlocks - at));
      }
    }
    session_->client().Flush().IgnoreError();
  }

  absl::StatusOr<std::vector<StoredCopy>> FindCopies() {
    return nvme_ ? CopiesOnNvme(daemon_.nvme_path(), kNvmeBytes, daemon_.data_folder() + "/index",
                                account_)
                 : CopiesInArena(daemon_.arena_folder(), account_);
  }

  // Of header and payload of each copy.
  std::vector<uint32_t> SumsOf(const std::vector<StoredCopy>& copies) {
    std::vector<uint32_t> sums;
    for (const StoredCopy& copy : copies) {
      const absl::StatusOr<std::string> header = ReadBytes(copy.header_file, copy.header);
      const absl::StatusOr<std::string> payload = ReadBytes(copy.payload_file, copy.payload);
      uint32_t sum = 0;
      if (header.ok()) sum = Crc32cExtend(sum, AsBytes(*header));
      if (payload.ok()) sum = Crc32cExtend(sum, AsBytes(*payload));
      sums.push_back(sum);
    }
    return sums;
  }

  // --- what is done to the files ----------------------------------------------------------------

  std::vector<Touched> MutateOnce(const std::vector<StoredCopy>& copies) {
    const uint64_t dice = Dice(16);
    if (copies.empty() || (dice == 0 && beside_)) return MutateBeside();
    const StoredCopy& copy = copies[Dice(copies.size())];
    const bool header = Dice(3) == 0;
    const Touched target{header ? copy.header_file : copy.payload_file,
                         header ? copy.header : copy.payload};
    if (dice <= 3) {
      const StoredCopy& other = copies[Dice(copies.size())];
      return SwapRanges(target, {header ? other.header_file : other.payload_file,
                                 header ? other.header : other.payload});
    }
    if (dice == 4) {
      // Whole parts change places, with all that says whose they are.
      const StoredCopy& other = copies[Dice(copies.size())];
      std::vector<Touched> both =
          SwapRanges({copy.header_file, copy.header}, {other.header_file, other.header});
      for (Touched& touched :
           SwapRanges({copy.payload_file, copy.payload}, {other.payload_file, other.payload})) {
        both.push_back(std::move(touched));
      }
      return both;
    }
    const uint64_t at = Dice(target.range.bytes);
    if (dice <= 11) return {Flip(target.file, target.range.offset + at)};
    if (dice == 12) return {Zero(target.file, target.range)};
    const uint64_t unit = Dice(2) == 0 ? kSector : kPage;
    return {Zero(target.file, {(target.range.offset + at) / unit * unit, unit})};
  }

  // What is no stored part: the index, superblocks, footers, rows of regions, ends of files.
  std::vector<Touched> MutateBeside() {
    const std::vector<std::string> files = FilesBeside();
    if (files.empty()) return {};
    const std::string& file = files[Dice(files.size())];
    std::error_code error;
    const uint64_t size = fs::file_size(file, error);
    if (error || size == 0) return {};
    const bool of_index = file.find("/index/") != std::string::npos;
    // One superblock of the two; whoever damages both has damaged the device.
    const uint64_t least = file == daemon_.nvme_path() ? uint64_t{4} << 20 : 0;
    const uint64_t at = least + Dice(size - least);
    switch (Dice(4)) {
      case 0:
        return {Zero(file, {at, std::min(kPage, size - at)})};
      case 1:
        return {Cut(file, of_index ? at : std::max(at, size - size / 64), !of_index)};
      default:
        return {Flip(file, at)};
    }
  }

  std::vector<std::string> FilesBeside() {
    std::vector<std::string> files;
    std::error_code error;
    if (nvme_) files.push_back(daemon_.nvme_path());
    for (const std::string& folder :
         {nvme_ ? daemon_.data_folder() + "/index" : daemon_.arena_folder()}) {
      for (const auto& entry : fs::directory_iterator(folder, error)) {
        if (entry.is_regular_file(error)) files.push_back(entry.path());
      }
    }
    std::sort(files.begin(), files.end());  // The order of a folder is nobody's seed.
    return files;
  }

  Touched Flip(const std::string& file, uint64_t offset) {
    absl::StatusOr<std::string> byte = ReadBytes(file, {offset, 1});
    if (!byte.ok() || byte->empty()) return {file, {offset, 0}};
    (*byte)[0] = static_cast<char>((*byte)[0] ^ (1 << Dice(8)));
    return Put(file, offset, *byte);
  }
  Touched Zero(const std::string& file, ByteRange range) {
    return Put(file, range.offset, std::string(range.bytes, '\0'));
  }
  std::vector<Touched> SwapRanges(const Touched& a, const Touched& b) {
    const uint64_t bytes = std::min(a.range.bytes, b.range.bytes);
    const absl::StatusOr<std::string> from_a = ReadBytes(a.file, {a.range.offset, bytes});
    const absl::StatusOr<std::string> from_b = ReadBytes(b.file, {b.range.offset, bytes});
    if (!from_a.ok() || !from_b.ok()) return {};
    return {Put(a.file, a.range.offset, *from_b), Put(b.file, b.range.offset, *from_a)};
  }
  // The file ends at `size`; where `regrown`, what was cut off is there again, as zeros.
  Touched Cut(const std::string& file, uint64_t size, bool regrown) {
    std::error_code error;
    const uint64_t before = fs::file_size(file, error);
    fs::resize_file(file, size, error);
    if (regrown) fs::resize_file(file, before, error);
    return {file, {size, before - size}};
  }
  Touched Put(const std::string& file, uint64_t offset, const std::string& bytes) {
    if (absl::Status wrote = WriteBytes(file, offset, bytes); !wrote.ok()) Fail(wrote);
    return {file, {offset, bytes.size()}};
  }

  // --- what the daemon makes of it ---------------------------------------------------------------

  // Reads everything, and then lets the daemon check all that it has: a copy in the tier that does
  // not serve its block is met by nobody else. Returns what the daemon did not have.
  std::set<BlockOf> Meet(DamageList& damage) {
    std::set<BlockOf> missed;
    for (size_t i = 0; i < account_.chains(); ++i) {
      MeetChain(account_.chain(i), missed);
      if (absl::Status read = damage.Read(); !read.ok()) Fail(read);
    }
    session_->client().Flush().IgnoreError();
    for (const bool again : {false, true}) {
      const absl::StatusOr<uint64_t> met = damage.VerifyAll();
      if (!met.ok()) Fail(met.status());
      if (again && met.ok() && *met > 0) {
        Fail(absl::DataLossError(absl::StrCat(*met, " damaged parts were met by a second check")));
      }
    }
    return missed;
  }

  // What is missing is stored anew, so that what lies below is met as well.
  void MeetChain(CrashChain& chain, std::set<BlockOf>& missed) {
    int last = -1;
    for (absl::Time progress = absl::Now(); absl::Now() < progress + kPatience;) {
      const int there = session_->Get(chain, kCrashChainBlocks, "get after damage");
      if (there == static_cast<int>(kCrashChainBlocks)) return;
      if (there != last) progress = absl::Now();
      last = there;
      session_->client().Flush().IgnoreError();  // With the report of what did not verify.
      // It may have more than came: for want of time, or as it has yet to see what we reported.
      if (there < 0 || session_->found() > static_cast<uint32_t>(there)) continue;
      const auto block = static_cast<uint32_t>(there);
      missed.insert({&chain, block});
      session_->Put(chain, block, 1);
    }
    Fail(absl::UnavailableError(absl::StrCat("block ", last, " of a chain cannot be read")));
  }

  // Records that the last start met, counted and left where they are, as it says in its log:
  // damaged ones of which it found another copy, an older one that had been given up.
  uint64_t DroppedByRecovery() const {
    std::ifstream log(daemon_.data_folder() + "/../kvd.log");
    uint64_t dropped = 0;
    for (std::string line; std::getline(log, line);) {
      if (line.find(" nvme.recovered ") == std::string::npos) continue;
      dropped = 0;
      for (const char* name : {" damaged_records=", " rows_without_data="}) {
        const size_t at = line.find(name);
        if (at != std::string::npos)
          dropped += std::strtoull(&line[at + strlen(name)], nullptr, 10);
      }
    }
    return dropped;
  }

  void Count(const std::vector<StoredCopy>& copies, const std::vector<uint32_t>& before,
             const std::vector<uint32_t>& after, const std::vector<std::vector<Touched>>& touched,
             const std::set<BlockOf>& missed, const std::set<DamageList::Entry>& found,
             uint64_t dropped) {
    std::set<BlockOf> damaged;
    std::set<BlockOf> stored;
    std::set<size_t> unmet;  // Copies that the start left where they are, if it counted so many.
    for (size_t i = 0; i < copies.size(); ++i) {
      const StoredCopy& copy = copies[i];
      stored.insert({copy.chain, copy.block});
      if (before[i] == after[i]) continue;
      damaged.insert({copy.chain, copy.block});
      const bool met = missed.contains({copy.chain, copy.block}) ||
                       found.contains({.key = std::string(copy.chain->key(copy.block)),
                                       .shard = copy.part,
                                       .on_nvme = nvme_});
      if (!met) unmet.insert(i);
    }
    if (unmet.size() <= dropped) unmet.clear();
    for (const std::vector<Touched>& mutation : touched) {
      bool damaging = false;
      bool noticed = true;
      for (size_t i = 0; i < copies.size(); ++i) {
        const StoredCopy& copy = copies[i];
        if (before[i] == after[i]) continue;
        if (std::none_of(mutation.begin(), mutation.end(), [&copy](const Touched& t) {
              return Overlap(t, copy.header_file, copy.header) ||
                     Overlap(t, copy.payload_file, copy.payload);
            })) {
          continue;
        }
        damaging = true;
        if (!unmet.contains(i)) continue;
        noticed = false;
        SayUnnoticed(copy, mutation);
      }
      result_.damaging += damaging;
      result_.detected += damaging && noticed;
    }
    for (const auto& block : missed) {
      result_.lost_beside += stored.contains(block) && !damaged.contains(block);
    }
  }

  void SayUnnoticed(const StoredCopy& copy, const std::vector<Touched>& mutation) {
    Fail(absl::DataLossError(absl::StrCat("nobody noticed a mutation of ", mutation[0].file, " at ",
                                          mutation[0].range.offset, ", ", mutation[0].range.bytes,
                                          " bytes: a part lies at ", copy.payload_file, " ",
                                          copy.payload.offset, ", ", copy.payload.bytes,
                                          " bytes, its header at ", copy.header.offset)));
  }

  const bool nvme_;
  bool beside_ = false;
  MutateResult& result_;
  std::mt19937_64 random_;
  CrashAccount account_;
  CrashDaemon daemon_;
  std::optional<CrashSession> session_;  // While the daemon runs.
};

absl::Status MutateWorld(const MutateOptions& options, bool nvme, uint64_t mutations,
                         MutateResult& result) {
  absl::StatusOr<std::unique_ptr<TemporaryFolder>> folder = TemporaryFolder::Create();
  if (!folder.ok()) return folder.status();
  World world(options, (*folder)->path(), nvme, result);
  if (absl::Status started = world.Start(); !started.ok()) return started;
  while (mutations > 0) {
    const uint64_t now = std::min(mutations, options.mutations_a_start);
    if (absl::Status status = world.Round(now); !status.ok()) return status;
    mutations -= now;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<MutateResult> RunMutate(const MutateOptions& options) {
  MutateResult result;
  const uint64_t on_nvme = options.with_nvme ? options.mutations / 2 : 0;
  absl::Status status = MutateWorld(options, false, options.mutations - on_nvme, result);
  if (status.ok() && on_nvme > 0) status = MutateWorld(options, true, on_nvme, result);
  if (!status.ok()) return status;
  return result;
}

std::string MutateJson(const MutateResult& result) {
  return nlohmann::json{{"mutations", result.mutations},
                        {"damaging", result.damaging},
                        {"detected", result.detected},
                        {"wrong_blocks", result.wrong_blocks},
                        {"crashes", result.crashes}}
      .dump(2);
}

absl::Status JudgeMutate(const MutateResult& result) {
  if (result.wrong_blocks == 0 && result.crashes == 0 && result.detected == result.damaging &&
      result.first_failure.empty()) {
    return absl::OkStatus();
  }
  return absl::DataLossError(absl::StrCat(result.wrong_blocks, " wrong blocks, ", result.crashes,
                                          " crashes, ", result.damaging - result.detected, " of ",
                                          result.damaging, " damaging mutations not noticed; ",
                                          result.first_failure));
}

void AddMutateCommand(CLI::App& app) {
  auto options = std::make_shared<MutateOptions>();
  auto json = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand(
      "mutate", "Damages what a stopped daemon has stored and checks that it notices");
  command->add_option("--mutations", options->mutations, "How many")->capture_default_str();
  command->add_option("--seed", options->seed, "Of what is damaged, and how")
      ->capture_default_str();
  command->add_option("--mutations-a-start", options->mutations_a_start, "That share a start")
      ->check(CLI::Range(1u, 100'000u).description(""))
      ->capture_default_str();
  command->add_option("--daemon", options->program, "kvd; default: the one beside this program");
  command->add_flag("!--no-nvme", options->with_nvme, "Only the arena of DRAM");
  command->add_flag("--json", *json, "Prints JSON");
  command->callback([options, json] {
    const absl::StatusOr<MutateResult> result = RunMutate(*options);
    FinishCommand(result.status());
    std::cout << MutateJson(*result) << std::endl;
    if (!*json) {
      std::cout << result->starts << " starts, " << result->blocks_verified << " blocks verified, "
                << result->lost_beside << " blocks lost beside the damaged ones\n";
    }
    FinishCommand(JudgeMutate(*result));
  });
}

}  // namespace kvd
