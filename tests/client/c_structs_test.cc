// Structures of callers that were compiled with another version than ours, older and newer, at the
// sizes that they would have.

#include "client/c_structs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>

namespace kvd {
namespace {

using testing::HasSubstr;

// One structure in three versions. "Ours" is the second.
struct First {
  size_t struct_size;
  uint64_t a;
};
struct Ours {
  size_t struct_size;
  uint64_t a;
  uint64_t b;
};
struct Later {
  size_t struct_size;
  uint64_t a;
  uint64_t b;
  uint64_t c;
};

}  // namespace

template <>
inline constexpr size_t kFirstBytes<Ours> = sizeof(First);

namespace {

// A caller's structure as the library gets it.
template <typename T>
Ours* As(T& structure) {
  return reinterpret_cast<Ours*>(&structure);
}

// With memory behind it that is somebody else's.
template <typename T>
struct Guarded {
  T structure;
  uint64_t beyond = 0x5a5a;
};

TEST(CStructs, WhatAnOlderCallerDoesNotHaveIsTheDefault) {
  Guarded<First> caller{{sizeof(First), 1}};
  Ours known{0, 7, 7};

  ASSERT_TRUE(ReadStruct(As(caller), "options", known).ok());

  EXPECT_EQ(known.a, 1u);
  EXPECT_EQ(known.b, 0u);
}

TEST(CStructs, WhatAnOlderCallerDoesNotHaveIsNotWritten) {
  Guarded<First> caller{{sizeof(First), 7}};
  {
    ResultOf result(As(caller));
    ASSERT_TRUE(result.Open("result").ok());
    EXPECT_EQ(result.Given().a, 7u);
    EXPECT_EQ(result.Given().b, 0u);
    result->a = 1;
    result->b = 2;
  }

  EXPECT_EQ(caller.structure.struct_size, sizeof(First));
  EXPECT_EQ(caller.structure.a, 1u);
  EXPECT_EQ(caller.beyond, 0x5a5au);
}

TEST(CStructs, ACallerOfOurVersionGetsAll) {
  Guarded<Ours> caller{{sizeof(Ours), 1, 2}};
  Ours known{};
  ASSERT_TRUE(ReadStruct(As(caller), "options", known).ok());
  EXPECT_EQ(known.b, 2u);
  {
    ResultOf result(As(caller));
    ASSERT_TRUE(result.Open("result").ok());
    result->b = 3;
  }

  EXPECT_EQ(caller.structure.a, 0u);
  EXPECT_EQ(caller.structure.b, 3u);
  EXPECT_EQ(caller.beyond, 0x5a5au);
}

TEST(CStructs, ANewerCallerIsServedUnlessItSetsWhatWeDoNotKnow) {
  Guarded<Later> caller{{sizeof(Later), 1, 2, 0}};
  Ours known{};
  EXPECT_TRUE(ReadStruct(As(caller), "options", known).ok());
  EXPECT_EQ(known.b, 2u);

  caller.structure.c = 1;
  const absl::Status refused = ReadStruct(As(caller), "options", known);

  EXPECT_EQ(refused.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(refused.message()),
              HasSubstr("options: sets a field that this libkvd (0.1.0) does not know"));
}

TEST(CStructs, WhatANewerCallerHasBeyondOursBecomesZero) {
  Guarded<Later> caller{{sizeof(Later), 7, 7, 7}};
  {
    ResultOf result(As(caller));
    ASSERT_TRUE(result.Open("result").ok());
    result->a = 1;
  }

  EXPECT_EQ(caller.structure.a, 1u);
  EXPECT_EQ(caller.structure.c, 0u);
  EXPECT_EQ(caller.beyond, 0x5a5au);
}

TEST(CStructs, ASizeBelowTheFirstVersionIsAMistakeAndNothingIsWritten) {
  Guarded<Ours> caller{{sizeof(First) - 1, 7, 7}};
  Ours known{};
  EXPECT_THAT(std::string(ReadStruct(As(caller), "options", known).message()),
              HasSubstr("options.struct_size: 15 is too small"));
  {
    ResultOf result(As(caller));
    EXPECT_EQ(result.Open("result").code(), absl::StatusCode::kInvalidArgument);
    result->a = 1;
  }

  EXPECT_EQ(caller.structure.a, 7u);
}

TEST(CStructs, NoOptionsAreAllDefaultsAndNoResultIsAMistake) {
  Ours known{7, 7, 7};
  EXPECT_TRUE(ReadStruct<Ours>(nullptr, "options", known).ok());
  EXPECT_EQ(known.b, 0u);
  ResultOf<Ours> result(nullptr);

  EXPECT_THAT(std::string(result.Open("result").message()), HasSubstr("result: null"));
}

}  // namespace
}  // namespace kvd
