// Shared memory and stacks of a block. Poisoned for each block, alternately with 0x00 and 0xFF, so that a value left by
// a block before is never mistaken for one written by this one; followed by a mark that must be intact at the end.
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <new>

#include "runtime.hpp"

namespace tinyvllm::emulator {

namespace {

constexpr size_t mark_bytes = 64;
constexpr unsigned char mark = 0xa5;
constexpr size_t static_capacity = 256 * 1024;
// The odd lines keep the tops of neighbouring stacks out of one cache set; without them a switch misses the cache.
constexpr size_t stack_stride = (is_sanitized ? 256 : 64) * 1024 + 9 * 64;

char* allocate(size_t bytes, size_t alignment) {
    void* memory = nullptr;
    if (posix_memalign(&memory, alignment, bytes) != 0) throw std::bad_alloc();
    return static_cast<char*>(memory);
}

/// Sanitizers find an overrun themselves, and at the place where it happens: give them exact sizes.
size_t with_mark(size_t bytes) { return is_sanitized ? bytes : bytes + mark_bytes; }

void set_up(char* memory, size_t bytes, uint8_t poison) {
    std::memset(memory, poison, bytes);
    if (!is_sanitized) std::memset(memory + bytes, mark, mark_bytes);
}

bool is_marked(const char* memory, size_t bytes) {
    for (size_t i = 0; i < mark_bytes; ++i)
        if (static_cast<unsigned char>(memory[bytes + i]) != mark) return false;
    return true;
}

}  // namespace

Team::Team(uint32_t num_threads) : num_threads(num_threads), fibres(new Fibre[(num_threads + 31) / 32 * 32]()) {
    stacks_bytes = num_threads * stack_stride;
    void* memory = mmap(nullptr, stacks_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    stacks = static_cast<char*>(memory);
    if (!is_sanitized) static_shared = allocate(static_capacity, 1024);
}

Team::~Team() {
    for (uint32_t i = 0; i < num_threads; ++i) {
        std::free(fibres[i].copies);
        if (fibres[i].owner != nullptr) shadow_destroy(fibres[i].shadow);
    }
    munmap(stacks, stacks_bytes);
    std::free(dynamic_shared);
    std::free(static_shared);
}

void Team::reserve_dynamic(size_t bytes) {
    if (dynamic_shared != nullptr && dynamic_capacity >= bytes) return;
    std::free(dynamic_shared);
    dynamic_shared = allocate(bytes, 1024);
    dynamic_capacity = bytes;
}

void poison_shared(Block& block) {
    const size_t bytes = block.launch->config.dynamic_shared_bytes;
    block.team->reserve_dynamic(with_mark(bytes == 0 && is_sanitized ? 1 : bytes));
    set_up(block.team->dynamic_shared, bytes, block.poison);
}

/// Fails the launch if a mark is damaged, or a box would land where the next block is; the block has ended, so its first
/// thread stands for it.
void check_shared(Block& block) {
    Launch& launch = *block.launch;
    const char* what = nullptr;
    if (!block.copies.empty()) what = "its life: boxes are still to land in its shared memory";
    if (is_sanitized) {
        for (const SharedVariable& variable : block.variables) std::free(variable.address);
        return;
    }
    if (!is_marked(block.team->dynamic_shared, launch.config.dynamic_shared_bytes)) what = "dynamic shared memory";
    for (const SharedVariable& variable : block.variables)
        if (!is_marked(variable.address, variable.size)) what = "a __shared__ variable";
    if (what == nullptr) return;
    const std::lock_guard lock(launch.mutex);
    if (launch.failed.exchange(true)) return;
    launch.failure.kind = FailureKind::overrun;
    launch.failure.num_places = 1;
    launch.failure.places[0] = place_of(block.team->fibres[0]);
    launch.failure.places[0].pc = reinterpret_cast<void*>(launch.config.call);
    std::strcpy(launch.failure.detail, what);
}

extern "C" {

void* tinyvllm_dynamic_shared(Lane* lane) { return static_cast<Fibre*>(lane)->owner->team->dynamic_shared; }

void* tinyvllm_shared_variable(Lane* lane, const void* key, size_t size, size_t alignment) {
    auto& fibre = static_cast<Fibre&>(*lane);
    Block& block = *fibre.owner;
    for (const SharedVariable& variable : block.variables)
        if (variable.key == key) return variable.address;
    const LaunchConfig& config = block.launch->config;
    size_t offset = 0, used = 0;
    for (const SharedVariable& variable : block.variables) {
        offset = size_t(variable.address - block.team->static_shared) + variable.size + mark_bytes;
        used += variable.size;
    }
    block.static_bytes = used + size;
    const void* pc = __builtin_return_address(0);
    if (used + size > config.max_static_shared_bytes)
        fail(fibre, FailureKind::shared_memory, pc, 0, "%zu bytes of static shared memory, at most %u are allowed",
             used + size, config.max_static_shared_bytes);
    if (used + size + config.dynamic_shared_bytes > config.max_shared_bytes)
        fail(fibre, FailureKind::shared_memory, pc, 0, "%zu bytes of static and %u of dynamic shared memory, at most %u",
             used + size, config.dynamic_shared_bytes, config.max_shared_bytes);
    alignment = alignment < 16 ? 16 : alignment;
    offset = (offset + alignment - 1) / alignment * alignment;
    char* address = is_sanitized ? allocate(size, alignment) : block.team->static_shared + offset;
    set_up(address, size, block.poison);
    block.variables.push_back({key, address, size});
    return address;
}

void tinyvllm_grow_copies(Lane* lane) {
    lane->copy_capacity = lane->copy_capacity == 0 ? 32 : 2 * lane->copy_capacity;
    lane->copies = static_cast<AsyncCopy*>(std::realloc(lane->copies, lane->copy_capacity * sizeof(AsyncCopy)));
    if (lane->copies == nullptr) throw std::bad_alloc();
}
}

}  // namespace tinyvllm::emulator
