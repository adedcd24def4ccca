#include "proto/types/checksum.h"

#include <array>

#include "proto/types/copy_loops.h"
#include "proto/types/crc32c_math.h"

namespace kvd {
namespace {

// kShift[i] is the factor that appends 2^i bytes, so that a length of few bits costs few products.
constexpr std::array<uint32_t, 64> MakeShifts() {
  std::array<uint32_t, 64> shifts{};
  uint32_t shift = crc32c::PowerOfX(8);
  for (uint32_t& entry : shifts) {
    entry = shift;
    shift = crc32c::Multiply(shift, shift);
  }
  return shifts;
}
constexpr std::array<uint32_t, 64> kShift = MakeShifts();

}  // namespace

uint32_t Crc32cPortable(absl::Span<const std::byte> bytes) {
  uint32_t state = ~uint32_t{0};
  for (const std::byte byte : bytes) state = crc32c::AppendByte(state, static_cast<uint8_t>(byte));
  return ~state;
}

uint32_t Crc32c(absl::Span<const std::byte> bytes) { return Crc32cExtend(0, bytes); }

uint32_t Crc32cExtend(uint32_t crc, absl::Span<const std::byte> bytes) {
  return SumLoops().front().sum(crc, bytes.data(), bytes.size());
}

uint32_t Crc32cConcat(uint32_t crc_a, uint32_t crc_b, uint64_t length_b) {
  for (size_t i = 0; length_b != 0; ++i, length_b >>= 1) {
    if ((length_b & 1) != 0) crc_a = crc32c::Multiply(crc_a, kShift[i]);
  }
  return crc_a ^ crc_b;
}

}  // namespace kvd
