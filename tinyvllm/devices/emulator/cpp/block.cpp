// A block at its beginning: where it is, its shared memory poisoned, and all its lanes ready to start.
#include "runtime.hpp"

namespace tinyvllm::emulator {

void start_block(Worker& worker, Block& block, uint64_t linear_index) {
    const LaunchConfig& config = worker.launch->config;
    block.launch = worker.launch;
    block.worker = &worker;
    const dim3 grid = config.grid, shape = config.block;
    block.geometry = {{unsigned(linear_index % grid.x), unsigned(linear_index / grid.x % grid.y),
                       unsigned(linear_index / grid.x / grid.y)},
                      shape,
                      grid};
    const uint32_t num_threads = shape.x * shape.y * shape.z;
    block.num_warps = (num_threads + 31) / 32;
    block.ready_warps = block.num_warps == 32 ? ~0u : (1u << block.num_warps) - 1;
    block.alive = num_threads;
    block.num_finished = block.arrived = block.vote_sum = block.num_spinning = block.num_at_predecessor = block.phase = 0;
    block.events_seen = ~0ull;
    block.launched_dependents = false;
    block.first_at_barrier = nullptr;
    block.variables.clear();
    block.copies.clear();
    block.static_bytes = 0;
    block.poison = (config.seed + linear_index) % 2 == 0 ? 0xff : 0x00;
    if (is_sanitized && block.team != nullptr) {
        // ThreadSanitizer takes a fibre that reuses the number of one that has gone for the same thread.
        constexpr size_t most_fibres = 6000;  // of the 8128 that it can count
        if (worker.launch->ended_teams.size() * num_threads > most_fibres) worker.launch->ended_teams.clear();
        worker.launch->ended_teams.push_back(std::move(block.team));
    }
    if (block.team == nullptr) block.team = std::make_unique<Team>(num_threads);
    poison_shared(block);
    for (uint32_t w = 0; w < block.num_warps; ++w) {
        Warp& warp = block.warps[w];
        const uint32_t lanes = num_threads - 32 * w;
        warp.alive = warp.ready = lanes >= 32 ? ~0u : (1u << lanes) - 1;
        warp.collecting = 0;
        warp.fibres = &block.team->fibres[32 * w];
    }
    // The order of lanes depends on the seed and the block alone, whatever worker runs it after whatever else.
    worker.random = (config.seed * 0x9e3779b97f4a7c15ull ^ (linear_index + 1) * 0xbf58476d1ce4e5b9ull) | 1;
    // Blocks whose warps keep pace, and blocks where one is far ahead before the next has begun.
    constexpr uint32_t hop_masks[4] = {0xf, 0xf, 0xff, 0xffffff};
    block.hop_mask = hop_masks[next_random(worker) >> 62];
    const size_t stride = block.team->stacks_bytes / num_threads;
    for (uint32_t i = 0; i < num_threads; ++i) {
        Fibre& fibre = block.team->fibres[i];
        fibre.thread = {i % shape.x, i / shape.x % shape.y, i / shape.x / shape.y};
        fibre.geometry = &block.geometry;
        fibre.index = i;
        fibre.has_left = fibre.num_copies = fibre.copy_group = fibre.product_group = 0;
        fibre.products.clear();
        fibre.has_fenced_sums = false;
        fibre.owner = &block;
        fibre.warp = &block.warps[i / 32];
        fibre.bit = 1u << i % 32;
        fibre.waiting = Waiting::nothing;
        fibre.stack = block.team->stacks + i * stride;
        *reinterpret_cast<uint64_t*>(fibre.stack) = stack_mark;
        shadow_create(fibre.shadow);
        prepare_context(fibre.context, fibre.stack, stride, fibre_main);
    }
}

}  // namespace tinyvllm::emulator
