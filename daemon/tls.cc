#include "daemon/tls.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <sstream>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/types/status.h"

namespace kvd {
namespace {

struct Freer {
  void operator()(BIO* bio) const { BIO_free_all(bio); }
  void operator()(X509* certificate) const { X509_free(certificate); }
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};
template <typename T>
using Owned = std::unique_ptr<T, Freer>;

struct PemFile {
  std::string path;
  std::string text;
  std::string wrong;  // Why it could not be read.
};

PemFile Read(const std::string& path) {
  PemFile pem{.path = path};
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  pem.text = text.str();
  if (pem.text.empty() && errno != 0) {
    pem.wrong = absl::StrCat("cannot read ", path, ": ", std::strerror(errno));
  }
  return pem;
}

Owned<BIO> Reader(const std::string& text) {
  return Owned<BIO>(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

// Without this OpenSSL would ask the terminal for a password.
int NoPassword(char*, int, int, void*) { return 0; }

std::vector<Owned<X509>> CertificatesIn(const PemFile& pem) {
  std::vector<Owned<X509>> certificates;
  const Owned<BIO> reader = Reader(pem.text);
  while (X509* certificate = PEM_read_bio_X509(reader.get(), nullptr, NoPassword, nullptr)) {
    certificates.emplace_back(certificate);
  }
  ERR_clear_error();  // The end of the text is an error to it.
  return certificates;
}

std::string Text(const ASN1_TIME* time) {
  const Owned<BIO> memory(BIO_new(BIO_s_mem()));
  ASN1_TIME_print(memory.get(), time);
  char* bytes = nullptr;
  const long size = BIO_get_mem_data(memory.get(), &bytes);
  return {bytes, static_cast<size_t>(size)};
}

bool Expired(const Owned<X509>& certificate) {
  return X509_cmp_current_time(X509_get0_notAfter(certificate.get())) < 0;
}
bool BeforeItsTime(const Owned<X509>& certificate) {
  return X509_cmp_current_time(X509_get0_notBefore(certificate.get())) > 0;
}

std::string NoCertificate(const PemFile& pem) {
  return absl::StrCat(pem.path, " holds no certificate in PEM");
}

std::string Check(const PemFile& pem) {
  if (!pem.wrong.empty()) return pem.wrong;
  const std::vector<Owned<X509>> certificates = CertificatesIn(pem);
  if (certificates.empty()) return NoCertificate(pem);
  const Owned<X509>& first = certificates.front();
  if (Expired(first)) {
    return absl::StrCat("the certificate in ", pem.path, " expired on ",
                        Text(X509_get0_notAfter(first.get())));
  }
  if (BeforeItsTime(first)) {
    return absl::StrCat("the certificate in ", pem.path, " is not valid before ",
                        Text(X509_get0_notBefore(first.get())));
  }
  return "";
}

std::string CheckAll(const PemFile& pem) {
  if (!pem.wrong.empty()) return pem.wrong;
  const std::vector<Owned<X509>> certificates = CertificatesIn(pem);
  if (certificates.empty()) return NoCertificate(pem);
  const auto good = [](const Owned<X509>& one) { return !Expired(one) && !BeforeItsTime(one); };
  if (std::any_of(certificates.begin(), certificates.end(), good)) return "";
  for (const Owned<X509>& certificate : certificates) {
    if (Expired(certificate)) continue;
    return absl::StrCat("no certificate in ", pem.path, " is valid before ",
                        Text(X509_get0_notBefore(certificate.get())));
  }
  return absl::StrCat("every certificate in ", pem.path, " has expired, the first on ",
                      Text(X509_get0_notAfter(certificates.front().get())));
}

std::string Check(const PemFile& pem, const PemFile& certificate) {
  if (!pem.wrong.empty()) return pem.wrong;
  const Owned<EVP_PKEY> key(
      PEM_read_bio_PrivateKey(Reader(pem.text).get(), nullptr, NoPassword, nullptr));
  ERR_clear_error();
  if (key == nullptr) {
    return absl::StrCat(pem.path, " holds no private key in PEM without a password");
  }
  // One that is missing is told about the certificate.
  const std::vector<Owned<X509>> certificates = CertificatesIn(certificate);
  if (!certificates.empty() && X509_check_private_key(certificates[0].get(), key.get()) != 1) {
    ERR_clear_error();
    return absl::StrCat("the key in ", pem.path, " does not belong to the certificate in ",
                        certificate.path);
  }
  return "";
}

}  // namespace

std::string CheckCertificate(const std::string& path) { return Check(Read(path)); }
std::string CheckAuthorities(const std::string& path) { return CheckAll(Read(path)); }
std::string CheckKey(const std::string& path, const std::string& certificate_path) {
  return Check(Read(path), Read(certificate_path));
}

absl::StatusOr<TlsIdentity> ReadTls(const TlsPaths& paths) {
  PemFile certificate = Read(paths.certificate);
  PemFile key = Read(paths.key);
  PemFile client_ca = Read(paths.client_ca);
  for (const auto& [option, wrong] : {std::pair{"tcp.certificate", Check(certificate)},
                                      {"tcp.key", Check(key, certificate)},
                                      {"tcp.client_ca", CheckAll(client_ca)}}) {
    if (!wrong.empty()) return InvalidField(option, wrong);
  }
  return TlsIdentity{std::move(certificate.text), std::move(key.text), std::move(client_ca.text)};
}

std::vector<std::string> TlsSource::Renew(TlsIdentity identity) {
  std::vector<std::string> changed;
  absl::MutexLock lock(&mu_);
  if (identity.certificate != identity_.certificate) changed.emplace_back("tcp.certificate");
  if (identity.key != identity_.key) changed.emplace_back("tcp.key");
  if (identity.client_ca != identity_.client_ca) changed.emplace_back("tcp.client_ca");
  if (!changed.empty()) ++version_;
  identity_ = std::move(identity);
  return changed;
}

std::optional<TlsIdentity> TlsSource::NewerThan(uint64_t& version) const {
  absl::MutexLock lock(&mu_);
  if (std::exchange(version, version_) == version_) return std::nullopt;
  return identity_;
}

void Tls13Only() { setenv("GRPC_SSL_CIPHER_SUITES", "PSK-AES256-GCM-SHA384", /*overwrite=*/1); }

}  // namespace kvd
