// cp.async: global to shared memory past the registers, in groups that a thread waits for.
//
// Nothing may be said of the destination between the copy and the wait. The emulator makes that visible: the copy
// fills the destination with 0xFF at once (a reader that should have been fenced off sees NaN) and the data lands
// only in the wait (a reader that did not wait sees NaN too).
#pragma once

namespace tinyvllm {

/// Starts a copy of 16 bytes from global `from` to shared `to`, both 16-byte aligned.
TINYVLLM_DEVICE void cp_async16(void* to, const void* from) {
#if defined(TINYVLLM_EMULATOR)
    emulator::start_copy(to, from, true);
#else
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(shared_address(to)),
                 "l"(from)
                 : "memory");
#endif
}

/// As `cp_async16` where `valid`; otherwise the destination becomes 16 zero bytes and `from` is not read.
TINYVLLM_DEVICE void cp_async16_or_zero(void* to, const void* from, bool valid) {
#if defined(TINYVLLM_EMULATOR)
    emulator::start_copy(to, from, valid);
#else
    const int num_bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(num_bytes)
                 : "memory");
#endif
}

/// As `cp_async16_or_zero`, for weights, which are read once: L2 fetches 256 bytes at a time.
TINYVLLM_DEVICE void cp_async16_once_or_zero(void* to, const void* from, bool valid) {
#if defined(TINYVLLM_EMULATOR)
    emulator::start_copy(to, from, valid);
#else
    const int num_bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(num_bytes)
                 : "memory");
#endif
}

/// Closes the group of the copies started by this thread since the last commit; a group may be empty.
TINYVLLM_DEVICE void cp_async_commit() {
#if defined(TINYVLLM_EMULATOR)
    ++emulator::self()->copy_group;
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/// Waits until at most the `pending` youngest groups of this thread are still under way. Only this thread's copies
/// are then in place for this thread: others see them after a barrier.
template <int pending>
TINYVLLM_DEVICE void cp_async_wait() {
#if defined(TINYVLLM_EMULATOR)
    emulator::land_copies(pending);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
}

}  // namespace tinyvllm
