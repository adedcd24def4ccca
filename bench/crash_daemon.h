// The daemon of `crash` and `mutate`: the same folder, life after life.
//
// FOLDER/kvd.sock and kvd.log, FOLDER/data (--data), FOLDER/nvme (--nvme); and in memory, in
// /dev/shm, a folder of the same name for the arena, which goes with this object.
//
// Threads: one.

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "bench/crash_account.h"
#include "bench/daemon_process.h"

namespace kvd {

class AdminCaller;

class CrashDaemon {
 public:
  struct Options {
    std::string program;  // kvd; empty: the one beside this program.
    std::string folder;   // Is there.
    uint64_t dram_bytes = 16u << 20;
    uint64_t nvme_bytes = 0;  // 0: no NVMe.
    std::vector<std::string> more_arguments;
  };

  explicit CrashDaemon(Options options);
  ~CrashDaemon();

  const std::string& endpoint() const { return endpoint_; }
  std::string data_folder() const { return options_.folder + "/data"; }
  std::string nvme_path() const { return options_.folder + "/nvme"; }
  std::string arena_folder() const;  // Empty: there is none yet.

  // Errors: those of DaemonProcess::Start().
  absl::Status Start(const std::string& kill_at = "");
  double start_ms() const { return start_ms_; }
  bool running() const { return process_ != nullptr; }
  bool WaitForExit(absl::Duration timeout) { return process_->WaitForExit(timeout); }
  bool was_killed() const { return process_->was_killed(); }
  pid_t pid() const { return process_->pid(); }
  void Kill();
  absl::Status Stop();  // By SIGTERM.

  // What no life has left: as new. Requires: it does not run.
  void RemoveAll();
  void RemoveArena();

  // --- the operator's calls; all fail when the daemon dies below them ---------------------------
  struct Block {
    uint32_t ns = 0;  // The daemon's number.
    std::string key;
    bool root = false;
    uint64_t dram_bytes = 0;
    uint64_t nvme_bytes = 0;
  };
  // All that it has, of any namespace.
  absl::StatusOr<std::vector<Block>> Blocks();
  // Evicts a block and what hangs below it. Returns how many blocks stay, as somebody has them.
  absl::StatusOr<uint64_t> Evict(const Block& top);
  absl::Status Drop(CrashNamespace ns);  // kFailedPrecondition: not all of it may go.
  // Whether nothing moves between the tiers, nor is to, and nothing is withheld for readers of
  // before: then it has the room that it keeps free.
  absl::StatusOr<bool> HasMadeRoom();
  // kInternal when the index does not add up, or has blocks whose parents are nowhere.
  absl::Status Audit();

 private:
  absl::StatusOr<uint32_t> NumberOf(CrashNamespace ns);

  const Options options_;
  const std::string memory_folder_;  // Of arenas.
  std::string endpoint_;
  double start_ms_ = 0;
  std::unique_ptr<DaemonProcess> process_;
  std::unique_ptr<AdminCaller> operator_;
};

}  // namespace kvd
