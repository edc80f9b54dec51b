// What kernels print: kept with the launch, in the order in which its lanes ran, for Python to write out.
#include <cstdarg>
#include <cstdio>

#include "runtime.hpp"

namespace tinyvllm::emulator {

namespace {

constexpr size_t most_line = 4096;
constexpr size_t most_printed = 1 << 20;  // as much as a GPU keeps

}  // namespace

extern "C" {

/// `printf` of a kernel; what a GPU's returns is the number of arguments, which nobody reads.
int tinyvllm_print(Lane* lane, const char* format, ...) {
    Launch& launch = *static_cast<Fibre&>(*lane).owner->launch;
    char line[most_line];
    va_list arguments;
    va_start(arguments, format);
    const int length = std::vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    const std::lock_guard lock(launch.mutex);
    if (length <= 0 || launch.is_print_full) return length;
    launch.is_print_full = launch.printed.size() + size_t(length) > most_printed;
    if (launch.is_print_full) launch.printed += "[more than 1 MiB printed by one launch: the rest is left out]\n";
    else launch.printed.append(line, size_t(length) < most_line ? size_t(length) : most_line - 1);
    return length;
}

const char* tinyvllm_launch_printed(const Launch* launch, size_t* num_bytes) {
    *num_bytes = launch->printed.size();
    return launch->printed.data();
}
}

}  // namespace tinyvllm::emulator
