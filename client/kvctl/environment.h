// What surrounds one run of kvctl: streams, terminals, and what variables say. main() fills it from
// the process, tests from strings, and nothing else below client/kvctl/ reads the environment.

#pragma once

#include <functional>
#include <istream>
#include <ostream>
#include <string>

#include "absl/time/time.h"

namespace kvd::kvctl {

struct Environment {
  std::ostream& out;
  std::ostream& err;
  std::istream& in;
  bool in_is_terminal = false;
  bool out_is_terminal = false;
  bool no_color = false;         // $NO_COLOR is there and not empty.
  bool utf8 = true;              // The locale can show bars and graphs.
  std::string default_endpoint;  // $KVD_ENDPOINT, or where a daemon listens when nobody says.
  // Waits that long. False: stop, somebody ended the program.
  std::function<bool(absl::Duration)> pause;
};

}  // namespace kvd::kvctl
