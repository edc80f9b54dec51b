// Log-probabilities of raw logits: of the chosen token, and of the k most likely; the chosen one's rank.
//   Formula    logprob(v) = x[v] - log(sum over w of exp(x[w])); rank = 1 + the number of w with x[w] > x[chosen]
//   Reference  tinyvllm/reference/logprobs.py
//   Shapes     token_ids [B, 1 + k] int32, logprobs [B, 1 + k] float32, rank, chosen, slots [B] int32,
//              logits [B, V] float32, num_logprobs [S] int32; column 0 is the chosen token; k <= MAX_LISTED, V <= 2^20
//   Mapping    a block owns a row; its threads take tokens in turn
//   Numerics   exponentials float32 relative to the maximum, their sum an integer in units of 2^-44, so that it has
//              no order; its logarithm and the differences float64
//   Traffic    8 V bytes a row, the second time from L2; 16 V where so many tokens are as likely that LIST_SIZE of them
//              do not name the k first; a row that asks for none reads none
#include "tinyvllm/prelude.cuh"
#include "tinyvllm/shared/sample_order.cuh"
#include "sample_select.cuh"

constexpr int no_logprobs = -2;  // in num_logprobs, as in tinyvllm/batch.py

/// The natural logarithm; the emulator's prelude has none in double precision.
__device__ double log_of(double x) {
#if defined(TINYVLLM_EMULATOR)
    return __builtin_log(x);
#else
    return log(x);
#endif
}

/// A row's tokens by raw logit.
struct RawRow {
    const float* logits;
    float row_max;

    TINYVLLM_DEVICE static float logit_at(uint64_t place) { return float_of_growing(~falling_bits_of(place)); }

    TINYVLLM_DEVICE bool place(int id, float x, uint64_t& place) const {
        place = place_of(bucket_of(row_max - x), ~growing_bits(x), id);
        return true;
    }
};

/// A logit that at least k tokens of the row reach, of the k first and hardly more where large logits lie about: in each
/// warp so many threads' largest reach it that there are k in all. Every thread calls it with the largest of its share.
__device__ float reached_by(int k, float largest, float* scratch) {
    const int of_warp = (k + THREADS / warp_size - 1) / (THREADS / warp_size);
    float reached = INFINITY;
    for (int i = 0; i < of_warp; ++i) {
        reached = warp_max(largest);
        const uint32_t lanes = __ballot_sync(full_warp, largest == reached);
        if (lane_id() == __ffs(int(lanes)) - 1) largest = -INFINITY;
    }
    return -block_max(-reached, scratch);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    logprobs_rows(int* token_ids, float* logprobs, int* rank, const float* logits, const int* chosen,
                  const int* slots, const int* num_logprobs, int vocab_size, int k) {
    __shared__ Selection selection;
    __shared__ uint64_t list[LIST_SIZE];
    __shared__ uint64_t listed[MAX_LISTED];
    __shared__ float maxima[32];
    __shared__ uint32_t num_taken;
    pdl_launch_dependents();
    pdl_wait();  // the chosen tokens are the predecessor's
    const int row = blockIdx.x, slot = slots[row];
    if (slot < 0) return;
    token_ids += size_t(row) * (1 + k);
    logprobs += size_t(row) * (1 + k);
    logits += size_t(row) * vocab_size;

    float largest = -INFINITY;
    const bool is_asking = num_logprobs[slot] != no_logprobs;
    if (is_asking) each_logit(logits, vocab_size, [&](int, float x) { largest = fmaxf(largest, x); });
    if (threadIdx.x == 0) selection.num_listed = 0;
    const float least = reached_by(k, largest, maxima);
    largest = block_max(largest, maxima);
    if (!is_sound(largest)) {  // nobody asked, or the row is corrupt
        for (int i = threadIdx.x; i <= k; i += THREADS) {
            token_ids[i] = 0;
            logprobs[i] = NAN;
        }
        if (threadIdx.x == 0) rank[row] = 0;
        return;
    }
    const float of_chosen = logits[chosen[row]];
    const RawRow raw = {logits, largest};
    uint64_t mass = 0, num_above = 0;
    each_logit(logits, vocab_size, [&](int id, float x) {
        mass += mass_of(expf(x - largest));
        num_above += x > of_chosen;
        if (!(x >= least)) return;
        const uint32_t at = atomicAdd(&selection.num_listed, 1u);
        if (at < LIST_SIZE) raw.place(id, x, list[at]);
    });
    mass = block_total(mass, selection.warp_sums);
    num_above = block_total(num_above, selection.warp_sums);
    const double log_sum = log_of(double(mass) * 0x1p-44);
    if (threadIdx.x == 0) {
        token_ids[0] = chosen[row];
        logprobs[0] = float(double(of_chosen - largest) - log_sum);
        rank[row] = 1 + int(num_above);
        num_taken = 0;
    }
    if (k == 0) return;

    const int num_listed = int(selection.num_listed);  // two reductions ago everybody had listed
    Candidates<RawRow> best = {raw, vocab_size, list, everything, num_listed, num_listed <= LIST_SIZE};
    cut_at_goal(best, selection, 0, [](uint64_t) { return uint64_t(1); }, [k](uint64_t) { return uint64_t(k); });
    best.each([&](uint64_t place) { listed[atomicAdd(&num_taken, 1u)] = place; });
    __syncthreads();  // all k are listed, in any order, before their ranks are counted
    for (int i = threadIdx.x; i < k; i += THREADS) {
        int before = 0;
        for (int j = 0; j < k; ++j) before += listed[j] < listed[i];
        token_ids[1 + before] = int(token_at(listed[i]));
        logprobs[1 + before] = float(double(RawRow::logit_at(listed[i]) - largest) - log_sum);
    }
}
