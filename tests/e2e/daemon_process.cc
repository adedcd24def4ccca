#include "tests/e2e/daemon_process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/types/check.h"

namespace kvd {

TestFolder::TestFolder() {
  char name[] = "/tmp/kvd-e2e-XXXXXX";
  KVD_CHECK(mkdtemp(name) != nullptr);
  path_ = name;
  chmod(name, 0777);  // Tests with other user ids make sockets here, and reach them.
}

TestFolder::~TestFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

ChildProcess::ChildProcess(const std::string& program, const std::vector<std::string>& arguments,
                           int64_t uid) {
  int input[2];
  int output[2];
  KVD_CHECK(pipe2(input, O_CLOEXEC) == 0 && pipe2(output, O_CLOEXEC) == 0);
  const int errors = memfd_create("stderr", MFD_CLOEXEC);
  KVD_CHECK(errors >= 0);
  std::vector<char*> argv = {const_cast<char*>(program.c_str())};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  // By descriptor: another user id may be unable to walk to where we were built.
  const int executable = open(program.c_str(), O_PATH | O_CLOEXEC);
  KVD_CHECK(executable >= 0) << program;
  pid_ = fork();
  KVD_CHECK(pid_ >= 0);
  if (pid_ == 0) {  // Only what is safe after fork() in a process with threads.
    dup2(input[0], STDIN_FILENO);
    dup2(output[1], STDOUT_FILENO);
    dup2(errors, STDERR_FILENO);
    const auto id = static_cast<uid_t>(uid);
    if (uid >= 0 &&
        (syscall(SYS_setgroups, 0, nullptr) != 0 || syscall(SYS_setresgid, id, id, id) != 0 ||
         syscall(SYS_setresuid, id, id, id) != 0)) {
      _exit(126);
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);  // After the user id: changing that clears it.
    syscall(SYS_execveat, executable, "", argv.data(), environ, AT_EMPTY_PATH);
    _exit(127);
  }
  close(executable);
  close(input[0]);
  close(output[1]);
  input_ = UniqueFd(input[1]);
  output_ = UniqueFd(output[0]);
  errors_ = UniqueFd(errors);
}

ChildProcess::~ChildProcess() {
  if (pid_ < 0 || status_ >= 0) return;
  kill(pid_, SIGKILL);
  Wait();
}

std::string ChildProcess::ReadLine() {
  const absl::Time deadline = absl::Now() + kPatience;
  while (buffered_.find('\n') == std::string::npos) {
    char bytes[4096];
    if (!PollUntil(output_.get(), POLLIN, deadline).ok()) return "";
    const ssize_t got = read(output_.get(), bytes, sizeof bytes);
    if (got <= 0) return "";
    buffered_.append(bytes, static_cast<size_t>(got));
  }
  const size_t end = buffered_.find('\n');
  std::string line = buffered_.substr(0, end);
  buffered_.erase(0, end + 1);
  return line;
}

std::string ChildProcess::ReadToEnd() {
  const absl::Time deadline = absl::Now() + kPatience;
  char bytes[4096];
  while (PollUntil(output_.get(), POLLIN, deadline).ok()) {
    const ssize_t got = read(output_.get(), bytes, sizeof bytes);
    if (got <= 0) break;
    buffered_.append(bytes, static_cast<size_t>(got));
  }
  return std::exchange(buffered_, "");
}

void ChildProcess::WriteLine(const std::string& line) {
  const std::string bytes = line + "\n";
  KVD_CHECK(write(input_.get(), bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
}

void ChildProcess::Signal(int signal) { kill(pid_, signal); }

int ChildProcess::Wait() {
  if (status_ >= 0) return status_;
  const UniqueFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, pid_, 0)));
  if (!PollUntil(pidfd.get(), POLLIN, absl::Now() + kPatience).ok()) return -1;
  int status = 0;
  KVD_CHECK(waitpid(pid_, &status, 0) == pid_);
  status_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return status_;
}

std::string ChildProcess::Errors() const {
  std::string text;
  char bytes[4096];
  ssize_t got;
  while ((got = pread(errors_.get(), bytes, sizeof bytes, static_cast<off_t>(text.size()))) > 0) {
    text.append(bytes, static_cast<size_t>(got));
  }
  return text;
}

absl::StatusOr<std::unique_ptr<DaemonProcess>> DaemonProcess::Start() { return Start(Options()); }

absl::StatusOr<std::unique_ptr<DaemonProcess>> DaemonProcess::Start(Options options) {
  auto daemon = std::unique_ptr<DaemonProcess>(new DaemonProcess());
  daemon->path_ = options.path.empty() ? daemon->folder_.path() + "/kvd" : options.path;
  std::vector<std::string> arguments = {"--listen", daemon->endpoint()};
  arguments.insert(arguments.end(), options.arguments.begin(), options.arguments.end());
  daemon->child_ = std::make_unique<ChildProcess>(KVD_PROGRAM, arguments, options.uid);
  const std::string ready =
      absl::StrCat("kvd ready listen=", daemon->endpoint(), " pid=", daemon->pid());
  // Its other addresses follow.
  if (const std::string line = daemon->child_->ReadLine();
      line != ready && !line.starts_with(ready + " ")) {
    return absl::UnavailableError(
        absl::StrCat("it said \"", line, "\" and ", daemon->child_->Errors()));
  }
  grpc::ChannelArguments arguments_of_channel;
  arguments_of_channel.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  daemon->admin_ = v1::Admin::NewStub(grpc::CreateCustomChannel(
      daemon->endpoint() + ".admin", grpc::InsecureChannelCredentials(), arguments_of_channel));
  return daemon;
}

DaemonProcess::~DaemonProcess() = default;

int DaemonProcess::Stop() {
  child_->Signal(SIGTERM);
  return child_->Wait();
}

void DaemonProcess::Kill() {
  child_->Signal(SIGKILL);
  child_->Wait();
}

template <typename Request, typename Reply>
Reply DaemonProcess::Ask(grpc::Status (v1::Admin::Stub::*method)(grpc::ClientContext*,
                                                                 const Request&, Reply*)) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoSeconds(kPatience));
  Reply reply;
  const grpc::Status status = (admin_.get()->*method)(&context, Request(), &reply);
  KVD_CHECK(status.ok()) << status.error_message() << "\n" << child_->Errors();
  return reply;
}

v1::StatusReply DaemonProcess::Status() { return Ask(&v1::Admin::Stub::Status); }
v1::TiersReply DaemonProcess::Tiers() { return Ask(&v1::Admin::Stub::Tiers); }
v1::AuditReply DaemonProcess::Audit() { return Ask(&v1::Admin::Stub::Audit); }

uint64_t DaemonProcess::Counter(const std::string& name) {
  const v1::StatusReply status = Status();
  for (const v1::Counter& counter : status.counters()) {
    if (counter.name() == name) return counter.value();
  }
  KVD_CHECK(false) << "no counter " << name;
  return 0;
}

bool DaemonProcess::WaitFor(const std::function<bool(const v1::StatusReply&)>& condition) {
  const absl::Time deadline = absl::Now() + kPatience;
  while (!condition(Status())) {
    if (absl::Now() > deadline) return false;
  }
  return true;
}

}  // namespace kvd
