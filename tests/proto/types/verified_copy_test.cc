#include "proto/types/verified_copy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "proto/types/checksum.h"

namespace kvd {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr CopyUse kUses[] = {CopyUse::kMemory, CopyUse::kCache};

std::vector<std::byte> Pattern(size_t size) {
  std::vector<std::byte> bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * 131 >> 3);
  return bytes;
}

TEST(CopierTest, CopiesAndSumsEverySizeClass) {
  const Copier copier;
  for (size_t size : {0, 100, 65535, 65536, 1048575, 1048576, 2097152}) {
    const std::vector<std::byte> source = Pattern(size);
    for (const CopyUse use : kUses) {
      std::vector<std::byte> summed(size), copied(size);
      EXPECT_EQ(copier.CopySum(absl::MakeSpan(summed), source, use), Crc32cPortable(source));
      copier.Copy(absl::MakeSpan(copied), source, use);
      EXPECT_EQ(summed, source);
      EXPECT_EQ(copied, source);
    }
    EXPECT_EQ(copier.Sum(source), Crc32cPortable(source));
  }
}

TEST(CopierTest, SaysWhatItTookAndHowFastThatWas) {
  const Copier copier;
  for (const char* part : {"memory: <64KiB ", ", <1MiB ", ", >=1MiB ", "; cache: ", "; sum: "}) {
    EXPECT_THAT(copier.description(), HasSubstr(part));
  }
  EXPECT_THAT(copier.description(), HasSubstr(" GB/s"));
  EXPECT_THAT(copier.description(), Not(HasSubstr("unmeasured")));
}

TEST(CopierTest, TakesTheLoopItIsTold) {
  for (const CopyLoop& loop : CopyLoops()) {
    const Copier copier({.loop = std::string(loop.name), .calibration_bytes = 0});
    const std::string use = loop.use == CopyUse::kMemory ? "memory: " : "cache: ";
    EXPECT_THAT(copier.description(), HasSubstr(use + std::string(loop.name) + " as told"));
    const std::vector<std::byte> source = Pattern(5000);
    std::vector<std::byte> target(source.size());
    EXPECT_EQ(copier.CopySum(absl::MakeSpan(target), source, loop.use), Crc32cPortable(source));
    EXPECT_EQ(target, source);
  }
}

TEST(CopierTest, UnknownLoopIsNamedAndCalibrationDecides) {
  const Copier copier({.loop = "warp-drive"});
  EXPECT_THAT(copier.description(), HasSubstr("no loop 'warp-drive' here"));
  EXPECT_THAT(copier.description(), HasSubstr("memory: <64KiB "));
}

TEST(CopierTest, WithoutRoomToMeasureItTakesTheMostPromising) {
  const Copier copier({.calibration_bytes = 0});
  EXPECT_THAT(copier.description(),
              HasSubstr("memory: <64KiB " + std::string(CopyLoops().front().name) + " unmeasured"));
}

}  // namespace
}  // namespace kvd
