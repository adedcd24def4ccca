#include "daemon/reload.h"

#include <spdlog/spdlog.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "daemon/memory_limit.h"
#include "daemon/options.h"

namespace kvd {

Config ConfigReloader::Current() const {
  absl::MutexLock lock(&mu_);
  return running_;
}

absl::StatusOr<ConfigReloader::Outcome> ConfigReloader::Reload() {
  absl::MutexLock lock(&reload_mu_);
  absl::StatusOr<Outcome> outcome = ReadAgain();
  if (!outcome.ok()) {
    for (const absl::string_view problem : absl::StrSplit(outcome.status().message(), '\n')) {
      spdlog::error("config.kept error={}", TomlString({problem.data(), problem.size()}));
    }
    return outcome;
  }
  spdlog::info("config.reloaded changed=\"{}\"", absl::StrJoin(outcome->changed, ","));
  if (!outcome->needs_restart.empty()) {
    spdlog::warn("config.needs_restart options=\"{}\"", absl::StrJoin(outcome->needs_restart, ","));
  }
  return outcome;
}

absl::StatusOr<ConfigReloader::Outcome> ConfigReloader::ReadAgain() {
  Config next = Current();
  if (next.config_file.empty()) {
    return absl::FailedPreconditionError(
        "started without --config, so there is no file to read again");
  }
  const LoadedConfig loaded = LoadConfig(next.config_file, next.flags, FindMemoryLimit());
  if (!loaded.problems.empty()) {
    return absl::InvalidArgumentError(absl::StrJoin(loaded.problems, "\n"));
  }
  Outcome outcome;
  if (renew_ != nullptr) {
    absl::StatusOr<std::vector<std::string>> renewed = renew_(next);
    if (!renewed.ok()) return renewed.status();
    outcome.changed = *std::move(renewed);
  }
  const auto take_source = [&](const std::string& name) {
    const auto source = loaded.config.sources.find(name);
    next.sources.erase(name);
    if (source != loaded.config.sources.end()) next.sources.insert(*source);
  };
  for (const Option& option : Options()) {
    const std::string name(option.name);
    const std::string value = option.get(loaded.config);
    const bool differs = value != option.get(next);
    if (!differs || option.live) take_source(name);
    if (!differs) continue;
    if (option.live) option.set(value, MemoryLimit{}, next);
    (option.live ? outcome.changed : outcome.needs_restart).push_back(name);
  }
  take_source("domain");
  if (loaded.config.domains.domains != next.domains.domains) {
    next.domains.domains = loaded.config.domains.domains;
    outcome.changed.emplace_back("domain");
  }
  {
    absl::MutexLock lock(&mu_);
    running_ = next;
  }
  if (!outcome.changed.empty()) apply_(next);
  return outcome;
}

}  // namespace kvd
