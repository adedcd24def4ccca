// What of `micro` can be told without measuring: which rows there are, when a bar is met, and how
// rows are shown.

#include <cmath>
#include <set>
#include <string>

#include "bench/micro_rows.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace kvd {
namespace {

using testing::ElementsAre;

MicroRow Row(std::string name, double value, double floor) {
  return {.name = std::move(name), .value = value, .floor = floor, .floor_name = "floor"};
}

TEST(MicroRowsTest, NamesAreUnique) {
  std::set<std::string_view> names;
  for (const MicroRowSpec& spec : MicroRowSpecs()) EXPECT_TRUE(names.insert(spec.name).second);
}

TEST(MicroRowsTest, UnitsAreThoseOfTheContract) {
  for (const MicroRowSpec& spec : MicroRowSpecs()) {
    EXPECT_THAT(std::string(spec.unit), testing::AnyOf("us", "ms", "GB/s", "k/s", "MiB"))
        << spec.name;
  }
}

TEST(MicroRowsTest, NoNamesSelectAllRows) {
  EXPECT_EQ(SelectMicroRows({})->size(), MicroRowSpecs().size());
}

TEST(MicroRowsTest, SelectedRowsKeepTheOrderOfTheTable) {
  const auto selected = SelectMicroRows({"put_2mib", "get_copy_2mib"});
  ASSERT_TRUE(selected.ok());
  EXPECT_THAT(*selected, ElementsAre("get_copy_2mib", "put_2mib"));
}

TEST(MicroRowsTest, AnUnknownRowIsNamed) {
  const auto selected = SelectMicroRows({"put_2mib", "putt"});
  EXPECT_EQ(selected.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(selected.status().message(), "--only: there is no row putt");
}

TEST(MicroRowsTest, ACeilingIsMetAtItAndBelow) {
  EXPECT_EQ(MeetsBar(Row("lookup_lease_256_one_cpu", 16, 10)), true);
  EXPECT_EQ(MeetsBar(Row("lookup_lease_256_one_cpu", 17, 10)), false);
}

TEST(MicroRowsTest, AFloorIsMetAtItAndAbove) {
  EXPECT_EQ(MeetsBar(Row("redis_get_2mib", 3, 1)), true);
  EXPECT_EQ(MeetsBar(Row("redis_get_2mib", 2.9, 1)), false);
}

TEST(MicroRowsTest, SomeBarsAreOnTheValueAndNeedNoFloor) {
  EXPECT_EQ(MeetsBar(Row("index_lookup_lease_32768", 9, MicroRow::kNone)), true);
  EXPECT_EQ(MeetsBar(Row("index_lookup_lease_32768", 11, MicroRow::kNone)), false);
}

TEST(MicroRowsTest, WithoutMeasurementOrFloorOrBarNothingIsMetOrMissed) {
  EXPECT_EQ(MeetsBar({.name = "put_2mib"}), std::nullopt);
  EXPECT_EQ(MeetsBar(Row("redis_get_2mib", 10, MicroRow::kNone)), std::nullopt);
  EXPECT_EQ(MeetsBar(Row("redis_get_2mib", 10, 0)), std::nullopt);
  EXPECT_EQ(MeetsBar(Row("memory_beyond_arena_1m_blocks_16_parts", 1, 1)), std::nullopt);
}

TEST(MicroRowsTest, JsonHasTheKeysOfTheContract) {
  MicroRow row = Row("put_2mib", 13, 20);
  row.samples = 7;
  const nlohmann::json json = nlohmann::json::parse(MicroJson({row}));
  ASSERT_EQ(json.size(), 1u);
  EXPECT_EQ(json[0]["name"], "put_2mib");
  EXPECT_EQ(json[0]["value"], 13);
  EXPECT_EQ(json[0]["unit"], "GB/s");
  EXPECT_EQ(json[0]["floor"], 20);
  EXPECT_EQ(json[0]["floor_name"], "floor");
  EXPECT_EQ(json[0]["ratio"], 0.65);
  EXPECT_EQ(json[0]["samples"], 7);
  EXPECT_EQ(json[0]["bar"], 0.65);
  EXPECT_EQ(json[0]["bar_of"], "ratio");
  EXPECT_EQ(json[0]["bar_sense"], "at_least");
  EXPECT_EQ(json[0]["met"], true);
}

TEST(MicroRowsTest, JsonWritesWhatIsNotThereAsNull) {
  const nlohmann::json json =
      nlohmann::json::parse(MicroJson({{.name = "memory_beyond_arena_1m_blocks_16_parts"}}));
  for (const char* key : {"value", "floor", "floor_name", "ratio", "bar", "met"}) {
    EXPECT_TRUE(json[0].at(key).is_null()) << key;
  }
}

TEST(MicroRowsTest, TheTableShowsTheBarAndWhoMissesIt) {
  const std::string table = MicroTable({Row("put_2mib", 10, 20), {.name = "get_256kib"}});
  EXPECT_THAT(table, testing::HasSubstr("0.50x"));
  EXPECT_THAT(table, testing::HasSubstr(">= 0.65x"));
  EXPECT_THAT(table, testing::HasSubstr("NO"));
  EXPECT_THAT(table, testing::HasSubstr("<= 1.4x"));
}

}  // namespace
}  // namespace kvd
