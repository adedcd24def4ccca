#include "daemon/data_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "proto/types/checksum.h"
#include "proto/types/status.h"

namespace kvd {
namespace {

constexpr absl::string_view kFirstWords = "kvd data directory, format ";
constexpr absl::string_view kNewerFormat = "of a newer format";

uint32_t SumOf(absl::string_view text) {
  return Crc32c({reinterpret_cast<const std::byte*>(text.data()), text.size()});
}

// Three lines: what it is, the UUID, the sum of both.
std::string IdentityText(const std::string& uuid) {
  const std::string text = absl::StrCat(kFirstWords, DataDirectory::kFormat, "\n", uuid, "\n");
  return absl::StrCat(text, absl::StrFormat("%08x\n", SumOf(text)));
}

// Empty and an error: there is no file, or it cannot be read.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0) return ErrnoStatus(errno, path);
  std::array<char, 4096> bytes;
  const ssize_t size = read(fd, bytes.data(), bytes.size());
  const int error = errno;
  close(fd);
  if (size < 0) return ErrnoStatus(error, path);
  return std::string(bytes.data(), static_cast<size_t>(size));
}

// Whole or not at all, whenever the power goes.
absl::Status WriteSmallFile(const std::string& path, const std::string& text) {
  const std::string fresh = path + ".new";
  const int fd = open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) return ErrnoStatus(errno, fresh);
  const bool written =
      write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()) && fsync(fd) == 0;
  const int error = errno;
  close(fd);
  if (!written || rename(fresh.c_str(), path.c_str()) != 0) {
    return ErrnoStatus(written ? errno : error, fresh);
  }
  const int folder =
      open(path.substr(0, path.rfind('/')).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder >= 0) {
    fsync(folder);
    close(folder);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> NewUuid() {
  std::array<char, 16> bytes;
  if (getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
    return ErrnoStatus(errno, "getrandom");
  }
  return absl::BytesToHexString({bytes.data(), bytes.size()});
}

}  // namespace

absl::StatusOr<DataDirectory> DataDirectory::Open(const std::string& path) {
  DataDirectory directory;
  directory.path_ = path;
  if (mkdir(path.c_str(), 0700) == 0) {
    chmod(path.c_str(), 0700);  // The umask of the process may have taken our own way in.
  } else if (errno != EEXIST) {
    return ErrnoStatus(errno, path);
  }
  const std::string lock = path + "/lock";
  directory.lock_ = open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (directory.lock_ < 0) return ErrnoStatus(errno, lock);
  if (flock(directory.lock_, LOCK_EX | LOCK_NB) != 0) {
    return absl::AlreadyExistsError(absl::StrCat("another kvd uses the data directory ", path));
  }

  const std::string name = path + "/identity";
  absl::StatusOr<std::string> text = ReadSmallFile(name);
  if (text.ok()) {
    const std::vector<std::string> lines = absl::StrSplit(*text, '\n');
    int format = 0;
    if (absl::StartsWith(lines[0], kFirstWords) &&
        absl::SimpleAtoi(lines[0].substr(kFirstWords.size()), &format) && format > kFormat) {
      return absl::FailedPreconditionError(
          absl::StrCat("the data directory ", path, " is ", kNewerFormat, " (", format,
                       "); this kvd knows ", kFormat, ". Nothing of it was changed"));
    }
    if (lines.size() == 4 && lines[1].size() == 32 && *text == IdentityText(lines[1])) {
      directory.uuid_ = lines[1];
      return directory;
    }
    directory.identity_was_damaged_ = true;
    if (rename(name.c_str(), (name + ".damaged").c_str()) != 0) return ErrnoStatus(errno, name);
  } else if (!absl::IsNotFound(text.status())) {
    return text.status();
  }
  absl::StatusOr<std::string> uuid = NewUuid();
  if (!uuid.ok()) return uuid.status();
  if (absl::Status status = WriteSmallFile(name, IdentityText(*uuid)); !status.ok()) return status;
  directory.uuid_ = *std::move(uuid);
  return directory;
}

DataDirectory::DataDirectory(DataDirectory&& other) noexcept
    : path_(std::move(other.path_)),
      uuid_(std::move(other.uuid_)),
      identity_was_damaged_(other.identity_was_damaged_),
      lock_(std::exchange(other.lock_, -1)) {}

DataDirectory::~DataDirectory() {
  if (lock_ >= 0) close(lock_);  // The file stays: unlinking it would let two daemons lock two.
}

bool IsNewerFormat(const absl::Status& status) {
  return absl::IsFailedPrecondition(status) && absl::StrContains(status.message(), kNewerFormat);
}

}  // namespace kvd
