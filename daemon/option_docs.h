// The option table as people read it: a sample file, a running configuration, tables in Markdown.
//
// Threads: pure functions.

#pragma once

#include <string>
#include <string_view>

#include "daemon/config.h"

namespace kvd {

// deploy/kvd.toml: every option with its help, commented out, at its default or an example.
std::string SampleConfig();

// The configuration in force as a file that gives the same when it is read, with where each value
// came from.
std::string PrintConfig(const Config& config);

// Tables in Markdown: all options, or only what nearly everybody sets.
std::string OptionTable();
std::string ShortOptionTable();

// All options for the manual page kvd(8), as troff.
std::string OptionManual();

// `text` with what stands between the lines with "<!-- begin NAME" and "<!-- end NAME" replaced.
// Empty: the marks are not there.
std::string ReplaceBetweenMarks(std::string_view text, std::string_view name,
                                std::string_view with);

}  // namespace kvd
