// Who attends to what.

#pragma once
#include <cmath>
#include <cstdint>

namespace {

constexpr int64_t BLOCK = 128;  // positions that are read together, from fixed places on; a multiple of WIDE
constexpr float NOTHING = -INFINITY;

}  // namespace

// The tokens of each row see the positions up to their own. Strides are counted in numbers; those of one head's size lie
// side by side.
struct Attention {
    const float* query;  // (rows, heads, tokens, size)
    const float* keys;  // (rows, shared, positions, size): each is shared by heads / shared, positions side by side
    const float* values;
    const int64_t* positions;  // (rows, tokens)
    float* out;  // (rows, tokens, heads, size), side by side
    float scale;
    int64_t rows, heads, shared, tokens, size;
    int64_t query_by_row, query_by_head, query_by_token, by_row, by_head;
};

void attend_one(const Attention& a);  // of rows of one token
void attend_piece(const Attention& a);
