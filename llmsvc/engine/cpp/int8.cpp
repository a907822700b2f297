// Rows times 8-bit weights, for processors whose own products of 8 bits are slow, saturate, or want weights packed anew.
//
// out[row][channel] = scales[channel] * sum over k of x[row][k] * values[channel][k], all of them contiguous. Each row is
// rounded to whole numbers whose products with weights, of -127 to 127, are summed without an error: a row's result hangs on
// nothing but itself, in whatever order it is summed. Built by kernels.py, called by products.py and compiled steps.
//
// Of few rows each vector holds columns of one channel's weights, widened in registers, so that only one byte of each is
// read. For many, a few channels at a time are first laid side by side, as BLIS packs its panels (Van Zee and van de
// Geijn 2015): a vector then holds sums of several channels, and none has to be added up across it.

#include <algorithm>
#include <cmath>
#include <numeric>
#include <omp.h>
#include <utility>
#include <vector>

#include "blocks.h"
#include "vectors.h"

namespace {

constexpr int64_t CACHED = 1 << 18;  // bytes of weights that a core's cache keeps while all rows go by
constexpr int64_t LINE = 64;  // bytes
constexpr int64_t PAIRS = 2 * WIDE;
constexpr int64_t EXACT = 1024;  // columns whose products' sum does not overflow 32 bits: 1024 * 127 * 16513 < 2^31
constexpr int64_t MANY = 24;  // rows for which it pays to pack weights
constexpr int64_t PACKED = 2 * WIDE;  // channels
constexpr int64_t SMALL = 48;  // rows
constexpr int TALL = MANY_REGISTERS ? 12 : 6;  // rows of a tile beside packed weights, whose sums stay in registers

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
    int64_t stride, out_stride;  // from row to row of x, even, and of out
    int64_t size;  // of a part of the columns, EXACT at most and even
    const blocks::Rows* blocks;  // of weights of 4 bits, which `values` are then: the rows as those are multiplied
};

// What one thread computes at a time: some rows of the channels [from, to).
struct Task {
    const Product* product;
    int64_t from, to, row, rows;
    bool packed;  // or unpacked: one panel, for many rows
};

// Sums of products over the next `width` columns, of which a vector's lanes hold no more than EXACT.
template <int ROWS, int CHANNELS>
void part(const Product& p, const int16_t* x, const int8_t* values, int64_t width, double (&out)[ROWS][CHANNELS]) {
    Ints sums[ROWS][CHANNELS] = {};
    const auto step = [&](int64_t k) {
        Shorts weights[CHANNELS];
        for (int c = 0; c < CHANNELS; c++) weights[c] = pinned(widened(values + c * p.width + k));
        for (int r = 0; r < ROWS; r++) {
            const Shorts some = load(x + r * p.stride + k);
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
            out[r][c] = total(sums[r][c]);
            for (int64_t rest = k; rest < width; rest++) out[r][c] += x[r * p.stride + rest] * values[c * p.width + rest];
        }
}

template <int ROWS, int CHANNELS>
void tile(const Product& p, int64_t row, int64_t channel) {
    const int16_t* x = p.x + row * p.stride;
    const int8_t* values = p.values + channel * p.width;
    const int64_t size = p.size * WIDE;
    double sums[ROWS][CHANNELS];
    part(p, x, values, std::min(size, p.width), sums);
    for (int64_t k = size; k < p.width; k += size) {
        double more[ROWS][CHANNELS];
        part(p, x + k, values + k, std::min(size, p.width - k), more);
        for (int r = 0; r < ROWS; r++)
            for (int c = 0; c < CHANNELS; c++) sums[r][c] += more[r][c];
    }
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < CHANNELS; c++)
            p.out[(row + r) * p.out_stride + channel + c] = float(sums[r][c]) * p.steps[row + r] * p.scales[channel + c];
}

template <int ROWS, int CHANNELS>
void tiles(const Product& p, int64_t row, int64_t from, int64_t to) {
    for (; from + CHANNELS <= to; from += CHANNELS) tile<ROWS, CHANNELS>(p, row, from);
    for (; from < to; from++) tile<ROWS, 1>(p, row, from);
}

void few(const Task& task) {
    const Product& p = *task.product;
    const auto [from, to] = std::pair(task.from, task.to);
    for (int64_t row = task.row, left = task.rows; left; left = task.row + task.rows - row) {
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

// The next `width` columns of PACKED channels, two by two: (pairs, PACKED, 2). Behind an odd number of them are zeros.
void pack(const Product& p, const int8_t* values, int64_t width, int16_t* out) {
    int64_t k = 0;
#ifdef __AVX2__
    for (; k + 16 <= width; k += 16)
        for (int64_t c = 0; c < PACKED; c += 8) {
            __m128i a[8], b[8];  // of 8 channels: pairs of columns change places with channels
            for (int n = 0; n < 8; n++)
                a[n] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values + (c + n) * p.width + k));
            for (int n = 0; n < 8; n += 2) {
                b[n] = _mm_unpacklo_epi16(a[n], a[n + 1]);
                b[n + 1] = _mm_unpackhi_epi16(a[n], a[n + 1]);
            }
            for (int n = 0; n < 8; n += 4)
                for (int i = 0; i < 2; i++) {
                    a[n + 2 * i] = _mm_unpacklo_epi32(b[n + i], b[n + i + 2]);
                    a[n + 2 * i + 1] = _mm_unpackhi_epi32(b[n + i], b[n + i + 2]);
                }
            for (int n = 0; n < 8; n++) {
                const __m128i &low = a[n / 2], &high = a[n / 2 + 4];
                const __m128i pairs = n % 2 ? _mm_unpackhi_epi64(low, high) : _mm_unpacklo_epi64(low, high);
                int16_t* const to = out + (k / 2 + n) * 2 * PACKED + 2 * c;
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_cvtepi8_epi16(pairs));
            }
        }
#endif
    for (; k < width; k += 2)
        for (int64_t c = 0; c < PACKED; c++) {
            int16_t* const pair = out + k * PACKED + 2 * c;
            pair[0] = values[c * p.width + k];
            pair[1] = k + 1 < width ? values[c * p.width + k + 1] : 0;
        }
}

// Adds the products of the next `width` columns to `sums`, (rows, PACKED), or to nothing if they are the first; the last
// ones go out.
template <int ROWS>
void panel(const Product& p, int64_t row, int64_t channel, int64_t from, int64_t width, const int16_t* packed, double* sums) {
    const int16_t* x = p.x + row * p.stride + from;
    Ints here[ROWS][2] = {};
    for (int64_t k = 0; k < width; k += 2, packed += 2 * PACKED) {
        const Shorts weights[2] = {pinned(load(packed)), pinned(load(packed + PACKED))};
        for (int r = 0; r < ROWS; r++) {
            const Shorts some = pinned(everywhere(x + r * p.stride + k));
            for (int v = 0; v < 2; v++) here[r][v] = pinned(added(some, weights[v], here[r][v]));
        }
    }
    const bool last = from + width >= p.width;
#pragma GCC unroll 16  // sums that are counted through would be kept in memory
    for (int r = 0; r < ROWS; r++) {
        const Floats step = all(p.steps[row + r]);
#pragma GCC unroll 2
        for (int v = 0; v < 2; v++) {
            double* const so_far = sums + r * PACKED + v * WIDE;
            Floats sum = __builtin_convertvector(here[r][v], Floats);
            if (from || !last) sum = summed(here[r][v], so_far, from);
            if (!last) continue;
            const int64_t own = channel + v * WIDE;
            store(p.out + (row + r) * p.out_stride + own, sum * step * load(p.scales + own));
        }
    }
}

// Tiles of ROWS rows, from `row` on; returns the first one that is left.
template <int ROWS>
int64_t panels(const Task& task, int64_t row, int64_t from, int64_t width, const int16_t* packed, double* sums, const int8_t* next) {
    const int64_t bytes = width * PACKED, end = task.row + task.rows;
    for (; row + ROWS <= end; row += ROWS) {
        // Few bytes of each of many channels are packed at a time: too many places for the processor to foresee.
        const int64_t done = row - task.row, last = (done + ROWS) * bytes / task.rows;
        for (int64_t at = done * bytes / task.rows; at < last; at += LINE) __builtin_prefetch(next + at);
        panel<ROWS>(*task.product, row, task.from, from, width, packed, sums + done * PACKED);
    }
    return row;
}

// The weights at `next` are packed soon.
void many(const Task& task, const int8_t* next) {
    const Product& p = *task.product;
    static thread_local std::vector<double> memory;
    if (const size_t need = task.rows * PACKED; memory.size() < need) memory.resize(need);
    double* const sums = memory.data();
    alignas(LINE) int16_t packed[EXACT * PACKED];
    for (int64_t from = 0; from < p.width; from += p.size, next += p.size * PACKED) {
        const int64_t width = std::min(p.size, p.width - from);
        pack(p, p.values + task.from * p.width + from, width, packed);
        int64_t row = panels<TALL>(task, task.row, from, width, packed, sums, next);
        row = panels<4>(task, row, from, width, packed, sums, next);
        row = panels<2>(task, row, from, width, packed, sums, next);
        panels<1>(task, row, from, width, packed, sums, next);
    }
}

// One row to whole numbers up to `most`, and what one of them is worth: no number if the row has one that is none, or
// infinite.
float rounded(const float* x, int64_t width, float most, int16_t* out) {
    Floats sizes = Floats{} + 1e-30f, odd = {};
    int64_t k = 0;
    for (; k + WIDE <= width; k += WIDE) {
        const Floats some = load(x + k), size = some < 0.0f ? -some : some;
        sizes = size > sizes ? size : sizes;
        odd += some * 0.0f;
    }
    float largest = sizes[0], none = total(odd);
    for (int n = 1; n < WIDE; n++) largest = std::max(largest, sizes[n]);
    for (; k < width; k++) largest = std::max(largest, std::fabs(x[k])), none += x[k] * 0.0f;
    const float by = most / largest;
    for (k = 0; k < width; k++) {
        const float whole = __builtin_rintf(x[k] * by);
        out[k] = int16_t(whole == whole ? whole : 0.0f);
    }
    if (width % 2) out[width] = 0;
    return largest / most + none;
}

// A panel of 4-bit weights. Those at `next` are unpacked soon.
void many_blocks(const Task& task, const uint8_t* next) {
    const Product& p = *task.product;
    const int64_t count = p.width / blocks::COLUMNS, end = task.row + task.rows;
    const uint8_t* weights = blocks::panel_at(p.values, task.from, count);
    static thread_local blocks::Unpacked own;
    blocks::Unpacked& unpacked = *pinned(&own);  // to ask for a thread's own place takes a call, each time
    for (int64_t from = 0; from < count; from += blocks::PART) {
        const int64_t some = std::min(blocks::PART, count - from), bytes = some * blocks::RECORD;
        const int64_t by_row = (bytes / LINE + task.rows - 1) / task.rows * LINE;
        blocks::unpack(weights + from * blocks::RECORD, some, unpacked);
        const uint8_t* const ahead = next + from * blocks::RECORD;
        const auto prefetch = [&](int64_t done, int64_t rows) {
            const int64_t last = std::min((done + rows) * by_row, bytes);
            for (int64_t at = done * by_row; at < last; at += LINE) __builtin_prefetch(ahead + at);
        };
        float* const out = p.out + task.from;
        for (int64_t row = task.row; row < end;) {
            const int64_t left = end - row, now = left >= 6 ? 6 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
            prefetch(row - task.row, now);
            switch (now) {
                case 6: blocks::panel<6>(*p.blocks, row, from, some, unpacked, out, p.out_stride); break;
                case 4: blocks::panel<4>(*p.blocks, row, from, some, unpacked, out, p.out_stride); break;
                case 2: blocks::panel<2>(*p.blocks, row, from, some, unpacked, out, p.out_stride); break;
                default: blocks::panel<1>(*p.blocks, row, from, some, unpacked, out, p.out_stride);
            }
            row += now;
        }
    }
}

void few_blocks(const Task& task) {
    const Product& p = *task.product;
    for (int64_t channel = task.from; channel < task.to; channel += blocks::CHANNELS) {
        const uint8_t* weights = blocks::panel_at(p.values, channel, p.width / blocks::COLUMNS);
        float* const out = p.out + channel;
        for (int64_t row = task.row, left = task.rows; left; left = task.row + task.rows - row) {
            const int64_t now = left == 4 ? 2 : std::min<int64_t>(left, 3);
            switch (now) {
                case 1: blocks::tile<1>(*p.blocks, row, weights, out, p.out_stride); break;
                case 2: blocks::tile<2>(*p.blocks, row, weights, out, p.out_stride); break;
                default: blocks::tile<3>(*p.blocks, row, weights, out, p.out_stride);
            }
            row += now;
        }
    }
}

// In the order in which they are begun.
void divide(const std::vector<Product>& products, int64_t rows, std::vector<Task>& tasks) {
    constexpr int64_t BLOCK = 24;  // channels, a multiple of all tiles'
    tasks.clear();
    const auto panel = [](const Product& p) { return p.blocks ? blocks::CHANNELS : PACKED; };
    const auto packed = [&](const Product& p) {
        return rows < (p.blocks ? blocks::MANY : MANY) ? 0 : p.channels / panel(p) * panel(p);
    };
    int64_t left = 0;
    for (const Product& p : products) left += packed(p) / panel(p);
    for (const Product& p : products)
        for (int64_t channel = 0; channel < packed(p); channel += panel(p), left--) {
            // The last ones are small, or some threads would wait long for others.
            const int64_t parts = left > 2 * omp_get_max_threads() ? 1 : std::max<int64_t>(1, rows / SMALL);
            const int64_t some = (rows + parts * TALL - 1) / (parts * TALL) * TALL;
            for (int64_t row = 0; row < rows; row += some)
                tasks.push_back({&p, channel, channel + panel(p), row, std::min(some, rows - row), true});
        }
    for (const Product& p : products) {
        const int64_t unit = p.blocks ? blocks::CHANNELS : BLOCK;
        const int64_t at_most = std::max<int64_t>(1, CACHED / p.width / unit), share = (p.channels / 16 + unit - 1) / unit;
        const int64_t block = std::min(at_most, std::max<int64_t>(share, 1)) * unit;
        for (int64_t from = packed(p); from < p.channels; from += block)
            tasks.push_back({&p, from, std::min(from + block, p.channels), 0, rows, false});
    }
}

}  // namespace

// The same rows times the weights of `count` layers, whose results stand side by side in `out`. A layer without scales has
// weights of 4 bits (blocks.h).
extern "C" void llmsvc_int8_linears(
    const float* x, const int8_t* const* values, const float* const* scales, const int64_t* channels, int64_t count, float* out,
    int64_t rows, int64_t width) {
    static thread_local std::vector<Line> memory, bytes;  // kept: what is new is cleared by the system, page by page
    static thread_local std::vector<float> worth, worths;
    static thread_local std::vector<int32_t> whole;
    static thread_local std::vector<uint32_t> fine;
    static thread_local std::vector<Product> products;
    static thread_local std::vector<Task> tasks;
    const int64_t stride = (width + 1) / 2 * 2, parts = (width + EXACT - 1) / EXACT;
    const int64_t size = ((width + parts - 1) / parts + LINE / 2 - 1) / (LINE / 2) * (LINE / 2);
    const int64_t coarse = std::count(scales, scales + count, nullptr), in_blocks = width / blocks::COLUMNS;
    if (const size_t need = rows * stride / (LINE / 2) + 1; coarse < count && memory.size() < need) memory.resize(need);
    if (worth.size() < size_t(rows)) worth.resize(rows);
    const int64_t half = rows * width / LINE + 1;  // lines of rows in bytes, and as many of what rounding left
    if (const size_t need = 2 * half; coarse && bytes.size() < need) bytes.resize(need);
    if (const size_t need = rows * in_blocks; coarse && whole.size() < need) whole.resize(need);
    if (const size_t need = rows * (in_blocks + 1); coarse && worths.size() < need) worths.resize(need);
    if (const size_t need = rows * blocks::parts(in_blocks); coarse && fine.size() < need) fine.resize(need);
    int16_t* const integers = coarse < count ? memory.data()->numbers : nullptr;
    float* const steps = worth.data();
    blocks::Rows in_bytes{};
    if (coarse) {
        const auto small = reinterpret_cast<int8_t*>(bytes.data());
        float* const units = worths.data() + rows * in_blocks;
        in_bytes = {width, small, small + half * LINE, whole.data(), worths.data(), units, fine.data()};
    }
    const int64_t out_stride = std::accumulate(channels, channels + count, int64_t(0));
    products.clear();
    for (int64_t n = 0; n < count; out += channels[n++])
        products.push_back({integers, steps, values[n], scales[n], out, width, channels[n], stride, out_stride, size,
                            scales[n] ? nullptr : &in_bytes});
    const float most = std::min<int64_t>(32767, INT32_MAX / 127 / std::min(size, width));
    const auto round = [=](int64_t row) {
        const float* const from = x + row * width;
        if (coarse < count) steps[row] = rounded(from, width, most, integers + row * stride);
        if (coarse) blocks::round(from, in_bytes, row);
    };
    const bool alone = rows < 4;  // to wait for each other takes longer
    for (int64_t row = 0; alone && row < rows; row++) round(row);
    divide(products, rows, tasks);
    const int64_t all = tasks.size();
    const Task* const begin = tasks.data();  // this thread's own, for all
#pragma omp parallel
    {
        if (!alone) {
#pragma omp for schedule(static)
            for (int64_t row = 0; row < rows; row++) round(row);
        }
#pragma omp for schedule(dynamic) nowait  // threads meet behind it anyway
        for (int64_t n = 0; n < all; n++) {
            const Task &task = begin[n], &next = begin[std::min<int64_t>(n + omp_get_num_threads(), all - 1)];
            const Product& p = *next.product;
            const int8_t* const soon = p.blocks
                ? reinterpret_cast<const int8_t*>(blocks::panel_at(p.values, next.from, in_blocks))
                : p.values + next.from * width;
            if (task.product->blocks)
                task.packed ? many_blocks(task, reinterpret_cast<const uint8_t*>(soon)) : few_blocks(task);
            else
                task.packed ? many(task, soon) : few(task);
        }
    }
}

extern "C" void llmsvc_int8_linear(
    const float* x, const int8_t* values, const float* scales, float* out, int64_t rows, int64_t width, int64_t channels) {
    llmsvc_int8_linears(x, &values, &scales, &channels, 1, out, rows, width);
}
