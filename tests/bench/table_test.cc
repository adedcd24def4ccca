#include "bench/table.h"

#include "gtest/gtest.h"

namespace kvd {
namespace {

TEST(TableTest, NumbersStandRightAndWordsLeft) {
  Table table({"policy", "capacity", "ratio"});
  table.AddRow({"lru", "18,279", "1.2x"});
  table.AddRow({"s3-fifo", "900", "-"});

  EXPECT_EQ(table.ToString(),
            "policy   capacity  ratio\n"
            "-------  --------  -----\n"
            "lru        18,279   1.2x\n"
            "s3-fifo       900      -\n");
}

TEST(TableTest, OneWordMakesAColumnOfWords) {
  Table table({"value"});
  table.AddRow({"12 us"});
  table.AddRow({"unknown"});
  EXPECT_EQ(table.ToString(), "value\n-------\n12 us\nunknown\n");
}

TEST(TableTest, WidthsCountCharactersNotBytes) {
  Table table({"größe", "n"});
  table.AddRow({"µs", "1"});
  table.AddRow({"日本", "22"});
  EXPECT_EQ(table.ToString(),
            "größe   n\n"
            "-----  --\n"
            "µs      1\n"
            "日本   22\n");
}

TEST(TableTest, MissingCellsAreEmptyAndLinesEndWithoutBlanks) {
  Table table({"a", "b"});
  table.AddRow({"x"});
  EXPECT_EQ(table.ToString(), "a  b\n-  -\nx\n");
}

TEST(TableTest, ATableMayHaveNoRows) {
  EXPECT_EQ(Table({"only", "header"}).ToString(), "only  header\n----  ------\n");
}

TEST(DisplayWidthTest, CountsColumns) {
  EXPECT_EQ(DisplayWidth(""), 0u);
  EXPECT_EQ(DisplayWidth("abc"), 3u);
  EXPECT_EQ(DisplayWidth("é"), 1u);
  EXPECT_EQ(DisplayWidth("e\u0301"), 1u);  // A combining mark.
  EXPECT_EQ(DisplayWidth("漢"), 2u);
  EXPECT_EQ(DisplayWidth("🙂"), 2u);
}

TEST(DisplayWidthTest, BytesThatAreNoUtf8CountAsOne) {
  EXPECT_EQ(DisplayWidth("\xff\xfe"), 2u);
  EXPECT_EQ(DisplayWidth("\xc3"), 1u);
  EXPECT_EQ(DisplayWidth("\xe6\x97x"), 3u);
  EXPECT_EQ(DisplayWidth("\x80"), 1u);
}

TEST(WithCommasTest, GroupsByThree) {
  EXPECT_EQ(WithCommas(0), "0");
  EXPECT_EQ(WithCommas(999), "999");
  EXPECT_EQ(WithCommas(1000), "1,000");
  EXPECT_EQ(WithCommas(182790), "182,790");
  EXPECT_EQ(WithCommas(18446744073709551615u), "18,446,744,073,709,551,615");
}

}  // namespace
}  // namespace kvd
