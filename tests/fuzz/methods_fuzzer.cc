// Programs of calls, see methods_harness.h.

#include "tests/fuzz/methods_harness.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  kvd::MethodsHarness harness;
  harness.Run(data, size);
  harness.Finish();
  return 0;
}
