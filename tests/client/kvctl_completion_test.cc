// The completion scripts, by the shells that are here: that they parse, and what they complete.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <array>
#include <cstdio>
#include <string>

namespace kvd::kvctl {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

// Standard output of a shell's command line; its exit status goes to `status`.
std::string Output(const std::string& command, int* status = nullptr) {
  std::string text;
  FILE* pipe = popen(command.c_str(), "r");
  std::array<char, 4096> bytes;
  size_t got;
  while ((got = fread(bytes.data(), 1, bytes.size(), pipe)) > 0) text.append(bytes.data(), got);
  const int ended = pclose(pipe);
  if (status != nullptr) *status = ended;
  return text;
}

bool Has(const std::string& shell) {
  int status = 0;
  Output("command -v " + shell, &status);
  return status == 0;
}

class CompletionTest : public testing::TestWithParam<const char*> {};

TEST_P(CompletionTest, ScriptParses) {
  const std::string shell = GetParam();
  if (!Has(shell)) GTEST_SKIP() << "no " << shell << " here";
  int status = -1;
  const std::string said = Output("f=$(mktemp) && " KVCTL_PROGRAM " completion " + shell +
                                      " > $f && " + shell + " -n $f 2>&1; s=$?; rm -f $f; exit $s",
                                  &status);
  EXPECT_EQ(status, 0) << said;
}

INSTANTIATE_TEST_SUITE_P(Shells, CompletionTest, testing::Values("bash", "zsh", "fish"),
                         [](const auto& shell) { return std::string(shell.param); });

// What bash offers after these words, the last of which is being typed.
std::string Bash(const std::string& words) {
  return Output("bash -c 'source <(" KVCTL_PROGRAM " completion bash); COMP_WORDS=(" + words +
                "); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _kvctl; echo \" ${COMPREPLY[*]} \"'");
}

TEST(BashCompletionTest, KnowsVerbsOptionsAndValues) {
  EXPECT_THAT(Bash("kvctl s"), AllOf(HasSubstr(" status "), HasSubstr(" sessions ")));
  EXPECT_EQ(Bash("kvctl namespaces d"), " drop \n");
  EXPECT_EQ(Bash("kvctl --endpoint unix:/x config r"), " reload \n");
  EXPECT_EQ(Bash("kvctl ls -o y"), " yaml \n");
  EXPECT_THAT(Bash("kvctl pin --"),
              AllOf(HasSubstr(" --owner "), HasSubstr(" --output "), Not(HasSubstr(" --strict "))));
  EXPECT_EQ(Bash("kvctl completion f"), " fish \n");
}

TEST(FishCompletionTest, KnowsVerbsOptionsAndValues) {
  if (!Has("fish")) GTEST_SKIP() << "no fish here";
  const auto fish = [](const std::string& line) {
    return Output("fish --no-config -c '" KVCTL_PROGRAM
                  " completion fish | source; complete -C \"" +
                  line + "\"' 2>/dev/null");
  };
  EXPECT_THAT(fish("kvctl namespaces d"), HasSubstr("drop"));
  EXPECT_THAT(fish("kvctl ls -o y"), HasSubstr("yaml"));
  EXPECT_THAT(fish("kvctl pin --ow"), HasSubstr("--owner"));
  EXPECT_THAT(fish("kvctl ls --ow"), Not(HasSubstr("--owner")));
}

}  // namespace
}  // namespace kvd::kvctl
