#include "daemon/tls.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <sstream>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/types/status.h"

namespace kvd {
namespace {

template <auto kFree>
struct Free {
  template <typename T>
  void operator()(T* object) const {
    kFree(object);
  }
};
using Bio = std::unique_ptr<BIO, Free<BIO_free_all>>;
using Key = std::unique_ptr<EVP_PKEY, Free<EVP_PKEY_free>>;
using Certificate = std::unique_ptr<X509, Free<X509_free>>;

absl::Status Bad(const char* option, const std::string& path, absl::string_view why) {
  return InvalidField(option, absl::StrCat(path, ": ", why));
}

absl::StatusOr<std::string> ReadFile(const char* option, const std::string& path) {
  if (path.empty()) {
    return InvalidField(option,
                        "missing: TCP is served only with a certificate, its key and the "
                        "authority of client certificates");
  }
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  if (!file.good() || text.str().empty()) {
    return Bad(option, path, errno != 0 ? std::strerror(errno) : "is empty or not a file");
  }
  return text.str();
}

Bio Reader(const std::string& text) {
  return Bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

std::vector<Certificate> ParseCertificates(const std::string& text) {
  std::vector<Certificate> certificates;
  const Bio reader = Reader(text);
  while (X509* next = PEM_read_bio_X509(reader.get(), nullptr, nullptr, nullptr)) {
    certificates.emplace_back(next);
  }
  ERR_clear_error();
  return certificates;
}

std::string TimeText(const ASN1_TIME* time) {
  const Bio memory(BIO_new(BIO_s_mem()));
  ASN1_TIME_print(memory.get(), time);
  char* text = nullptr;
  const long size = BIO_get_mem_data(memory.get(), &text);
  return {text, static_cast<size_t>(size)};
}

absl::Status CheckTime(const char* option, const std::string& path, const X509& certificate,
                       std::time_t now) {
  const ASN1_TIME* begin = X509_get0_notBefore(&certificate);
  const ASN1_TIME* end = X509_get0_notAfter(&certificate);
  if (X509_cmp_time(end, &now) < 0) {
    return Bad(option, path,
               absl::StrCat("expired at ", TimeText(end), "; put a renewed one there"));
  }
  if (X509_cmp_time(begin, &now) > 0) {
    return Bad(
        option, path,
        absl::StrCat("not good before ", TimeText(begin), "; is this machine's clock right?"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TlsIdentity> ReadTls(const TlsPaths& paths, std::time_t now) {
  TlsIdentity identity;
  for (const auto& [option, path, text] :
       {std::tuple{"tls-certificate", &paths.certificate, &identity.certificate},
        {"tls-key", &paths.key, &identity.key},
        {"tls-client-ca", &paths.client_ca, &identity.client_ca}}) {
    absl::StatusOr<std::string> read = ReadFile(option, *path);
    if (!read.ok()) return read.status();
    *text = *std::move(read);
  }

  const std::vector<Certificate> chain = ParseCertificates(identity.certificate);
  if (chain.empty()) {
    return Bad("tls-certificate", paths.certificate, "has no certificate in PEM form");
  }
  for (const Certificate& certificate : chain) {
    absl::Status status = CheckTime("tls-certificate", paths.certificate, *certificate, now);
    if (!status.ok()) return status;
  }
  // A password would be asked for on the terminal: an empty one is given instead.
  const auto no_password = [](char*, int, int, void*) { return 0; };
  const Key key(PEM_read_bio_PrivateKey(Reader(identity.key).get(), nullptr, no_password, nullptr));
  ERR_clear_error();
  if (key == nullptr) {
    return Bad("tls-key", paths.key, "has no private key in PEM form, or one with a password");
  }
  if (X509_check_private_key(chain.front().get(), key.get()) != 1) {
    ERR_clear_error();
    return Bad("tls-key", paths.key,
               absl::StrCat("is not the key of the first certificate in ", paths.certificate));
  }
  const std::vector<Certificate> authorities = ParseCertificates(identity.client_ca);
  if (authorities.empty()) {
    return Bad("tls-client-ca", paths.client_ca, "has no certificate in PEM form");
  }
  for (const Certificate& authority : authorities) {
    absl::Status status = CheckTime("tls-client-ca", paths.client_ca, *authority, now);
    if (!status.ok()) return status;
  }
  return identity;
}

void Tls13Only() { setenv("GRPC_SSL_CIPHER_SUITES", "PSK-AES256-GCM-SHA384", /*overwrite=*/1); }

}  // namespace kvd
