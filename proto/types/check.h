// KVD_CHECK(condition) << "values at hand": our own mistake, so the process ends where it was made.
// It stays on in release. KVD_DCHECK is for checks too costly for that.

#pragma once

#include <cstdlib>
#include <iostream>
#include <sstream>

namespace kvd::internal {

// Collects the message and ends the process when the full expression ends.
class CheckFailure {
 public:
  CheckFailure(const char* file, int line, const char* condition) {
    message_ << file << ":" << line << ": check failed: " << condition << " ";
  }
  [[noreturn]] ~CheckFailure() {
    std::cerr << message_.str() << std::endl;
    std::abort();
  }
  std::ostream& stream() { return message_; }

 private:
  std::ostringstream message_;
};

// Gives both branches of the conditional expression below the type void.
struct Voidify {
  void operator&(std::ostream&) const {}
};

}  // namespace kvd::internal

#define KVD_CHECK(condition)         \
  __builtin_expect(!!(condition), 1) \
      ? (void)0                      \
      : ::kvd::internal::Voidify() & \
            ::kvd::internal::CheckFailure(__FILE__, __LINE__, #condition).stream()

#ifdef NDEBUG
#define KVD_DCHECK(condition) KVD_CHECK(true || (condition))
#else
#define KVD_DCHECK(condition) KVD_CHECK(condition)
#endif
