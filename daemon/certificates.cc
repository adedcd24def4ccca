#include "daemon/certificates.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"

namespace kvd {
namespace {

struct Freer {
  void operator()(BIO* bio) const { BIO_free_all(bio); }
  void operator()(X509* certificate) const { X509_free(certificate); }
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};
template <typename T>
using Owned = std::unique_ptr<T, Freer>;

// Null: `wrong` says why.
Owned<BIO> Open(const std::string& path, std::string* wrong) {
  Owned<BIO> file(BIO_new_file(path.c_str(), "r"));
  if (file == nullptr) {
    *wrong = absl::StrCat("cannot read ", path, ": ", std::strerror(errno));
    ERR_clear_error();
  }
  return file;
}

// Without this OpenSSL would ask the terminal for a password.
int NoPassword(char*, int, int, void*) { return 0; }

std::vector<Owned<X509>> ReadCertificates(BIO* file) {
  std::vector<Owned<X509>> certificates;
  while (X509* certificate = PEM_read_bio_X509(file, nullptr, NoPassword, nullptr)) {
    certificates.emplace_back(certificate);
  }
  ERR_clear_error();  // The end of the file is an error to it.
  return certificates;
}

std::string Text(const ASN1_TIME* time) {
  const Owned<BIO> memory(BIO_new(BIO_s_mem()));
  ASN1_TIME_print(memory.get(), time);
  char* bytes = nullptr;
  const long size = BIO_get_mem_data(memory.get(), &bytes);
  return {bytes, static_cast<size_t>(size)};
}

bool Expired(const X509* certificate) {
  return X509_cmp_current_time(X509_get0_notAfter(certificate)) < 0;
}

}  // namespace

std::string CheckCertificate(const std::string& path) {
  std::string wrong;
  const Owned<BIO> file = Open(path, &wrong);
  if (file == nullptr) return wrong;
  const std::vector<Owned<X509>> certificates = ReadCertificates(file.get());
  if (certificates.empty()) return absl::StrCat(path, " holds no certificate in PEM");
  const X509* first = certificates[0].get();  // That of the server; the others vouch for it.
  if (Expired(first)) {
    return absl::StrCat("the certificate in ", path, " expired on ",
                        Text(X509_get0_notAfter(first)));
  }
  if (X509_cmp_current_time(X509_get0_notBefore(first)) > 0) {
    return absl::StrCat("the certificate in ", path, " is not valid before ",
                        Text(X509_get0_notBefore(first)));
  }
  return "";
}

std::string CheckAuthorities(const std::string& path) {
  std::string wrong;
  const Owned<BIO> file = Open(path, &wrong);
  if (file == nullptr) return wrong;
  const std::vector<Owned<X509>> certificates = ReadCertificates(file.get());
  if (certificates.empty()) return absl::StrCat(path, " holds no certificate in PEM");
  for (const Owned<X509>& certificate : certificates) {
    if (!Expired(certificate.get())) return "";
  }
  return absl::StrCat("every certificate in ", path, " has expired, the first on ",
                      Text(X509_get0_notAfter(certificates[0].get())));
}

std::string CheckKey(const std::string& path, const std::string& certificate_path) {
  std::string wrong;
  const Owned<BIO> file = Open(path, &wrong);
  if (file == nullptr) return wrong;
  const Owned<EVP_PKEY> key(PEM_read_bio_PrivateKey(file.get(), nullptr, NoPassword, nullptr));
  ERR_clear_error();
  if (key == nullptr) {
    return absl::StrCat(path, " holds no private key in PEM without a password");
  }
  const Owned<BIO> other = Open(certificate_path, &wrong);
  if (other == nullptr) return "";  // That is told about the certificate.
  const std::vector<Owned<X509>> certificates = ReadCertificates(other.get());
  if (!certificates.empty() && X509_check_private_key(certificates[0].get(), key.get()) != 1) {
    ERR_clear_error();
    return absl::StrCat("the key in ", path, " does not belong to the certificate in ",
                        certificate_path);
  }
  return "";
}

}  // namespace kvd
