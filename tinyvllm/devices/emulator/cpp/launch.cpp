// The C interface that Python loads: a launch is created, perhaps started early (up to its wait on the predecessor),
// run to its end, asked how it went, destroyed. One launch is used by one thread at a time.
#include <algorithm>
#include <cstdlib>
#include <deque>
#include <numeric>
#include <thread>

#include "runtime.hpp"

namespace tinyvllm::emulator {

namespace {

uint64_t permuted(const Launch& launch, uint64_t i) {
    return (i * launch.block_stride + launch.block_offset) % launch.num_blocks;
}

/// Teams and blocks of earlier launches, for the next one of the same size: mapping stacks is what costs. Those that were
/// not in use for longest go first.
struct Pool {
    static constexpr size_t max_blocks = 512, max_threads = 1 << 15;
    std::mutex mutex;
    std::deque<std::unique_ptr<Block>> blocks;
    size_t num_threads = 0;

    std::unique_ptr<Block> take(uint32_t threads_per_block) {
        const std::lock_guard lock(mutex);
        for (size_t i = blocks.size(); i-- > 0;)
            if (blocks[i]->team->num_threads == threads_per_block) {
                std::unique_ptr<Block> taken = std::move(blocks[i]);
                blocks.erase(blocks.begin() + ptrdiff_t(i));
                num_threads -= threads_per_block;
                return taken;
            }
        return std::make_unique<Block>();
    }

    void give(std::unique_ptr<Block> block) {
        if (is_sanitized || block->team == nullptr) return;
        const std::lock_guard lock(mutex);
        num_threads += block->team->num_threads;
        blocks.push_back(std::move(block));
        while (blocks.size() > max_blocks || num_threads > max_threads) {
            num_threads -= blocks.front()->team->num_threads;
            blocks.pop_front();
        }
    }
};
Pool& pool() {
    static Pool instance;
    return instance;
}

uint32_t threads_per_block(const Launch& launch) {
    const dim3 shape = launch.config.block;
    return shape.x * shape.y * shape.z;
}

void give_back(std::vector<std::unique_ptr<Block>>& blocks) {
    for (auto& block : blocks) pool().give(std::move(block));
    blocks.clear();
}

/// Runs the blocks that no worker has taken yet, one after the other.
void run_sequence(Launch& launch, Worker& worker) {
    const SignalGuard guard;
    adopt_thread(worker);
    std::vector<std::unique_ptr<Block>> blocks;
    blocks.push_back(pool().take(threads_per_block(launch)));
    while (!launch.failed) {
        const uint64_t i = launch.next_block++;
        if (i >= launch.num_blocks) break;
        start_block(worker, *blocks[0], permuted(launch, i));
        run_blocks(worker, blocks);
        if (!launch.failed) check_shared(*blocks[0]);
        if (!blocks[0]->launched_dependents) launch.all_launched_dependents = false;
    }
    give_back(blocks);
}

/// Starts blocks that all stay resident: the whole grid, or as much of it as starts before the predecessor ends.
void start_resident(Launch& launch, uint64_t count) {
    launch.early_worker = std::make_unique<Worker>();
    Worker& worker = *launch.early_worker;
    worker.launch = &launch;
    adopt_thread(worker);
    launch.next_block = count;
    for (uint64_t i = 0; i < count; ++i) {
        launch.resident.push_back(pool().take(threads_per_block(launch)));
        start_block(worker, *launch.resident.back(), permuted(launch, i));
    }
}

void run_resident(Launch& launch) {
    const SignalGuard guard;
    adopt_thread(*launch.early_worker);
    run_blocks(*launch.early_worker, launch.resident);
}

void finish_resident(Launch& launch) {
    for (auto& block : launch.resident) {
        if (!launch.failed) check_shared(*block);
        if (!block->launched_dependents) launch.all_launched_dependents = false;
    }
    give_back(launch.resident);
}

}  // namespace

extern "C" {

Launch* tinyvllm_launch_create(const LaunchConfig* config) {
    auto* launch = new Launch;
    launch->config = *config;
    launch->num_blocks = uint64_t(config->grid.x) * config->grid.y * config->grid.z;
    Worker random;
    random.random = config->seed * 0x9e3779b97f4a7c15ull | 1;
    next_random(random);
    launch->block_offset = next_random(random) % launch->num_blocks;
    launch->block_stride = next_random(random) % std::min<uint64_t>(launch->num_blocks, 1u << 30) + 1;
    while (std::gcd(launch->block_stride, launch->num_blocks) != 1) ++launch->block_stride;
    return launch;
}

/// Runs blocks up to their wait on the predecessor; 1 if every block of the grid has by then let its own successor go.
int tinyvllm_launch_start_early(Launch* launch) {
    const LaunchConfig& config = launch->config;
    const uint64_t fitting = std::max<uint64_t>(1, config.max_resident_threads / threads_per_block(*launch));
    launch->predecessor_done = false;
    start_resident(*launch, config.is_cooperative ? launch->num_blocks : std::min(launch->num_blocks, fitting));
    run_resident(*launch);
    bool all = launch->resident.size() == launch->num_blocks;
    for (const auto& block : launch->resident) all = all && block->launched_dependents;
    return all;
}

/// Runs the launch to its end; 1 if it failed.
int tinyvllm_launch_run(Launch* launch) {
    launch->predecessor_done = true;
    if (launch->early_worker == nullptr && launch->config.is_cooperative) start_resident(*launch, launch->num_blocks);
    if (launch->early_worker != nullptr) {
        run_resident(*launch);
        finish_resident(*launch);
    }
    const uint64_t left = launch->num_blocks - std::min<uint64_t>(launch->next_block, launch->num_blocks);
    const uint64_t num_workers = std::clamp<uint64_t>(launch->config.num_workers, 1, std::max<uint64_t>(left, 1));
    std::vector<std::unique_ptr<Worker>> workers;
    std::vector<std::thread> threads;
    for (uint64_t i = 0; i < num_workers; ++i) {
        workers.push_back(std::make_unique<Worker>());
        workers.back()->launch = launch;
        if (i > 0) threads.emplace_back(run_sequence, std::ref(*launch), std::ref(*workers.back()));
    }
    run_sequence(*launch, *workers[0]);
    for (std::thread& thread : threads) thread.join();
    end_launch(*launch);
    return launch->failed;
}

const Failure* tinyvllm_launch_failure(const Launch* launch) { return &launch->failure; }

uint32_t tinyvllm_launch_split_barriers(const Launch* launch, const SplitBarrier** first) {
    *first = launch->split_barriers.data();
    return uint32_t(launch->split_barriers.size());
}

void tinyvllm_launch_destroy(Launch* launch) {
    give_back(launch->resident);
    delete launch;
}

/// Memory aligned as a GPU's allocator aligns it, with exact bounds for the sanitizers; null if there is none.
void* tinyvllm_allocate(size_t bytes) {
    void* memory = nullptr;
    return posix_memalign(&memory, 256, std::max<size_t>(bytes, 1)) == 0 ? memory : nullptr;
}

void tinyvllm_release(void* memory) { std::free(memory); }
}

}  // namespace tinyvllm::emulator
