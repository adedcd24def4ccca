// What pages shared memory consists of.

#pragma once

#include <cstdint>
#include <string_view>

namespace kvd {

enum class PageKind : uint8_t { kSmall, kShmemHuge, kHugetlb };

inline std::string_view PageKindName(PageKind kind) {
  switch (kind) {
    case PageKind::kHugetlb:
      return "hugetlb 2 MiB";
    case PageKind::kShmemHuge:
      return "shmem huge";
    case PageKind::kSmall:
      break;
  }
  return "4 KiB";
}

}  // namespace kvd
