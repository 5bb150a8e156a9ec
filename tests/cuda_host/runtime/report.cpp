// What went wrong, in words: the kernel, the block, the thread, and the line of source where it is known.
#include <dlfcn.h>

#include <cstdarg>
#include <cstdio>

#include "state.h"

namespace cuda_host {
namespace {

std::string text;

std::string triple(unsigned x, unsigned y, unsigned z) { return format("(%u, %u, %u)", x, y, z); }

// What addr2line says of an address in this library, a line of text for each.
std::vector<std::string> look_up(const char* options, const void* code) {
  std::vector<std::string> answer;
  Dl_info info;
  if (!dladdr(code, &info) || !info.dli_fname) return answer;
  auto offset = static_cast<size_t>(static_cast<const char*>(code) - static_cast<const char*>(info.dli_fbase));
  std::string command = format("addr2line %s -e '%s' 0x%zx 2>/dev/null", options, info.dli_fname, offset);
  if (FILE* pipe = popen(command.c_str(), "r")) {
    char line[2048];
    while (fgets(line, sizeof line, pipe)) {
      answer.push_back(line);
      if (answer.back().back() == '\n') answer.back().pop_back();
    }
    pclose(pipe);
  }
  return answer;
}

// Where a return address belongs, with the places into which that was inlined.
std::string source_of(const void* code) {
  std::string text;
  for (const auto& line : look_up("-Cips", static_cast<const char*>(code) - 1)) text += "\n  at " + line;
  return text;
}

// What was inlined at a function's first instruction comes first in the answer, the function last, then its place.
std::string function_of(const void* code) {
  auto lines = look_up("-Cif", code);
  return lines.size() < 2 ? "?" : lines[lines.size() - 2];
}

}  // namespace

std::string format(const char* pattern, ...) {
  char line[2048];
  va_list arguments;
  va_start(arguments, pattern);
  vsnprintf(line, sizeof line, pattern, arguments);
  va_end(arguments);
  return line;
}

std::string kernel_name() { return function_of(launch->kernel); }

std::string name(const Thread& thread) { return "thread " + triple(thread.index.x, thread.index.y, thread.index.z); }

std::string place(Site site) {
  std::string file = site.file;
  return file.substr(file.rfind('/') + 1) + format(":%d", site.line);
}

void set_report(const std::string& what, const void* code) {
  text = what;
  if (code) text += source_of(code);
  text += "\n  in kernel " + kernel_name() + ", block " + triple(block.index.x, block.index.y, block.index.z);
  if (current) text += ", " + name(*current);
}

void fail(const std::string& what, const void* code) {
  set_report(what, code);
  leave_block();
  __builtin_unreachable();
}

const char* report() { return text.c_str(); }

}  // namespace cuda_host

extern "C" __attribute__((visibility("default"))) const char* cuda_host_report() { return cuda_host::report(); }
