// Users and groups of this system by name or number.
//
// Threads: safe from any. May wait for the system's directory (files, LDAP), so not for a path that
// somebody waits for.

#pragma once

#include <sys/types.h>

#include <optional>
#include <string>

namespace kvd {

std::optional<uid_t> UserId(const std::string& name);  // nullopt: there is none of that name.
std::optional<gid_t> GroupId(const std::string& name);

}  // namespace kvd
