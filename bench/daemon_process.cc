#include "bench/daemon_process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/types/status.h"

namespace kvd {
namespace {

constexpr size_t kLogTailBytes = 600;

int MillisecondsLeft(absl::Time deadline) {
  const int64_t left =
      absl::ToInt64Milliseconds(absl::Ceil(deadline - absl::Now(), absl::Milliseconds(1)));
  return static_cast<int>(std::clamp<int64_t>(left, 0, INT_MAX));
}

// In the child, between fork() and exec(): only calls that are safe there.
[[noreturn]] void Become(char* const* arguments, pid_t parent, int out, int log,
                         uint64_t max_descriptors) {
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  setpgid(0, 0);  // Control-C is ours to handle: the daemon is drained after the last call.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(127);  // We lost the race with our parent's end.
  const int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (null < 0 || dup2(null, STDIN_FILENO) < 0 || dup2(out, STDOUT_FILENO) < 0 ||
      dup2(log, STDERR_FILENO) < 0) {
    _exit(127);
  }
  const rlimit limit{.rlim_cur = max_descriptors, .rlim_max = max_descriptors};
  if (max_descriptors != 0 && setrlimit(RLIMIT_NOFILE, &limit) != 0) _exit(127);
  execv(arguments[0], arguments);
  _exit(127);
}

}  // namespace

absl::StatusOr<std::string> ProgramBesideThis(const std::string& name) {
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return ErrnoStatus(error.value(), "/proc/self/exe");
  return (self.parent_path() / name).string();
}

absl::StatusOr<std::unique_ptr<DaemonProcess>> DaemonProcess::Start(const Options& options) {
  std::unique_ptr<DaemonProcess> daemon(new DaemonProcess(options.stop_timeout));
  if (absl::Status status = daemon->Launch(options); !status.ok()) return status;
  if (absl::Status status = daemon->WaitUntilReady(options.start_timeout); !status.ok()) {
    return status;
  }
  return daemon;
}

DaemonProcess::~DaemonProcess() { Stop().IgnoreError(); }

absl::Status DaemonProcess::Launch(const Options& options) {
  std::string program = options.program;
  if (program.empty()) {
    absl::StatusOr<std::string> beside = ProgramBesideThis("kvd");
    if (!beside.ok()) return beside.status();
    program = *std::move(beside);
  }
  if (access(program.c_str(), X_OK) != 0) return ErrnoStatus(errno, program);

  folder_ = options.folder;
  if (folder_.empty()) {
    std::string folder = "/tmp/kvd-bench.XXXXXX";
    if (mkdtemp(folder.data()) == nullptr) return ErrnoStatus(errno, "creating a folder in /tmp");
    folder_ = folder;
    folder_is_ours_ = true;
  }
  endpoint_ = absl::StrCat("unix:", folder_, "/kvd.sock");
  const std::string log_path = folder_ + "/kvd.log";
  const int log = open(log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (log < 0) return ErrnoStatus(errno, log_path);
  int pipe_fds[2];
  if (pipe2(pipe_fds, O_CLOEXEC) != 0) {
    const int error = errno;
    close(log);
    return ErrnoStatus(error, "pipe");
  }
  ready_fd_ = pipe_fds[0];

  std::vector<std::string> arguments = {program, "--listen", endpoint_};
  arguments.insert(arguments.end(), options.arguments.begin(), options.arguments.end());
  std::vector<char*> pointers;
  for (std::string& argument : arguments) pointers.push_back(argument.data());
  pointers.push_back(nullptr);
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child == 0) Become(pointers.data(), parent, pipe_fds[1], log, options.max_descriptors);
  const int fork_error = errno;
  close(pipe_fds[1]);
  close(log);
  if (child < 0) return ErrnoStatus(fork_error, "fork");
  pid_ = child;
  pidfd_ = static_cast<int>(syscall(SYS_pidfd_open, child, 0));
  if (pidfd_ < 0) return ErrnoStatus(errno, "pidfd_open");
  return absl::OkStatus();
}

absl::Status DaemonProcess::WaitUntilReady(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  std::string line;
  while (line.find('\n') == std::string::npos) {
    pollfd ready = {.fd = ready_fd_, .events = POLLIN, .revents = 0};
    const int polled = poll(&ready, 1, MillisecondsLeft(deadline));
    if (polled < 0 && errno == EINTR) continue;
    if (polled <= 0) {
      return absl::DeadlineExceededError(
          absl::StrCat("kvd is not ready after ", absl::FormatDuration(timeout), LogTail()));
    }
    char bytes[256];
    const ssize_t got = read(ready_fd_, bytes, sizeof bytes);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      if (WaitForExit(stop_timeout_) && was_killed()) {
        return absl::AbortedError("kvd was killed before it was ready");
      }
      return absl::UnavailableError(absl::StrCat("kvd did not start", LogTail()));
    }
    line.append(bytes, static_cast<size_t>(got));
  }
  ready_line_ = line.substr(0, line.find('\n'));
  return absl::OkStatus();
}

std::string DaemonProcess::Said(const std::string& name) const {
  const size_t at = ready_line_.find(" " + name + "=");
  if (at == std::string::npos) return "";
  const size_t begin = at + name.size() + 2;
  return ready_line_.substr(begin, ready_line_.find(' ', begin) - begin);
}

bool DaemonProcess::WaitForExit(absl::Duration timeout) {
  if (pid_ < 0) return true;
  const absl::Time deadline = absl::Now() + timeout;
  pollfd ended = {.fd = pidfd_, .events = POLLIN, .revents = 0};
  int polled;
  do {
    polled = poll(&ended, 1, MillisecondsLeft(deadline));
  } while (polled < 0 && errno == EINTR);
  if (polled <= 0 || waitpid(pid_, &wait_status_, 0) != pid_) return false;
  pid_ = -1;
  return true;
}

bool DaemonProcess::was_killed() const {
  return pid_ < 0 && WIFSIGNALED(wait_status_) && WTERMSIG(wait_status_) == SIGKILL;
}

void DaemonProcess::Kill() {
  if (pid_ < 0) return;
  kill(pid_, SIGKILL);
  while (waitpid(pid_, &wait_status_, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
}

absl::Status DaemonProcess::Stop() {
  absl::Status status;
  if (pid_ > 0) {
    kill(pid_, SIGTERM);
    if (pidfd_ < 0 || !WaitForExit(stop_timeout_)) {
      status = absl::DeadlineExceededError(absl::StrCat("kvd did not end within ",
                                                        absl::FormatDuration(stop_timeout_),
                                                        " of SIGTERM", LogTail()));
      Kill();
    } else if (!WIFEXITED(wait_status_) || WEXITSTATUS(wait_status_) != 0) {
      const std::string how = WIFEXITED(wait_status_)
                                  ? absl::StrCat("exited with ", WEXITSTATUS(wait_status_))
                                  : absl::StrCat("was ended by signal ", WTERMSIG(wait_status_));
      status = absl::InternalError(absl::StrCat("kvd ", how, LogTail()));
    }
  }
  for (int* fd : {&pidfd_, &ready_fd_}) {
    if (*fd >= 0) close(std::exchange(*fd, -1));
  }
  if (std::exchange(folder_is_ours_, false)) {
    std::error_code error;  // What cannot be removed from /tmp is no reason to fail.
    std::filesystem::remove_all(folder_, error);
  }
  return status;
}

// The end of what the daemon logged, as the end of a message of ours.
std::string DaemonProcess::LogTail() const {
  std::ifstream file(folder_ + "/kvd.log");
  std::stringstream text;
  text << file.rdbuf();
  std::string tail = text.str();
  if (tail.size() > kLogTailBytes) tail.erase(0, tail.size() - kLogTailBytes);
  while (!tail.empty() && tail.back() == '\n') tail.pop_back();
  return tail.empty() ? "" : absl::StrCat("; its log ends:\n", tail);
}

}  // namespace kvd
