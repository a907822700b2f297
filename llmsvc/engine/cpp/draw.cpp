// A token for each row of logits, chosen as sampling.py says, in one pass over the vocabulary after another.
//
// The race needs a logarithm only for a token that may win it: -log(u) >= 1 - u. The nucleus is sorted out of the tokens
// that are likely enough; these are looked for with a lower and lower bound until they are enough. Built by kernels.py.

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "vectors.h"

namespace {

struct Filters {
    float temperature, min_p, top_p, top_k;
};

// Between 0 and 1, the same for the same key and token: SplitMix64 (Steele et al. 2014) of both.
double uniform(int64_t key, int64_t token) {
    uint64_t mixed = uint64_t(key) + uint64_t(token + 1) * 0x9E3779B97F4A7C15u;
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9u;
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBu;
    return (double(mixed >> 12) + 0.5) / double(uint64_t(1) << 52);
}

struct Race {
    int64_t key, first = -1;
    double best = 0;

    void enter(int64_t token, double weight) {
        const double u = uniform(key, token);
        if (weight <= best * (1 - u)) return;
        const double score = weight / -std::log(u);
        if (score > best) best = score, first = token;
    }
};

// No number if one of them is none.
float largest(const float* logits, int64_t size) {
    Floats highest = all(-INFINITY), none = {};
    int64_t n = 0;
    for (; n + WIDE <= size; n += WIDE) {
        const Floats some = load(logits + n);
        highest = some > highest ? some : highest;
        none = some == some ? none : some;
    }
    float most = -INFINITY, odd = total(none);
    for (int lane = 0; lane < WIDE; lane++) most = std::max(most, highest[lane]);
    for (; n < size; n++) most = std::max(most, logits[n]), odd = logits[n] == logits[n] ? odd : logits[n];
    return odd == odd ? most : odd;
}

// The first of the largest, at temperature 0.
int64_t likeliest(const float* logits, int64_t size) {
    const float most = largest(logits, size);
    return most > -INFINITY ? std::find(logits, logits + size, most) - logits : -1;
}

int64_t drawn(const float* logits, int64_t size, const Filters& filters, int64_t key) {
    const float most = largest(logits, size);
    if (!std::isfinite(most)) return -1;
    static thread_local std::vector<float> memory;  // kept
    if (memory.size() < size_t(size + WIDE)) memory.resize(size + WIDE);
    float* const weights = memory.data();
    const int64_t whole = (size + WIDE - 1) / WIDE * WIDE;
    std::copy(logits, logits + size, weights);
    std::fill(weights + size, weights + whole, -INFINITY);
    Floats sums = {};
    for (int64_t n = 0; n < whole; n += WIDE) {
        const Floats e = exponential((load(weights + n) - most) / filters.temperature);
        store(weights + n, e);
        sums += e;
    }
    Race race{key};
    if (filters.top_k >= float(size) && filters.top_p >= 1) {
        for (int64_t n = 0; n < size; n++)
            if (weights[n] >= filters.min_p) race.enter(n, weights[n]);
        return race.first;
    }
    const float sum = total(sums);
    const bool few = filters.top_k < float(size);
    static thread_local std::vector<uint64_t> likely;  // weight and token; of equal weights the first token comes first
    const auto weight_of = [](uint64_t one) {
        const uint32_t bits = uint32_t(one >> 32);
        float weight;
        std::memcpy(&weight, &bits, sizeof weight);
        return weight;
    };
    for (float least = 1.0f / 64;; least = least > 1e-7f ? least / 16 : 0) {
        if (!few) least = std::max(least, filters.min_p);
        likely.clear();
        double held = 0;
        for (int64_t n = 0; n < size; n++)
            if (weights[n] >= least) {
                uint32_t bits;
                std::memcpy(&bits, weights + n, sizeof bits);
                likely.push_back(uint64_t(bits) << 32 | uint32_t(~n)), held += weights[n];
            }
        if (few ? float(likely.size()) >= filters.top_k : held > double(filters.top_p) * sum) break;
        if (least <= (few ? 0 : filters.min_p)) break;
    }
    std::sort(likely.begin(), likely.end(), std::greater<uint64_t>());
    const size_t kept = std::min(likely.size(), size_t(filters.top_k));
    double left = sum, before = 0;
    if (few) {  // top-p counts what top-k has left
        left = 0;
        for (size_t n = 0; n < kept; n++) left += weight_of(likely[n]);
    }
    for (size_t n = 0; n < kept; n++) {
        const float weight = weight_of(likely[n]);
        if (n && ((filters.top_p < 1 && before >= filters.top_p * left) || weight < filters.min_p)) break;
        race.enter(int64_t(uint32_t(~likely[n])), weight);
        before += weight;
    }
    return race.first;
}

}  // namespace

// logits: (rows, size), contiguous; filters: (rows, 4): temperature, min-p, top-p, top-k, which is `size` for none.
// out: token ids; -1 where the logits are no numbers.
extern "C" void llmsvc_draw(
    const float* logits, const float* filters, const int64_t* keys, int64_t* out, int64_t rows, int64_t size) {
#pragma omp parallel for schedule(dynamic) if (rows > 1)
    for (int64_t row = 0; row < rows; row++) {
        const float *own = filters + 4 * row, *from = logits + row * size;
        out[row] = own[0] ? drawn(from, size, {own[0], own[1], own[2], own[3]}, keys[row]) : likeliest(from, size);
    }
}
