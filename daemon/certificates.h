// Whether the PEM files of TLS will do, told before a server starts with them, because a handshake
// that fails tells the operator next to nothing.
//
// Threads: pure functions of the files and the clock.

#pragma once

#include <string>

namespace kvd {

// Each returns what is wrong, or nothing. None says anything about the contents of a key.
std::string CheckCertificate(const std::string& path);  // A certificate that has not expired.
// At least one certificate, and not all of them expired.
std::string CheckAuthorities(const std::string& path);
// A private key without a password that belongs to the certificate in the other file.
std::string CheckKey(const std::string& path, const std::string& certificate_path);

}  // namespace kvd
