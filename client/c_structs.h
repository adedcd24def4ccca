// The structures of kvd.h that grow: how one that a caller was compiled with, older or newer than
// ours, is read and written. Pure functions over memory of the caller.
//
// A structure begins with struct_size and grows at its end. What an older caller does not have is
// 0, the default, and is never written; what a newer one has beyond ours must be 0 in what we read,
// and becomes 0 in what we write.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "client/kvd.h"

namespace kvd {

// Bytes of T in the first version of this soname. None was ever smaller, so a size below it is no
// older caller but a structure that nobody set up. A number here never changes: a program that was
// compiled then passes it. Beside the last field of then, which ends there.
template <typename T>
inline constexpr size_t kFirstBytes = 0;
template <>
inline constexpr size_t kFirstBytes<kvd_client_options> = 48;  // copy_loop
template <>
inline constexpr size_t kFirstBytes<kvd_stats> = 56;  // dropped_releases
template <>
inline constexpr size_t kFirstBytes<kvd_namespace_descriptor> = 128;  // extra_count
template <>
inline constexpr size_t kFirstBytes<kvd_lookup_options> = 32;  // parent
template <>
inline constexpr size_t kFirstBytes<kvd_lookup_result> = 32;  // load_time_us
template <>
inline constexpr size_t kFirstBytes<kvd_get_options> = 48;  // part_count
template <>
inline constexpr size_t kFirstBytes<kvd_get_result> = 32;  // lease_id
template <>
inline constexpr size_t kFirstBytes<kvd_load_options> = 40;  // range_bytes
template <>
inline constexpr size_t kFirstBytes<kvd_put_options> = 64;  // announce_count
template <>
inline constexpr size_t kFirstBytes<kvd_put_result> = 40;  // state_count
template <>
inline constexpr size_t kFirstBytes<kvd_pin_options> = 40;  // ttl_us
template <>
inline constexpr size_t kFirstBytes<kvd_pin_result> = 32;  // reserved

// kInvalidArgument: `struct_size` is of no version. Requires: `given` is not null.
template <typename T>
absl::Status CheckStructSize(const T* given, const char* name) {
  static_assert(std::is_standard_layout_v<T> && offsetof(T, struct_size) == 0);
  static_assert(kFirstBytes<T> > sizeof given->struct_size && kFirstBytes<T> <= sizeof(T));
  if (given->struct_size >= kFirstBytes<T>) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, ".struct_size: ", given->struct_size,
                                                 " is too small; begin with the matching _INIT"));
}

// What `given` says, and defaults for the rest; all defaults where it is null.
// kUnimplemented: a caller newer than this library sets what we do not know.
template <typename T>
absl::Status ReadStruct(const T* given, const char* name, T& known) {
  std::memset(static_cast<void*>(&known), 0, sizeof known);
  if (given == nullptr) return absl::OkStatus();
  if (absl::Status status = CheckStructSize(given, name); !status.ok()) return status;
  const size_t size = given->struct_size;
  std::memcpy(static_cast<void*>(&known), given, std::min(size, sizeof(T)));
  const char* bytes = reinterpret_cast<const char*>(given);
  if (size > sizeof(T) &&
      std::any_of(bytes + sizeof(T), bytes + size, [](char byte) { return byte != 0; })) {
    return absl::UnimplementedError(absl::StrCat(name, ": sets a field that this libkvd (",
                                                 KVD_VERSION_MAJOR, ".", KVD_VERSION_MINOR, ".",
                                                 KVD_VERSION_PATCH, ") does not know"));
  }
  return absl::OkStatus();
}

// A result while its call runs. It is written into the caller's structure, as far as that goes,
// when this ends: also beside an error.
template <typename T>
class ResultOf {
 public:
  explicit ResultOf(T* given) : given_(given) {}
  ResultOf(const ResultOf&) = delete;
  ResultOf& operator=(const ResultOf&) = delete;
  ~ResultOf() {
    if (!open_) return;
    known_.struct_size = given_->struct_size;
    char* bytes = reinterpret_cast<char*>(given_);
    std::memset(bytes, 0, known_.struct_size);
    std::memcpy(bytes, &known_, std::min(known_.struct_size, sizeof(T)));
  }

  // Before anything else. After an error the caller's structure is not touched.
  absl::Status Open(const char* name) {
    if (given_ == nullptr) return absl::InvalidArgumentError(absl::StrCat(name, ": null"));
    if (absl::Status status = CheckStructSize(given_, name); !status.ok()) return status;
    open_ = true;
    return absl::OkStatus();
  }

  // What the caller put into the structure, as far as we know it. Requires: it is open.
  T Given() const {
    T given{};
    std::memcpy(static_cast<void*>(&given), given_, std::min(given_->struct_size, sizeof(T)));
    return given;
  }

  T* operator->() { return &known_; }

 private:
  T* const given_;
  T known_{};
  bool open_ = false;
};

}  // namespace kvd
