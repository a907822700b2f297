// Attention of one new token in each of several rows, over the keys and values that its heads share.
//
// A row's positions are read in blocks, each by whoever is free; the blocks' results are put together by their largest
// scores and sums (FlashAttention, Dao et al. 2022, 2205.14135). So a row's result hangs on nothing but itself. Built by
// kernels.py, called by chunk_attention.py and compiled steps.

#include <algorithm>
#include <memory>

#include "attention.h"
#include "vectors.h"

namespace {

// Of HEADS queries and one block: weights, their sum and largest score, and the values' weighted sums.
template <int HEADS>
void block(
    const Attention& a, const float* query, const float* first_key, const float* first_value, int64_t count, float* largest,
    float* sums, float* out) {
    alignas(64) float weights[HEADS][BLOCK];
    for (int64_t p = 0; p < count; p += 4) {
        const int64_t here = std::min<int64_t>(4, count - p);
        Floats dots[4][HEADS] = {};
        const float* keys[4];
        for (int n = 0; n < 4; n++) keys[n] = first_key + (n < here ? p + n : p) * a.size;
        const float* const soon = first_value + p * a.size;  // values come while keys are computed with
        for (int64_t k = 0; k < here * a.size; k += 16) __builtin_prefetch(soon + k, 0, 2);
        for (int64_t k = 0; k < a.size; k += WIDE)
            for (int h = 0; h < HEADS; h++) {
                const Floats some = load(query + h * a.query_by_head + k);
                for (int n = 0; n < 4; n++) dots[n][h] = added(some, load(keys[n] + k), dots[n][h]);
            }
        for (int n = 0; n < 4; n++)
            for (int h = 0; h < HEADS; h++)
                if (n < here) weights[h][p + n] = total(dots[n][h]) * a.scale;
    }
    const int64_t whole = (count + WIDE - 1) / WIDE * WIDE;
    for (int h = 0; h < HEADS; h++) {
        for (int64_t n = count; n < whole; n++) weights[h][n] = NOTHING;
        float most = NOTHING;
        for (int64_t n = 0; n < count; n++) most = std::max(most, weights[h][n]);
        largest[h] = most;
        Floats sum = {};
        for (int64_t n = 0; n < whole; n += WIDE) {
            const Floats e = exponential(load(weights[h] + n) - (most == NOTHING ? 0.0f : most));
            store(weights[h] + n, e);
            sum += e;
        }
        sums[h] = total(sum);
    }
    constexpr int PART = 4;
    int64_t k = 0;
    for (; k + PART * WIDE <= a.size; k += PART * WIDE) {
        Floats acc[HEADS][PART] = {};
        for (int64_t n = 0; n < count; n++) {
            Floats some[PART];
            for (int i = 0; i < PART; i++) some[i] = load(first_value + n * a.size + k + i * WIDE);
            for (int h = 0; h < HEADS; h++) {
                const Floats weight = all(weights[h][n]);
                for (int i = 0; i < PART; i++) acc[h][i] = added(weight, some[i], acc[h][i]);
            }
        }
        for (int h = 0; h < HEADS; h++) std::memcpy(out + h * a.size + k, acc[h], sizeof acc[h]);
    }
    for (; k < a.size; k += WIDE) {
        Floats acc[HEADS] = {};
        for (int64_t n = 0; n < count; n++) {
            const Floats some = load(first_value + n * a.size + k);
            for (int h = 0; h < HEADS; h++) acc[h] = added(all(weights[h][n]), some, acc[h]);
        }
        for (int h = 0; h < HEADS; h++) store(out + h * a.size + k, acc[h]);
    }
}

}  // namespace

void attend_one(const Attention& a) {
    const int64_t longest = *std::max_element(a.positions, a.positions + a.rows) + 1;
    const int64_t blocks = (longest + BLOCK - 1) / BLOCK, group = a.heads / a.shared, tasks = a.rows * a.shared * blocks;
    const int64_t places = a.rows * a.heads * blocks;
    const std::unique_ptr<float[]> memory(new float[places * (a.size + 2)]);
    float *largest = memory.get(), *sums = largest + places, *parts = sums + places;
#pragma omp parallel
    {
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < tasks; task++) {
            const int64_t row = task / (a.shared * blocks), head = task / blocks % a.shared, from = task % blocks * BLOCK;
            const int64_t count = std::min(BLOCK, a.positions[row] + 1 - from);
            const int64_t at = row * a.by_row + head * a.by_head + from * a.size;
            for (int64_t h = 0; h < group && count > 0;) {
                const int64_t place = task * group + h;
                const float* query = a.query + row * a.query_by_row + (head * group + h) * a.query_by_head;
                float *most = &largest[place], *sum = &sums[place], *part = &parts[place * a.size];
                switch (std::min<int64_t>(group - h, 3)) {
                    case 1: block<1>(a, query, a.keys + at, a.values + at, count, most, sum, part), h += 1; break;
                    case 2: block<2>(a, query, a.keys + at, a.values + at, count, most, sum, part), h += 2; break;
                    default: block<3>(a, query, a.keys + at, a.values + at, count, most, sum, part), h += 3;
                }
            }
        }
#pragma omp for schedule(static)
        for (int64_t head = 0; head < a.rows * a.heads; head++) {
            const int64_t own = a.positions[head / a.heads] / BLOCK + 1;
            const int64_t first = head / group * blocks * group + head % group;  // of its first block
            float most = NOTHING, sum = 0;
            for (int64_t b = 0; b < own; b++) most = std::max(most, largest[first + b * group]);
            float* to = a.out + head * a.size;
            std::fill(to, to + a.size, 0.0f);
            for (int64_t b = 0; b < own; b++) {
                const int64_t place = first + b * group;
                const float share = std::exp(largest[place] - most);
                sum += share * sums[place];
                for (int64_t k = 0; k < a.size; k++) to[k] += share * parts[place * a.size + k];
            }
            for (int64_t k = 0; k < a.size; k++) to[k] /= sum;
        }
    }
}
