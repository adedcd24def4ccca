#include "daemon/accounts.h"

#include <grp.h>
#include <pwd.h>

#include <cerrno>
#include <vector>

namespace kvd {
namespace {

// Calls `find`, which is getpwnam_r or getgrnam_r, with as large a buffer as it wants.
template <typename Entry, typename Find>
std::optional<Entry> Look(const std::string& name, Find find) {
  constexpr size_t kEnough = 16u << 20;  // A group of a hundred thousand members.
  Entry entry;
  Entry* found = nullptr;
  for (size_t size = 4096; size <= kEnough; size *= 4) {
    std::vector<char> buffer(size);
    const int error = find(name.c_str(), &entry, buffer.data(), buffer.size(), &found);
    if (error != ERANGE) break;
  }
  return found == nullptr ? std::nullopt : std::optional<Entry>(entry);  // Only numbers are safe.
}

}  // namespace

std::optional<uid_t> UserId(const std::string& name) {
  const std::optional<passwd> user = Look<passwd>(name, getpwnam_r);
  return user.has_value() ? std::optional<uid_t>(user->pw_uid) : std::nullopt;
}

std::optional<gid_t> GroupId(const std::string& name) {
  const std::optional<group> found = Look<group>(name, getgrnam_r);
  return found.has_value() ? std::optional<gid_t>(found->gr_gid) : std::nullopt;
}

}  // namespace kvd
