// What the kernels know of a processor's vectors.

#pragma once
#ifdef __clang__
#error "clang brings an OpenMP runtime of its own beside torch's"
#endif
#include <cstdint>
#include <cstring>
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

typedef float Floats __attribute__((vector_size(4 * WIDE)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDE)));
typedef int16_t Shorts __attribute__((vector_size(4 * WIDE)));

inline Floats load(const float* from) {
    Floats some;
    std::memcpy(&some, from, sizeof some);
    return some;
}

inline void store(float* to, const Floats& some) { std::memcpy(to, &some, sizeof some); }

inline Floats all(float number) { return number - Floats{}; }  // a sum with 0 would be computed: -0 + 0 is another

inline Shorts load(const int16_t* from) {
    Shorts some;
    std::memcpy(&some, from, sizeof some);
    return some;
}

// Twice WIDE numbers.
inline Shorts widened(const int8_t* from) {
#if defined(__AVX512BW__)
    return (Shorts)_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__AVX2__) && !defined(__AVX512F__)  // of __builtin_convertvector gcc 12 makes many moves
    return (Shorts)_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
    Shorts all;
    for (int n = 0; n < 2 * WIDE; n++) all[n] = from[n];
    return all;
#endif
}

// What is in a register stays there: gcc 12 would read it again at each use, or put additions off until none is free.
template <class Vector>
inline Vector pinned(Vector some) {
#if defined(__AVX512F__)
    asm("" : "+v"(some));
#elif defined(__AVX2__)
    asm("" : "+x"(some));
#endif
    return some;
}

// Each sum and two products, of numbers that lie side by side.
inline Ints added(const Shorts& a, const Shorts& b, const Ints& sums) {
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
    return sums + (Ints)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVXVNNI__) && !defined(__AVX512F__)
    return (Ints)_mm256_dpwssd_avx_epi32((__m256i)sums, (__m256i)a, (__m256i)b);
#elif defined(__AVX2__) && !defined(__AVX512F__)
    return sums + (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    Ints all;
    for (int n = 0; n < WIDE; n++) all[n] = sums[n] + a[2 * n] * b[2 * n] + a[2 * n + 1] * b[2 * n + 1];
    return all;
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

// e^x for x <= 0, within 2 units in the last place; 0 far below.
inline Floats exponential(const Floats& x) {
    const Floats low = all(-87.0f);
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

}  // namespace
