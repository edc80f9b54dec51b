// The rules of requests: masks, biases and penalties on a copy of the logits, and the state that they need.
//   Formula    in vLLM's order: -inf unless allowed; -inf at the end of a bad word and, before min_tokens, at the
//              tokens that end a sequence; + bias; repetition: x > 0 ? x / r : x * r for every v in prompt or output;
//              - frequency * count(v), then - presence where count(v) > 0, of the output
//   Reference  tinyvllm/reference/penalties.py; plugins/tinyvllm_samplers/default.py for the order
//   Shapes     adjusted [R, V], logits [B, V], presence, frequency, repetition [R] float32; slots [B], rule_row [S],
//              min_tokens, num_output [R], recent [R, W] int32; counts [R, V] uint32, bit 31 if in the prompt;
//              lists: offsets [R + 1], ids in rising order; words: row_words [R + 1] into word_offsets into word_tokens
//   Mapping    apply: a block owns TILE tokens of a row, in shared memory while single ones change. record: a thread
//              a row. start: a block a rule row
//   Numerics   float32, each operation rounded by itself as in the reference: bit-equal
//   Traffic    12 V bytes a row with rules; bandwidth. Rows without rules read four bytes
#include "tinyvllm/prelude.cuh"

constexpr uint32_t in_prompt = 0x80000000u;

/// `a * b` rounded, never fused with what follows.
__device__ float multiply(float a, float b) {
#if defined(TINYVLLM_EMULATOR)
    volatile float product = a * b;
    return product;
#else
    return __fmul_rn(a, b);
#endif
}

/// The first of ids[begin..end), in rising order, that is not below `id`.
__device__ int first_not_below(const int* ids, int begin, int end, int id) {
    while (begin < end) {
        const int middle = begin + (end - begin) / 2;
        if (ids[middle] < id)
            begin = middle + 1;
        else
            end = middle;
    }
    return begin;
}

/// Calls `visit(entry, id)` for this thread's share of a row's list between tokens `first` and `end`.
template <class Visit>
__device__ void each_listed(const int* offsets, const int* ids, int row, int first, int end, Visit visit) {
    const int stop = offsets[row + 1];
    for (int i = first_not_below(ids, offsets[row], stop, first) + int(threadIdx.x); i < stop && ids[i] < end;
         i += THREADS)
        visit(i, ids[i]);
}

/// Whether the generated tokens end with the word's, but for its last.
__device__ bool is_begun(const int* word, int length, const int* recent, int num_output) {
    if (length - 1 > num_output) return false;
    for (int i = 0; i < length - 1; ++i)
        if (recent[(num_output - (length - 1) + i) % WINDOW] != word[i]) return false;
    return true;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    apply_rules(float* adjusted, const float* logits, const int* slots, const int* rule_row, const float* presence,
                const float* frequency, const float* repetition, const int* min_tokens, const int* num_output,
                const int* recent, const uint32_t* counts, const int* allowed_offsets, const int* allowed_ids,
                const int* end_offsets, const int* end_ids, const int* bias_offsets, const int* bias_ids,
                const float* bias_values, const int* row_words, const int* word_offsets, const int* word_tokens,
                int vocab_size) {
    __shared__ float values[TILE];
    pdl_launch_dependents();
    pdl_wait();  // logits and state are the predecessors'
    const int slot = slots[blockIdx.y];
    const int rule = slot < 0 ? -1 : rule_row[slot];
    if (rule < 0) return;
    logits += size_t(blockIdx.y) * vocab_size;
    adjusted += size_t(rule) * vocab_size;
    counts += size_t(rule) * vocab_size;
    const int first = blockIdx.x * TILE, end = min(first + TILE, vocab_size);

    const bool is_restricted = allowed_offsets[rule] < allowed_offsets[rule + 1];
    for (int id = first + int(threadIdx.x); id < end; id += THREADS)
        values[id - first] = is_restricted ? -INFINITY : logits[id];
    __syncthreads();  // the tile is filled before single tokens change
    each_listed(allowed_offsets, allowed_ids, rule, first, end, [&](int, int id) { values[id - first] = logits[id]; });
    __syncthreads();  // what is allowed is back before some of it is forbidden
    const int generated = num_output[rule];
    // Two words may end with one token: whoever comes later writes the same, and an atomic says that this is meant.
    const auto forbid = [&](int id) { atomicExch(&values[id - first], -INFINITY); };
    if (generated < min_tokens[rule])
        each_listed(end_offsets, end_ids, rule, first, end, [&](int, int id) { forbid(id); });
    for (int word = row_words[rule] + int(threadIdx.x); word < row_words[rule + 1]; word += THREADS) {
        const int begin = word_offsets[word], length = word_offsets[word + 1] - begin;
        const int last = word_tokens[begin + length - 1];
        if (last >= first && last < end && is_begun(word_tokens + begin, length, recent + rule * WINDOW, generated))
            forbid(last);
    }
    __syncthreads();  // forbidden tokens stay so: -inf is there before a bias is added to it
    each_listed(bias_offsets, bias_ids, rule, first, end, [&](int i, int id) { values[id - first] += bias_values[i]; });
    __syncthreads();  // biases are added before penalties look at signs

    const float r = repetition[rule], f = frequency[rule], p = presence[rule];
    for (int id = first + int(threadIdx.x); id < end; id += THREADS) {
        float x = values[id - first];
        const uint32_t seen = counts[id], count = seen & ~in_prompt;
        if (seen != 0) x = x > 0.0f ? x / r : multiply(x, r);
        if (count != 0) x = (x - multiply(f, float(count))) - p;
        // No rule hides a NaN or an infinity: the row is found to be corrupt.
        adjusted[id] = logits[id] < INFINITY ? x : logits[id];
    }
}

/// Adds the tokens just chosen to their rows' state.
extern "C" __global__ void __launch_bounds__(THREADS)
    record_tokens(uint32_t* counts, int* num_output, int* recent, const int* token_ids, const int* slots,
                  const int* rule_row, int num_rows, int vocab_size) {
    pdl_launch_dependents();
    pdl_wait();  // the tokens are the predecessor's
    const int row = blockIdx.x * THREADS + int(threadIdx.x);
    if (row >= num_rows || slots[row] < 0) return;
    const int rule = rule_row[slots[row]];
    if (rule < 0) return;
    const int token = token_ids[row];
    counts[size_t(rule) * vocab_size + token] += 1;
    recent[rule * WINDOW + num_output[rule] % WINDOW] = token;
    num_output[rule] += 1;
}

/// Sets the state of a rule row to that of a sequence: its prompt, then what it has generated.
extern "C" __global__ void __launch_bounds__(THREADS)
    start_rules(uint32_t* counts, int* num_output, int* recent, const int* tokens, int num_prompt, int num_tokens,
                int rule, int vocab_size) {
    pdl_launch_dependents();
    pdl_wait();  // the predecessor may still use the row
    counts += size_t(rule) * vocab_size;
    for (int id = threadIdx.x; id < vocab_size; id += THREADS) counts[id] = 0;
    __syncthreads();  // all counts are zero before any goes up
    const int output = num_tokens - num_prompt;
    for (int i = threadIdx.x; i < num_tokens; i += THREADS) {
        if (i < num_prompt)
            atomicOr(&counts[tokens[i]], in_prompt);
        else
            atomicAdd(&counts[tokens[i]], 1u);
        if (i >= num_prompt && i >= num_tokens - WINDOW) recent[rule * WINDOW + (i - num_prompt) % WINDOW] = tokens[i];
    }
    if (threadIdx.x == 0) num_output[rule] = output;
}
