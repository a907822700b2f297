// Weights of 4 bits in blocks of 32 columns, as GGUF's Q4_0, Q4_1 and Q4_K are: step * (0 to 15) + least, each block with
// its own two. Rows are rounded to 8 bits, block by block too, and where a block is far larger than its row's others, and most
// of the error would be its own, to 16. Sums of a block are whole numbers, and blocks are added in their order: a row's
// result hangs on nothing but itself.
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
constexpr int64_t PART = 32;  // blocks that are unpacked together, as many as a word has bits
constexpr double FAR = 2.6;  // larger than that, beside the mean of its row, and a block gets 16 bits
constexpr float PARTS = 254;
constexpr float WORTH = 32760;  // units that one of the largest step is worth

inline int64_t parts(int64_t blocks) { return (blocks + PART - 1) / PART; }

// Rows as they are multiplied, (rows, width). A step is a whole number of a row's units: so it costs no multiplication of its
// own, where the sums of two columns are added.
struct Rows {
    int64_t width;
    int8_t *numbers, *rest;  // what rounding left, of which PARTS are one; 0 where it is not counted
    int32_t* steps;  // (rows, blocks), twice in 16 bits
    float* sums;  // (rows, blocks), of all that is in a block, in units
    float* units;  // (rows)
    uint32_t* fine;  // whether what rounding left is counted, bit by bit: (rows, parts)
};

// The panel that begins with this channel.
inline const uint8_t* panel_at(const void* weights, int64_t channel, int64_t count) {
    return static_cast<const uint8_t*>(weights) + channel / CHANNELS * count * RECORD;
}

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define HAS_BLOCKS
#define ALWAYS_INLINE inline __attribute__((always_inline))

// Of numbers that are not below 0; what is none is larger than any.
inline float largest_of(__m256i some) {
    const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(some), _mm256_extracti128_si256(some, 1));
    const __m128i two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epi32(two, _mm_srli_epi64(two, 32))));
}

// 32 whole numbers, of 8 bits each, to `out`; returns their sum.
inline int32_t put(const __m256i (&whole)[4], int8_t* out) {
    // Packing leaves the two halves of a vector apart.
    const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(whole[0], whole[1]), _mm256_packs_epi32(whole[2], whole[3]));
    const __m256i bytes = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i*)out, bytes);
    const __m256i four = _mm256_sad_epu8(_mm256_xor_si256(bytes, _mm256_set1_epi8(-128)), _mm256_setzero_si256());
    const __m128i two = _mm_add_epi64(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
    return _mm_cvtsi128_si32(_mm_add_epi64(two, _mm_unpackhi_epi64(two, two))) - COLUMNS * 128;
}

// One row.
inline void round(const float* x, const Rows& to, int64_t row) {
    const int64_t count = to.width / COLUMNS;
    int32_t* const steps = to.steps + row * count;
    float* const sums = to.sums + row * count;  // of each block first its largest number, then what brings that to 127
    uint32_t* const fine = to.fine + row * parts(count);
    const __m256i size = _mm256_set1_epi32(INT32_MAX);
    for (int64_t b = 0; b < count; b++) {
        __m256i most = _mm256_castps_si256(_mm256_set1_ps(1e-30f));
        for (int n = 0; n < 4; n++) {
            const __m256i some = _mm256_loadu_si256((const __m256i*)(x + b * COLUMNS + 8 * n));
            most = _mm256_max_epi32(most, _mm256_and_si256(some, size));
        }
        sums[b] = largest_of(most);
    }
    float largest = 0, none = 0;
    double together[4] = {};
    for (int64_t b = 0; b < count; b++)
        largest = std::max(largest, sums[b]), none += sums[b] * 0, together[b % 4] += sums[b];
    const double far = FAR / count * (together[0] + together[1] + together[2] + together[3]);
    const float unit = largest / (127 * WORTH);
    for (int64_t part = 0; part < parts(count); part++) {
        fine[part] = 0;
        for (int64_t b = part * PART; b < std::min((part + 1) * PART, count); b++) fine[part] |= uint32_t(sums[b] > far) << b % PART;
    }
    for (int64_t b = 0; b < count; b++) steps[b] = int32_t(std::min(WORTH, std::ceil(sums[b] / (127 * unit))));
    for (int64_t b = 0; b < count; b++) sums[b] = 1 / (steps[b] * unit);
    for (int64_t b = 0; b < count; b++) {
        const __m256 by = _mm256_set1_ps(sums[b]);
        __m256 scaled[4];
        __m256i whole[4];
        for (int n = 0; n < 4; n++) scaled[n] = _mm256_mul_ps(_mm256_loadu_ps(x + b * COLUMNS + 8 * n), by);
        for (int n = 0; n < 4; n++) whole[n] = _mm256_cvtps_epi32(scaled[n]);
        const int64_t at = row * to.width + b * COLUMNS;
        float sum = put(whole, to.numbers + at);
        if (fine[b / PART] >> b % PART & 1) {
            for (int n = 0; n < 4; n++) {
                const __m256 left = _mm256_sub_ps(scaled[n], _mm256_cvtepi32_ps(whole[n]));
                whole[n] = _mm256_cvtps_epi32(_mm256_mul_ps(left, _mm256_set1_ps(PARTS)));
            }
            sum += float(put(whole, to.rest + at)) / PARTS;
        } else {
            _mm256_storeu_si256((__m256i*)(to.rest + at), _mm256_setzero_si256());
        }
        sums[b] = float(steps[b]) * sum;
        steps[b] *= 0x10001;
    }
    to.units[row] = unit + none;  // no number if the row has one that is none
}

inline __m256i four(const int8_t* from) {
    int32_t columns;
    std::memcpy(&columns, from, sizeof columns);
    return pinned(_mm256_set1_epi32(columns));
}

// Not as a sum: gcc 12 would make many moves of it.
inline __m256i added(__m256i sums, __m256i weights, __m256i row) {
    asm("vpaddw %1, %0, %0" : "+x"(sums) : "x"(_mm256_maddubs_epi16(weights, row)));
    return sums;
}

// Products of a block's columns, in units: 8 * 2 * 15 * 127 * 2 * WORTH fits into 32 bits.
inline __m256 in_units(__m256i sums, int32_t step) { return _mm256_cvtepi32_ps(_mm256_madd_epi16(sums, _mm256_set1_epi32(step))); }

inline __m256 finished(__m256i sums, const Rows& x, int64_t at, __m256 step, __m256 least, __m256 so_far) {
    so_far = _mm256_fmadd_ps(in_units(sums, x.steps[at]), step, so_far);
    return _mm256_fmadd_ps(_mm256_set1_ps(x.sums[at]), least, so_far);
}

// Products of a block, as whole numbers: few rows, and weights are taken apart where they are used.
template <int ROWS>
ALWAYS_INLINE void sum_up(const int8_t* numbers, int64_t width, const uint8_t* weights, __m256i (&sums)[ROWS][2]) {
    const __m256i mask = _mm256_set1_epi8(15);
    for (auto& both : sums) both[0] = both[1] = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int64_t k = 0; k < COLUMNS; k += 8)
#pragma GCC unroll 2
        for (int v = 0; v < 2; v++) {
            const __m256i both = _mm256_loadu_si256((const __m256i*)(weights + k * 8 + v * 32));
            const __m256i first = pinned(_mm256_and_si256(both, mask));
            const __m256i second = pinned(_mm256_and_si256(_mm256_srli_epi16(both, 4), mask));
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; r++) {
                sums[r][v] = added(sums[r][v], first, four(numbers + r * width + k));
                sums[r][v] = added(sums[r][v], second, four(numbers + r * width + k + 4));
            }
        }
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

// Products of a block, as whole numbers.
template <int ROWS>
ALWAYS_INLINE void sum_up(const int8_t* numbers, int64_t width, const uint8_t (&block)[COLUMNS / 4][2][32], __m256i (&sums)[ROWS][2]) {
#pragma GCC unroll 8
    for (int n = 0; n < COLUMNS / 4; n++) {
        const __m256i weights[2] = {
            pinned(_mm256_load_si256((const __m256i*)block[n][0])), pinned(_mm256_load_si256((const __m256i*)block[n][1]))};
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            const __m256i some = four(numbers + r * width + n * 4);
            for (int v = 0; v < 2; v++)
                sums[r][v] = pinned(n ? added(sums[r][v], weights[v], some) : _mm256_maddubs_epi16(weights[v], some));
        }
    }
}

// Adds to `all` what rounding left of blocks, in the part whose first block is `first`. Not between products: registers are
// scarce there. `block` and `scale` give a block's weights, and steps of 8 channels. Where it is of many rows, as with the
// columns in which a model's numbers are always large, it is multiplied for all of them, most quickly; block by block, since
// a row's result is not to hang on the others.
template <int ROWS, class Block, class Scale>
__attribute__((noinline)) void add_rest(
    const Rows& x, int64_t row, int64_t first, float (&all)[ROWS][2][8], const Block& block, const Scale& scale) {
    const int64_t blocks = x.width / COLUMNS;
    const __m256 part = _mm256_set1_ps(1 / PARTS);
    const auto add = [&](int64_t r, int64_t b, int v, __m256i sum) {
        const __m256 in_parts = _mm256_mul_ps(in_units(sum, x.steps[(row + r) * blocks + b]), part);
        _mm256_store_ps(all[r][v], _mm256_fmadd_ps(in_parts, scale(b, v), _mm256_load_ps(all[r][v])));
    };
    uint32_t fine[ROWS], any = 0;
    for (int r = 0; r < ROWS; r++) any |= fine[r] = x.fine[(row + r) * parts(blocks) + first / PART];
    for (; any; any &= any - 1) {
        const int n = __builtin_ctz(any);
        const int64_t b = first + n;
        const int8_t* const rest = x.rest + row * x.width + b * COLUMNS;
        int count = 0;
        for (int r = 0; r < ROWS; r++) count += fine[r] >> n & 1;
        if (ROWS > 1 && 2 * count >= ROWS) {
            __m256i sums[ROWS][2];
            sum_up<ROWS>(rest, x.width, block(b), sums);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++)
                for (int v = 0; v < 2; v++) add(r, b, v, sums[r][v]);
            continue;
        }
        for (int r = 0; r < ROWS; r++)
            if (fine[r] >> n & 1) {
                __m256i sums[1][2];
                sum_up<1>(rest + r * x.width, x.width, block(b), sums);
                for (int v = 0; v < 2; v++) add(r, b, v, sums[0][v]);
            }
    }
}

template <int ROWS>
void tile(const Rows& x, int64_t row, const uint8_t* weights, float* out, int64_t out_stride) {
    const int64_t count = x.width / COLUMNS;
    __m256 all[ROWS][2] = {};
    const auto at = [=](int64_t b) { return weights + b * RECORD; };
    const auto scale = [=](int64_t b, int n) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(at(b) + HALF) + n)); };
    for (int64_t first = 0; first < count; first += PART) {
        for (int64_t b = first; b < std::min(first + PART, count); b++) {
            __m256i sums[ROWS][2];
            sum_up<ROWS>(x.numbers + row * x.width + b * COLUMNS, x.width, at(b), sums);
#pragma GCC unroll 2
            for (int v = 0; v < 2; v++) {
                const __m256 step = scale(b, v), least = scale(b, 2 + v);
#pragma GCC unroll 4
                for (int r = 0; r < ROWS; r++) all[r][v] = finished(sums[r][v], x, (row + r) * count + b, step, least, all[r][v]);
            }
        }
        for (int r = 0; r < ROWS; r++)
            if (x.fine[(row + r) * parts(count) + first / PART]) {
                alignas(32) float so_far[1][2][8];
                for (int v = 0; v < 2; v++) _mm256_store_ps(so_far[0][v], all[r][v]);
                add_rest<1>(x, row + r, first, so_far, at, scale);
                for (int v = 0; v < 2; v++) all[r][v] = _mm256_load_ps(so_far[0][v]);
            }
    }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < 2; v++)
            _mm256_storeu_ps(out + (row + r) * out_stride + v * 8, _mm256_mul_ps(all[r][v], _mm256_set1_ps(x.units[row + r])));
}

// Adds the products of a part, of `count` blocks from the block `first` on, to `out`, or to nothing if it is the first.
template <int ROWS>
void panel(const Rows& x, int64_t row, int64_t first, int64_t count, const Unpacked& w, float* out, int64_t out_stride) {
    const int64_t blocks = x.width / COLUMNS;
    for (int r = 0; r < ROWS; r++) __builtin_prefetch(out + (row + r) * out_stride, 1);  // stores would wait for memory
    alignas(32) float all[ROWS][2][8];  // in memory: registers hold a block's sums
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < 2; v++) {
            const float* const so_far = out + (row + r) * out_stride + v * 8;
            _mm256_store_ps(all[r][v], first ? _mm256_loadu_ps(so_far) : _mm256_setzero_ps());
        }
    for (int64_t b = 0; b < count; b++) {
        __m256i sums[ROWS][2];
        sum_up<ROWS>(x.numbers + row * x.width + (first + b) * COLUMNS, x.width, w.weights[b], sums);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
            for (int v = 0; v < 2; v++) {
                const __m256 step = _mm256_load_ps(w.scales[b][0][v]), least = _mm256_load_ps(w.scales[b][1][v]);
                float* const to = all[r][v];
                _mm256_store_ps(to, finished(sums[r][v], x, (row + r) * blocks + first + b, step, least, _mm256_load_ps(to)));
            }
    }
    const auto block = [&](int64_t b) -> const auto& { return w.weights[b - first]; };
    const auto scale = [&](int64_t b, int v) { return _mm256_load_ps(w.scales[b - first][0][v]); };
    add_rest<ROWS>(x, row, first, all, block, scale);
    for (int r = 0; r < ROWS; r++) {
        const __m256 unit = _mm256_set1_ps(first + count == blocks ? x.units[row + r] : 1);
        for (int v = 0; v < 2; v++)
            _mm256_storeu_ps(out + (row + r) * out_stride + v * 8, _mm256_mul_ps(_mm256_load_ps(all[r][v]), unit));
    }
}

#else  // never called

struct Unpacked {};
inline void round(const float*, const Rows&, int64_t) {}
inline void unpack(const uint8_t*, int64_t, Unpacked&) {}
template <int>
void tile(const Rows&, int64_t, const uint8_t*, float*, int64_t) {}
template <int>
void panel(const Rows&, int64_t, int64_t, int64_t, const Unpacked&, float*, int64_t) {}
#endif

}  // namespace blocks
