// The choice of instruction set at run time.
#pragma once

#include <string>
#include <vector>

#include "variant.h"

namespace action {

// Variants that were compiled and that this processor runs, best first.
const std::vector<const Variant*>& variants();

// The variant in use: the best one, until another is chosen.
const Variant& variant();

// Chooses a variant by name; throws std::invalid_argument for one that is not in variants().
void use_variant(const std::string& name);

// Launchers of the variant that is in use when one is called.
const Library& cpu_library();

}  // namespace action
