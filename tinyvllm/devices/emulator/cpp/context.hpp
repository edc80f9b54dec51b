// The context switch: what a fibre keeps of the processor while another one runs.
//
// By hand on x86-64 and aarch64 (a few nanoseconds: only what the calling convention preserves), by ucontext elsewhere
// or with -DTINYVLLM_UCONTEXT (a system call each time).
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__) && !defined(__aarch64__) && !defined(TINYVLLM_UCONTEXT)
#define TINYVLLM_UCONTEXT
#endif

#if defined(TINYVLLM_UCONTEXT)
#include <ucontext.h>

struct Context {
    ucontext_t saved;
};

inline void switch_context(Context& from, Context& to) { swapcontext(&from.saved, &to.saved); }

/// Makes `context` start `entry` on the stack [bottom, bottom + size) when switched to.
inline void prepare_context(Context& context, char* bottom, size_t size, void (*entry)()) {
    getcontext(&context.saved);
    context.saved.uc_stack.ss_sp = bottom;
    context.saved.uc_stack.ss_size = size;
    context.saved.uc_link = nullptr;
    makecontext(&context.saved, entry, 0);
}

#else

struct Context {
    void* stack;
};

extern "C" void tinyvllm_switch_stack(void** save, void* load);

inline void switch_context(Context& from, Context& to) { tinyvllm_switch_stack(&from.stack, to.stack); }

#if defined(__x86_64__)
constexpr int saved_words = 7;  // six registers and the address to go on at
constexpr int entry_word = 6;
constexpr int words_above = 1;  // on entry to a function the stack is 8 short of a multiple of 16, as after a call
#else
constexpr int saved_words = 20;  // x19 to x30, d8 to d15
constexpr int entry_word = 11;   // x30, the link register
constexpr int words_above = 2;   // the stack pointer is always a multiple of 16
#endif

/// Makes `context` start `entry` on the stack [bottom, bottom + size) when switched to.
inline void prepare_context(Context& context, char* bottom, size_t size, void (*entry)()) {
    auto** top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(bottom + size) & ~uintptr_t(63));
    void** words = top - saved_words - words_above;
    for (int i = 0; i < saved_words + words_above; ++i) words[i] = nullptr;
    words[entry_word] = reinterpret_cast<void*>(entry);
    context.stack = words;
}

#endif
