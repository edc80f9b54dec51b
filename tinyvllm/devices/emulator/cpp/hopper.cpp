// What Hopper does by itself while threads go on: boxes that the copy engine brings, products of a warpgroup.
//
// A box is read when it is asked for and fills its destination with 0xFF at once; it lands only when a lane waits for the
// barrier that counts it. The sums of a product under way are complements; they become NaN if its operands are not at
// the wait what they were when it began.
#include <algorithm>
#include <cstring>

#include "runtime.hpp"

namespace tinyvllm::emulator {

namespace {

constexpr uint32_t row_bytes = 128, step_bytes = 32;  // of an operand in shared memory; of a step's part of a row

/// An mbarrier in its 64 bits.
struct Phase {
    static constexpr uint64_t initialised = 0xb5d;

    uint64_t mark : 12;
    uint64_t total : 10;    // arrivals of each phase
    uint64_t pending : 10;  // arrivals until the end of this one
    uint64_t parity : 1;
    int64_t bytes : 31;  // announced and not landed
};

Phase phase_of(Fibre& fibre, const uint64_t* barrier, const void* pc) {
    const auto phase = __builtin_bit_cast(Phase, __atomic_load_n(barrier, __ATOMIC_RELAXED));
    if (phase.mark != Phase::initialised)
        fail(fibre, FailureKind::collective, pc, 0, "%s", "an mbarrier is used that mbarrier_init has not set up");
    return phase;
}

void store(Fibre& fibre, uint64_t* barrier, Phase phase) {
    if (phase.pending == 0 && phase.bytes == 0) {
        phase.parity ^= 1;
        phase.pending = phase.total;
    }
    ++fibre.owner->worker->events;
    __atomic_store_n(barrier, __builtin_bit_cast(uint64_t, phase), __ATOMIC_RELAXED);
}

/// Lands one of the boxes that the barrier counts; false if there is none.
bool land_box(Fibre& fibre, uint64_t* barrier, const void* pc) {
    std::vector<BoxCopy>& copies = fibre.owner->copies;
    const size_t first = copies.empty() ? 0 : next_random(*fibre.owner->worker) % copies.size();
    for (size_t i = 0; i < copies.size(); ++i) {
        BoxCopy& copy = copies[(first + i) % copies.size()];
        if (copy.barrier != barrier) continue;
        acquire(barrier);  // comes after what asked for it
        std::memcpy(copy.to, copy.data.data(), copy.data.size());
        release(barrier);
        Phase phase = phase_of(fibre, barrier, pc);
        phase.bytes -= int64_t(copy.data.size());
        std::swap(copy, copies.back());
        copies.pop_back();
        store(fibre, barrier, phase);
        return true;
    }
    return false;
}

float float_of(uint16_t bits) { return __builtin_bit_cast(float, uint32_t(bits) << 16); }

/// Where the `vector`-th 16 bytes of an operand's row lie.
const char* vector_at(uint64_t operand, uint32_t row, uint32_t vector) {
    const uint64_t address = operand * 16;
    const uint32_t step = uint32_t(address % 1024) / step_bytes;
    return reinterpret_cast<const char*>(address / 1024 * 1024) + row * row_bytes + ((2 * step + vector) ^ row % 8) * 16;
}

void read_row(float (&values)[16], uint64_t operand, uint32_t row) {
    for (uint32_t vector = 0; vector < 2; ++vector) {
        uint16_t bits[8];
        std::memcpy(bits, vector_at(operand, row, vector), sizeof bits);
        for (uint32_t i = 0; i < 8; ++i) values[vector * 8 + i] = float_of(bits[i]);
    }
}

float dot(const float (&a)[16], const float (&b)[16]) {
    float sums[4] = {};
    for (int i = 0; i < 16; i += 4)
        for (int k = 0; k < 4; ++k) sums[k] += a[i + k] * b[i + k];
    return sums[0] + sums[1] + (sums[2] + sums[3]);
}

void complement(float* sums, uint32_t count) {
    for (uint32_t i = 0; i < count; ++i) sums[i] = __builtin_bit_cast(float, ~__builtin_bit_cast(uint32_t, sums[i]));
}

void add(uint64_t& digest, const char* vector) {
    uint64_t words[2];
    std::memcpy(words, vector, sizeof words);
    for (const uint64_t word : words) digest = (digest ^ word) * 0x9e3779b97f4a7c15ull, digest ^= digest >> 29;
}

/// Of this lane's share of what its warp's product reads.
uint64_t digest_of(const Fibre& fibre, const Product& product) {
    const uint32_t lane = fibre.index % 32, warp = fibre.index / 32 % 4;
    uint64_t digest = 1;
    for (uint32_t vector = 0; vector < 2; ++vector) {
        add(digest, vector_at(product.a, warp * 16 + lane % 16, vector));
        for (uint32_t row = lane; row < product.num_columns; row += 32) add(digest, vector_at(product.b, row, vector));
    }
    return digest;
}

bool is_over(const Fibre& fibre, const Product& product, uint32_t pending) {
    return product.group + pending < fibre.product_group;
}

}  // namespace

extern "C" {

void tinyvllm_mbarrier_init(Lane* lane, uint64_t* barrier, uint32_t num_arrivals) {
    auto& fibre = static_cast<Fibre&>(*lane);
    Phase phase{};
    phase.mark = Phase::initialised;
    phase.total = phase.pending = num_arrivals;
    if (num_arrivals == 0 || num_arrivals > 1023)
        fail(fibre, FailureKind::collective, __builtin_return_address(0), 0, "an mbarrier of %u arrivals", num_arrivals);
    __atomic_store_n(barrier, __builtin_bit_cast(uint64_t, phase), __ATOMIC_RELAXED);
}

void tinyvllm_mbarrier_arrive(Lane* lane, uint64_t* barrier, uint32_t num_bytes) {
    auto& fibre = static_cast<Fibre&>(*lane);
    const void* pc = __builtin_return_address(0);
    Phase phase = phase_of(fibre, barrier, pc);
    release(barrier);
    phase.bytes += num_bytes;
    --phase.pending;
    store(fibre, barrier, phase);
}

void tinyvllm_mbarrier_wait(Lane* lane, uint64_t* barrier, uint32_t parity) {
    auto& fibre = static_cast<Fibre&>(*lane);
    const void* pc = __builtin_return_address(0);
    while (phase_of(fibre, barrier, pc).parity == (parity & 1)) {
        if (land_box(fibre, barrier, pc)) continue;
        ++fibre.owner->num_spinning;
        wait_here(fibre, Waiting::spin, pc);
    }
    acquire(barrier);
}

void tinyvllm_tensor_copy(Lane* lane, void* to, const TensorMap* map, uint64_t* barrier, int column, int row) {
    auto& fibre = static_cast<Fibre&>(*lane);
    phase_of(fibre, barrier, __builtin_return_address(0));
    const uint32_t half = map->num_rows / 2;
    std::vector<char> data(map->box_rows * row_bytes);
    for (uint32_t r = 0; r < map->box_rows; ++r) {
        const int64_t run = row + int64_t(r / 16);  // of a paired map
        const int64_t in_half = run * 8 + r % 8;
        const int64_t from = map->is_paired ? in_half + (r % 16 < 8 ? 0 : half) : int64_t(row) + r;
        if (from < 0 || (map->is_paired ? in_half >= half : from >= map->num_rows)) continue;  // zeros
        for (uint32_t vector = 0; vector < 8; ++vector) {
            const int64_t first = column + int64_t(vector) * 8;
            if (first < 0 || first >= map->num_columns) continue;
            std::memcpy(data.data() + r * row_bytes + (vector ^ r % 8) * 16,
                        map->matrix + from * map->num_columns + first, 16);
        }
    }
    std::memset(to, 0xff, data.size());  // who still reads the old contents must not see them
    release(barrier);
    fibre.owner->copies.push_back({barrier, to, std::move(data)});
}

void tinyvllm_wgmma_begin(Lane* lane) { static_cast<Fibre*>(lane)->has_fenced_sums = true; }

void tinyvllm_wgmma_commit(Lane* lane) { ++static_cast<Fibre*>(lane)->product_group; }

void tinyvllm_wgmma(Lane* lane, float* sums, uint32_t num_columns, uint64_t a, uint64_t b) {
    auto& fibre = static_cast<Fibre&>(*lane);
    const uint32_t g = fibre.index % 32 / 4, t = fibre.index % 4 * 2, row = fibre.index / 32 % 4 * 16 + g;
    const bool goes_on = std::any_of(fibre.products.begin(), fibre.products.end(),
                                     [=](const Product& product) { return product.sums == sums; });
    if (goes_on) complement(sums, num_columns / 2);
    else if (!fibre.has_fenced_sums) std::fill(sums, sums + num_columns / 2, __builtin_nanf(""));
    float upper[16], lower[16], column[16];
    read_row(upper, a, row);
    read_row(lower, a, row + 8);
    for (uint32_t j = 0; j < num_columns / 8; ++j)
        for (uint32_t which = 0; which < 2; ++which) {
            read_row(column, b, j * 8 + t + which);
            sums[4 * j + which] += dot(upper, column);
            sums[4 * j + 2 + which] += dot(lower, column);
        }
    complement(sums, num_columns / 2);
    fibre.products.push_back({sums, num_columns, a, b, 0, fibre.product_group});
    fibre.products.back().digest = digest_of(fibre, fibre.products.back());
}

/// Looks whether the operands of the products that are over by now are what they were.
void tinyvllm_wgmma_check(Lane* lane, uint32_t pending) {
    auto& fibre = static_cast<Fibre&>(*lane);
    for (const Product& product : fibre.products)
        if (is_over(fibre, product, pending) && digest_of(fibre, product) != product.digest) {
            std::fill(product.sums, product.sums + product.num_columns / 2, __builtin_nanf(""));
            complement(product.sums, product.num_columns / 2);
        }
}

void tinyvllm_wgmma_end(Lane* lane, uint32_t pending) {
    auto& fibre = static_cast<Fibre&>(*lane);
    while (!fibre.products.empty() && is_over(fibre, fibre.products.front(), pending)) {
        const Product product = fibre.products.front();
        fibre.products.erase(fibre.products.begin());
        const bool goes_on = std::any_of(fibre.products.begin(), fibre.products.end(),
                                         [=](const Product& other) { return other.sums == product.sums; });
        if (goes_on) continue;
        complement(product.sums, product.num_columns / 2);
        fibre.has_fenced_sums = false;
    }
}
}

}  // namespace tinyvllm::emulator
