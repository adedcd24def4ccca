// Where a block's bytes rest, as the index of what is counted for each tier.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace kvd {

enum class TierIndex : uint8_t { kDram, kNvme };
inline constexpr size_t kTiers = 2;
inline constexpr std::array<std::string_view, kTiers> kTierNames = {"dram", "nvme"};

}  // namespace kvd
