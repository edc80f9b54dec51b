// How a launch fails: the first failure is kept, with block, thread and place in the code; the fibres are abandoned.
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "runtime.hpp"

namespace tinyvllm::emulator {

namespace {

void set_place(Place& place, const Fibre& fibre, const void* pc) {
    place = {{fibre.geometry->block.x, fibre.geometry->block.y, fibre.geometry->block.z},
             {fibre.thread.x, fibre.thread.y, fibre.thread.z},
             pc,
             fibre.waiting,
             1};
}

void add_waiting(Failure& failure, const Fibre& fibre) {
    for (uint32_t i = 0; i < failure.num_places; ++i) {
        Place& place = failure.places[i];
        if (place.pc == fibre.pc && place.waiting == fibre.waiting) {
            ++place.num_lanes;
            return;
        }
    }
    if (failure.num_places < sizeof failure.places / sizeof *failure.places)
        set_place(failure.places[failure.num_places++], fibre, fibre.pc);
}

}  // namespace

Place place_of(const Fibre& fibre) {
    Place place;
    set_place(place, fibre, fibre.pc);
    return place;
}

void fail(Fibre& fibre, FailureKind kind, const void* pc, uint64_t address, const char* format, ...) {
    Launch& launch = *fibre.owner->launch;
    {
        const std::lock_guard lock(launch.mutex);
        if (!launch.failed.exchange(true)) {
            Failure& failure = launch.failure;
            failure.kind = kind;
            failure.num_places = 1;
            set_place(failure.places[0], fibre, pc);
            failure.address = address;
            va_list arguments;
            va_start(arguments, format);
            std::vsnprintf(failure.detail, sizeof failure.detail, format, arguments);
            va_end(arguments);
        }
    }
    abandon(*current_fibre());
}

void record_deadlock(Launch& launch, const std::vector<std::unique_ptr<Block>>& blocks) {
    const std::lock_guard lock(launch.mutex);
    if (launch.failed.exchange(true)) return;
    launch.failure.kind = FailureKind::deadlock;
    for (const auto& block : blocks)
        for (uint32_t w = 0; w < block->num_warps; ++w)
            for (uint32_t lanes = block->warps[w].alive; lanes != 0; lanes &= lanes - 1)
                add_waiting(launch.failure, block->warps[w].fibres[__builtin_ctz(lanes)]);
}

void record_split_barrier(const Fibre& first, const Fibre& second) {
    Launch& launch = *first.owner->launch;
    const std::lock_guard lock(launch.mutex);
    for (const SplitBarrier& known : launch.split_barriers)
        if (known.first.pc == first.pc && known.second.pc == second.pc) return;
    if (launch.split_barriers.size() < 16) launch.split_barriers.push_back({place_of(first), place_of(second)});
}

namespace {

constexpr int caught[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
constexpr size_t signal_stack_bytes = 64 * 1024;
struct sigaction previous[4];
int num_guards = 0;
std::mutex guards;
thread_local char* signal_stack = nullptr;  // kept for the thread's life: a launch would spend longer on mapping it

void on_signal(int signal, siginfo_t* info, void* context) {
    Fibre* fibre = current_fibre();
    if (fibre == nullptr) {  // not in a kernel: the handler from before decides, as the instruction is tried again
        for (int i = 0; i < 4; ++i)
            if (caught[i] == signal) sigaction(signal, &previous[i], nullptr);
        return;
    }
    const void* pc = nullptr;
#if defined(__x86_64__)
    pc = reinterpret_cast<void*>(static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP] + 1);
#elif defined(__aarch64__)
    pc = reinterpret_cast<void*>(static_cast<ucontext_t*>(context)->uc_mcontext.pc + 1);
#else
    (void)context;
#endif
    const char* what = signal == SIGFPE ? "integer division by zero" : signal == SIGILL ? "illegal instruction"
                                                                                       : "invalid address";
    fail(*fibre, FailureKind::signal, pc, reinterpret_cast<uint64_t>(info->si_addr), "%s", what);
}

}  // namespace

SignalGuard::SignalGuard() {
    if (is_sanitized) return;
    if (signal_stack == nullptr) {
        void* memory = mmap(nullptr, signal_stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        signal_stack = static_cast<char*>(memory);
    }
    stack_t stack = {};
    stack.ss_sp = signal_stack;
    stack.ss_size = signal_stack_bytes;
    sigaltstack(&stack, &before);
    const std::lock_guard lock(guards);
    if (num_guards++ != 0) return;
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    // NODEFER: the handler never returns when a kernel fails, and the signal must not stay blocked.
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < 4; ++i) sigaction(caught[i], &action, &previous[i]);
}

SignalGuard::~SignalGuard() {
    if (is_sanitized) return;
    {
        const std::lock_guard lock(guards);
        if (--num_guards == 0)
            for (int i = 0; i < 4; ++i) sigaction(caught[i], &previous[i], nullptr);
    }
    sigaltstack(&before, nullptr);
}

extern "C" {

void tinyvllm_fail_misaligned(Lane* lane, const void* address, uint32_t alignment) {
    fail(static_cast<Fibre&>(*lane), FailureKind::misaligned, __builtin_return_address(0),
         reinterpret_cast<uint64_t>(address), "address %p is not a multiple of %u", address, alignment);
}

void tinyvllm_fail_assert(Lane* lane) {
    fail(static_cast<Fibre&>(*lane), FailureKind::trap, __builtin_return_address(0), 0, "%s", "");
}
}

}  // namespace tinyvllm::emulator
