// What AddressSanitizer and ThreadSanitizer are told about fibres; nothing at all in a plain build.
//
// The switch itself orders nothing for ThreadSanitizer: two lanes of one block are two threads that happen to take
// turns. Only release() and acquire() order, and only the barriers call them.
#pragma once

#include <cstddef>

#if defined(TINYVLLM_RACE)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
constexpr bool is_sanitized = true;
struct Shadow {
    void* fiber = nullptr;
};
inline void shadow_adopt_thread(Shadow& s) { s.fiber = __tsan_get_current_fiber(); }
inline void shadow_create(Shadow& s) { s.fiber = __tsan_create_fiber(0); }
inline void shadow_destroy(Shadow& s) { __tsan_destroy_fiber(s.fiber); }
inline void shadow_leave(Shadow&, Shadow& to, const void*, size_t, bool) {
    constexpr unsigned no_synchronisation = 1;
    __tsan_switch_to_fiber(to.fiber, no_synchronisation);
}
inline void shadow_enter(Shadow&) {}
inline void release(void* address) { __tsan_release(address); }
inline void acquire(void* address) { __tsan_acquire(address); }

#elif defined(TINYVLLM_BOUNDS)
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
}
constexpr bool is_sanitized = true;
struct Shadow {
    void* fake_stack = nullptr;
};
inline void shadow_adopt_thread(Shadow&) {}
inline void shadow_create(Shadow& s) { s.fake_stack = nullptr; }
inline void shadow_destroy(Shadow&) {}
inline void shadow_leave(Shadow& from, Shadow&, const void* bottom, size_t size, bool forever) {
    __sanitizer_start_switch_fiber(forever ? nullptr : &from.fake_stack, bottom, size);
}
inline void shadow_enter(Shadow& s) { __sanitizer_finish_switch_fiber(s.fake_stack, nullptr, nullptr); }
inline void release(void*) {}
inline void acquire(void*) {}

#else
constexpr bool is_sanitized = false;
struct Shadow {};
inline void shadow_adopt_thread(Shadow&) {}
inline void shadow_create(Shadow&) {}
inline void shadow_destroy(Shadow&) {}
inline void shadow_leave(Shadow&, Shadow&, const void*, size_t, bool) {}
inline void shadow_enter(Shadow&) {}
inline void release(void*) {}
inline void acquire(void*) {}
#endif
