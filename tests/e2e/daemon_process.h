// The real kvd as a child process, on a socket in a folder of its own.
//
// Threads: one at a time, and the thread that starts a daemon must outlive it (the child asks the
// kernel to die with it). Waits end after kPatience.

#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/admin.grpc.pb.h"
#include "tests/e2e/raw_session.h"

namespace kvd {

// A folder that goes with its owner. Everybody may look inside.
class TestFolder {
 public:
  TestFolder();
  ~TestFolder();
  TestFolder(const TestFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// A program with pipes to its standard input and output; killed when this object goes.
class ChildProcess {
 public:
  // `uid` -1: ours. Otherwise all its user and group ids are that, and it has no privileges.
  ChildProcess(const std::string& program, const std::vector<std::string>& arguments,
               int64_t uid = -1);
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;

  pid_t pid() const { return pid_; }
  // The next line of its output, without the end; empty when it ended or says nothing.
  std::string ReadLine();
  std::string ReadToEnd();
  void WriteLine(const std::string& line);
  void Signal(int signal);
  // Its exit status, 128 plus the signal that killed it, or -1 when it does not end.
  int Wait();
  // What it wrote to standard error so far.
  std::string Errors() const;

 private:
  pid_t pid_ = -1;
  int status_ = -1;
  UniqueFd input_;
  UniqueFd output_;
  UniqueFd errors_;  // A file without a name.
  std::string buffered_;
};

class DaemonProcess {
 public:
  struct Options {
    std::vector<std::string> arguments = {"--dram", "64MiB"};
    std::string path;  // Of the socket; empty: in a fresh folder.
    int64_t uid = -1;  // As ChildProcess.
  };

  // Starts and waits for the line that says it is ready.
  static absl::StatusOr<std::unique_ptr<DaemonProcess>> Start(Options options);
  static absl::StatusOr<std::unique_ptr<DaemonProcess>> Start();
  ~DaemonProcess();

  const std::string& path() const { return path_; }
  std::string endpoint() const { return "unix:" + path_; }
  pid_t pid() const { return child_->pid(); }
  ChildProcess& child() { return *child_; }

  // SIGTERM; the exit status, see ChildProcess.
  int Stop();
  // SIGKILL; the socket files stay.
  void Kill();

  v1::Admin::Stub& admin() { return *admin_; }
  v1::StatusReply Status();
  v1::TiersReply Tiers();
  v1::AuditReply Audit();
  uint64_t Counter(const std::string& name);
  // Asks for the status until `condition` holds. False: not by kPatience.
  bool WaitFor(const std::function<bool(const v1::StatusReply&)>& condition);

 private:
  DaemonProcess() = default;
  template <typename Request, typename Reply>
  Reply Ask(grpc::Status (v1::Admin::Stub::*method)(grpc::ClientContext*, const Request&, Reply*));

  TestFolder folder_;
  std::string path_;
  std::unique_ptr<ChildProcess> child_;
  std::unique_ptr<v1::Admin::Stub> admin_;
};

}  // namespace kvd
