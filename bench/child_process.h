// A program beside this one for as long as a benchmark wants it: what kvd is compared with. For kvd
// itself see daemon_process.h.
//
// Threads: Start() on a thread that outlives the object: the kernel ends the child with it.

#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace kvd {

class ChildProcess {
 public:
  // Runs `arguments`, the first of which is a path or a name to be looked for in PATH. Its standard
  // output and error go nowhere. kNotFound when there is no such program.
  static absl::StatusOr<std::unique_ptr<ChildProcess>> Start(std::vector<std::string> arguments);
  ~ChildProcess();  // Kills it and waits: it has nothing to lose.
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  pid_t pid() const { return pid_; }
  bool running();

 private:
  explicit ChildProcess(pid_t pid) : pid_(pid) {}

  const pid_t pid_;
  bool ended_ = false;
};

// A folder in /tmp for sockets, removed with the object.
class TemporaryFolder {
 public:
  static absl::StatusOr<std::unique_ptr<TemporaryFolder>> Create();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::string& path() const { return path_; }

 private:
  explicit TemporaryFolder(std::string path) : path_(std::move(path)) {}

  const std::string path_;
};

// The path of a program of PATH; kNotFound.
absl::StatusOr<std::string> FindProgram(const std::string& name);

}  // namespace kvd
