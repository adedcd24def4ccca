#include "bench/micro.h"

#include <cmath>
#include <iostream>
#include <memory>

#include "CLI/CLI.hpp"
#include "bench/commands.h"

namespace kvd {

absl::StatusOr<std::vector<MicroRow>> Micro(const MicroOptions& options) {
  absl::StatusOr<std::vector<std::string_view>> selected = SelectMicroRows(options.only);
  if (!selected.ok()) return selected.status();
  MicroRun run(options, *std::move(selected));
  for (const auto& measure : {MeasureLookups, MeasureIndex, MeasurePayload, MeasureStream,
                              MeasureNvme, MeasureRecovery, MeasureManyParts}) {
    const absl::Status status = measure(run);
    run.Place(Placement::kAnywhere);
    if (!status.ok()) std::cerr << "kvd-bench micro: " << status.message() << std::endl;
  }
  return run.Rows();
}

void AddMicroCommand(CLI::App& app) {
  auto options = std::make_shared<MicroOptions>();
  auto json = std::make_shared<bool>(false);
  CLI::App* command =
      app.add_subcommand("micro", "Measures each part of kvd beside what the machine gives");
  command->add_flag("--json", *json, "Prints JSON");
  command->add_option("--only", options->only, "Rows to measure, separated by commas; default: all")
      ->delimiter(',');
  command->add_option("--samples", options->samples, "Samples of each row")
      ->check(CLI::Range(1u, 1000u).description(""))
      ->capture_default_str();
  command->callback([options, json] {
    const absl::StatusOr<std::vector<MicroRow>> rows = Micro(*options);
    FinishCommand(rows.status());
    std::cout << (*json ? MicroJson(*rows) + "\n" : MicroTable(*rows)) << std::flush;
    size_t lost = 0;
    for (const MicroRow& row : *rows) lost += std::isnan(row.value);
    if (lost > 0) FinishCommand(absl::InternalError("some rows could not be measured"));
  });
}

}  // namespace kvd
