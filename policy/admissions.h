// The admission policies by name: the one list that daemon, simulator and error messages share.
//
//   all              every block that leaves DRAM
//   none             no block: NVMe is read and not written
//   second-touch     blocks that were used after they were stored, or that left and came back
//                    (LARC, MSST 2013: about a quarter of the writes for over half of the hits)
//   class-predicted  blocks of a class (namespace and number of uses) of which enough come back;
//                    Flashield (NSDI'19) in its simplest form: classes instead of a classifier
//
// Threads: all functions are pure.

#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "policy/admission.h"

namespace kvd {

// A policy that remembers about four times `max_blocks` of what left; null when there is none of
// that name.
std::unique_ptr<AdmissionPolicy> MakeAdmission(std::string_view name, uint32_t max_blocks);

// All names, separated by ", ", for an error message.
std::string_view AdmissionNames();

}  // namespace kvd
