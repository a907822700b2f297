// Weights of 4 bits are found and packed. Built by kernels.py, called by blocks.py.

#include "blocks.h"

namespace {

// Of a block's largest weight: so far may one be from its place.
constexpr float NEAR = 1.0f / 128;

// 32 weights to places 0 to 15 of `scales`, a step and a least value; false if they have none.
bool placed(const float* x, uint16_t (&scales)[2], uint8_t* places) {
#ifdef __F16C__
    float least = x[0], most = x[0], wrong = 1;
    for (int n = 1; n < blocks::COLUMNS; n++) least = x[n] < least ? x[n] : least, most = x[n] > most ? x[n] : most;
    const float near = NEAR * std::max(-least, most);
    scales[1] = _cvtss_sh(least, 0);
    const float from = _cvtsh_ss(scales[1]);
    for (int levels = 15; levels > 6 && wrong > 0; levels--) {  // a block need not have both of its ends
        const float step = (most - least) / levels, by = step > 0 ? 1 / step : 0;
        scales[0] = _cvtss_sh(step, 0);
        const float now = _cvtsh_ss(scales[0]);
        int different = 0;
        for (int n = 0; n < blocks::COLUMNS; n++) {
            const float place = __builtin_rintf((x[n] - least) * by);
            places[n] = uint8_t(place);
            different += !(std::fabs(place * now + from - x[n]) <= near);
        }
        wrong = different;
    }
    return wrong == 0;
#else
    return x && scales && places && false;
#endif
}

}  // namespace

// Weights (channels, width) to records; `found` is 1 if all of them have 4 bits.
extern "C" void llmsvc_pack_blocks(const float* weights, uint8_t* out, int64_t* found, int64_t channels, int64_t width) {
    const int64_t count = width / blocks::COLUMNS;
    int64_t good = 1;
#pragma omp parallel for schedule(static) reduction(&& : good)
    for (int64_t panel = 0; panel < channels / blocks::CHANNELS; panel++)
        for (int64_t b = 0; b < count && good; b++) {
            uint8_t* const record = out + (panel * count + b) * blocks::RECORD;
            std::memset(record, 0, blocks::HALF);
            for (int64_t c = 0; c < blocks::CHANNELS; c++) {
                uint16_t scales[2];
                uint8_t places[blocks::COLUMNS];
                good = good && placed(weights + (panel * blocks::CHANNELS + c) * width + b * blocks::COLUMNS, scales, places);
                for (int64_t k = 0; k < blocks::COLUMNS; k++)
                    record[k / 8 * 64 + c * 4 + k % 4] |= uint8_t(places[k] << (k % 8 < 4 ? 0 : 4));
                for (int64_t n = 0; n < 2; n++) std::memcpy(record + blocks::HALF + (n * blocks::CHANNELS + c) * 2, &scales[n], 2);
            }
        }
    *found = good;
}

// Whether there are products of such weights on this processor.
extern "C" int llmsvc_has_blocks() { return blocks::HERE; }
