#include "bench/machine.h"

#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>

namespace kvd {
namespace {

double ToSeconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
}

double SecondsOf(clockid_t clock) {
  timespec time;
  if (clock_gettime(clock, &time) != 0) return 0;
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

double TicksPerSecond() { return static_cast<double>(sysconf(_SC_CLK_TCK)); }

// CPU seconds that this machine has spent on anything since its start.
double BusySeconds() {
  std::ifstream file("/proc/stat");
  std::string name;
  uint64_t user = 0, nice = 0, system = 0, idle = 0, wait = 0, irq = 0, soft = 0, stolen = 0;
  file >> name >> user >> nice >> system >> idle >> wait >> irq >> soft >> stolen;
  return static_cast<double>(user + nice + system + irq + soft + stolen) / TicksPerSecond();
}

}  // namespace

const std::vector<int>& AllowedCpus() {
  static const auto& allowed = *new std::vector<int>([] {
    std::vector<int> cpus;
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
      for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
        if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
      }
    }
    if (cpus.empty()) cpus.push_back(0);
    return cpus;
  }());
  return allowed;
}

void PinProcess(pid_t process, const std::vector<int>& cpus) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int cpu : cpus) CPU_SET(cpu, &set);
  // Twice: a thread that started meanwhile took its CPUs from one that was not pinned yet.
  for (int pass = 0; pass < 2; ++pass) {
    std::error_code error;
    const std::string tasks = "/proc/" + std::to_string(process) + "/task";
    for (std::filesystem::directory_iterator it(tasks, error), end; !error && it != end;
         it.increment(error)) {
      sched_setaffinity(std::atoi(it->path().filename().c_str()), sizeof set, &set);
    }
  }
}

double CpuSecondsOf(pid_t process) {
  // As clock_getcpuclockid() makes it.
  return SecondsOf(static_cast<clockid_t>((~static_cast<unsigned>(process) << 3) | 2));
}

double CpuSecondsOfThisThread() { return SecondsOf(CLOCK_THREAD_CPUTIME_ID); }

ForeignLoad::ForeignLoad(std::vector<pid_t> own)
    : own_(std::move(own)),
      start_(SystemClock().Now()),
      busy_at_start_(BusySeconds()),
      own_at_start_(Own()) {}

double ForeignLoad::Own() const {
  rusage self, children;
  getrusage(RUSAGE_SELF, &self);
  getrusage(RUSAGE_CHILDREN, &children);
  double seconds = ToSeconds(self.ru_utime) + ToSeconds(self.ru_stime) +
                   ToSeconds(children.ru_utime) + ToSeconds(children.ru_stime);
  for (pid_t process : own_) seconds += CpuSecondsOf(process);
  return seconds;
}

double ForeignLoad::cpus() const {
  const double elapsed = static_cast<double>(SystemClock().Now() - start_) * 1e-9;
  const double foreign =
      BusySeconds() - busy_at_start_ - (Own() - own_at_start_) - 2 / TicksPerSecond();
  return elapsed > 0 ? std::max(0.0, foreign) / elapsed : 0;
}

}  // namespace kvd
