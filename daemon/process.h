// What the process asks of the system and of the libraries before anything else runs.

#pragma once

#include <functional>
#include <thread>

#include "absl/synchronization/notification.h"
#include "absl/time/time.h"

namespace kvd {

// Before gRPC starts and before there is a second thread.
void TuneLibraries();

// Before there is a second thread: who may look into this process, the mode of its files, its
// limits and its signals. From here on no signal that WaitForSignal() waits for ends it.
void PrepareProcess();

// SIGTERM, SIGINT or SIGHUP, once one has come.
int WaitForSignal();

// The calling thread should run as soon as it is woken. Best effort.
void PreferThisThread();

// Gives what the heap has free back to the system, every few seconds: what a burst of large or
// unread messages took is spread over the arenas of many threads, and malloc would keep it.
//
// Threads: one of its own.
class HeapTrimmer {
 public:
  HeapTrimmer();
  ~HeapTrimmer();

 private:
  absl::Notification stop_;
  std::thread thread_;
};

// Calls something every so often, first after one period.
//
// Threads: one of its own, on which it calls.
class Periodic {
 public:
  Periodic(absl::Duration period, std::function<void()> call);
  ~Periodic();
  Periodic(const Periodic&) = delete;
  Periodic& operator=(const Periodic&) = delete;

 private:
  absl::Notification stop_;
  std::thread thread_;
};

}  // namespace kvd
