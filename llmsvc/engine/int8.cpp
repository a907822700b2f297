// Rows of 32-bit numbers times 8-bit weights, for processors whose 8-bit products are slow or saturate.
//
// out[row][channel] = scales[channel] * sum over k of x[row][k] * values[channel][k], all of them contiguous. Weights are
// widened in registers, so that only one byte of each is read. Each sum is made in the same order whatever else is
// computed beside it: a row's result hangs on nothing but itself. Built and called by products.py.

#ifdef __clang__
#error "clang brings an OpenMP runtime of its own beside torch's"
#endif
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <omp.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace {

#ifdef __AVX512F__
constexpr int WIDE = 16;
#else
constexpr int WIDE = 8;
#endif
constexpr bool MANY_REGISTERS = WIDE == 16;
constexpr int64_t CACHED = 1 << 18;  // bytes of weights that a core's cache keeps while all rows go by
constexpr int64_t LINE = 64;

typedef float Floats __attribute__((vector_size(4 * WIDE)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDE)));
typedef int8_t Bytes __attribute__((vector_size(WIDE)));

inline Floats widened(const int8_t* from) {
#if defined(__AVX512F__)
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#elif defined(__AVX2__)  // of __builtin_convertvector gcc 12 makes a gather
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else
    Bytes bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    return __builtin_convertvector(__builtin_convertvector(bytes, Ints), Floats);
#endif
}

inline Floats added(const Floats& a, const Floats& b, const Floats& sums) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, sums);
#elif defined(__AVX2__) && defined(__FMA__)
    return _mm256_fmadd_ps(a, b, sums);
#elif defined(__ARM_FEATURE_FMA)
    Floats all;
    for (int n = 0; n < WIDE; n++) all[n] = __builtin_fmaf(a[n], b[n], sums[n]);
    return all;
#else
    return a * b + sums;
#endif
}

inline float total(const Floats& lanes) {
#ifdef __AVX2__
#ifdef __AVX512F__
    const __m256 upper = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(lanes), 1));
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(lanes), upper);
#else
    const __m256 eight = lanes;
#endif
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
    float sums[WIDE];
    std::memcpy(sums, &lanes, sizeof sums);
    for (int half = WIDE / 2; half; half /= 2)
        for (int n = 0; n < half; n++) sums[n] += sums[n + half];
    return sums[0];
#endif
}

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
            Floats some;
            std::memcpy(&some, x + r * p.width + k, sizeof some);
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
