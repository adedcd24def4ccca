// kvd-bench: replays, simulates and measures. Every subcommand is in a file of its own.

#include "CLI/CLI.hpp"
#include "bench/commands.h"

int main(int argc, char** argv) {
  CLI::App app("Replays recorded traces, simulates policies and measures kvd.", "kvd-bench");
  app.require_subcommand(1);
  kvd::AddConvertCommand(app);
  kvd::AddCrashCommand(app);
  kvd::AddCrashPeerCommand(app);
  kvd::AddHostileCommand(app);
  kvd::AddHostilePeerCommand(app);
  kvd::AddMicroCommand(app);
  kvd::AddMicroPeerCommand(app);
  kvd::AddMutateCommand(app);
  kvd::AddPeerDriverCommand(app);
  kvd::AddReplayCommand(app);
  kvd::AddSimCommand(app);
  CLI11_PARSE(app, argc, argv);
  return 0;
}
