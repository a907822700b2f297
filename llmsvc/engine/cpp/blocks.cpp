// Weights of 4 bits are found and packed. Built by kernels.py, called by blocks.py.

#include "blocks.h"

#ifdef HAS_BLOCKS
namespace {

// 32 weights to places 0 to 15 of `scales`, a step and a least value; false if they have none. `floor`: what may be lost of
// any weight.
bool placed(const float* x, float floor, uint16_t (&scales)[2], uint8_t (&places)[blocks::COLUMNS]) {
    float least = x[0], most = x[0];
    for (int n = 1; n < blocks::COLUMNS; n++) least = x[n] < least ? x[n] : least, most = x[n] > most ? x[n] : most;
    // Rounding to bf16 moves a weight by a quarter of the first; with the second, not any weights far from 0 have places.
    const float range = most - least, size = std::max(-least, most) / 128;
    const float near = range > 0 ? std::min(size, range / 60) : size;
    scales[1] = _cvtss_sh(least, 0);
    const float from = _cvtsh_ss(scales[1]);
    for (int levels = 15; levels > 5; levels--) {  // a block need not have both of its ends
        const bool last = levels == 6;  // 16 places once more, for a block that is next to nothing
        const float step = range / (last ? 15 : levels), by = step > 0 ? 1 / step : 0;
        scales[0] = _cvtss_sh(step, 0);
        const float now = _cvtsh_ss(scales[0]);
        int wrong = 0;
        for (int n = 0; n < blocks::COLUMNS; n++) {
            const float place = __builtin_rintf((x[n] - least) * by);
            wrong += !(std::fabs(place * now + from - x[n]) <= (last ? floor : near));
            places[n] = place < 16 ? uint8_t(place) : 0;  // also of what is no number
        }
        if (!wrong) return true;
    }
    return false;
}

// 16 channels to records; false if there are weights without 4 bits.
bool packed(const float* weights, int64_t width, uint8_t* record) {
    const int64_t count = width / blocks::COLUMNS;
    std::memset(record, 0, count * blocks::RECORD);
    for (int64_t c = 0; c < blocks::CHANNELS; c++, weights += width) {
        float largest = 0;
        for (int64_t k = 0; k < width; k++) largest = std::max(largest, std::fabs(weights[k]));
        for (int64_t b = 0; b < count; b++) {
            uint16_t scales[2];
            uint8_t places[blocks::COLUMNS];
            // In 8 bits each weight of the channel may lose four times as much.
            if (!placed(weights + b * blocks::COLUMNS, largest / 1024, scales, places)) return false;
            uint8_t* const to = record + b * blocks::RECORD;
            for (int64_t k = 0; k < blocks::COLUMNS; k++)
                to[k / 8 * 64 + c * 4 + k % 4] |= uint8_t(places[k] << (k % 8 < 4 ? 0 : 4));
            for (int64_t n = 0; n < 2; n++) std::memcpy(to + blocks::HALF + (n * blocks::CHANNELS + c) * 2, &scales[n], 2);
        }
    }
    return true;
}

}  // namespace

// Weights (channels, width) to records; `found` is 1 if all of them have 4 bits.
extern "C" void llmsvc_pack_blocks(const float* weights, uint8_t* out, int64_t* found, int64_t channels, int64_t width) {
    int64_t good = 1;
#pragma omp parallel for schedule(static) reduction(&& : good)
    for (int64_t panel = 0; panel < channels / blocks::CHANNELS; panel++) {
        uint8_t* const to = out + panel * (width / blocks::COLUMNS) * blocks::RECORD;
        good = good && packed(weights + panel * blocks::CHANNELS * width, width, to);
    }
    *found = good;
}
#endif

// Whether there are products of such weights on this processor.
extern "C" int llmsvc_has_blocks() {
#ifdef HAS_BLOCKS
    return 1;
#else
    return 0;
#endif
}
