// Controls that must go red: with any one of the safeties taken away, a harness fails; with all of
// them it passes. A harness that stays green would prove nothing.

#include <sys/wait.h>

#include <cstdlib>
#include <string>

#include "gtest/gtest.h"

namespace kvd {
namespace {

// Whether the program ends well; its output goes nowhere.
bool Passes(const std::string& environment, const std::string& program) {
  // One that does not end has not passed: without its ancestors a move may be begun for ever.
  const std::string command = environment + " timeout 60 " + program + " > /dev/null 2>&1";
  const int status = std::system(command.c_str());
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

struct Control {
  const char* safety;
  const char* program;
  const char* environment;  // Enough for it to be caught.
};

// On seeds whose device lies (8 n + 3), or loses power as any other.
const Control kControls[] = {
    {"checksum", KVD_POWER_LOSS, "KVD_SEED=3 KVD_POWER_LOSS_IMAGES=50"},
    {"key_in_header", KVD_POWER_LOSS, "KVD_SEED=35 KVD_POWER_LOSS_IMAGES=50"},
    {"data_before_index", KVD_POWER_LOSS, "KVD_SEED=1 KVD_POWER_LOSS_IMAGES=300"},
    {"epoch", KVD_POWER_LOSS, "KVD_SEED=1 KVD_POWER_LOSS_IMAGES=300"},
    {"no_reuse_under_hold", KVD_CONTROL_SIM, "KVD_SEED=1 KVD_SIM_SEEDS=40"},
    {"quarantine", KVD_CONTROL_SIM, "KVD_SEED=1 KVD_SIM_SEEDS=40"},
    {"ancestors", KVD_MOVEMENT, ""},
};

TEST(ControlsTest, WithAllSafetiesTheHarnessesPass) {
  for (const Control& control : kControls) {
    EXPECT_TRUE(Passes(control.environment, control.program)) << control.safety;
  }
}

TEST(ControlsTest, WithoutAnyOneOfThemAHarnessFails) {
  for (const Control& control : kControls) {
    const std::string environment =
        std::string(control.environment) + " KVD_CONTROL=" + control.safety;
    EXPECT_FALSE(Passes(environment, control.program)) << "nobody noticed: " << control.safety;
  }
}

}  // namespace
}  // namespace kvd
