#include "daemon/config.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "daemon/config_file.h"
#include "daemon/option_docs.h"
#include "daemon/options.h"
#include "daemon/tls.h"
#include "proto/types/endpoint.h"
#include "proto/types/kill_point.h"
#include "proto/types/nearest.h"
#include "proto/types/view.h"

namespace kvd {
namespace {

constexpr const char* kEnvironment = "KVD_ENDPOINT";

// Returns what is wrong.
std::string ReadFile(const std::string& path, std::string* text) {
  constexpr size_t kMaxBytes = 4u << 20;
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "re"),
                                                             std::fclose);
  if (file == nullptr) return absl::StrCat("cannot be read: ", std::strerror(errno));
  text->resize(kMaxBytes + 1);
  text->resize(std::fread(text->data(), 1, text->size(), file.get()));
  if (std::ferror(file.get()) != 0) return absl::StrCat("cannot be read: ", std::strerror(errno));
  if (text->size() > kMaxBytes) return "is larger than 4 MiB, so it is no configuration";
  return "";
}

// Collects values and what is wrong with them; knows for each option who said it.
class Loader {
 public:
  Loader(const std::string& file, const MemoryLimit& memory) : memory_(memory) {
    config_.listen = DefaultEndpoint();
    config_.config_file = file;
    if (std::getenv(kEnvironment) != nullptr) {
      config_.sources["listen"] = "environment";
      said_by_["listen"] = {.what = kEnvironment};
    }
  }

  void TakeFile() {
    const std::string& path = config_.config_file;
    std::string text;
    if (const std::string wrong = ReadFile(path, &text); !wrong.empty()) {
      problems_.push_back({.what = absl::StrCat(path, ": ", wrong)});
      return;
    }
    ConfigFile file = ParseConfigFile(text);
    for (const FileProblem& problem : file.problems) {
      problems_.push_back(
          {.at = problem.at, .what = absl::StrCat(Place(problem.at), ": ", problem.what)});
    }
    for (const FileSetting& setting : file.settings) {
      const std::string name(setting.option->name);
      said_by_[name] = {.at = setting.at, .what = absl::StrCat(Place(setting.at), ": ", name)};
      config_.sources[name] = "file";
      const std::string wrong = setting.option->set(setting.text, memory_, config_);
      if (!wrong.empty()) Complain(name, wrong);
    }
    if (!file.nvme.empty()) {
      config_.sources["tiers.nvme"] = "file";
      said_by_["tiers.nvme"] = {.at = file.nvme_at,
                                .what = absl::StrCat(Place(file.nvme_at), ": tiers.nvme")};
      config_.nvme = std::move(file.nvme);
    }
    if (!file.domains.empty()) config_.sources["domain"] = "file";
    config_.domains.domains = std::move(file.domains);
  }

  void TakeFlags(const std::map<std::string, std::string>& flags) {
    config_.flags = flags;
    for (const auto& [name, text] : flags) {
      const Option* option = FindOption(name);
      said_by_[name] = {.what = std::string(option->flag)};
      config_.sources[name] = "flag";
      const std::string wrong = option->set(text, memory_, config_);
      if (!wrong.empty()) Complain(name, wrong);
    }
  }

  // What no single option can tell. An option whose own value is wrong is not asked again.
  LoadedConfig Finish() {
    if (said_by_.count("listen") == 0 || said_by_["listen"].what == kEnvironment) {
      // The only value that nobody has checked.
      const std::string wrong = FindOption("listen")->set(config_.listen, memory_, config_);
      if (!wrong.empty()) Complain("listen", wrong);
    }
    if (!config_.metrics.empty() && !config_.metrics_beyond_loopback &&
        !ParseHostPort(config_.metrics).loopback) {
      Complain("metrics.listen",
               absl::StrCat("others can reach ", config_.metrics,
                            ", and it has no password; set metrics.beyond_loopback if that is "
                            "meant, or listen at 127.0.0.1"));
    }
    CheckEvents();
    CheckTls();
    CheckData();
    if (config_.max_blocks == 0) {
      uint64_t blocks = config_.dram_bytes / (32u << 10);
      for (const NvmeConfig& device : config_.nvme) blocks += device.capacity_bytes / (256u << 10);
      config_.max_blocks = static_cast<uint32_t>(std::clamp<uint64_t>(blocks, 65536, 1u << 29));
    }
    if (config_.copiers == 0) {
      config_.copiers = std::clamp(std::thread::hardware_concurrency() / 8, 1u, 64u);
    }
    std::stable_sort(problems_.begin(), problems_.end(),
                     [](const auto& a, const auto& b) { return Rank(a.at) < Rank(b.at); });
    LoadedConfig loaded{.config = std::move(config_)};
    for (FileProblem& problem : problems_) loaded.problems.push_back(std::move(problem.what));
    return loaded;
  }

 private:
  // In the order of the file; what is in none comes last.
  static std::pair<uint32_t, uint32_t> Rank(FilePlace at) {
    return {at.line == 0 ? UINT32_MAX : at.line, at.column};
  }

  std::string Place(FilePlace at) const {
    return absl::StrCat(config_.config_file, ":", at.line, ":", at.column);
  }

  void Complain(const std::string& name, const std::string& what) {
    const auto it = said_by_.find(name);
    const FileProblem by = it == said_by_.end() ? FileProblem{.what = name} : it->second;
    problems_.push_back({.at = by.at, .what = absl::StrCat(by.what, ": ", what)});
  }

  void CheckEvents() {
    if (!config_.events_replay.empty() && config_.events.empty()) {
      Complain("events.replay", "is of no use without events.listen");
    }
    if (!config_.events.empty() && config_.events == config_.events_replay &&
        !absl::EndsWith(config_.events, ":0")) {
      Complain("events.replay", "must not be the same as events.listen");
    }
    for (const auto& [name, endpoint] :
         {std::pair<const char*, const std::string&>{"events.listen", config_.events},
          {"events.replay", config_.events_replay}}) {
      const HostPort parsed = ParseZmqEndpoint(endpoint);
      if (!parsed.ok || parsed.loopback || config_.events_beyond_loopback) continue;
      Complain(name, absl::StrCat("others can reach ", endpoint,
                                  ", and it has no password; set events.beyond_loopback if that is "
                                  "meant, or listen at tcp://127.0.0.1"));
    }
  }

  void CheckTls() {
    const std::string& certificate = config_.tls_certificate;
    const std::string& key = config_.tls_key;
    if (!config_.tcp.empty()) {
      std::string missing;
      for (const auto& [path, name] :
           {std::pair<std::string_view, const char*>{certificate, "tcp.certificate"},
            {key, "tcp.key"},
            {config_.tls_client_ca, "tcp.client_ca"}}) {
        if (path.empty()) absl::StrAppend(&missing, missing.empty() ? "" : ", ", name);
      }
      if (!missing.empty()) {
        Complain("tcp.listen",
                 absl::StrCat("refused without TLS on both sides: ", missing, " must be set too"));
      }
    } else if (certificate.empty() != key.empty()) {
      Complain(certificate.empty() ? "tcp.key" : "tcp.certificate",
               absl::StrCat("is of no use without ",
                            certificate.empty() ? "tcp.certificate" : "tcp.key"));
    }
    const auto check = [this](const char* name, const std::string& path, const std::string& wrong) {
      if (!path.empty() && !wrong.empty()) Complain(name, wrong);
    };
    check("tcp.certificate", certificate, CheckCertificate(certificate));
    if (!certificate.empty()) check("tcp.key", key, CheckKey(key, certificate));
    check("tcp.client_ca", config_.tls_client_ca, CheckAuthorities(config_.tls_client_ca));
  }

  void CheckData() {
    const std::vector<NvmeConfig>& nvme = config_.nvme;
    if (config_.data.empty() && !nvme.empty()) {
      Complain("tiers.nvme", "data must be set too: its index lies there");
    }
    for (size_t i = 0; i < nvme.size(); ++i) {
      for (size_t j = 0; j < i; ++j) {
        if (nvme[i].path.empty() || nvme[i].path != nvme[j].path) continue;
        Complain("tiers.nvme", absl::StrCat(nvme[i].path, " is there twice"));
      }
    }
  }

  const MemoryLimit& memory_;
  Config config_;
  // By name: who gave the value, and what messages about it begin with.
  std::map<std::string, FileProblem> said_by_;
  std::vector<FileProblem> problems_;
};

struct CommandLine {
  std::map<std::string, std::string> flags;  // By the options' names.
  std::string file;
  bool check = false;
  bool print = false;
  std::string kill_at;       // NAME[:N] of a kill point; empty: none.
  bool kill_points = false;  // Name them all, and end.
};

// The nearest option, for one that is not known.
std::string UnknownFlag(const CLI::App& app, const std::string& given) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) names.push_back(option->get_name());
  const std::vector<std::string_view> known(names.begin(), names.end());
  const std::string_view near = Nearest(given.substr(0, given.find('=')), known);
  if (given.rfind("--", 0) != 0) return given + ": not expected here; all arguments are options";
  return absl::StrCat(
      given, ": no such option; ",
      near.empty() ? "see kvd --help" : absl::StrCat("the nearest is ", View(near)));
}

std::variant<CommandLine, int> ReadCommandLine(int argc, char** argv) {
  CommandLine line;
  std::string checked;
  CLI::App app("kvd: the KV-cache storage daemon of one node");
  app.set_version_flag("--version", "kvd " KVD_VERSION);
  app.add_option("--config", line.file,
                 "File to read options from; flags win over it. SIGHUP reads it again")
      ->type_name("FILE");
  app.add_option("--check-config", checked,
                 "Say what is wrong with a file and end: 0 nothing, 2 something")
      ->type_name("FILE");
  app.add_flag("--print-config", line.print,
               "Print the configuration in force, as a file, and end");
  for (const Option& option : Options()) {
    const std::string flag(option.flag);
    std::string help(option.help);
    if (option.kind == OptionKind::kSwitch) {
      if (option.value == "false") help = absl::StrCat("Turns off: ", help);
      app.add_flag_callback(
          flag, [&line, &option] { line.flags[std::string(option.name)] = option.value; }, help);
      continue;
    }
    absl::StrAppend(&help, " [", View(option.fallback.empty() ? option.otherwise : option.fallback),
                    "]");
    app.add_option_function<std::string>(
           flag,
           [&line, &option](const std::string& text) {
             std::string& said = line.flags[std::string(option.name)];
             const bool more = option.kind == OptionKind::kDevices && !said.empty();
             said = more ? absl::StrCat(said, ",", text) : text;
           },
           help)
        ->type_name(std::string(option.value))
        ->trigger_on_parse(option.kind == OptionKind::kDevices);
  }
  // For kvd-bench crash; of no use to an operator, so no help names them.
  app.add_option("--kill-at", line.kill_at)->group("");
  app.add_flag("--kill-points", line.kill_points)->group("");
  app.allow_extras();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (const std::vector<std::string> extras = app.remaining(); !extras.empty()) {
    for (const std::string& extra : extras) {
      std::fprintf(stderr, "%s\n", UnknownFlag(app, extra).c_str());
    }
    return 2;
  }
  line.check = !checked.empty();
  if (line.check) line.file = checked;
  return line;
}

}  // namespace

std::vector<ConfigEntry> ConfigEntries(const Config& config) {
  const auto source = [&](const std::string& name) {
    const auto it = config.sources.find(name);
    return it == config.sources.end() ? std::string("default") : it->second;
  };
  std::vector<ConfigEntry> entries;
  for (const Option& option : Options()) {
    const std::string name(option.name);
    entries.push_back(
        {.name = name, .value = option.get(config), .source = source(name), .live = option.live});
  }
  ConfigEntry domains{.name = "domain", .source = source("domain"), .live = true};
  for (const DomainRule& rule : config.domains.domains) {
    absl::StrAppend(&domains.value, domains.value.empty() ? "" : ", ", rule.name);
  }
  entries.push_back(std::move(domains));
  return entries;
}

std::string DescribeConfig(const Config& config) {
  std::string line = absl::StrCat("file=", config.config_file);
  for (const ConfigEntry& entry : ConfigEntries(config)) {
    if (!entry.value.empty()) absl::StrAppend(&line, " ", entry.name, "=", TomlString(entry.value));
  }
  return line;
}

LoadedConfig LoadConfig(const std::string& file, const std::map<std::string, std::string>& flags,
                        const MemoryLimit& memory) {
  Loader loader(file, memory);
  if (!file.empty()) loader.TakeFile();
  loader.TakeFlags(flags);
  return loader.Finish();
}

std::variant<Config, int> ReadConfig(int argc, char** argv) {
  const std::variant<CommandLine, int> read = ReadCommandLine(argc, argv);
  if (const int* status = std::get_if<int>(&read)) return *status;
  const CommandLine& line = std::get<CommandLine>(read);
  if (line.kill_points) {
    for (const std::string_view point : kKillPoints)
      std::printf("%s\n", std::string(point).c_str());
    return 0;
  }
  if (!line.kill_at.empty()) {
    if (const absl::Status armed = ArmKillPoint(line.kill_at); !armed.ok()) {
      std::fprintf(stderr, "--kill-at: %s\n", std::string(armed.message()).c_str());
      return 2;
    }
  }
  LoadedConfig loaded = LoadConfig(line.file, line.flags, FindMemoryLimit());
  for (const std::string& problem : loaded.problems) std::fprintf(stderr, "%s\n", problem.c_str());
  if (!loaded.problems.empty()) return 2;
  if (line.check) std::printf("%s: nothing is wrong\n", line.file.c_str());
  if (line.print) std::fputs(PrintConfig(loaded.config).c_str(), stdout);
  if (line.check || line.print) return 0;
  return std::move(loaded.config);
}

}  // namespace kvd
