// Rows times 8-bit weights, for processors whose own products of 8 bits are slow, saturate, or want weights packed anew.
//
// out[row][channel] = scales[channel] * sum over k of x[row][k] * values[channel][k], all of them contiguous. Each row is
// rounded to 16 bits of its largest number, and its products are summed as integers, then these sums in one order: a row's
// result hangs on nothing but itself. Weights, of -127 to 127, are widened in registers, so that only one byte of each is read. Built by
// kernels.py, called by products.py and compiled steps.

#include <algorithm>
#include <cmath>
#include <vector>

#include "vectors.h"

namespace {

constexpr int64_t CACHED = 1 << 18;  // bytes of weights that a core's cache keeps while all rows go by
constexpr int64_t LINE = 64;  // bytes
constexpr int64_t PAIRS = 2 * WIDE;
constexpr int64_t EXACT = 4096;  // so many products, in WIDE sums, do not overflow 32 bits: 4096 / 8 * 32767 * 127 < 2^31

struct alignas(LINE) Line {
    int16_t numbers[LINE / 2];
};

struct Product {
    const int16_t* x;
    const float* steps;
    const int8_t* values;
    const float* scales;
    float* out;
    int64_t width, channels;
};

// Sums of products over the next `width` columns, no more than EXACT.
template <int ROWS, int CHANNELS>
void part(const Product& p, const int16_t* x, const int8_t* values, int64_t width, float (&out)[ROWS][CHANNELS]) {
    Ints sums[ROWS][CHANNELS] = {};
    const auto step = [&](int64_t k) {
        Shorts weights[CHANNELS];
        for (int c = 0; c < CHANNELS; c++) weights[c] = pinned(widened(values + c * p.width + k));
        for (int r = 0; r < ROWS; r++) {
            const Shorts some = load(x + r * p.width + k);
            for (int c = 0; c < CHANNELS; c++) sums[r][c] = pinned(added(some, weights[c], sums[r][c]));
        }
    };
    int64_t k = 0;
    for (; k + LINE <= width; k += LINE) {
        const int8_t* ahead = values + 2 * CHANNELS * p.width + k * CHANNELS;  // of the tile after the next
        for (int c = 0; c < CHANNELS; c++) __builtin_prefetch(ahead + c * LINE);
#pragma GCC unroll 2
        for (int64_t n = 0; n < LINE; n += PAIRS) step(k + n);
    }
    for (; k + PAIRS <= width; k += PAIRS) step(k);
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < CHANNELS; c++) {
            out[r][c] = total(__builtin_convertvector(sums[r][c], Floats));
            for (int64_t rest = k; rest < width; rest++)
                out[r][c] += float(x[r * p.width + rest] * values[c * p.width + rest]);
        }
}

template <int ROWS, int CHANNELS>
void tile(const Product& p, int64_t row, int64_t channel) {
    const int16_t* x = p.x + row * p.width;
    const int8_t* values = p.values + channel * p.width;
    float sums[ROWS][CHANNELS];
    part(p, x, values, std::min(EXACT, p.width), sums);
    for (int64_t k = EXACT; k < p.width; k += EXACT) {
        float more[ROWS][CHANNELS];
        part(p, x + k, values + k, std::min(EXACT, p.width - k), more);
        for (int r = 0; r < ROWS; r++)
            for (int c = 0; c < CHANNELS; c++) sums[r][c] += more[r][c];
    }
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < CHANNELS; c++)
            p.out[(row + r) * p.channels + channel + c] = sums[r][c] * p.steps[row + r] * p.scales[channel + c];
}

template <int ROWS, int CHANNELS>
void tiles(const Product& p, int64_t row, int64_t from, int64_t to) {
    for (; from + CHANNELS <= to; from += CHANNELS) tile<ROWS, CHANNELS>(p, row, from);
    for (; from < to; from++) tile<ROWS, 1>(p, row, from);
}

// One row to 16 bits, and what one of them is worth: no number if the row has one that is none, or infinite.
float rounded(const float* x, int64_t width, int16_t* out) {
    Floats most = Floats{} + 1e-30f, odd = {};
    int64_t k = 0;
    for (; k + WIDE <= width; k += WIDE) {
        const Floats some = load(x + k), size = some < 0.0f ? -some : some;
        most = size > most ? size : most;
        odd += some * 0.0f;
    }
    float largest = most[0], none = total(odd);
    for (int n = 1; n < WIDE; n++) largest = std::max(largest, most[n]);
    for (; k < width; k++) largest = std::max(largest, std::fabs(x[k])), none += x[k] * 0.0f;
    const float by = 32767.0f / largest;
    for (k = 0; k < width; k++) out[k] = int16_t(__builtin_rintf(x[k] * by));
    return largest / 32767.0f + none;
}

}  // namespace

extern "C" void llmsvc_int8_linear(
    const float* x, const int8_t* values, const float* scales, float* out, int64_t rows, int64_t width, int64_t channels) {
    static thread_local std::vector<Line> memory;  // kept: what is new is cleared by the system, page by page
    static thread_local std::vector<float> worth;
    if (const size_t need = rows * width / (LINE / 2) + 1; memory.size() < need) memory.resize(need);
    if (worth.size() < size_t(rows)) worth.resize(rows);
    int16_t* const integers = memory.data()->numbers;
    float* const steps = worth.data();
    const Product p{integers, steps, values, scales, out, width, channels};
    const auto round = [=](int64_t row) { steps[row] = rounded(x + row * width, width, integers + row * width); };
    const bool few = rows < 4;  // to wait for each other takes longer
    for (int64_t row = 0; few && row < rows; row++) round(row);
    constexpr int64_t SOME = 24;  // a multiple of all tiles' channels
    const int64_t most = std::max<int64_t>(1, CACHED / width / SOME), share = (channels / 16 + SOME - 1) / SOME;
    const int64_t block = std::min(most, std::max<int64_t>(share, 1)) * SOME;
#pragma omp parallel
    {
        if (!few) {
#pragma omp for schedule(static)
            for (int64_t row = 0; row < rows; row++) round(row);
        }
#pragma omp for schedule(dynamic)
        for (int64_t from = 0; from < channels; from += block) {
            const int64_t to = std::min(from + block, channels);
            for (int64_t row = 0, left = rows; left; left = rows - row) {
                // No single row is left behind others: its sums would wait for each other.
                const int64_t some = left < 4 ? left : left == 5 || left == 6 || left == 9 ? 3 : 4;
                switch (some) {
                    case 1: tiles<1, 8>(p, row, from, to); break;
                    case 2: tiles<2, MANY_REGISTERS ? 8 : 4>(p, row, from, to); break;
                    case 3: tiles<3, MANY_REGISTERS ? 8 : 3>(p, row, from, to); break;
                    default: tiles<4, MANY_REGISTERS ? 6 : 2>(p, row, from, to);
                }
                row += some;
            }
        }
    }
}
