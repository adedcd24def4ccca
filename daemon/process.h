// What the process asks of the system and of the libraries before anything else runs.

#pragma once

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

}  // namespace kvd
