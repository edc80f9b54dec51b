// Who runs next. A fibre runs until it must wait; then it picks another lane of its warp, or of its block, at random
// from the launch's seed, and switches straight to it. Only when a block has nobody ready does the worker's own
// context come back, to start another block, wake who spins, or find that nobody can ever go on.
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <cstring>

#include "runtime.hpp"

namespace tinyvllm::emulator {

namespace {

thread_local Worker* current_worker = nullptr;

/// A set bit of `mask`, each as likely as the others. `random` has 16 bits.
uint32_t pick_evenly(uint32_t mask, uint32_t random) {
    for (uint32_t skipped = random * uint32_t(__builtin_popcount(mask)) >> 16; skipped > 0; --skipped) mask &= mask - 1;
    return uint32_t(__builtin_ctz(mask));
}

/// A set bit of `mask`, the first one from a random place on: quick, and good enough where most bits are set.
uint32_t pick_bit(uint32_t mask, uint32_t random) {
    const uint32_t turn = random & 31;
    const uint32_t turned = turn == 0 ? mask : mask >> turn | mask << (32 - turn);
    return (uint32_t(__builtin_ctz(turned)) + turn) & 31;
}

/// Chooses who runs after the next one, so that its fibre and the top of its stack are in the cache by then. Lanes of
/// a warp mostly wait at the same depth, so that their stacks end a fixed distance apart.
void foresee(Worker& worker, const Warp& warp, uint64_t random, const Fibre& next) {
    worker.upcoming = nullptr;
    if (warp.ready == 0) return;
    Fibre& upcoming = warp.fibres[pick_bit(warp.ready, uint32_t(random >> 32))];
    worker.upcoming = &upcoming;
    __builtin_prefetch(&upcoming);
    __builtin_prefetch(&upcoming.owner);
#if !defined(TINYVLLM_UCONTEXT)
    const char* stack = static_cast<char*>(next.context.stack) + (upcoming.stack - next.stack);
    __builtin_prefetch(stack);
    __builtin_prefetch(stack + 64);
    __builtin_prefetch(stack + 128);
#else
    (void)next;
#endif
}

/// The lane to run next, taken off the ready ones; null if the block has none, and now and then if other blocks could
/// run. Mostly of `warp`, whose data is at hand.
Fibre* take_next(Worker& worker, Block& block, Warp* warp) {
    if (block.ready_warps == 0) return nullptr;
    const uint64_t random = next_random(worker);
    if (worker.has_several_blocks && warp != nullptr && (random >> 20 & 31) == 0) return nullptr;  // another block's turn
    Fibre* next = worker.upcoming;
    if (warp == nullptr || warp->ready == 0 || (random >> 40 & block.hop_mask) == 0) {
        warp = &block.warps[pick_evenly(block.ready_warps, uint32_t(random >> 48))];
        next = nullptr;
    }
    if (next == nullptr || next->warp != warp || (warp->ready & next->bit) == 0)
        next = &warp->fibres[pick_bit(warp->ready, uint32_t(random >> 32))];
    warp->ready &= ~next->bit;
    if (warp->ready == 0) block.ready_warps &= ~(1u << (warp - block.warps));
    foresee(worker, *warp, random, *next);
    return next;
}

size_t stack_bytes(const Fibre& fibre) { return fibre.owner->team->stacks_bytes / fibre.owner->team->num_threads; }

/// Leaves `from` for the next ready lane of its block, or for the worker.
void switch_away(Fibre& from, bool forever) {
#if defined(TINYVLLM_WATCH)
    notice_change(from);
#endif
    Worker& worker = *from.owner->worker;
    Fibre* next = take_next(worker, *from.owner, from.warp);
    if (next == &from) return;
    worker.running = next;
    if (next != nullptr) {
        shadow_leave(from.shadow, next->shadow, next->stack, stack_bytes(*next), forever);
        switch_context(from.context, next->context);
    } else {
        shadow_leave(from.shadow, worker.main_shadow, worker.main_stack, worker.main_stack_size, forever);
        switch_context(from.context, worker.main);
    }
    shadow_enter(from.shadow);
}

void enter_block(Worker& worker, Block& block) {
    Fibre* next = take_next(worker, block, nullptr);
    worker.running = next;
    shadow_leave(worker.main_shadow, next->shadow, next->stack, stack_bytes(*next), false);
    switch_context(worker.main, next->context);
    shadow_enter(worker.main_shadow);
    worker.running = nullptr;
}

/// A lane that has gone may be what the others in its warp, or its block, were waiting for.
void leave_block(Fibre& fibre) {
    Block& block = *fibre.owner;
    Warp& warp = *fibre.warp;
    warp.alive &= ~fibre.bit;
    --block.alive;
    if (!fibre.has_left) ++block.num_finished;
    ++block.worker->events;
    uint32_t waiting = warp.collecting;
    while (waiting != 0) {
        Fibre& other = warp.fibres[__builtin_ctz(waiting)];
        waiting &= ~other.mask;
        if (other.mask & fibre.bit) run_collective(warp, other);
    }
    if (block.arrived != 0 && block.arrived == block.alive) release_barrier(block);
}

char stream_order;  // what the launches that have ended release to those that wait for them, for the race check

void wake(Block& block, Waiting what) {
    for (uint32_t w = 0; w < block.num_warps; ++w) {
        Warp& warp = block.warps[w];
        for (uint32_t lanes = warp.alive & ~warp.ready; lanes != 0; lanes &= lanes - 1) {
            Fibre& fibre = warp.fibres[__builtin_ctz(lanes)];
            if (fibre.waiting == what) make_ready(fibre);
        }
    }
}

/// Every lane of every block waits. Wakes those that can go on; false if the blocks can get no further.
bool wake_any(Worker& worker, std::vector<std::unique_ptr<Block>>& blocks, uint64_t& last_events, uint32_t& idle) {
    Launch& launch = *worker.launch;
    bool spinning = false, at_predecessor = false, alive = false;
    for (auto& block : blocks) {
        spinning |= block->num_spinning != 0;
        at_predecessor |= block->num_at_predecessor != 0;
        alive |= block->alive != 0;
    }
    if (at_predecessor && launch.predecessor_done) {
        for (auto& block : blocks) {
            block->num_at_predecessor = 0;
            wake(*block, Waiting::predecessor);
        }
        return true;
    }
    if (spinning) {
        idle = worker.events == last_events ? idle + 1 : 0;
        last_events = worker.events;
        const bool others_may_help = launch.config.num_workers > 1;
        if (others_may_help) usleep(20);
        // Before the predecessor has ended they mostly spin for lanes that wait for it: a few looks are enough, the rest
        // of the launch comes later.
        if (idle < (at_predecessor ? 8u : others_may_help ? 100'000u : 200u)) {
            for (auto& block : blocks) {
                block->num_spinning = 0;
                wake(*block, Waiting::spin);
            }
            return true;
        }
    }
    if (alive && !at_predecessor) record_deadlock(launch, blocks);
    return false;
}

}  // namespace

Fibre* current_fibre() { return current_worker == nullptr ? nullptr : current_worker->running; }

/// What a fibre does from its first turn to its last.
void fibre_main() {
    Fibre& fibre = *current_worker->running;
    shadow_enter(fibre.shadow);
    const LaunchConfig& config = fibre.owner->launch->config;
    config.call(config.arguments);
    land_copies(0);  // on a GPU they land after the thread has gone
    if (*reinterpret_cast<uint64_t*>(fibre.stack) != stack_mark)
        fail(fibre, FailureKind::stack, reinterpret_cast<void*>(config.call), 0, "%zu bytes", stack_bytes(fibre));
    release(&fibre.owner->launch->order);
    leave_block(fibre);
    switch_away(fibre, true);
    __builtin_unreachable();
}

void adopt_thread(Worker& worker) {
    current_worker = &worker;
    shadow_adopt_thread(worker.main_shadow);
#if defined(TINYVLLM_BOUNDS)
    pthread_attr_t attributes;
    void* stack = nullptr;
    if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
        pthread_attr_getstack(&attributes, &stack, &worker.main_stack_size);
        pthread_attr_destroy(&attributes);
    }
    worker.main_stack = stack;
#endif
}

void make_ready(Fibre& fibre) {
    fibre.warp->ready |= fibre.bit;
    fibre.owner->ready_warps |= 1u << (fibre.warp - fibre.owner->warps);
}

void wait_here(Fibre& fibre, Waiting waiting, const void* pc) {
    fibre.waiting = waiting;
    fibre.pc = pc;
    switch_away(fibre, false);
    fibre.waiting = Waiting::nothing;
}

/// The running lane steps back among the ready ones now and then, so that the last to arrive is not always the first
/// to go on.
void perhaps_step_back(Fibre& fibre) {
    if ((next_random(*fibre.owner->worker) >> 44 & 7) != 0) return;
    make_ready(fibre);
    wait_here(fibre, Waiting::nothing, nullptr);
}

void release_barrier(Block& block) {
    if (block.num_finished != 0)
        fail(*block.first_at_barrier, FailureKind::barrier, block.first_at_barrier->pc, 0,
             "a barrier that not all threads reach: %u of the block's %u passed it by and ended", block.num_finished,
             block.team->num_threads);
    const Fibre* running = block.worker->running;
    for (uint32_t w = 0; w < block.num_warps; ++w) {
        Warp& warp = block.warps[w];
        warp.ready = warp.alive;
        if (running->warp == &warp) warp.ready &= ~running->bit;
        if (warp.ready != 0) block.ready_warps |= 1u << w;
    }
    block.vote_result = block.vote_sum;
    block.vote_total = block.arrived;
    block.vote_sum = 0;
    block.arrived = 0;
    block.first_at_barrier = nullptr;
    ++block.phase;
    ++block.worker->events;
}

void abandon(Fibre& fibre) {
    Worker& worker = *fibre.owner->worker;
    worker.running = nullptr;
    shadow_leave(fibre.shadow, worker.main_shadow, worker.main_stack, worker.main_stack_size, true);
    switch_context(fibre.context, worker.main);
    __builtin_unreachable();
}

/// Runs the started blocks until all have ended, or all that is left waits for the predecessor, or the launch failed.
void run_blocks(Worker& worker, std::vector<std::unique_ptr<Block>>& blocks) {
    uint64_t last_events = ~0ull;
    uint32_t idle = 0;
    std::vector<Block*> able;
    worker.has_several_blocks = blocks.size() > 1;
    while (!worker.launch->failed) {
        Block& lucky = *blocks[next_random(worker) % blocks.size()];
        // See the change before everybody has made it. Without a change blocks that spin would wake each other for ever.
        if (lucky.num_spinning != 0 && lucky.events_seen != worker.events && next_random(worker) >> 62 == 0) {
            lucky.events_seen = worker.events;
            lucky.num_spinning = 0;
            wake(lucky, Waiting::spin);
        }
        able.clear();
        for (auto& block : blocks)
            if (block->ready_warps != 0) able.push_back(block.get());
        if (able.empty()) {
            if (!wake_any(worker, blocks, last_events, idle)) return;
            continue;
        }
        enter_block(worker, *able[next_random(worker) % able.size()]);
    }
}

extern "C" {

Lane* tinyvllm_self() { return current_worker->running; }

void tinyvllm_yield(Lane* lane) {
    auto& fibre = static_cast<Fibre&>(*lane);
    ++fibre.owner->num_spinning;
    wait_here(fibre, Waiting::spin, __builtin_return_address(0));
}

void tinyvllm_pdl_wait(Lane* lane) {
    auto& fibre = static_cast<Fibre&>(*lane);
    if (!fibre.owner->launch->predecessor_done) {
        ++fibre.owner->num_at_predecessor;
        wait_here(fibre, Waiting::predecessor, __builtin_return_address(0));
    }
    acquire(&stream_order);
}

void tinyvllm_pdl_launch_dependents(Lane* lane) { static_cast<Fibre*>(lane)->owner->launched_dependents = true; }

}

/// The launch has ended: the calling thread, and whoever waits for its predecessor from now on, comes after it.
void end_launch(Launch& launch) {
    acquire(&launch.order);
    release(&stream_order);
}

}  // namespace tinyvllm::emulator
