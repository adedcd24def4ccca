// Linked into c_api_program, gives one process both clients: the C++ one with its messages, made by
// the full protobuf, and those inside libkvd.so, which have the same names.

#include "client/client.h"

namespace {

// Used before main(), so that the linker keeps the client and its messages.
const bool refused = [] {
  kvd::Client client({.endpoint = "unix:/nowhere"});
  return !client.Connect().ok();
}();

}  // namespace

bool CxxClientWasUsed() { return refused; }
