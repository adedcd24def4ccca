#include "client/kvctl/verbs.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/kvctl/table.h"
#include "client/kvctl/units.h"
#include "proto/types/nearest.h"
#include "proto/types/view.h"

namespace kvd::kvctl {
namespace {

constexpr char kPurpose[] = "kvctl: look at a kvd, and tell it what to do";
constexpr char kExitCodes[] =
    "Exit status\n"
    "  0 done   1 error   2 usage   3 the daemon or the machine has a problem\n"
    "  4 no daemon answers   5 what was named is not there\n\n"
    "Examples\n"
    "  kvctl status\n"
    "  kvctl --endpoint unix:/run/kvd/kvd.sock top\n"
    "  kvctl sessions -o json | jq '.sessions[].pid'\n"
    "  kvctl VERB --help\n";

// So that `kvctl status --help` also tells of -o.
constexpr char kCommon[] =
    "Options of every verb: --endpoint, -o table|json|yaml, --watch[=SECONDS], --timeout, --yes,\n"
    "--color; see `kvctl --help`\n";

std::string Indented(const std::string& lines) {
  std::string text = "  ";
  for (const char c : lines) {
    text += c;
    if (c == '\n') text += "  ";
  }
  return text;
}

}  // namespace

CommandLine::CommandLine(Environment& environment) : environment_(environment), app_(kPurpose) {
  options_.endpoint = environment.default_endpoint;
  app_.name("kvctl");
  app_.footer(kExitCodes);
  app_.require_subcommand(1);
  app_.set_help_flag("-h,--help", "Print this help and exit");
  app_.add_option("--endpoint", options_.endpoint, "The daemon's --listen; also KVD_ENDPOINT")
      ->type_name("unix:PATH")
      ->capture_default_str();
  app_.add_option("-o,--output", output_, "A table for people, json or yaml for programs")
      ->check(CLI::IsMember({"table", "json", "yaml"}))
      ->capture_default_str();
  app_.add_flag("--watch{2}", watch_, "Again and again, every 2 seconds or --watch=SECONDS");
  app_.add_option("--timeout", timeout_, "How long one call to the daemon may take (default 10s)")
      ->type_name("TIME");
  app_.add_flag("-y,--yes", options_.yes, "Do not ask before evict, flush, drop and drain");
  app_.add_option("--color", color_, "Colours: on a terminal unless NO_COLOR is set, or as said")
      ->check(CLI::IsMember({"auto", "always", "never"}))
      ->capture_default_str();
}

CLI::App* CommandLine::Add(CLI::App& parent, const std::string& name,
                           const std::string& description, const std::string& examples,
                           Repeat repeat, Verb does) {
  CLI::App* verb = parent.add_subcommand(name, description);
  verb->fallthrough();
  verb->footer(absl::StrCat("Examples\n", Indented(examples), "\n\n", kCommon));
  if (does != nullptr) {
    verb->callback([this, verb, repeat, does = std::move(does)] {
      if (!verb->get_subcommands().empty()) return;  // One below it is meant.
      chosen_ = does;
      repeat_ = repeat;
    });
  }
  return verb;
}

ExitCode CommandLine::Fail(const absl::Status& status) {
  const ExitCode code = ExitCodeOf(status);
  environment_.err << "kvctl: ";
  if (code == kUnreachable) environment_.err << options_.endpoint << ": ";
  environment_.err << Printable({status.message().data(), status.message().size()}) << "\n";
  return code;
}

// What is said about the first word that the verb does not know; empty: CLI11 says it better.
std::string CommandLine::WhatIsUnknown() const {
  const std::vector<std::string> unknown = app_.remaining(/*recurse=*/true);
  if (unknown.empty()) return "";
  const std::string& word = unknown.front();
  const CLI::App* verb = &app_;
  while (!verb->get_subcommands().empty()) verb = verb->get_subcommands().front();
  const bool option = word.starts_with("-");
  std::vector<std::string> names;
  if (option) {
    for (const CLI::App* of : {verb, &app_}) {
      for (const CLI::Option* known : of->get_options()) {
        for (const std::string& name : known->get_lnames()) names.push_back("--" + name);
      }
    }
  } else {
    for (const CLI::App* known : verb->get_subcommands(nullptr)) names.push_back(known->get_name());
  }
  if (names.empty()) return "";  // A verb that takes no more words.
  const std::vector<std::string_view> views(names.begin(), names.end());
  const std::string_view near = Nearest(word.substr(0, word.find('=')), views);
  return absl::StrCat(
      Printable(word), ": no such ", option ? "option" : "verb", "; ",
      near.empty() ? "see kvctl --help" : absl::StrCat("the nearest is ", View(near)));
}

ExitCode CommandLine::Run(std::vector<std::string> arguments) {
  try {
    std::reverse(arguments.begin(), arguments.end());  // As CLI11 wants them.
    app_.parse(std::move(arguments));
  } catch (const CLI::ParseError& error) {
    if (const std::string what = WhatIsUnknown(); error.get_exit_code() != 0 && !what.empty()) {
      environment_.err << "kvctl: " << what << "\n";
      return kUsage;
    }
    return app_.exit(error, environment_.out, environment_.err) == 0 ? kOk : kUsage;
  }
  options_.format = output_ == "json"   ? Format::kJson
                    : output_ == "yaml" ? Format::kYaml
                                        : Format::kTable;
  options_.color = color_ == "always" ||
                   (color_ == "auto" && environment_.out_is_terminal && !environment_.no_color);
  if (!timeout_.empty()) {
    const absl::StatusOr<absl::Duration> timeout = ParseTime(timeout_);
    if (!timeout.ok()) return Fail(timeout.status());
    options_.timeout = *timeout;
  }
  if (!watch_.empty()) {
    if (repeat_ == Repeat::kNo) {
      return Fail(absl::InvalidArgumentError("--watch: this verb is done once"));
    }
    const bool seconds = watch_.find_first_not_of("0123456789.") == std::string::npos;
    const absl::StatusOr<absl::Duration> every = ParseTime(seconds ? watch_ + "s" : watch_);
    if (!every.ok()) return Fail(every.status());
    options_.watch = std::max(*every, absl::Milliseconds(100));
  }
  if (absl::StatusOr<std::string> path = PathOf(options_.endpoint); !path.ok()) {
    return Fail(path.status());
  }
  Connection daemon(options_.endpoint, options_.timeout);
  Call call{options_, environment_, daemon};
  if (!options_.watch.has_value()) return Once(call);
  ExitCode code = kOk;
  do {
    // A terminal shows the newest answer alone; anything else gets all of them, one after another.
    if (environment_.out_is_terminal) environment_.out << "\x1b[H\x1b[2J";
    code = Once(call);
    environment_.out << std::flush;
  } while (code != kUsage && environment_.pause(*options_.watch));
  return code;
}

ExitCode CommandLine::Once(Call& call) {
  const absl::StatusOr<ExitCode> done = chosen_(call);
  return done.ok() ? *done : Fail(done.status());
}

ExitCode RunKvctl(Environment& environment, std::vector<std::string> arguments) {
  CommandLine line(environment);
  AddStatusVerbs(line);
  AddTop(line);
  AddBlockVerbs(line);
  AddTenantVerbs(line);
  AddLifeVerbs(line);
  AddDoctor(line);
  AddCompletion(line);
  return line.Run(std::move(arguments));
}

}  // namespace kvd::kvctl
