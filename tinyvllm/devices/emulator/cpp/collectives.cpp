// What lanes do together. The last lane to arrive computes for all, straight into each lane's own exchange, and goes
// on; nothing is left that a faster lane's next collective could overwrite.
#include <cstring>

#include "runtime.hpp"

namespace tinyvllm::emulator {

namespace {

float upper_half(uint32_t packed) { return __builtin_bit_cast(float, packed & 0xffff0000u); }
float lower_half(uint32_t packed) { return __builtin_bit_cast(float, packed << 16); }

void shuffle_lanes(Warp& warp, uint32_t members) {
    for (uint32_t lanes = members; lanes != 0; lanes &= lanes - 1) {
        Lane& mine = warp.fibres[__builtin_ctz(lanes)];
        const uint32_t source = uint32_t(mine.source) & 31;
        // What a lane outside the mask holds is undefined: make it show.
        mine.result = members >> source & 1 ? warp.fibres[source].value : ~0ull;
    }
}

void vote_lanes(Warp& warp, uint32_t members, Collective kind) {
    uint32_t ballot = 0;
    for (uint32_t lanes = members; lanes != 0; lanes &= lanes - 1)
        if (warp.fibres[__builtin_ctz(lanes)].value != 0) ballot |= lanes & -lanes;
    const uint32_t result = kind == Collective::any ? ballot != 0 : kind == Collective::all ? ballot == members : ballot;
    for (uint32_t lanes = members; lanes != 0; lanes &= lanes - 1)
        warp.fibres[__builtin_ctz(lanes)].result = result;
}

/// mma.sync.m16n8k16, the fragments as drawn in mma.cuh. Products are exact in float32; sums run in order of k.
void multiply(Warp& warp) {
    float a[16][16], b[16][8], d[16][8];
    for (int lane = 0; lane < 32; ++lane) {
        const Lane& x = warp.fibres[lane];
        const int g = lane / 4, t = 2 * (lane % 4);
        for (int i = 0; i < 4; ++i) {
            float* pair = &a[g + (i % 2) * 8][t + (i / 2) * 8];
            pair[0] = lower_half(x.a[i]), pair[1] = upper_half(x.a[i]);
            d[g + (i / 2) * 8][t + i % 2] = x.d[i];
        }
        for (int i = 0; i < 2; ++i) b[t + 8 * i][g] = lower_half(x.b[i]), b[t + 8 * i + 1][g] = upper_half(x.b[i]);
    }
    for (int row = 0; row < 16; ++row)
        for (int k = 0; k < 16; ++k)
            for (int column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
    for (int lane = 0; lane < 32; ++lane) {
        const Lane& x = warp.fibres[lane];
        const int g = lane / 4, t = 2 * (lane % 4);
        for (int i = 0; i < 4; ++i) x.d[i] = d[g + (i / 2) * 8][t + i % 2];
    }
}

void distribute_matrices(Warp& warp, uint32_t count, bool transposed) {
    for (uint32_t m = 0; m < count; ++m) {
        uint16_t values[8][8];
        for (int row = 0; row < 8; ++row)
            std::memcpy(values[row], warp.fibres[8 * m + row].matrix_row, sizeof values[row]);
        for (int lane = 0; lane < 32; ++lane) {
            const int g = lane / 4, t = 2 * (lane % 4);
            const uint32_t low = transposed ? values[t][g] : values[g][t];
            const uint32_t high = transposed ? values[t + 1][g] : values[g][t + 1];
            warp.fibres[lane].registers[m] = low | high << 16;
        }
    }
}

const char* name_of(Collective kind) {
    static const char* const names[] = {"__syncwarp", "a shuffle", "__any_sync",          "__all_sync",
                                        "__ballot_sync", "mma.sync",  "ldmatrix", "ldmatrix.trans", "wgmma", "wgmma.wait_group"};
    static_assert(sizeof names / sizeof *names == size_t(Collective::count));
    return names[size_t(kind)];
}

void check_same(Warp& warp, Fibre& member, Fibre& other) {
    if (other.collective == member.collective && other.detail == member.detail) return;
    fail(*warp.fibres->owner->worker->running, FailureKind::collective, member.pc, 0,
         "lanes %d and %d of a warp meet in different collectives: %s and %s", int(member.index % 32),
         int(other.index % 32), name_of(member.collective), name_of(other.collective));
}

}  // namespace

/// Computes the collective of `member` and frees its lanes, if all lanes of its mask that are alive have arrived.
void run_collective(Warp& warp, Fibre& member) {
    const uint32_t members = member.mask & warp.alive;
    if ((warp.collecting & members) != members) return;
    for (uint32_t lanes = members; lanes != 0; lanes &= lanes - 1) {
        Fibre& other = warp.fibres[__builtin_ctz(lanes)];
        if (other.mask != member.mask) return;  // in another collective first; it will come here after that
        check_same(warp, member, other);
    }
    const Collective kind = member.collective;
    if (kind >= Collective::mma && members != ~0u)
        fail(member, FailureKind::collective, member.pc, 0, "%s needs all 32 lanes of the warp, %d are there",
             name_of(kind), __builtin_popcount(members));
    if (kind == Collective::shuffle) shuffle_lanes(warp, members);
    else if (kind == Collective::mma) multiply(warp);
    else if (kind == Collective::ldmatrix || kind == Collective::ldmatrix_trans)
        distribute_matrices(warp, member.detail, kind == Collective::ldmatrix_trans);
    else if (kind < Collective::mma && kind != Collective::sync) vote_lanes(warp, members, kind);
    Block& block = *member.owner;
    const Fibre* running = block.worker->running;
    warp.collecting &= ~members;
    warp.ready |= members;
    if (running->warp == &warp) warp.ready &= ~running->bit;
    if (warp.ready != 0) block.ready_warps |= 1u << (&warp - block.warps);
    ++warp.phase[__builtin_ctz(member.mask)];
    ++block.worker->events;
}

extern "C" {

void tinyvllm_collective(Lane* lane, uint32_t mask, Collective kind, uint32_t detail) {
    auto& fibre = static_cast<Fibre&>(*lane);
    Warp& warp = *fibre.warp;
    const void* pc = __builtin_return_address(0);
    if ((mask & fibre.bit) == 0)
        fail(fibre, FailureKind::collective, pc, 0, "the mask 0x%08x of %s does not name the calling lane %d", mask,
             name_of(kind), int(fibre.index % 32));
    fibre.mask = mask;
    fibre.collective = kind;
    fibre.detail = detail;
    fibre.pc = pc;
    const uint32_t group = uint32_t(__builtin_ctz(mask));
    Block& block = *fibre.owner;
    char* sync = &block.team->sync.warp[&warp - block.warps][group][warp.phase[group] % 2];
    const bool orders = kind == Collective::sync || kind == Collective::wgmma_wait;
    if (orders) release(sync);
    warp.collecting |= fibre.bit;
    run_collective(warp, fibre);
    if (warp.collecting & fibre.bit) wait_here(fibre, Waiting::collective, pc);
    else perhaps_step_back(fibre);
    if (orders) acquire(sync);
}

void tinyvllm_block_barrier(Lane* lane) {
    auto& fibre = static_cast<Fibre&>(*lane);
    Block& block = *fibre.owner;
    fibre.pc = __builtin_return_address(0);
    char* sync = &block.team->sync.block[block.phase % 2];
    release(sync);
    if (block.first_at_barrier == nullptr) block.first_at_barrier = &fibre;
    else if (block.first_at_barrier->pc != fibre.pc) record_split_barrier(*block.first_at_barrier, fibre);
    if (++block.arrived == block.alive) {
        release_barrier(block);
        perhaps_step_back(fibre);
    } else {
        wait_here(fibre, Waiting::block_barrier, fibre.pc);
    }
    acquire(sync);
}

int tinyvllm_block_vote(Lane* lane, int predicate, int kind) {
    Block& block = *static_cast<Fibre&>(*lane).owner;
    block.vote_sum += predicate != 0;
    tinyvllm_block_barrier(lane);
    if (kind == 0) return block.vote_result != 0;
    return kind == 1 ? block.vote_result == block.vote_total : int(block.vote_result);
}
}

}  // namespace tinyvllm::emulator
