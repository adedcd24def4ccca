// What the command line of an inference engine lacks, so that it would use kvd and use it well.
// Pure.

#pragma once

#include <optional>
#include <string>
#include <vector>

namespace kvd::kvctl {

struct EngineFlags {
  std::string engine;              // "vLLM", "SGLang".
  bool uses_kvd = false;           // Its flags name one of kvd's connectors.
  std::vector<std::string> lacks;  // Flags to add, each with what it is for. Empty: nothing.
};

// `words` are argv. Nothing: no engine that kvd knows.
std::optional<EngineFlags> LookAtFlags(const std::vector<std::string>& words);

}  // namespace kvd::kvctl
