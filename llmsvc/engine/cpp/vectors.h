// What the kernels know of a processor's vectors.

#pragma once
#ifdef __clang__
#error "clang brings an OpenMP runtime of its own beside torch's"
#endif
#include <cstdint>
#include <cstring>
#include <initializer_list>
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

#if defined(__AVX2__) && defined(__F16C__)
#define HAS_HALVES
struct Half {
    uint16_t bits;
};

inline Floats load(const Half* from) {
#ifdef __AVX512F__
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#else
    return (Floats)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#endif
}

inline __m256 eight(const Half* from) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))); }
#endif
#ifdef __AVX2__
inline __m256 eight(const float* from) { return _mm256_loadu_ps(from); }
#endif

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

// The two numbers at `from`, again and again.
inline Shorts everywhere(const int16_t* from) {
    int32_t both;
    std::memcpy(&both, from, sizeof both);
#if defined(__AVX512F__)
    return (Shorts)_mm512_set1_epi32(both);
#elif defined(__AVX2__)
    return (Shorts)_mm256_set1_epi32(both);
#else
    return (Shorts)(both - Ints{});
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

template <class Thing>
inline Thing* pinned(Thing* some) {
    asm("" : "+r"(some));
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
    Ints more = sums;  // not as a sum: gcc 12 would make many moves of it
    asm("vpaddd %1, %0, %0" : "+x"(more) : "x"(_mm256_madd_epi16((__m256i)a, (__m256i)b)));
    return more;
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

// Without an error.
inline double total(const Ints& lanes) {
#ifdef __AVX2__
#ifdef __AVX512F__
    const __m512d eight = _mm512_add_pd(
        _mm512_cvtepi32_pd(_mm512_castsi512_si256((__m512i)lanes)),
        _mm512_cvtepi32_pd(_mm512_extracti64x4_epi64((__m512i)lanes, 1)));
    const __m256d four = _mm256_add_pd(_mm512_castpd512_pd256(eight), _mm512_extractf64x4_pd(eight, 1));
#else
    const __m256d four = _mm256_add_pd(
        _mm256_cvtepi32_pd(_mm256_castsi256_si128((__m256i)lanes)),
        _mm256_cvtepi32_pd(_mm256_extracti128_si256((__m256i)lanes, 1)));
#endif
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
#else
    double sum = 0;
    for (int n = 0; n < WIDE; n++) sum += lanes[n];
    return sum;
#endif
}

// Adds WIDE numbers to `sums`, of which there are none yet if not `more`; returns them rounded once.
inline Floats summed(const Ints& numbers, double* sums, bool more) {
    typedef int32_t HalfInts __attribute__((vector_size(2 * WIDE)));
    typedef double Doubles __attribute__((vector_size(4 * WIDE)));
    HalfInts half[2];
    std::memcpy(half, &numbers, sizeof half);
    float rounded[WIDE];
    for (int n = 0; n < 2; n++, sums += WIDE / 2) {
#if defined(__AVX2__) && !defined(__AVX512F__)  // of __builtin_convertvector gcc 12 makes two halves more
        Doubles sum = (Doubles)_mm256_cvtepi32_pd((__m128i)half[n]);
#else
        Doubles sum = __builtin_convertvector(half[n], Doubles);
#endif
        Doubles before = {};
        if (more) std::memcpy(&before, sums, sizeof before);
        sum += before;
        std::memcpy(sums, &sum, sizeof sum);
        for (int i = 0; i < WIDE / 2; i++) rounded[n * WIDE / 2 + i] = float(sum[i]);
    }
    return load(rounded);
}

// e^x for x <= 0, within 2 units in the last place; 0 far below.
inline Floats exponential(const Floats& x) {
    const Floats low = all(-87.0f);
    const Floats some = x < low ? low : x;  // what is no number stays none
    const Floats whole = __builtin_convertvector(__builtin_convertvector(some * 1.44269504f - 0.5f, Ints), Floats);
    const Floats rest = added(whole, all(2.12194440e-4f), added(whole, all(-0.693359375f), some));
    Floats sum = added(rest, all(1.9875691500e-4f), all(1.3981999507e-3f));
    for (const float next : {8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        sum = added(sum, rest, all(next));
    sum = added(sum * rest, rest, rest) + 1.0f;
    const Ints power = (__builtin_convertvector(whole, Ints) + 127) << 23;
    Floats scale;
    std::memcpy(&scale, &power, sizeof scale);
    return x < low ? Floats{} : sum * scale;
}

}  // namespace
