// Which lane wrote an element last: whenever a lane stops running, a watched element is compared with what it was. Only a
// runtime that is built with TINYVLLM_WATCH asks; it has one worker.
#include <algorithm>
#include <cstring>
#include <utility>

#include "runtime.hpp"

namespace tinyvllm::emulator {

namespace {

struct Watch {
    const void* address = nullptr;
    size_t size = 0;
    uint64_t value = 0;
    bool has_writer = false;
    Place writer{};
} watch;

bool is_changed() {
    uint64_t now = 0;
    std::memcpy(&now, watch.address, watch.size);
    return std::exchange(watch.value, now) != now;
}

}  // namespace

void notice_change(const Fibre& fibre) {
    if (watch.address == nullptr || !is_changed()) return;
    watch.has_writer = true;
    watch.writer = place_of(fibre);
}

extern "C" {

/// Watches up to 8 bytes from now on; a null address ends it.
void tinyvllm_watch(const void* address, size_t size) {
    watch = {address, std::min(size, sizeof watch.value)};
    if (address != nullptr) is_changed();
}

/// The lane that has changed the element since this was last asked; null if none has.
const Place* tinyvllm_watch_writer() { return std::exchange(watch.has_writer, false) ? &watch.writer : nullptr; }

/// Whether something else than a lane has changed it: a copy, or a product on the host.
int tinyvllm_watch_host() { return watch.address != nullptr && is_changed(); }
}

}  // namespace tinyvllm::emulator
