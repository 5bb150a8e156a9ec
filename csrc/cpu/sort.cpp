#include <algorithm>
#include <cstdint>
#include <functional>

namespace action {

void sort_descending(int64_t* values, int64_t count) { std::sort(values, values + count, std::greater<>()); }

}  // namespace action
