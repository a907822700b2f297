// Rows of 32-bit numbers times 8-bit weights, for processors whose 8-bit products are slow or saturate.
//
// out[row][channel] = scales[channel] * sum over k of x[row][k] * values[channel][k], all of them contiguous. Weights are
// widened in registers, so that only one byte of each is read. Each sum is made in the same order whatever else is
// computed beside it: a row's result hangs on nothing but itself. Built by kernels.py, called by products.py.

#include <algorithm>
#include <omp.h>

#include "vectors.h"

namespace {

constexpr int64_t CACHED = 1 << 18;  // bytes of weights that a core's cache keeps while all rows go by
constexpr int64_t LINE = 64;

struct Product {
    const float* x;
    const int8_t* values;
    const float* scales;
    float* out;
    int64_t width, channels;
};

template <int ROWS, int CHANNELS>
void tile(const Product& p, int64_t row, int64_t channel) {
    const float* x = p.x + row * p.width;
    const int8_t* values = p.values + channel * p.width;
    Floats sums[ROWS][CHANNELS] = {};
    int64_t k = 0;
    const auto step = [&](int64_t k) {
        Floats weights[CHANNELS];
        for (int c = 0; c < CHANNELS; c++) weights[c] = widened(values + c * p.width + k);
        for (int r = 0; r < ROWS; r++) {
            const Floats some = load(x + r * p.width + k);
            for (int c = 0; c < CHANNELS; c++) sums[r][c] = added(some, weights[c], sums[r][c]);
        }
    };
    for (; k + LINE <= p.width; k += LINE) {
        const int8_t* ahead = values + 2 * CHANNELS * p.width + k * CHANNELS;  // of the tile after the next
        for (int c = 0; c < CHANNELS; c++) __builtin_prefetch(ahead + c * LINE);
#pragma GCC unroll 2
        for (int64_t n = 0; n < LINE; n += WIDE) step(k + n);
    }
    for (; k + WIDE <= p.width; k += WIDE) step(k);
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < CHANNELS; c++) {
            float sum = total(sums[r][c]);
            for (int64_t rest = k; rest < p.width; rest++)
                sum += x[r * p.width + rest] * values[c * p.width + rest];
            p.out[(row + r) * p.channels + channel + c] = sum * p.scales[channel + c];
        }
}

template <int ROWS, int CHANNELS>
void tiles(const Product& p, int64_t row, int64_t from, int64_t to) {
    for (; from + CHANNELS <= to; from += CHANNELS) tile<ROWS, CHANNELS>(p, row, from);
    for (; from < to; from++) tile<ROWS, 1>(p, row, from);
}

}  // namespace

extern "C" void llmsvc_int8_linear(
    const float* x, const int8_t* values, const float* scales, float* out, int64_t rows, int64_t width, int64_t channels) {
    const Product p{x, values, scales, out, width, channels};
    const int64_t block = std::max<int64_t>(1, CACHED / width / 24) * 24;  // 24: a multiple of all tiles' channels
#pragma omp parallel
    {
        const int64_t part = (channels + omp_get_num_threads() - 1) / omp_get_num_threads();
        const int64_t first = omp_get_thread_num() * part, last = std::min(first + part, channels);
        for (int64_t from = first; from < last; from += block) {
            const int64_t to = std::min(from + block, last);
            for (int64_t row = 0, left = rows; left; left = rows - row) {
                // No single row is left behind others: its sums would wait for each other.
                const int64_t some = left < 4 ? left : left == 5 || left == 6 || left == 9 ? 3 : 4;
                switch (some) {
                    case 1: tiles<1, 8>(p, row, from, to); break;
                    case 2: tiles<2, MANY_REGISTERS ? 8 : 4>(p, row, from, to); break;
                    case 3: tiles<3, MANY_REGISTERS ? 8 : 3>(p, row, from, to); break;
                    default: tiles<4, MANY_REGISTERS ? 6 : 3>(p, row, from, to);
                }
                row += some;
            }
        }
    }
}
