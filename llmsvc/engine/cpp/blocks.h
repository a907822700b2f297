// Weights of 4 bits in blocks of 32 columns, as GGUF's Q4_0, Q4_1 and Q4_K are: step * (0 to 15) + least, each block with
// its own two. Rows are rounded to 8 bits, block by block too. Sums of a block are whole numbers, and blocks are added in
// their order: a row's result hangs on nothing but itself.
//
// Weights come in panels of 16 channels; of each block there is a record: for 8 columns at a time 64 bytes, (channel, column),
// the first four columns in the lower halves of bytes; then the steps and the least ones of the channels, in 16 bits.

#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "vectors.h"

namespace blocks {

constexpr int64_t COLUMNS = 32, CHANNELS = 16, HALF = CHANNELS * COLUMNS / 2, RECORD = HALF + 2 * 2 * CHANNELS;
constexpr int64_t MANY = 12;  // rows for which it pays to unpack weights
constexpr int64_t PART = 32;  // blocks that are unpacked together

// Rows as they are multiplied: (rows, width), and of each block what one is worth, and what all together are.
struct Rows {
    const int8_t* numbers;
    const float *steps, *sums;
    int64_t width;
};

// The panel that begins with this channel.
inline const uint8_t* panel_at(const void* weights, int64_t channel, int64_t count) {
    return static_cast<const uint8_t*>(weights) + channel / CHANNELS * count * RECORD;
}

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define HAS_BLOCKS

inline void round(const float* x, int64_t width, int8_t* out, float* steps, float* sums) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    for (int64_t from = 0; from < width; from += COLUMNS, out += COLUMNS, steps++, sums++) {
        __m256 some[4], most = _mm256_setzero_ps(), none = _mm256_setzero_ps();
        for (int n = 0; n < 4; n++) {
            some[n] = _mm256_loadu_ps(x + from + 8 * n);
            most = _mm256_max_ps(most, _mm256_andnot_ps(sign, some[n]));
            none = _mm256_add_ps(none, _mm256_mul_ps(some[n], _mm256_setzero_ps()));
        }
        float sizes[8], odd[8], largest = 1e-30f, missing = 0;
        _mm256_storeu_ps(sizes, most), _mm256_storeu_ps(odd, none);
        for (int n = 0; n < 8; n++) largest = std::max(largest, sizes[n]), missing += odd[n];
        const __m256 by = _mm256_set1_ps(127.0f / largest);
        __m256i whole[4];
        for (int n = 0; n < 4; n++) whole[n] = _mm256_cvtps_epi32(_mm256_mul_ps(some[n], by));
        const __m256i all = _mm256_add_epi32(_mm256_add_epi32(whole[0], whole[1]), _mm256_add_epi32(whole[2], whole[3]));
        uint32_t parts[8], sum = 0;  // what is no number may overflow
        _mm256_storeu_si256((__m256i*)parts, all);
        for (int n = 0; n < 8; n++) sum += parts[n];
        // Packing leaves the two halves of a vector apart.
        const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(whole[0], whole[1]), _mm256_packs_epi32(whole[2], whole[3]));
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        _mm256_storeu_si256((__m256i*)out, _mm256_permutevar8x32_epi32(bytes, order));
        *steps = largest / 127.0f + missing;  // no number if there is one that is none
        *sums = *steps * float(int32_t(sum));
    }
}

inline __m256i four(const int8_t* from) {
    int32_t columns;
    std::memcpy(&columns, from, sizeof columns);
    return pinned(_mm256_set1_epi32(columns));
}

// Not as a sum: gcc 12 would make many moves of it. At most 8 of them fit into 16 bits.
inline __m256i added(__m256i sums, __m256i weights, __m256i row) {
    asm("vpaddw %1, %0, %0" : "+x"(sums) : "x"(_mm256_maddubs_epi16(weights, row)));
    return sums;
}

inline __m256 finished(__m256i sums, const Rows& x, int64_t at, __m256 step, __m256 least, __m256 so_far) {
    const __m256 whole = _mm256_cvtepi32_ps(_mm256_madd_epi16(sums, _mm256_set1_epi16(1)));
    so_far = _mm256_fmadd_ps(_mm256_mul_ps(whole, _mm256_set1_ps(x.steps[at])), step, so_far);
    return _mm256_fmadd_ps(_mm256_set1_ps(x.sums[at]), least, so_far);
}

// Few rows: weights are taken apart where they are used.
template <int ROWS>
void tile(const Rows& x, int64_t row, const uint8_t* weights, float* out, int64_t out_stride) {
    const int64_t count = x.width / COLUMNS;
    const __m256i mask = _mm256_set1_epi8(15);
    __m256 all[ROWS][2] = {};
    for (int64_t b = 0; b < count; b++, weights += RECORD) {
        const int8_t* const numbers = x.numbers + row * x.width + b * COLUMNS;
        __m256i sums[ROWS][2] = {};
#pragma GCC unroll 4
        for (int64_t k = 0; k < COLUMNS; k += 8)
#pragma GCC unroll 2
            for (int v = 0; v < 2; v++) {
                const __m256i both = _mm256_loadu_si256((const __m256i*)(weights + k * 8 + v * 32));
                const __m256i first = pinned(_mm256_and_si256(both, mask));
                const __m256i second = pinned(_mm256_and_si256(_mm256_srli_epi16(both, 4), mask));
#pragma GCC unroll 4
                for (int r = 0; r < ROWS; r++) {
                    sums[r][v] = added(sums[r][v], first, four(numbers + r * x.width + k));
                    sums[r][v] = added(sums[r][v], second, four(numbers + r * x.width + k + 4));
                }
            }
        const __m128i* const scales = (const __m128i*)(weights + HALF);
#pragma GCC unroll 2
        for (int v = 0; v < 2; v++) {
            const __m256 step = _mm256_cvtph_ps(_mm_loadu_si128(scales + v)), least = _mm256_cvtph_ps(_mm_loadu_si128(scales + 2 + v));
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; r++) all[r][v] = finished(sums[r][v], x, (row + r) * count + b, step, least, all[r][v]);
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < 2; v++) _mm256_storeu_ps(out + (row + r) * out_stride + v * 8, all[r][v]);
}

// Of some blocks: weights byte by byte, and their scales in 32 bits.
struct alignas(64) Unpacked {
    uint8_t weights[PART][COLUMNS / 4][2][32];
    float scales[PART][2][2][8];  // steps and least ones
};

inline void unpack(const uint8_t* from, int64_t count, Unpacked& to) {
    const __m256i mask = _mm256_set1_epi8(15);
    for (int64_t b = 0; b < count; b++, from += RECORD) {
        for (int n = 0; n < 8; n++) {
            const __m256i both = _mm256_loadu_si256((const __m256i*)(from + n * 32));
            _mm256_store_si256((__m256i*)to.weights[b][n / 2 * 2][n % 2], _mm256_and_si256(both, mask));
            _mm256_store_si256((__m256i*)to.weights[b][n / 2 * 2 + 1][n % 2], _mm256_and_si256(_mm256_srli_epi16(both, 4), mask));
        }
        for (int n = 0; n < 4; n++)
            _mm256_store_ps(to.scales[b][n / 2][n % 2], _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + HALF) + n)));
    }
}

// Adds the products of `count` blocks from the block `first` on to `out`, or to nothing if they are the first.
template <int ROWS>
void panel(const Rows& x, int64_t row, int64_t first, int64_t count, const Unpacked& w, float* out, int64_t out_stride) {
    const int64_t blocks = x.width / COLUMNS;
    alignas(32) float all[ROWS][2][8] = {};  // in memory: registers hold a block's sums
    for (int r = 0; r < ROWS && first; r++) std::memcpy(all[r], out + (row + r) * out_stride, sizeof all[r]);
    for (int64_t b = 0; b < count; b++) {
        const int8_t* const numbers = x.numbers + row * x.width + (first + b) * COLUMNS;
        __m256i sums[ROWS][2] = {};
#pragma GCC unroll 8
        for (int n = 0; n < COLUMNS / 4; n++) {
            const __m256i weights[2] = {
                pinned(_mm256_load_si256((const __m256i*)w.weights[b][n][0])), pinned(_mm256_load_si256((const __m256i*)w.weights[b][n][1]))};
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) {
                const __m256i some = four(numbers + r * x.width + n * 4);
                for (int v = 0; v < 2; v++) sums[r][v] = pinned(added(sums[r][v], weights[v], some));
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
            for (int v = 0; v < 2; v++) {
                const __m256 step = _mm256_load_ps(w.scales[b][0][v]), least = _mm256_load_ps(w.scales[b][1][v]);
                float* const to = all[r][v];
                _mm256_store_ps(to, finished(sums[r][v], x, (row + r) * blocks + first + b, step, least, _mm256_load_ps(to)));
            }
    }
    for (int r = 0; r < ROWS; r++) std::memcpy(out + (row + r) * out_stride, all[r], sizeof all[r]);
}

#else  // never called

struct Unpacked {};
inline void round(const float*, int64_t, int8_t*, float*, float*) {}
inline void unpack(const uint8_t*, int64_t, Unpacked&) {}
template <int>
void tile(const Rows&, int64_t, const uint8_t*, float*, int64_t) {}
template <int>
void panel(const Rows&, int64_t, int64_t, int64_t, const Unpacked&, float*, int64_t) {}
#endif

}  // namespace blocks
