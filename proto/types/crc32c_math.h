// The arithmetic under CRC32C: polynomials over GF(2) modulo P = x^32 + 0x1EDC6F41. All that sums
// in pieces, whether by folding, in several streams or by joining two sums, rests on one identity:
// to append n bits to a message multiplies its state by x^n modulo P.
//
// Polynomials are kept as the CRC keeps them, reflected: bit 31 is x^0, bit 0 is x^31. A *state* is
// a sum without the inversions at its two ends. Only the sources of checksum.h and copy_loops.h
// need this header.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace kvd::crc32c {

inline constexpr uint32_t kPolynomial = 0x82F63B78;
inline constexpr uint32_t kOne = uint32_t{1} << 31;

constexpr uint32_t TimesX(uint32_t a) { return (a >> 1) ^ ((a & 1) != 0 ? kPolynomial : 0); }

constexpr uint32_t Multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t bit = kOne; bit != 0; bit >>= 1, b = TimesX(b)) {
    if ((a & bit) != 0) product ^= b;
  }
  return product;
}

// x^exponent modulo P.
constexpr uint32_t PowerOfX(uint64_t exponent) {
  uint32_t power = kOne;
  for (uint32_t square = TimesX(kOne); exponent != 0; exponent >>= 1) {
    if ((exponent & 1) != 0) power = Multiply(power, square);
    square = Multiply(square, square);
  }
  return power;
}

// The least n > 0 with x^n = 1, so that x^-n is x^(kOrder - n).
inline constexpr uint64_t kOrder = (uint64_t{1} << 31) - 1;
static_assert(PowerOfX(kOrder) == kOne);

// kTable[k][b] is the state after byte b and k zero bytes, from state 0.
using Table = std::array<std::array<uint32_t, 256>, 8>;
constexpr Table MakeTable() {
  Table table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t state = byte;
    for (int bit = 0; bit < 8; ++bit) state = TimesX(state);
    table[0][byte] = state;
  }
  for (size_t k = 1; k < 8; ++k) {
    for (size_t byte = 0; byte < 256; ++byte) {
      const uint32_t state = table[k - 1][byte];
      table[k][byte] = table[0][state & 0xFF] ^ (state >> 8);
    }
  }
  return table;
}
inline constexpr Table kTable = MakeTable();

inline uint32_t AppendByte(uint32_t state, uint8_t byte) {
  return kTable[0][(state ^ byte) & 0xFF] ^ (state >> 8);
}

// Eight bytes at once; the first of them is the lowest of `word`.
inline uint32_t AppendWord(uint32_t state, uint64_t word) {
  word ^= state;
  uint32_t next = 0;
  for (size_t k = 0; k < 8; ++k) next ^= kTable[7 - k][(word >> (8 * k)) & 0xFF];
  return next;
}

}  // namespace kvd::crc32c
