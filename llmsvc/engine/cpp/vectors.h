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
typedef int8_t Bytes __attribute__((vector_size(WIDE)));

inline Floats load(const float* from) {
    Floats some;
    std::memcpy(&some, from, sizeof some);
    return some;
}

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

}  // namespace
