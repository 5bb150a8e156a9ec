// Where threads wait for one another: barriers of the block and operations of a warp.
#include <cstring>

#include "state.h"

namespace cuda_host {
namespace {

bool same_text(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }
bool same(Site a, Site b) { return a.line == b.line && same_text(a.file, b.file); }
bool together(const Thread& waiting, const char* operation, Site site) {
  return same(waiting.site, site) && same_text(waiting.operation, operation);
}

void wait_at(const char* operation, Site site) {
  current->operation = operation;
  current->site = site;
}

Thread& lane_of(unsigned first, int lane) { return thread(first + lane); }

}  // namespace

unsigned lane() { return current->number % kWarpSize; }

void absent_source(unsigned mask, int lane, int source) {
  fail(format("a shuffle: lane %d asks for the value of lane %d, which is not in the mask 0x%08x", lane, source, mask));
}

int meet_block(const char* operation, bool predicate, Site site) {
  for (unsigned i = 0; i < threads() && block.arrived; ++i) {
    const Thread& other = thread(i);
    if (!other.operation || other.mask) continue;
    if (!together(other, operation, site)) {
      fail(format("divergent barrier: %s at %s while %s waits in %s at %s", operation, place(site).c_str(),
                  name(other).c_str(), other.operation, place(other.site).c_str()));
    }
    break;  // that one was compared with those before it
  }
  block.predicates += predicate;
  if (++block.arrived < threads()) {
    wait_at(operation, site);
    current->mask = 0;
    suspend();
    return block.count;  // no later barrier can complete before this thread comes to it
  }
  block.count = static_cast<int>(block.predicates);
  block.arrived = block.predicates = 0;
  block.ordered = ++now;
  for (unsigned i = 0; i < threads(); ++i) {
    if (&thread(i) != current) make_ready(&thread(i));
  }
  return block.count;
}

void meet_warp(const char* operation, unsigned mask, const void* in, void* out, Compute compute, bool orders_memory,
               Site site) {
  unsigned number = current->number, first = number - number % kWarpSize, self = 1u << (number % kWarpSize);
  Warp& warp = block.warps[number / kWarpSize];
  if (!(mask & self)) {
    fail(format("%s at %s: the caller is not in its mask 0x%08x", operation, place(site).c_str(), mask));
  }
  mask &= warp.present;  // a block's last warp may be partial, its missing lanes count as exited
  unsigned arrived = self;
  for (unsigned rest = warp.waiting & mask; rest; rest &= rest - 1) {
    int i = __builtin_ctz(rest);
    const Thread& other = lane_of(first, i);
    if (other.mask != mask || !together(other, operation, site)) {
      fail(format("warp operations differ: %s at %s with mask 0x%08x while %s waits in %s at %s with mask 0x%08x",
                  operation, place(site).c_str(), mask, name(other).c_str(), other.operation, place(other.site).c_str(),
                  other.mask));
    }
    arrived |= 1u << i;
  }
  current->in = in;
  current->out = out;
  if (arrived != mask) {
    wait_at(operation, site);
    current->mask = mask;
    warp.waiting |= self;
    suspend();
    return;
  }
  const void* ins[kWarpSize] = {};
  void* outs[kWarpSize] = {};
  for (unsigned rest = mask; rest; rest &= rest - 1) {
    int i = __builtin_ctz(rest);
    ins[i] = lane_of(first, i).in;
    outs[i] = lane_of(first, i).out;
  }
  if (compute) compute(mask, ins, outs);
  ++now;
  if (mask == warp.present) warp.met = now;
  if (orders_memory) warp.ordered = now;
  warp.waiting &= ~mask;
  for (unsigned rest = mask & ~self; rest; rest &= rest - 1) make_ready(&lane_of(first, __builtin_ctz(rest)));
}

}  // namespace cuda_host
