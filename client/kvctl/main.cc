// kvctl: how people look at a daemon, and tell it what to do. Here is only what a process is: its
// streams, terminal, variables and signals. The verbs are in verbs.h.

#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/clock.h"
#include "client/kvctl/verbs.h"
#include "proto/types/endpoint.h"

namespace {

// As the C library decides which characters a program writes.
bool IsUtf8() {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    const char* value = std::getenv(name);
    if (value == nullptr || *value == '\0') continue;
    const std::string_view locale = value;
    return locale.find("UTF-8") != locale.npos || locale.find("utf8") != locale.npos;
  }
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // A reader that has gone shows as an error of the stream.
  const char* no_color = std::getenv("NO_COLOR");
  kvd::kvctl::Environment environment{
      .out = std::cout,
      .err = std::cerr,
      .in = std::cin,
      .in_is_terminal = isatty(STDIN_FILENO) == 1,
      .out_is_terminal = isatty(STDOUT_FILENO) == 1,
      .no_color = no_color != nullptr && *no_color != '\0',
      .utf8 = IsUtf8(),
      .default_endpoint = kvd::FindEndpoint(),
      .pause =
          [](absl::Duration time) {
            absl::SleepFor(time);
            return static_cast<bool>(std::cout);
          },
  };
  const int code = kvd::kvctl::RunKvctl(environment, {argv + 1, argv + argc});
  std::cout.flush();
  std::cerr.flush();
  // Not through the destructors of the libraries: that costs more than the question, and everything
  // that anybody waits for has been written.
  _exit(code);
}
