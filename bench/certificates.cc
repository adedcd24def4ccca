#include "bench/certificates.h"

#include <cstdlib>

#include "absl/strings/str_cat.h"

namespace kvd {
namespace {

constexpr char kScript[] = R"(
set -e
key='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes'
openssl req -x509 $key -keyout ca.key -out ca.pem -days 2 -subj /CN=kvd-test-authority
sign() {
  openssl req $key -keyout $1.key -out $1.csr -subj /CN=$1
  echo "subjectAltName=$2" > $1.ext
  openssl x509 -req -in $1.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile $1.ext \
    -out $1.pem
}
sign server DNS:kvd.test
sign client URI:spiffe://kvd.test/client
)";

}  // namespace

absl::Status MakeCertificates(const std::string& folder) {
  const std::string command =
      absl::StrCat("cd '", folder, "' && ( ", kScript, ") >openssl.log 2>&1 </dev/null");
  if (std::system(command.c_str()) == 0) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("openssl(1) made no certificates; see ", folder, "/openssl.log"));
}

}  // namespace kvd
