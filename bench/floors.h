// What this machine gives without us: the floors that results stand beside, measured in the same
// run.

#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace kvd {

struct CopyFloor {
  double gib_per_s = 0;
  std::string_view loop;  // A name of CopyLoops().
};

// The best of all bare copy loops on blocks of this size, one thread, between memories that the
// caches do not hold. Takes some 30 ms a loop. Requires: block_bytes > 0.
CopyFloor MeasureCopyFloor(size_t block_bytes);

// A child process that sends back what it gets over a Unix seqpacket socket, and does nothing else:
// what a call between two processes costs at least.
//
// Threads: one at a time. It ends with the object, or with the thread that made it.
class EchoProcess {
 public:
  // Requires: no other thread runs yet, as it forks without exec.
  static absl::StatusOr<std::unique_ptr<EchoProcess>> Start();
  ~EchoProcess();
  EchoProcess(const EchoProcess&) = delete;
  EchoProcess& operator=(const EchoProcess&) = delete;

  // The largest message that is echoed; larger ones are measured as if they were this long.
  static constexpr size_t kMaxMessageBytes = 128u << 10;

  // Round trips of `message_bytes` each, in microseconds, one after the other.
  absl::StatusOr<std::vector<double>> Measure(size_t message_bytes, size_t samples);

 private:
  EchoProcess(int fd, pid_t pid) : fd_(fd), pid_(pid) {}

  const int fd_;
  const pid_t pid_;
};

}  // namespace kvd
