// Scripts that complete kvctl's command line, made from the command line itself: what is added
// there is completed here, and nothing else can be.

#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace kvd::kvctl {

std::string BashCompletion(const CLI::App& app);
std::string ZshCompletion(const CLI::App& app);
std::string FishCompletion(const CLI::App& app);

}  // namespace kvd::kvctl
