#include "daemon/tls.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

namespace kvd {
namespace {

using testing::EndsWith;
using testing::HasSubstr;

constexpr long kDay = 24 * 3600;

class TlsTest : public testing::Test {
 protected:
  TlsTest() {
    char name[] = "/tmp/kvd-certificates-XXXXXX";
    folder_ = mkdtemp(name);
  }
  ~TlsTest() override {
    EVP_PKEY_free(key_);
    EVP_PKEY_free(other_key_);
    std::filesystem::remove_all(folder_);
  }

  std::string Path(const std::string& name) const { return folder_ + "/" + name; }

  // A certificate of key_, signed by itself, valid between two moments from now, in seconds.
  std::string WriteCertificate(const std::string& name, long from, long until,
                               const char* mode = "w") {
    X509* certificate = X509_new();
    X509_set_version(certificate, 2);
    X509_gmtime_adj(X509_getm_notBefore(certificate), from);
    X509_gmtime_adj(X509_getm_notAfter(certificate), until);
    X509_set_pubkey(certificate, key_);
    X509_sign(certificate, key_, EVP_sha256());
    std::FILE* file = std::fopen(Path(name).c_str(), mode);
    PEM_write_X509(file, certificate);
    std::fclose(file);
    X509_free(certificate);
    return Path(name);
  }
  std::string WriteKey(const std::string& name, EVP_PKEY* key, const char* password = nullptr) {
    std::FILE* file = std::fopen(Path(name).c_str(), "w");
    PEM_write_PKCS8PrivateKey(file, key, password == nullptr ? nullptr : EVP_aes_128_cbc(),
                              password, password == nullptr ? 0 : 4, nullptr, nullptr);
    std::fclose(file);
    return Path(name);
  }
  std::string WriteText(const std::string& name, const std::string& text) {
    std::ofstream(Path(name)) << text;
    return Path(name);
  }

  std::string folder_;
  EVP_PKEY* key_ = EVP_EC_gen("P-256");
  EVP_PKEY* other_key_ = EVP_EC_gen("P-256");
};

TEST_F(TlsTest, ACertificateAndItsKeyAreFine) {
  const std::string certificate = WriteCertificate("c.pem", -kDay, kDay);
  EXPECT_EQ(CheckCertificate(certificate), "");
  EXPECT_EQ(CheckAuthorities(certificate), "");
  EXPECT_EQ(CheckKey(WriteKey("k.pem", key_), certificate), "");
}

TEST_F(TlsTest, AMissingFileIsNamed) {
  const std::string missing = Path("missing.pem");
  for (const std::string& wrong :
       {CheckCertificate(missing), CheckAuthorities(missing), CheckKey(missing, missing)}) {
    EXPECT_EQ(wrong, "cannot read " + missing + ": No such file or directory");
  }
}

TEST_F(TlsTest, WhatIsNotPemIsRefused) {
  const std::string text = WriteText("text", "hello\n");
  EXPECT_THAT(CheckCertificate(text), EndsWith("holds no certificate in PEM"));
  EXPECT_THAT(CheckAuthorities(text), EndsWith("holds no certificate in PEM"));
  EXPECT_THAT(CheckKey(text, text), EndsWith("holds no private key in PEM without a password"));
  EXPECT_THAT(CheckCertificate(WriteKey("k.pem", key_)), EndsWith("holds no certificate in PEM"));
}

TEST_F(TlsTest, AnExpiredOneIsNamedWithItsDate) {
  EXPECT_THAT(CheckCertificate(WriteCertificate("old.pem", -2 * kDay, -kDay)),
              testing::AllOf(HasSubstr("old.pem expired on "), EndsWith(" GMT")));
  EXPECT_THAT(CheckCertificate(WriteCertificate("new.pem", kDay, 2 * kDay)),
              HasSubstr("new.pem is not valid before "));
}

TEST_F(TlsTest, AnAuthorityThatHasExpiredIsFineBesideOneThatHasNot) {
  const std::string all_old = WriteCertificate("ca.pem", -2 * kDay, -kDay);
  EXPECT_THAT(CheckAuthorities(all_old), HasSubstr("every certificate in "));
  EXPECT_EQ(CheckAuthorities(WriteCertificate("ca.pem", -kDay, kDay, "a")), "");
}

TEST_F(TlsTest, AnAuthorityOfTheFutureIsFineBesideOneThatIsGood) {
  WriteCertificate("ca.pem", -2 * kDay, -kDay);
  EXPECT_THAT(CheckAuthorities(WriteCertificate("ca.pem", kDay, 2 * kDay, "a")),
              HasSubstr("ca.pem is valid before "));
  EXPECT_EQ(CheckAuthorities(WriteCertificate("ca.pem", -kDay, kDay, "a")), "");
}

TEST_F(TlsTest, WhatIsReadIsWhatWasChecked) {
  const TlsPaths paths{.certificate = WriteCertificate("c.pem", -kDay, kDay),
                       .key = WriteKey("k.pem", key_),
                       .client_ca = WriteCertificate("ca.pem", -kDay, kDay)};
  const auto identity = ReadTls(paths);
  ASSERT_TRUE(identity.ok()) << identity.status();
  for (const std::string* text : {&identity->certificate, &identity->key, &identity->client_ca}) {
    EXPECT_THAT(*text, HasSubstr("-----BEGIN "));
  }
  EXPECT_NE(identity->certificate, identity->client_ca);

  const auto refusal = [](const TlsPaths& wrong) {
    return std::string(ReadTls(wrong).status().message());
  };
  TlsPaths wrong = paths;
  wrong.certificate = Path("missing.pem");
  EXPECT_EQ(refusal(wrong),
            "tcp.certificate: cannot read " + wrong.certificate + ": No such file or directory");
  wrong = paths;
  wrong.key = WriteKey("other.pem", other_key_);
  EXPECT_THAT(refusal(wrong), HasSubstr("tcp.key: the key in "));
  wrong = paths;
  wrong.client_ca = WriteCertificate("old.pem", -2 * kDay, -kDay);
  EXPECT_THAT(refusal(wrong), HasSubstr("tcp.client_ca: every certificate in "));
  wrong.client_ca = folder_;
  EXPECT_EQ(refusal(wrong), "tcp.client_ca: cannot read " + folder_ + ": Is a directory");
}

TEST_F(TlsTest, AKeyMustBelongToTheCertificateAndHaveNoPassword) {
  const std::string certificate = WriteCertificate("c.pem", -kDay, kDay);
  EXPECT_THAT(CheckKey(WriteKey("other.pem", other_key_), certificate),
              HasSubstr("does not belong to the certificate in "));
  EXPECT_THAT(CheckKey(WriteKey("locked.pem", key_, "1234"), certificate),
              EndsWith("holds no private key in PEM without a password"));
}

}  // namespace
}  // namespace kvd
