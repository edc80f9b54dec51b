// The nouns of the runtime: a Launch has Blocks, a Block has Warps, a Warp has 32 Fibres; a Worker runs some of them.
//
// A Worker is one OS thread. Its fibres take turns: each runs until it must wait, then picks the next itself and
// switches straight to it. Nothing here is shared between workers but the Launch.
#pragma once

#include <signal.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "context.hpp"
#include "sanitizer.hpp"
#include "tinyvllm/emulator.cuh"

namespace tinyvllm::emulator {

constexpr uint32_t max_warps = 32;  // 1024 threads

enum class Waiting : uint32_t { nothing, block_barrier, collective, spin, predecessor };

enum class FailureKind : uint32_t { none, deadlock, trap, misaligned, signal, shared_memory, overrun, stack, collective, barrier };

/// Where a lane is: read by Python, which finds the source line of `pc`.
struct Place {
    uint32_t block[3];
    uint32_t thread[3];
    const void* pc;
    Waiting waiting;
    uint32_t num_lanes;  // that wait at this pc
};

struct Failure {
    FailureKind kind;
    uint32_t num_places;
    Place places[8];
    uint64_t address;
    char detail[256];
};

/// Two lanes that met at one barrier from two places of the code; whether those are two source lines, Python knows.
struct SplitBarrier {
    Place first, second;
};

/// As Python fills it in; the order of the fields is that of the ctypes structure in library.py.
struct LaunchConfig {
    void (*call)(void**);
    void** arguments;
    dim3 grid;
    dim3 block;
    uint32_t dynamic_shared_bytes;
    uint32_t max_static_shared_bytes;
    uint32_t max_shared_bytes;
    uint32_t is_cooperative;
    uint32_t num_workers;
    uint32_t max_resident_threads;  // how much of a dependent launch starts early
    uint64_t seed;
};

struct Block;
struct Warp;
struct Worker;

/// A box that the copy engine was asked for and that has not landed.
struct BoxCopy {
    uint64_t* barrier;  // counts its bytes
    void* to;
    std::vector<char> data;
};

/// A lane's part of a warpgroup's product under way.
struct Product {
    float* sums;
    uint32_t num_columns;
    uint64_t a, b;  // operands
    uint64_t digest;
    uint32_t group;
};

struct Fibre : Lane {
    alignas(64) Block* owner;
    Warp* warp;
    uint32_t bit;  // this lane in its warp's masks
    Waiting waiting;
    Collective collective;
    uint32_t mask;
    uint32_t detail;
    const void* pc;  // where it waits
    char* stack;
    std::vector<Product> products;  // oldest first
    uint32_t product_group;
    bool has_fenced_sums;
    Context context;
    Shadow shadow;
};

struct Warp {
    uint32_t alive;
    uint32_t ready;       // may run and is not running
    uint32_t collecting;  // waits in a collective
    Fibre* fibres;
    uint32_t phase[32];  // collectives so far, by lowest lane of the mask: which of two sync objects to use
};

/// What a block needs to run, kept for the next block of the same size: stacks, fibres, shared memory.
struct Team {
    uint32_t num_threads;
    std::unique_ptr<Fibre[]> fibres;
    // What the race check knows barriers by. Each has two that take turns: a lane that is ahead must not order those
    // behind. They are in the team, and so new for each block: one block's barrier orders nothing in the next.
    struct {
        char block[2];
        char warp[max_warps][32][2];
    } sync;
    char* stacks = nullptr;
    size_t stacks_bytes = 0;
    char* dynamic_shared = nullptr;
    size_t dynamic_capacity = 0;
    char* static_shared = nullptr;

    explicit Team(uint32_t num_threads);
    ~Team();
    void reserve_dynamic(size_t bytes);
};

struct SharedVariable {
    const void* key;
    char* address;
    size_t size;
};

struct Launch;

struct Block {
    Launch* launch;
    Worker* worker;
    std::unique_ptr<Team> team;
    Geometry geometry;
    Warp warps[max_warps];
    uint32_t num_warps;
    uint32_t ready_warps;
    uint32_t alive;
    uint32_t num_finished;  // lanes that have come to the end of the kernel, not to a `return;`
    uint32_t arrived;
    uint32_t vote_sum;
    uint32_t vote_result;
    uint32_t vote_total;
    uint32_t num_spinning;
    uint64_t events_seen;  // the worker's when lanes that spin last looked before everybody waited
    uint32_t num_at_predecessor;
    bool launched_dependents;
    uint8_t poison;
    uint32_t hop_mask;  // another warp's turn comes, on average, once in so many switches
    Fibre* first_at_barrier;
    uint32_t phase;
    std::vector<SharedVariable> variables;
    std::vector<BoxCopy> copies;
    size_t static_bytes;
};

struct Launch {
    LaunchConfig config;
    uint64_t num_blocks;
    std::atomic<uint64_t> next_block{0};
    uint64_t block_offset, block_stride;  // the order in which blocks start: (i * stride + offset) % num_blocks
    std::vector<std::unique_ptr<Block>> resident;
    std::unique_ptr<Worker> early_worker;
    std::atomic<bool> failed{false};
    bool predecessor_done = true;
    std::atomic<bool> all_launched_dependents{true};
    std::mutex mutex;  // guards failure, split_barriers, printed, is_print_full
    Failure failure{};
    std::vector<SplitBarrier> split_barriers;
    std::string printed;
    bool is_print_full = false;
    std::vector<std::unique_ptr<Team>> ended_teams;  // in a race check
    char order;                                      // what its lanes release when they end
};

struct Worker {
    Launch* launch = nullptr;
    Context main;
    Shadow main_shadow;
    const void* main_stack = nullptr;
    size_t main_stack_size = 0;
    Fibre* running = nullptr;
    Fibre* upcoming = nullptr;  // its memory is on its way to the cache
    uint64_t random = 1;
    bool has_several_blocks = false;
    uint64_t events = 0;  // anything but spinning: without any for long, nobody is getting on
};

constexpr uint64_t stack_mark = 0x7469'6e79'766c'6c6dull;  // at the far end of each stack: intact, or it overflowed

// block.cpp
void start_block(Worker&, Block&, uint64_t linear_index);

// scheduler.cpp
void fibre_main();
Fibre* current_fibre();
void run_blocks(Worker&, std::vector<std::unique_ptr<Block>>&);
void wait_here(Fibre&, Waiting, const void* pc);
void release_barrier(Block&);
void perhaps_step_back(Fibre&);
void make_ready(Fibre&);
[[noreturn]] void abandon(Fibre&);
void adopt_thread(Worker&);
void end_launch(Launch&);

// watch.cpp
void notice_change(const Fibre&);

// collectives.cpp
void run_collective(Warp&, Fibre& member);

// failure.cpp
Place place_of(const Fibre&);
[[noreturn]] void fail(Fibre&, FailureKind, const void* pc, uint64_t address, const char* format, ...)
    __attribute__((format(printf, 5, 6)));
void record_deadlock(Launch&, const std::vector<std::unique_ptr<Block>>&);
void record_split_barrier(const Fibre&, const Fibre&);
struct SignalGuard {  // while it lives, SIGSEGV, SIGBUS, SIGFPE and SIGILL in a fibre fail the launch
    SignalGuard();
    ~SignalGuard();

private:
    stack_t before{};
};

// shared.cpp
void poison_shared(Block&);
void check_shared(Block&);

inline uint64_t next_random(Worker& worker) {  // xorshift64*
    uint64_t x = worker.random;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    worker.random = x;
    return x * 0x2545f4914f6cdd1dull;
}

}  // namespace tinyvllm::emulator
