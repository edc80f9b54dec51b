// The emulator's side of the prelude: what a kernel sees of the runtime library (tinyvllm/devices/emulator/cpp).
//
// One Lane is one CUDA thread: a fibre with a stack of its own. Everything here that can wait hands the processor to
// another lane inside the runtime. No standard header is included: a kernel compiles in a fraction of the time.
#pragma once

#include "tinyvllm/emulator_types.cuh"

namespace tinyvllm::emulator {

/// A cp.async that has started and not landed; `from` is null for a fill with zeros.
struct AsyncCopy {
    void* to;
    const void* from;
    uint32_t group;
};

/// Where a block is; the same for all its lanes.
struct Geometry {
    uint3 block;
    dim3 block_dim;
    dim3 grid_dim;
};

/// What a kernel sees of its thread. What it brings to a warp collective and takes away again is in the first cache
/// line: a warp's 32 lanes take turns so often that the cache is what limits the speed.
struct alignas(64) Lane {
    uint64_t value;    // brought to a shuffle or a vote
    uint64_t result;   // taken away
    const uint32_t* a; // mma: operands, on this lane's stack
    const uint32_t* b;
    float* d;
    int32_t source;  // shuffle: the lane to read
    uint32_t index;  // in the block
    uint3 thread;
    uint32_t copy_group;
    uint32_t matrix_row[4];  // ldmatrix: the row this lane has read
    uint32_t registers[4];   // ldmatrix: taken away
    const Geometry* geometry;
    AsyncCopy* copies;
    uint32_t num_copies;
    uint32_t copy_capacity;
    uint32_t has_left;  // through a `return;`, so that no barrier waits for it
};

enum class Collective : uint32_t { sync, shuffle, any, all, ballot, mma, ldmatrix, ldmatrix_trans, wgmma, wgmma_wait, count };

/// A matrix that boxes are copied from, as `EmulatorDevice.tensor_map` packs it: 128 bytes, as on a GPU.
struct TensorMap {
    const uint16_t* matrix;
    uint32_t num_rows, num_columns, box_rows, is_paired;
    uint32_t unused[26];
};
static_assert(sizeof(TensorMap) == 128, "a kernel's parameter has one size everywhere");

extern "C" {
// Constant for a given thread of execution, so that the compiler keeps it: a fibre never changes its lane.
__attribute__((const)) Lane* tinyvllm_self();
void tinyvllm_block_barrier(Lane*);
int tinyvllm_block_vote(Lane*, int predicate, int kind);
void tinyvllm_collective(Lane*, uint32_t mask, Collective, uint32_t detail);
void tinyvllm_yield(Lane*);
void tinyvllm_pdl_wait(Lane*);
void tinyvllm_pdl_launch_dependents(Lane*);
void* tinyvllm_shared_variable(Lane*, const void* key, size_t size, size_t alignment);
void* tinyvllm_dynamic_shared(Lane*);
void tinyvllm_grow_copies(Lane*);
void tinyvllm_mbarrier_init(Lane*, uint64_t* barrier, uint32_t num_arrivals);
void tinyvllm_mbarrier_arrive(Lane*, uint64_t* barrier, uint32_t num_bytes);
void tinyvllm_mbarrier_wait(Lane*, uint64_t* barrier, uint32_t parity);
void tinyvllm_tensor_copy(Lane*, void* to, const TensorMap*, uint64_t* barrier, int column, int row);
void tinyvllm_wgmma(Lane*, float* sums, uint32_t num_columns, uint64_t a, uint64_t b);
void tinyvllm_wgmma_begin(Lane*);
void tinyvllm_wgmma_commit(Lane*);
void tinyvllm_wgmma_check(Lane*, uint32_t pending);
void tinyvllm_wgmma_end(Lane*, uint32_t pending);
[[noreturn]] void tinyvllm_fail_misaligned(Lane*, const void* address, uint32_t alignment);
[[noreturn]] void tinyvllm_fail_assert(Lane*);
int tinyvllm_print(Lane*, const char* format, ...);
}

TINYVLLM_INLINE Lane* self() { return tinyvllm_self(); }
TINYVLLM_INLINE void leave() { self()->has_left = 1; }
TINYVLLM_INLINE void yield() { tinyvllm_yield(self()); }
TINYVLLM_INLINE void pdl_wait() { tinyvllm_pdl_wait(self()); }
TINYVLLM_INLINE void pdl_launch_dependents() { tinyvllm_pdl_launch_dependents(self()); }
TINYVLLM_INLINE void* dynamic_shared() { return tinyvllm_dynamic_shared(self()); }
[[noreturn]] TINYVLLM_INLINE void fail_assert() { tinyvllm_fail_assert(self()); }

TINYVLLM_INLINE void check_aligned(const void* address, uint32_t alignment) {
    if (reinterpret_cast<uintptr_t>(address) % alignment != 0) [[unlikely]]
        tinyvllm_fail_misaligned(self(), address, alignment);
}

/// What `__shared__ T name;` becomes: the block's one copy. `key` tells declarations apart, also in templates.
template <class T, size_t alignment>
TINYVLLM_INLINE T& shared_variable(const char& key) {
    return *static_cast<T*>(tinyvllm_shared_variable(self(), &key, sizeof(T), alignment));
}

TINYVLLM_INLINE void start_copy(void* to, const void* from, bool valid) {
    Lane* lane = self();
    check_aligned(to, 16);
    if (valid) check_aligned(from, 16);
    if (lane->num_copies == lane->copy_capacity) tinyvllm_grow_copies(lane);
    lane->copies[lane->num_copies++] = AsyncCopy{to, valid ? from : nullptr, lane->copy_group};
    // A group under way may land at any time: who still reads the old contents must not see them.
    *static_cast<uint4*>(to) = uint4{0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu};
}

TINYVLLM_INLINE void land_copies(uint32_t pending) {
    Lane* lane = self();
    uint32_t kept = 0;
    for (uint32_t i = 0; i < lane->num_copies; ++i) {
        const AsyncCopy copy = lane->copies[i];
        if (copy.group + pending >= lane->copy_group)
            lane->copies[kept++] = copy;
        else
            *static_cast<uint4*>(copy.to) = copy.from ? *static_cast<const uint4*>(copy.from) : uint4{0, 0, 0, 0};
    }
    lane->num_copies = kept;
}

TINYVLLM_INLINE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    Lane* lane = self();
    lane->a = a;
    lane->b = b;
    lane->d = d;
    tinyvllm_collective(lane, 0xffffffffu, Collective::mma, 0);
}

template <int count, bool trans>
TINYVLLM_INLINE void ldmatrix(uint32_t (&registers)[count], const void* row) {
    Lane* lane = self();
    if (lane->index % 32 < 8 * count) {
        check_aligned(row, 16);
        const uint4 values = *static_cast<const uint4*>(row);
        lane->matrix_row[0] = values.x;
        lane->matrix_row[1] = values.y;
        lane->matrix_row[2] = values.z;
        lane->matrix_row[3] = values.w;
    }
    tinyvllm_collective(lane, 0xffffffffu, trans ? Collective::ldmatrix_trans : Collective::ldmatrix, count);
    for (int i = 0; i < count; ++i) registers[i] = lane->registers[i];
}

TINYVLLM_INLINE void mbarrier_init(uint64_t* barrier, uint32_t num_arrivals) {
    check_aligned(barrier, 8);
    tinyvllm_mbarrier_init(self(), barrier, num_arrivals);
}
TINYVLLM_INLINE void mbarrier_arrive(uint64_t* barrier, uint32_t num_bytes) {
    tinyvllm_mbarrier_arrive(self(), barrier, num_bytes);
}
TINYVLLM_INLINE void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
    tinyvllm_mbarrier_wait(self(), barrier, parity);
}

TINYVLLM_INLINE void copy_box(void* to, const TensorMap& map, uint64_t* barrier, int column, int row) {
    check_aligned(to, 1024);
    tinyvllm_tensor_copy(self(), to, &map, barrier, column, row);
}

TINYVLLM_INLINE void wgmma_begin() { tinyvllm_wgmma_begin(self()); }
TINYVLLM_INLINE void wgmma_commit() { tinyvllm_wgmma_commit(self()); }
TINYVLLM_INLINE void wgmma(float* sums, uint32_t num_columns, uint64_t a, uint64_t b) {
    Lane* lane = self();
    tinyvllm_collective(lane, 0xffffffffu, Collective::wgmma, num_columns);
    tinyvllm_wgmma(lane, sums, num_columns, a, b);
}
TINYVLLM_INLINE void wgmma_wait(uint32_t pending) {
    Lane* lane = self();
    tinyvllm_wgmma_check(lane, pending);  // by all lanes before any goes on and has the operands overwritten
    tinyvllm_collective(lane, 0xffffffffu, Collective::wgmma_wait, pending);
    tinyvllm_wgmma_end(lane, pending);
}

TINYVLLM_INLINE uint64_t shuffle_bits(uint32_t mask, uint64_t value, int source) {
    Lane* lane = self();
    lane->value = value;
    lane->source = source;
    tinyvllm_collective(lane, mask, Collective::shuffle, 0);
    return lane->result;
}

TINYVLLM_INLINE uint32_t vote(uint32_t mask, int predicate, Collective kind) {
    Lane* lane = self();
    lane->value = predicate != 0;
    tinyvllm_collective(lane, mask, kind, 0);
    return uint32_t(lane->result);
}

/// A shuffle reads lane `source`; outside the segment of `width` lanes a lane keeps its own value.
template <class T>
TINYVLLM_INLINE T shuffle(uint32_t mask, T value, int source) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a shuffle exchanges 4 or 8 bytes");
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &value, sizeof(T));
    bits = shuffle_bits(mask, bits, source);
    __builtin_memcpy(&value, &bits, sizeof(T));
    return value;
}

// What Python reads of a kernel: how to call it, and what its parameters are.
enum class ParameterKind : uint32_t { value, output, input };  // output: a pointer to what is not const
enum class NumberKind : uint32_t { other, boolean, integer, floating };  // other: a struct

struct Parameter {
    uint32_t size;
    ParameterKind kind;
    NumberKind number;      // of the value, or of what the pointer leads to
    uint32_t number_bytes;  // 0 where it is other
};

struct KernelInfo {
    void (*call)(void**);
    const Parameter* parameters;
    uint32_t num_parameters;
    uint32_t max_threads;  // of __launch_bounds__, or 1024
};

struct Number {
    NumberKind kind;
    uint32_t bytes;
};
template <class T>
inline constexpr Number number = {NumberKind::other, 0};
#define TINYVLLM_NUMBER(T, KIND) \
    template <>                  \
    inline constexpr Number number<T> = {NumberKind::KIND, sizeof(T)};
TINYVLLM_NUMBER(bool, boolean)
TINYVLLM_NUMBER(float, floating)
TINYVLLM_NUMBER(double, floating)
TINYVLLM_NUMBER(char, integer)
TINYVLLM_NUMBER(signed char, integer)
TINYVLLM_NUMBER(unsigned char, integer)
TINYVLLM_NUMBER(short, integer)
TINYVLLM_NUMBER(unsigned short, integer)
TINYVLLM_NUMBER(int, integer)
TINYVLLM_NUMBER(unsigned, integer)
TINYVLLM_NUMBER(long, integer)
TINYVLLM_NUMBER(unsigned long, integer)
TINYVLLM_NUMBER(long long, integer)
TINYVLLM_NUMBER(unsigned long long, integer)
#undef TINYVLLM_NUMBER

template <class T>
struct Describe {
    static constexpr Parameter value = {sizeof(T), ParameterKind::value, number<T>.kind, number<T>.bytes};
};
template <class T>
struct Describe<T*> {
    static constexpr Parameter value = {sizeof(T*), ParameterKind::output, number<T>.kind, number<T>.bytes};
};
template <class T>
struct Describe<const T*> {
    static constexpr Parameter value = {sizeof(T*), ParameterKind::input, number<T>.kind, number<T>.bytes};
};
template <class T>
struct Describe<T* const> : Describe<T*> {};
template <class T>
struct Describe<const T> : Describe<T> {};

template <size_t... indices>
struct Indices {};
template <size_t count>
using MakeIndices = Indices<__integer_pack(count)...>;

template <class... P>
struct Signature {
    static constexpr Parameter parameters[sizeof...(P) + 1] = {Describe<P>::value..., {0, ParameterKind::value, NumberKind::other, 0}};
    static constexpr uint32_t num_parameters = sizeof...(P);

    template <size_t... i>
    static void call(void (*kernel)(P...), void** arguments, Indices<i...>) {
        kernel(*static_cast<P*>(arguments[i])...);
    }
};

template <class... P>
Signature<P...> signature_of(void (*)(P...));

template <class... P>
TINYVLLM_INLINE void call(void (*kernel)(P...), void** arguments) {
    Signature<P...>::call(kernel, arguments, MakeIndices<sizeof...(P)>());
}

}  // namespace tinyvllm::emulator

#include "tinyvllm/emulator_builtins.cuh"
