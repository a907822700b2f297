// Attention of tokens of any texts: pieces of prompts, and single tokens.
//
// Queries of neighbouring tokens, and of the heads that share keys, go together through blocks of positions: scores are a
// small product of matrices, then weights, then another product (FlashAttention, Dao et al. 2022, 2205.14135). Blocks, and
// spans of them, begin at fixed places and are put together in their order: a token's result hangs neither on how its text
// was cut into pieces nor on how many compute, and what was generated is to the bit what is read of it later. Built by
// kernels.py, called by chunk_attention.py and compiled steps. Keys and values have 32 bits, or 16.

#include <algorithm>
#include <cmath>
#include <memory>
#include <omp.h>
#include <vector>

#include "vectors.h"

namespace {

// Each token sees the positions up to its own. Strides are counted in numbers; those of one head's size lie
// side by side.
template <class Number>
struct Attention {
    const float* query;  // (rows, heads, tokens, size)
    const Number* keys;  // (slots, shared, positions, size): each is shared by heads / shared, positions side by side
    const Number* values;
    const int64_t* positions;  // (rows, tokens)
    const int64_t* slots;  // (rows, tokens): where each token's keys are, by their row; or none, and they are in its own
    float* out;  // (rows, tokens, heads, size), side by side
    float scale;
    int64_t rows, heads, shared, tokens, size;
    int64_t query_by_row, query_by_head, query_by_token, by_slot, by_head;
};

// Neighbouring tokens of one text, and the heads that share the keys of one head.
struct Task {
    int64_t row, slot, head, first, tokens;
};

constexpr float NOTHING = -INFINITY;
constexpr int64_t BLOCK = 128;  // positions that are read together; a multiple of WIDE
constexpr int64_t SPAN = 256;  // positions whose result may be computed apart
constexpr int64_t QUERIES = 96;  // at once, or those of one token
constexpr int64_t MOST = 1 << 24;  // numbers of spans that are computed apart
constexpr int64_t TURNED = 4 * WIDE;  // keys at once
constexpr int ROWS = 6;  // queries of a tile, whose sums stay in registers

// `count` keys side by side: (size, TURNED). What is behind them, up to a vector's end, is of no matter.
template <class Number>
void turn(const Number* keys, int64_t count, int64_t size, float* out) {
#ifdef __AVX2__
    constexpr int64_t LINE = 64 / sizeof(Number);
    for (int64_t n = 0; n < count; n += 8) {
        for (int64_t k = 8 * size; k < 16 * size; k += LINE) __builtin_prefetch(keys + n * size + k);  // those that follow
        const Number* row[8];
        for (int i = 0; i < 8; i++) row[i] = keys + std::min(n + i, count - 1) * size;
        for (int64_t k = 0; k < size; k += 8) {
            __m256 a[8], b[8];
            for (int i = 0; i < 8; i++) a[i] = eight(row[i] + k);
            for (int i = 0; i < 8; i += 2) {
                b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
                b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
            }
            for (int i = 0; i < 8; i += 4)
                for (int j = 0; j < 2; j++) {
                    a[i + 2 * j] = _mm256_shuffle_ps(b[i + j], b[i + j + 2], 0x44);
                    a[i + 2 * j + 1] = _mm256_shuffle_ps(b[i + j], b[i + j + 2], 0xee);
                }
            for (int i = 0; i < 4; i++) {
                _mm256_storeu_ps(out + (k + i) * TURNED + n, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
                _mm256_storeu_ps(out + (k + i + 4) * TURNED + n, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
            }
        }
    }
#else
    for (int64_t n = 0; n < count; n++)
        for (int64_t k = 0; k < size; k++) out[k * TURNED + n] = keys[n * size + k];
#endif
}

// The product of R rows of `count` numbers with as many rows of W vectors; MORE: added to what is there.
template <bool MORE, int R, int W, class Number>
void multiply(const float* const* left, const Number* right, int64_t by, int64_t count, float* const* out) {
    Floats sums[R][W];
#pragma GCC unroll 8  // sums that are counted through would be kept in memory
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int w = 0; w < W; w++) sums[r][w] = MORE ? load(out[r] + w * WIDE) : Floats{};
    for (int64_t k = 0; k < count; k++) {
        const Number* const next = right + k * by;
        if constexpr (R < W) {  // registers hold the fewer ones
            Floats one[R];
            for (int r = 0; r < R; r++) one[r] = pinned(all(left[r][k]));
            for (int w = 0; w < W; w++) {
                const Floats some = load(next + w * WIDE);
                for (int r = 0; r < R; r++) sums[r][w] = added(one[r], some, sums[r][w]);
            }
        } else {
            Floats some[W];
            for (int w = 0; w < W; w++) some[w] = pinned(load(next + w * WIDE));
            for (int r = 0; r < R; r++) {
                const Floats one = all(left[r][k]);
                for (int w = 0; w < W; w++) sums[r][w] = added(one, some[w], sums[r][w]);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int w = 0; w < W; w++) store(out[r] + w * WIDE, sums[r][w]);
}

template <bool MORE, int R, class Number>
void multiply(const float* const* left, const Number* right, int64_t by, int64_t count, float** out, int64_t width) {
    int64_t at = 0;
    const auto go_on = [&](int64_t step) {
        at += step;
        for (int r = 0; r < R; r++) out[r] += step;
    };
    constexpr int WIDTH = R > 3 ? 2 : 4;  // vectors of a tile
    for (; at + WIDTH * WIDE <= width; go_on(WIDTH * WIDE)) multiply<MORE, R, WIDTH>(left, right + at, by, count, out);
    for (; at < width; go_on(WIDE)) multiply<MORE, R, 1>(left, right + at, by, count, out);
}

// left @ right, which is (count, width), to out, of which each row lies `out_by` behind the last.
template <bool MORE, class Number>
void multiply(
    const float* const* left, int64_t rows, const Number* right, int64_t by, int64_t count, float* out, int64_t out_by,
    int64_t width) {
    for (int64_t row = 0; row < rows; row += ROWS) {
        float* to[ROWS];
        for (int r = 0; r < ROWS; r++) to[r] = out + (row + r) * out_by;
        switch (std::min<int64_t>(rows - row, ROWS)) {
            case 1: multiply<MORE, 1>(left + row, right, by, count, to, width); break;
            case 2: multiply<MORE, 2>(left + row, right, by, count, to, width); break;
            case 3: multiply<MORE, 3>(left + row, right, by, count, to, width); break;
            case 4: multiply<MORE, 4>(left + row, right, by, count, to, width); break;
            case 5: multiply<MORE, 5>(left + row, right, by, count, to, width); break;
            default: multiply<MORE, ROWS>(left + row, right, by, count, to, width);
        }
    }
}

// Queries of some tokens and the heads that share keys, token by token, and where they are on their way.
struct Queries {
    int64_t count = 0, group = 0, size = 0;
    std::vector<const float*> query, weight_rows;
    std::vector<int64_t> seen;  // positions that each may see
    std::vector<float> turned, widened, weights, largest, sums, out;

    template <class Number>
    void begin(const Attention<Number>& a, const Task& task) {
        group = a.heads / a.shared, count = task.tokens * group, size = a.size;
        query.resize(count), weight_rows.resize(count), seen.resize(count), largest.resize(count), sums.resize(count);
        turned.resize(size * TURNED), weights.resize(count * BLOCK), out.resize(count * size);
        for (int64_t q = 0; q < count; q++) {
            const int64_t token = task.first + q / group, own = task.head * group + q % group;
            query[q] = a.query + task.row * a.query_by_row + own * a.query_by_head + token * a.query_by_token;
            weight_rows[q] = &weights[q * BLOCK];
            seen[q] = a.positions[task.row * a.tokens + token] + 1;
        }
    }

    int64_t furthest() const { return *std::max_element(seen.begin(), seen.end()); }

    // What they see of [from, to).
    template <class Number>
    void span(const Number* keys, const Number* values, int64_t from, int64_t to, float scale) {
        std::fill(largest.begin(), largest.end(), NOTHING);
        std::fill(sums.begin(), sums.end(), 0.0f);
        std::fill(out.begin(), out.end(), 0.0f);
        for (; from < to; from += BLOCK) {
            const int64_t here = std::min(BLOCK, to - from), whole = (here + WIDE - 1) / WIDE * WIDE;
            for (int64_t n = 0; n < here; n += TURNED) {
                const int64_t now = std::min(TURNED, here - n), line = 64 / sizeof(Number);
                for (int64_t k = 0; count <= ROWS && k < now * size; k += line)
                    __builtin_prefetch(values + (from + n) * size + k);  // few queries are done before memory answers
                turn(keys + (from + n) * size, now, size, turned.data());
                const int64_t some = std::min(TURNED, whole - n);
                multiply<false>(query.data(), count, turned.data(), TURNED, size, &weights[n], BLOCK, some);
            }
            for (int64_t q = 0; q < count; q++) weigh(q, seen[q] - from, whole, scale);
            const auto read_all = [&](const auto* block) {
                for (int64_t q = 0; q < count; q += ROWS) read(q, std::min<int64_t>(ROWS, count - q), block, from, here);
            };
            const Number* const block = values + from * size;
            if (sizeof(Number) == sizeof(float) || count <= ROWS) {
                read_all(block);
            } else {  // once for all of them
                widened.resize(BLOCK * size);
                for (int64_t k = 0; k < here * size; k += WIDE) store(&widened[k], load(block + k));
                read_all(static_cast<const float*>(widened.data()));
            }
        }
    }

    // Adds a block's values for `rows` queries: what all of them see together, then of each what only it sees. What lies
    // behind may be no number, and 0 times that is none either.
    template <class Number>
    void read(int64_t first, int64_t rows, const Number* values, int64_t from, int64_t here) {
        const auto own = [&](int64_t q) { return std::clamp<int64_t>(seen[q] - from, 0, here); };
        int64_t common = here;
        for (int64_t q = first; q < first + rows; q++) common = std::min(common, own(q));
        multiply<true>(&weight_rows[first], rows, values, size, common, &out[first * size], size, size);
        for (int64_t q = first; q < first + rows; q++) {
            const float* rest = weight_rows[q] + common;
            multiply<true>(&rest, 1, values + common * size, size, own(q) - common, &out[q * size], size, size);
        }
    }

    // Scores of a block to weights, of which the first `some` are seen.
    void weigh(int64_t q, int64_t some, int64_t whole, float scale) {
        float* const scores = &weights[q * BLOCK];
        for (int64_t n = std::max<int64_t>(some, 0); n < whole; n++) scores[n] = NOTHING;
        Floats most = all(NOTHING);
        Ints odd = {};
        for (int64_t n = 0; n < whole; n += WIDE) {
            const Floats scaled = load(scores + n) * scale;
            store(scores + n, scaled);
            most = scaled > most ? scaled : most;
            odd |= scaled != scaled;
        }
        float now = largest[q];
        int32_t none = 0;
        for (int n = 0; n < WIDE; n++) now = std::max(now, most[n]), none |= odd[n];
        if (none || now == NOTHING) {
            std::fill(scores, scores + whole, 0.0f);
            if (none) sums[q] = NAN, largest[q] = std::max(largest[q], 0.0f);  // from here on it is no number
            return;
        }
        if (now != largest[q]) {
            const float share = std::exp(largest[q] - now);
            sums[q] *= share;
            for (int64_t k = 0; k < size; k++) out[q * size + k] *= share;
            largest[q] = now;
        }
        Floats sum = {};
        for (int64_t n = 0; n < whole; n += WIDE) {
            const Floats e = exponential(load(scores + n) - now);
            store(scores + n, e);
            sum += e;
        }
        sums[q] += total(sum);
    }
};

// A result of a span, (largest, sum, out...), is added to that of those before it.
void join(float* all, float largest, float sum, const float* out, int64_t size) {
    if (largest == NOTHING) return;
    const float most = std::max(all[0], largest), share = std::exp(largest - most), rest = std::exp(all[0] - most);
    all[0] = most;
    all[1] = all[1] * rest + sum * share;
    for (int64_t k = 0; k < size; k++) all[2 + k] = all[2 + k] * rest + out[k] * share;
}

// Pieces of at most `most` tokens; of each text the longest first.
template <class Number>
void divide(const Attention<Number>& a, int64_t most, std::vector<Task>& tasks) {
    tasks.clear();
    for (int64_t row = 0; row < a.rows; row++) {
        const auto slot = [&](int64_t token) { return a.slots ? a.slots[row * a.tokens + token] : row; };
        for (int64_t begin = 0, end; begin < a.tokens; begin = end) {
            for (end = begin + 1; end < a.tokens && slot(end) == slot(begin);) end++;
            for (int64_t head = 0; head < a.shared; head++)
                for (int64_t first = begin + (end - begin - 1) / most * most; first >= begin; first -= most)
                    tasks.push_back({row, slot(begin), head, first, std::min(most, end - first)});
        }
    }
}

template <class Number>
void attend(const Attention<Number>& a) {
    static thread_local std::vector<Task> divided;
    const int64_t group = a.heads / a.shared, some = std::min(a.tokens, std::max<int64_t>(1, QUERIES / group));
    divide(a, some, divided);
    const Task* const all_tasks = divided.data();  // this thread's own, for all
    const int64_t tasks = divided.size(), size = a.size;
    const int64_t spans = (*std::max_element(a.positions, a.positions + a.rows * a.tokens) + SPAN) / SPAN;
    // Few tokens behind many positions: spans are computed side by side, too.
    const int64_t place = size + 2, places = tasks * spans * some * group * place;
    const bool apart = spans > 1 && tasks < 2 * omp_get_max_threads() && places < MOST;
    const int64_t steps = apart ? spans : 1;
    const std::unique_ptr<float[]> found(new float[apart ? places : 0]);
    const auto finish = [&](const Task& task, int64_t q, const float* all) {
        const int64_t token = task.first + q / group, head = task.head * group + q % group;
        float* to = a.out + ((task.row * a.tokens + token) * a.heads + head) * size;
        for (int64_t k = 0; k < size; k++) to[k] = all[2 + k] / all[1];
    };
#pragma omp parallel
    {
#pragma omp for schedule(dynamic) nowait
        for (int64_t both = 0; both < tasks * steps; both++) {
            const int64_t number = both / steps;
            const auto at = [&](const Task& task) { return task.slot * a.by_slot + task.head * a.by_head; };
            const Task &task = all_tasks[number], &next = all_tasks[std::min(number + omp_get_num_threads(), tasks - 1)];
            static thread_local Queries kept;  // with its memory
            static thread_local std::vector<float> kept_too;
            Queries& queries = *pinned(&kept);  // to ask for a thread's own place takes a call, each time
            std::vector<float>& all = *pinned(&kept_too);
            for (int64_t k = 0; k < 8 * size; k += 64 / sizeof(Number)) __builtin_prefetch(a.keys + at(next) + k);
            queries.begin(a, task);
            const int64_t end = queries.furthest();
            all.assign(apart ? 0 : queries.count * place, 0.0f);
            for (int64_t q = 0; q < queries.count && !apart; q++) all[q * place] = NOTHING;
            for (int64_t span = both % steps; span < spans && span * SPAN < end; span += steps) {
                const int64_t last = std::min(end, (span + 1) * SPAN);
                queries.span(a.keys + at(task), a.values + at(task), span * SPAN, last, a.scale);
                for (int64_t q = 0; q < queries.count; q++) {
                    float* to = apart ? &found[((number * spans + span) * some * group + q) * place] : &all[q * place];
                    if (apart) std::fill(to, to + place, 0.0f), to[0] = NOTHING;
                    join(to, queries.largest[q], queries.sums[q], &queries.out[q * size], size);
                }
            }
            for (int64_t q = 0; q < queries.count && !apart; q++) finish(task, q, &all[q * place]);
        }
        if (apart) {
#pragma omp barrier
#pragma omp for schedule(static) nowait
            for (int64_t number = 0; number < tasks; number++) {
                const Task& task = all_tasks[number];
                const int64_t* const seen = a.positions + task.row * a.tokens + task.first;
                std::vector<float> all(place);
                for (int64_t q = 0; q < task.tokens * group; q++) {
                    std::fill(all.begin(), all.end(), 0.0f);
                    all[0] = NOTHING;
                    for (int64_t span = 0; span * SPAN <= seen[q / group]; span++) {
                        const float* one = &found[((number * spans + span) * some * group + q) * place];
                        join(all.data(), one[0], one[1], one + 2, size);
                    }
                    finish(task, q, all.data());
                }
            }
        }
    }
}

}  // namespace

// Whether keys and values may have 16 bits.
extern "C" int llmsvc_has_halves() {
#ifdef HAS_HALVES
    return 1;
#else
    return 0;
#endif
}

// `bits`: of a number of keys and values.
extern "C" void llmsvc_attend(
    const float* query, const void* keys, const void* values, const int64_t* positions, const int64_t* slots, float* out,
    float scale, int64_t bits, int64_t rows, int64_t heads, int64_t shared, int64_t tokens, int64_t size, int64_t query_by_row,
    int64_t query_by_head, int64_t query_by_token, int64_t by_slot, int64_t by_head) {
    const auto go = [&](const auto* all_keys, const auto* all_values) {
        const Attention<std::remove_cv_t<std::remove_pointer_t<decltype(all_keys)>>> a{
            query,  all_keys, all_values, positions,    slots,         out,            scale,   rows,
            heads,  shared,   tokens,     size,         query_by_row,  query_by_head,  query_by_token,
            by_slot, by_head};
        attend(a);
    };
#ifdef HAS_HALVES
    if (bits == 16) return go(static_cast<const Half*>(keys), static_cast<const Half*>(values));
#endif
    go(static_cast<const float*>(keys), static_cast<const float*>(values));
}
