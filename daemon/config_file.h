// The configuration file: TOML into settings by name, each with its place in the file. What the
// values mean is for options.h; what they mean together for config.h.
//
// Threads: pure functions of the text (and of the system's accounts, for the names of users).

#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "daemon/domains.h"
#include "daemon/options.h"

namespace kvd {

struct FilePlace {
  uint32_t line = 0;  // From 1; 0: nowhere.
  uint32_t column = 0;
};

struct FileSetting {
  const Option* option = nullptr;
  std::string text;  // As Option::set takes it.
  FilePlace at;
};

struct FileProblem {
  FilePlace at;
  std::string what;  // Begins with the name of the field, where there is one.
};

struct ConfigFile {
  std::vector<FileSetting> settings;
  std::vector<DomainRule> domains;
  std::vector<NvmeConfig> nvme;
  FilePlace nvme_at;                  // Of the first.
  std::vector<FileProblem> problems;  // All, in no order; one of syntax hides the others.
};

ConfigFile ParseConfigFile(std::string_view text);

}  // namespace kvd
