// Attention of one new token in each of several rows, over the keys and values that its heads share.
//
// A row's positions are read in blocks that begin at fixed places, each by whoever is free; the blocks' results are put
// together by their largest scores and sums (FlashAttention, Dao et al. 2022, 2205.14135). So a row's result hangs on
// nothing but itself. Built by kernels.py, called by chunk_attention.py and compiled steps.

#include <algorithm>
#include <cmath>
#include <memory>

#include "vectors.h"

namespace {

constexpr int64_t BLOCK = 128;  // positions, a multiple of WIDE
constexpr float NOTHING = -INFINITY;

struct Row {
    const float* query;  // (heads, size)
    const float* keys;  // of one shared head, (positions, size)
    const float* values;
    const bool* seen;
    int64_t size, positions;
    float scale;
};

// e^x for x <= 0, within 2 units in the last place; 0 far below.
inline Floats exponential(const Floats& x) {
    const Floats low = Floats{} - 87.0f;
    const Floats some = x < low ? low : x;  // what is no number stays none
    const Floats whole = __builtin_convertvector(__builtin_convertvector(some * 1.44269504f - 0.5f, Ints), Floats);
    const Floats rest = (some - whole * 0.693359375f) + whole * 2.12194440e-4f;
    Floats sum = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1.0f;
    const Ints power = (__builtin_convertvector(whole, Ints) + 127) << 23;
    Floats scale;
    std::memcpy(&scale, &power, sizeof scale);
    return x < low ? Floats{} : sum * scale;
}

// Of HEADS queries and one block: weights, their sum and largest score, and the values' weighted sums.
template <int HEADS>
void block(const Row& row, int64_t head, int64_t from, int64_t to, float* largest, float* sums, float* out) {
    alignas(64) float weights[HEADS][BLOCK];
    const float* query = row.query + head * row.size;
    for (int64_t p = from; p < to; p += 4) {
        const int64_t here = std::min<int64_t>(4, to - p);
        Floats dots[4][HEADS] = {};
        const float* keys[4];
        for (int n = 0; n < 4; n++) keys[n] = row.keys + (n < here ? p + n : p) * row.size;
        for (int64_t k = 0; k < row.size; k += WIDE)
            for (int h = 0; h < HEADS; h++) {
                const Floats some = load(query + h * row.size + k);
                for (int n = 0; n < 4; n++) dots[n][h] = added(some, load(keys[n] + k), dots[n][h]);
            }
        for (int n = 0; n < 4; n++)
            for (int h = 0; h < HEADS; h++)
                if (n < here) weights[h][p - from + n] = row.seen[p + n] ? total(dots[n][h]) * row.scale : NOTHING;
    }
    const int64_t count = to - from, whole = (count + WIDE - 1) / WIDE * WIDE;
    for (int h = 0; h < HEADS; h++) {
        for (int64_t n = count; n < whole; n++) weights[h][n] = NOTHING;
        float most = NOTHING;
        for (int64_t n = 0; n < count; n++) most = std::max(most, weights[h][n]);
        largest[h] = most;
        Floats all = {};
        for (int64_t n = 0; n < whole; n += WIDE) {
            const Floats e = most == NOTHING ? Floats{} : exponential(load(weights[h] + n) - most);
            std::memcpy(weights[h] + n, &e, sizeof e);
            all += e;
        }
        sums[h] = total(all);
    }
    constexpr int PART = 4;
    int64_t k = 0;
    for (; k + PART * WIDE <= row.size; k += PART * WIDE) {
        Floats acc[HEADS][PART] = {};
        for (int64_t n = 0; n < count; n++) {
            Floats some[PART];
            for (int i = 0; i < PART; i++) some[i] = load(row.values + (from + n) * row.size + k + i * WIDE);
            for (int h = 0; h < HEADS; h++) {
                const Floats weight = Floats{} + weights[h][n];
                for (int i = 0; i < PART; i++) acc[h][i] = added(weight, some[i], acc[h][i]);
            }
        }
        for (int h = 0; h < HEADS; h++) std::memcpy(out + h * row.size + k, acc[h], sizeof acc[h]);
    }
    for (; k < row.size; k += WIDE) {
        Floats acc[HEADS] = {};
        for (int64_t n = 0; n < count; n++) {
            const Floats some = load(row.values + (from + n) * row.size + k);
            for (int h = 0; h < HEADS; h++) acc[h] = added(Floats{} + weights[h][n], some, acc[h]);
        }
        for (int h = 0; h < HEADS; h++) std::memcpy(out + h * row.size + k, &acc[h], sizeof acc[h]);
    }
}

}  // namespace

// query, out: (rows, heads, size); keys, values: (rows, shared, positions, size), positions and sizes contiguous;
// seen: (rows, positions). size is a multiple of 16, heads one of shared.
extern "C" void llmsvc_attend(
    const float* query, const float* keys, const float* values, const bool* seen, float* out, float scale, int64_t rows,
    int64_t heads, int64_t shared, int64_t size, int64_t positions, int64_t by_row, int64_t by_head, int64_t seen_by_row) {
    const int64_t blocks = (positions + BLOCK - 1) / BLOCK, group = heads / shared, tasks = rows * shared * blocks;
    const int64_t places = rows * heads * blocks;
    const std::unique_ptr<float[]> memory(new float[places * (size + 2)]);
    float *largest = memory.get(), *sums = largest + places, *parts = sums + places;
#pragma omp parallel for schedule(static)
    for (int64_t task = 0; task < tasks; task++) {
        const int64_t row = task / (shared * blocks), head = task / blocks % shared, from = task % blocks * BLOCK;
        const int64_t at = row * by_row + head * by_head, to = std::min(from + BLOCK, positions);
        const Row own{query + row * heads * size, keys + at, values + at, seen + row * seen_by_row, size, positions, scale};
        for (int64_t h = 0; h < group;) {
            const int64_t left = group - h, place = task * group + h;
            float *most = &largest[place], *sum = &sums[place], *part = &parts[place * size];
            switch (std::min<int64_t>(left, 3)) {
                case 1: block<1>(own, head * group + h, from, to, most, sum, part), h += 1; break;
                case 2: block<2>(own, head * group + h, from, to, most, sum, part), h += 2; break;
                default: block<3>(own, head * group + h, from, to, most, sum, part), h += 3;
            }
        }
    }
#pragma omp parallel for schedule(static)
    for (int64_t head = 0; head < rows * heads; head++) {
        const int64_t first = head / group * blocks * group + head % group;  // of its first block
        float most = NOTHING, sum = 0;
        for (int64_t b = 0; b < blocks; b++) most = std::max(most, largest[first + b * group]);
        float* to = out + head * size;
        std::fill(to, to + size, 0.0f);
        for (int64_t b = 0; b < blocks; b++) {
            const int64_t place = first + b * group;
            if (largest[place] == NOTHING) continue;
            const float share = std::exp(largest[place] - most);
            sum += share * sums[place];
            for (int64_t k = 0; k < size; k++) to[k] += share * parts[place * size + k];
        }
        if (most != NOTHING)
            for (int64_t k = 0; k < size; k++) to[k] /= sum;
    }
}
