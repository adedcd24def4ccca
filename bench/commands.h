// The subcommands of kvd-bench. Each AddXxxCommand() lives in a file of its own, declares its
// options on `app` and runs in CLI11's callback.

#pragma once

#include "absl/status/status.h"

namespace CLI {
class App;
}

namespace kvd {

void AddConvertCommand(CLI::App& app);  // bench/convert.cc
void AddCrashCommand(CLI::App& app);    // bench/crash.cc
void AddHostileCommand(CLI::App& app);  // bench/hostile.cc
void AddMicroCommand(CLI::App& app);    // bench/micro.cc
void AddMutateCommand(CLI::App& app);   // bench/mutate.cc
void AddReplayCommand(CLI::App& app);   // bench/replay.cc
void AddSimCommand(CLI::App& app);      // bench/sim.cc

void AddCrashPeerCommand(CLI::App& app);    // bench/crash.cc; hidden: only crash starts it
void AddHostilePeerCommand(CLI::App& app);  // bench/hostile.cc; hidden: only hostile starts it
void AddMicroPeerCommand(CLI::App& app);    // bench/micro_peer.cc; hidden: only micro starts it
void AddPeerDriverCommand(CLI::App& app);   // bench/peers_kvd.cc; hidden: only bench/peers does

// Ends a subcommand: nothing when `status` is ok; otherwise writes it to standard error and leaves
// through CLI::RuntimeError, which main() turns into exit status 1. Called from a callback only.
void FinishCommand(const absl::Status& status);

}  // namespace kvd
