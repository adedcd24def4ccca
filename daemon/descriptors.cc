#include "daemon/descriptors.h"

#include <sys/resource.h>

#include <algorithm>

namespace kvd {

bool IsReservedDescriptor(int fd) {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return false;
  const rlim_t reserved = std::min<rlim_t>(kReservedDescriptors, limit.rlim_cur / 2);
  return static_cast<rlim_t>(fd) >= limit.rlim_cur - reserved;
}

}  // namespace kvd
