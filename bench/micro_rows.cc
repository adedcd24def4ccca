#include "bench/micro_rows.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/table.h"
#include "nlohmann/json.hpp"
#include "proto/types/check.h"

namespace kvd {
namespace {

constexpr MicroBar AtMost(double limit) {
  return {MicroBar::Of::kRatio, MicroBar::Sense::kAtMost, limit};
}
constexpr MicroBar AtLeast(double limit) {
  return {MicroBar::Of::kRatio, MicroBar::Sense::kAtLeast, limit};
}
constexpr MicroBar ValueAtLeast(double limit) {
  return {MicroBar::Of::kValue, MicroBar::Sense::kAtLeast, limit};
}
constexpr MicroBar ValueAtMost(double limit) {
  return {MicroBar::Of::kValue, MicroBar::Sense::kAtMost, limit};
}

constexpr MicroRowSpec kSpecs[] = {
    {"lookup_lease_256_one_cpu", "us", AtMost(1.6)},
    {"lookup_lease_256_two_cpus", "us", AtMost(1.3)},
    {"lookup_lease_256_two_cpus_grpc", "us", std::nullopt},
    {"lookup_lease_32768", "us", AtMost(1.3)},
    {"index_lookup_lease_32768", "us", ValueAtMost(10)},
    {"lookup_p99_beside_hog", "us", AtMost(3)},
    {"get_copy_2mib", "GB/s", AtLeast(0.88)},
    {"get_copy_2mib_cpu", "us", AtMost(1.25)},
    {"get_in_place_2mib", "GB/s", AtLeast(0.9)},
    {"put_2mib", "GB/s", AtLeast(0.65)},
    {"put_2mib_one_thread", "GB/s", AtLeast(0.30)},
    {"staged_copy_2mib", "GB/s", std::nullopt},
    {"get_256kib", "us", AtMost(1.4)},
    {"redis_get_2mib", "GB/s", AtLeast(3)},
    {"redis_put_2mib", "GB/s", AtLeast(2.2)},
    {"redis_exists_256", "us", AtMost(1.5)},
    {"get_tls_2mib", "GB/s", AtLeast(0.7)},
    {"nvme_read_2mib", "GB/s", AtLeast(0.92)},
    {"nvme_read_2mib_cpu", "us", ValueAtMost(15)},
    {"nvme_write_2mib", "GB/s", AtLeast(0.90)},
    {"nvme_write_2mib_cpu", "us", ValueAtMost(15)},
    {"index_rebuild_footers", "k/s", ValueAtLeast(200)},
    {"start_1m_clean", "ms", ValueAtMost(1000)},
    {"start_1m_killed", "ms", ValueAtMost(2500)},
    {"metrics_cost_lookup_256", "us", AtMost(1.03)},
    {"metrics_scrape_1m_blocks", "us", ValueAtMost(10'000)},
    {"metrics_scrape_size_1m_blocks", "MiB", ValueAtMost(0.25)},
    {"metrics_scrape_lookup_p99", "us", AtMost(1.1)},
    {"memory_beyond_arena_1m_blocks", "MiB", ValueAtMost(256)},
    {"memory_beyond_arena_1m_blocks_16_parts", "MiB", std::nullopt},
};

const MicroRowSpec* FindSpec(std::string_view name) {
  const auto* found = std::find_if(std::begin(kSpecs), std::end(kSpecs),
                                   [name](const MicroRowSpec& spec) { return spec.name == name; });
  return found == std::end(kSpecs) ? nullptr : found;
}

const MicroRowSpec& SpecOf(const MicroRow& row) {
  const MicroRowSpec* spec = FindSpec(row.name);
  KVD_CHECK(spec != nullptr) << row.name;
  return *spec;
}

std::string NumberText(double value, std::string_view unit) {
  if (std::isnan(value)) return "-";
  const int digits = std::fabs(value) < 100 ? 2 : 0;
  return absl::StrFormat("%.*f %s", digits, value, std::string(unit));
}

}  // namespace

absl::Span<const MicroRowSpec> MicroRowSpecs() { return kSpecs; }

absl::StatusOr<std::vector<std::string_view>> SelectMicroRows(
    const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    if (FindSpec(name) == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat("--only: there is no row ", name));
    }
  }
  std::vector<std::string_view> selected;
  for (const MicroRowSpec& spec : kSpecs) {
    if (names.empty() || std::find(names.begin(), names.end(), spec.name) != names.end()) {
      selected.push_back(spec.name);
    }
  }
  return selected;
}

double MicroRow::ratio() const {
  return floor > 0 ? value / floor : kNone;  // False for NaN, too.
}

std::optional<bool> MeetsBar(const MicroRow& row) {
  const std::optional<MicroBar>& bar = SpecOf(row).bar;
  if (!bar.has_value()) return std::nullopt;
  const double measured = bar->of == MicroBar::Of::kRatio ? row.ratio() : row.value;
  if (std::isnan(measured)) return std::nullopt;
  return bar->sense == MicroBar::Sense::kAtMost ? measured <= bar->limit : measured >= bar->limit;
}

std::string BarText(const MicroRowSpec& spec) {
  if (!spec.bar.has_value()) return "-";
  return absl::StrFormat(
      "%s %g%s", spec.bar->sense == MicroBar::Sense::kAtMost ? "<=" : ">=", spec.bar->limit,
      spec.bar->of == MicroBar::Of::kRatio ? "x" : absl::StrCat(" ", std::string(spec.unit)));
}

std::string MicroJson(absl::Span<const MicroRow> rows) {
  nlohmann::ordered_json array = nlohmann::ordered_json::array();
  for (const MicroRow& row : rows) {
    const MicroRowSpec& spec = SpecOf(row);
    nlohmann::ordered_json object = {
        {"name", row.name},       {"value", row.value},    {"unit", std::string(spec.unit)},
        {"floor", row.floor},     {"floor_name", nullptr}, {"ratio", row.ratio()},
        {"samples", row.samples}, {"bar", nullptr},        {"bar_of", nullptr},
        {"bar_sense", nullptr},   {"met", nullptr},        {"foreign_cpus", row.foreign_cpus},
    };
    if (!row.floor_name.empty()) object["floor_name"] = row.floor_name;
    if (spec.bar.has_value()) {
      object["bar"] = spec.bar->limit;
      object["bar_of"] = spec.bar->of == MicroBar::Of::kRatio ? "ratio" : "value";
      object["bar_sense"] = spec.bar->sense == MicroBar::Sense::kAtMost ? "at_most" : "at_least";
    }
    if (const std::optional<bool> met = MeetsBar(row); met.has_value()) object["met"] = *met;
    array.push_back(std::move(object));
  }
  return array.dump(2);
}

std::string MicroTable(absl::Span<const MicroRow> rows) {
  Table table({"row", "value", "floor", "what the floor is", "ratio", "bar", "met"});
  for (const MicroRow& row : rows) {
    const MicroRowSpec& spec = SpecOf(row);
    const std::optional<bool> met = MeetsBar(row);
    table.AddRow({row.name, NumberText(row.value, spec.unit), NumberText(row.floor, spec.unit),
                  row.floor_name,
                  std::isnan(row.ratio()) ? "-" : absl::StrFormat("%.2fx", row.ratio()),
                  BarText(spec),
                  !met.has_value() ? ""
                  : *met           ? "yes"
                                   : "NO"});
  }
  return table.ToString();
}

}  // namespace kvd
