// The verbs of kvctl, by what they are about, and the command line they hang on.
//
// Each function adds its verbs to the command line: name, description, arguments, examples. What an
// argument is parsed into lives as long as the verb.

#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "client/kvctl/call.h"

namespace kvd::kvctl {

// Whether a verb can be done again and again (--watch), or is done once: what changes something, or
// goes on by itself.
enum class Repeat { kYes, kNo };

class CommandLine {
 public:
  // Knows the options of every verb; `environment` outlives this.
  explicit CommandLine(Environment& environment);
  CommandLine(const CommandLine&) = delete;

  // A verb below `parent`. `examples`: lines that can be typed. `does`: runs when it was chosen.
  CLI::App* Add(CLI::App& parent, const std::string& name, const std::string& description,
                const std::string& examples, Repeat repeat, Verb does);
  CLI::App& app() { return app_; }
  // Reads the arguments (without the program's name), does what they say, and says on the error
  // stream what went wrong.
  ExitCode Run(std::vector<std::string> arguments);

 private:
  ExitCode Once(Call& call);
  ExitCode Fail(const absl::Status& status);
  std::string WhatIsUnknown() const;

  Environment& environment_;
  CLI::App app_;
  Options options_;
  std::string output_ = "table";
  std::string color_ = "auto";
  std::string watch_;
  std::string timeout_;
  Verb chosen_;
  Repeat repeat_ = Repeat::kYes;
};

void AddStatusVerbs(CommandLine& line);  // status tiers version
void AddTop(CommandLine& line);          // top
void AddBlockVerbs(CommandLine& line);   // ls inspect pin unpin evict verify quarantine flush
void AddTenantVerbs(CommandLine& line);  // leases sessions namespaces
void AddLifeVerbs(CommandLine& line);    // drain undrain events config
void AddDoctor(CommandLine& line);       // doctor
void AddCompletion(CommandLine& line);   // completion

// All of them, on one command line.
ExitCode RunKvctl(Environment& environment, std::vector<std::string> arguments);

}  // namespace kvd::kvctl
