// top: the loop around the picture. A thread asks the daemon; the main thread waits for keys,
// signals and answers, and draws. On a terminal it has the alternate screen and raw keys, and gives
// both back however it ends.
//
// Plain escapes, no curses: a picture is whole lines in one write, so there is nothing to diff, and
// the escapes used are those that every terminal of today understands.

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <memory>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "client/kvctl/top_model.h"
#include "client/kvctl/top_screen.h"
#include "client/kvctl/units.h"
#include "client/kvctl/verbs.h"

namespace kvd::kvctl {
namespace {

using v1::Admin;

constexpr absl::Duration kShortest = absl::Milliseconds(200);
constexpr absl::Duration kLongest = absl::Minutes(1);
// Of one question of the screen: a daemon that hangs is shown as such soon.
constexpr absl::Duration kPatience = absl::Seconds(3);

absl::StatusOr<Sample> Ask(Connection& daemon) {
  Sample sample;
  absl::StatusOr<v1::StatusReply> status = daemon.Ask(&Admin::Stub::Status);
  if (!status.ok()) return status.status();
  sample.status = *std::move(status);
  absl::StatusOr<v1::TiersReply> tiers = daemon.Ask(&Admin::Stub::Tiers);
  if (!tiers.ok()) return tiers.status();
  sample.tiers = *std::move(tiers);
  absl::StatusOr<v1::SessionsReply> sessions = daemon.Ask(&Admin::Stub::Sessions);
  // A daemon that does not tell its sessions yet is still worth watching.
  if (sessions.ok()) {
    sample.sessions = *std::move(sessions);
  } else if (sessions.status().code() != absl::StatusCode::kUnimplemented) {
    return sessions.status();
  }
  return sample;
}

// The terminal while top has it.
class Screen {
 public:
  Screen() {
    tcgetattr(STDIN_FILENO, &before_);
    Enter();
  }
  ~Screen() { Leave(); }
  Screen(const Screen&) = delete;

  void Enter() {
    termios raw = before_;
    raw.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);  // Signals stay: ^C ends, ^Z stops.
    raw.c_cc[VMIN] = 0;
    raw.c_cc[VTIME] = 0;
    tcsetattr(STDIN_FILENO, TCSANOW, &raw);
    Write("\x1b[?1049h\x1b[?25l");
  }
  void Leave() {
    Write("\x1b[?25h\x1b[?1049l");
    tcsetattr(STDIN_FILENO, TCSANOW, &before_);
  }
  void Draw(const std::vector<std::string>& lines) {
    std::string frame = "\x1b[H";
    for (size_t i = 0; i < lines.size(); ++i) {
      if (i > 0) frame += "\r\n";
      frame += lines[i] + "\x1b[K";
    }
    Write(frame + "\x1b[J");
  }
  static void MeasureInto(TopView& view) {
    winsize size{};
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0 || size.ws_row == 0)
      return;
    view.columns = size.ws_col;
    view.rows = size.ws_row;
  }

 private:
  static void Write(const std::string& text) {
    for (size_t done = 0; done < text.size();) {
      const ssize_t wrote = write(STDOUT_FILENO, text.data() + done, text.size() - done);
      if (wrote <= 0) return;  // The terminal has gone; the signal for that ends us.
      done += static_cast<size_t>(wrote);
    }
  }

  termios before_{};
};

// Asks the daemon every interval on a thread of its own, so that keys are obeyed while it hangs.
class Asker {
 public:
  Asker(std::string endpoint, absl::Duration timeout, absl::Duration interval)
      : daemon_(std::move(endpoint), timeout),
        answered_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
        interval_(interval),
        thread_([this] { Run(); }) {}
  ~Asker() {
    {
      absl::MutexLock lock(&mu_);
      stopping_ = true;
    }
    thread_.join();
    close(answered_);
  }

  int fd() const { return answered_; }  // Readable: there is something to take.
  // The newest answer, once.
  std::optional<absl::StatusOr<Sample>> Take() {
    uint64_t count;
    (void)!read(answered_, &count, sizeof count);
    absl::MutexLock lock(&mu_);
    return std::exchange(newest_, std::nullopt);
  }
  void set_interval(absl::Duration interval) {
    absl::MutexLock lock(&mu_);
    interval_ = interval;
  }

 private:
  void Run() {
    while (true) {
      const absl::Time asked = absl::Now();
      absl::StatusOr<Sample> answer = Ask(daemon_);
      absl::MutexLock lock(&mu_);
      newest_ = std::move(answer);
      const uint64_t one = 1;
      (void)!write(answered_, &one, sizeof one);
      // A new interval counts from the next round, or at once where it is shorter.
      absl::Duration waited_for = interval_;
      while (!stopping_ && absl::Now() < asked + waited_for) {
        const auto over = [this, waited_for]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
          return stopping_ || interval_ != waited_for;
        };
        mu_.AwaitWithDeadline(absl::Condition(&over), asked + waited_for);
        waited_for = interval_;
      }
      if (stopping_) return;
    }
  }

  Connection daemon_;  // The thread's alone.
  const int answered_;
  absl::Mutex mu_;
  absl::Duration interval_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<absl::StatusOr<Sample>> newest_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;  // Last: it uses all of the above.
};

struct TopOptions {
  std::string interval = "1s";
  std::string sort = "lookups";
};

void Take(TopModel& model, absl::StatusOr<Sample> answer) {
  if (answer.ok()) {
    model.Add(*std::move(answer));
  } else {
    model.Lose(absl::Now(), std::string(answer.status().message()));
  }
}

// False: quit.
bool Obey(char key, TopView& view, Asker& asker) {
  switch (key) {
    case 'q':
    case 'Q':
      return false;
    case 'p':
    case ' ':
      view.paused = !view.paused;
      break;
    case 's':
      view.order = static_cast<DomainOrder>((static_cast<int>(view.order) + 1) % kDomainOrders);
      break;
    case 'r':
      view.reverse = !view.reverse;
      break;
    case '+':
      view.interval = std::min(kLongest, view.interval * 2);
      asker.set_interval(view.interval);
      break;
    case '-':
      view.interval = std::max(kShortest, view.interval / 2);
      asker.set_interval(view.interval);
      break;
    default:
      break;
  }
  return true;
}

// Keys, signals and answers, until somebody has had enough.
absl::StatusOr<ExitCode> Watch(const Call& call, TopView view) {
  // Before any thread is made: they must all leave these to us.
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP, SIGCONT, SIGWINCH}) {
    sigaddset(&signals, signal);
  }
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  const int signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
  if (signal_fd < 0) return absl::InternalError("signalfd");

  Asker asker(call.options.endpoint, std::min(call.options.timeout, kPatience), view.interval);
  TopModel model;
  Screen screen;
  std::optional<TopModel> frozen;  // What is shown while paused; the model goes on.
  bool quit = false;
  while (!quit) {
    view.now = absl::Now();
    Screen::MeasureInto(view);
    screen.Draw(RenderTop(frozen.has_value() ? *frozen : model, view));

    pollfd fds[] = {{STDIN_FILENO, POLLIN, 0}, {signal_fd, POLLIN, 0}, {asker.fd(), POLLIN, 0}};
    if (poll(fds, 3, -1) < 0 && errno != EINTR) break;
    signalfd_siginfo info;
    while (read(signal_fd, &info, sizeof info) == sizeof info) {
      if (info.ssi_signo == SIGTSTP) {
        screen.Leave();
        raise(SIGSTOP);  // Until somebody continues us.
        screen.Enter();
      } else if (info.ssi_signo != SIGCONT && info.ssi_signo != SIGWINCH) {
        quit = true;
      }
    }
    if (fds[0].revents != 0) {
      char keys[16];
      const ssize_t got = read(STDIN_FILENO, keys, sizeof keys);
      if (got <= 0) quit = true;  // The terminal has gone.
      for (ssize_t i = 0; i < got && !quit; ++i) quit = !Obey(keys[i], view, asker);
      if (view.paused != frozen.has_value()) {
        frozen = view.paused ? std::optional<TopModel>(model) : std::nullopt;
      }
    }
    if (fds[2].revents != 0) {
      if (std::optional<absl::StatusOr<Sample>> answer = asker.Take())
        Take(model, *std::move(answer));
    }
  }
  close(signal_fd);
  return kOk;
}

// Two samples, for the rates, and one picture.
absl::StatusOr<ExitCode> Once(Call& call, TopView view) {
  TopModel model;
  for (int i = 0; i < 2; ++i) {
    if (i > 0 && !call.environment.pause(view.interval)) break;
    absl::StatusOr<Sample> sample = Ask(call.daemon);
    if (!sample.ok()) return sample.status();
    model.Add(*std::move(sample));
  }
  const ExitCode code = model.last().status.problems().empty() ? kOk : kDegraded;
  if (call.Printed(model.ToTree())) return code;
  view.now = absl::Now();
  view.keys = false;
  view.columns = 120;
  view.rows = 1000;
  for (const std::string& line : RenderTop(model, view)) call.out() << line << "\n";
  return code;
}

absl::StatusOr<ExitCode> Top(Call& call, const TopOptions& options) {
  const absl::StatusOr<absl::Duration> interval = ParseTime(options.interval);
  if (!interval.ok()) return interval.status();
  TopView view{.color = call.color(),
               .utf8 = call.environment.utf8,
               .interval = std::clamp(*interval, kShortest, kLongest),
               .endpoint = call.options.endpoint};
  for (int order = 0; order < kDomainOrders; ++order) {
    if (options.sort == NameOf(static_cast<DomainOrder>(order))) {
      view.order = static_cast<DomainOrder>(order);
    }
  }
  const bool live = call.environment.out_is_terminal && call.environment.in_is_terminal &&
                    call.options.format == Format::kTable;
  return live ? Watch(call, view) : Once(call, view);
}

}  // namespace

void AddTop(CommandLine& line) {
  auto options = std::make_shared<TopOptions>();
  CLI::App* top = line.Add(line.app(), "top",
                           "A live screen: tiers, hit ratio, tenants, sessions, latencies; q ends "
                           "it. Without a terminal, "
                           "one picture",
                           "kvctl top\nkvctl top --interval 5s --sort used\nkvctl top -o json",
                           Repeat::kNo, [options](Call& call) { return Top(call, *options); });
  top->add_option("--interval", options->interval, "Between two questions, 200ms to 1m")
      ->type_name("TIME")
      ->capture_default_str();
  std::vector<std::string> orders;
  orders.reserve(kDomainOrders);
  for (int i = 0; i < kDomainOrders; ++i) orders.emplace_back(NameOf(static_cast<DomainOrder>(i)));
  top->add_option("--sort", options->sort, "By what the table of domains is sorted")
      ->check(CLI::IsMember(orders))
      ->capture_default_str();
}

}  // namespace kvd::kvctl
