// Copies that are issued now and land at the wait that covers their group.
#include <algorithm>
#include <cstring>

#include "state.h"

namespace cuda_host {

void async_copy(void* shared, const void* global, int bytes, int valid, const void* code) {
  check_alignment("an asynchronous copy's target", shared, bytes, code);
  if (valid) check_alignment("an asynchronous copy's source", global, bytes, code);
  if (valid) check_access(global, valid, Access::kRead, code);
  begin_flight(shared, bytes, code);
  Copy copy{shared, bytes, false, 0, {}};
  if (valid) std::memcpy(copy.data, global, valid);
  current->copies.push_back(copy);
}

void async_commit() {
  for (Copy& copy : current->copies) {
    if (!copy.committed) copy.group = current->groups;
    copy.committed = true;
  }
  ++current->groups;
}

void async_wait(int groups_left) {
  auto& copies = current->copies;
  int landed = current->groups - groups_left;  // groups before this one
  for (const Copy& copy : copies) {
    if (!copy.committed || copy.group >= landed) continue;
    std::memcpy(copy.target, copy.data, copy.bytes);
    land(copy.target, copy.bytes);
  }
  auto done = [&](const Copy& copy) { return copy.committed && copy.group < landed; };
  copies.erase(std::remove_if(copies.begin(), copies.end(), done), copies.end());
}

}  // namespace cuda_host
