/* Parts that the compiled games share: the arrays of a game, random numbers, drawing.

   A game's file includes this header, defines `struct drawn`, `start`, `advance` and `draw`, and includes step.h.
   constants.h is generated from the game's Python module (compiled.py), so that a constant is written once: numbers and
   arrays of the module, COLOR_* (index of each color), and for each sprite X its size and X(SPAN), which lists its rows.

   Any state is safe: shapes outside of the frame are not drawn, and integers wrap around (-fwrapv). */

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "constants.h"

/* Arrays over the environments i; compiled.py fills in the addresses in this order. */
struct game {
    int64_t num_envs, channels;
    const uint8_t *colors; /* (color indices, channels): values of the background and of each color */
    const int64_t *action;
    float *reward;
    bool *terminal, *truncated, *life_lost;
    uint8_t *last_frame; /* of the episodes that ended in this step, one after another */
    int64_t *ended;      /* their environments */
    uint64_t *stream;    /* random numbers */
    int64_t *age;        /* steps since the start of the episode */
    STATE                /* arrays of the game, see state_names */
};

struct outcome {
    float reward;
    bool terminal, life_lost;
};

/* Draw an integer from [low, high): `Streams.integers` of base.py. */
static inline int64_t integers(uint64_t *stream, int64_t low, int64_t high)
{
    uint64_t bits = *stream += UINT64_C(0x9E3779B97F4A7C15);
    bits = (bits ^ (bits >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    bits = (bits ^ (bits >> 27)) * UINT64_C(0x94D049BB133111EB);
    bits ^= bits >> 31;
    return low + (int64_t)(((bits >> 32) * (uint64_t)(high - low)) >> 32);
}

static inline int64_t clip(int64_t value, int64_t low, int64_t high)
{
    return value < low ? low : value > high ? high : value;
}

/* Reflect a position outside of [0, high] back inside and negate its velocity: `bounce` of base.py. */
static inline int64_t bounce(int64_t position, int64_t *velocity, int64_t high)
{
    int64_t phase;
    if (position >= 0 && position <= high)
        return position;
    *velocity = -*velocity;
    phase = position % (2 * high);
    if (phase < 0)
        phase += 2 * high;
    return phase > high ? 2 * high - phase : phase;
}

static inline void fill(uint8_t *pixel, uint8_t value, int length)
{
    uint64_t eight = value * UINT64_C(0x0101010101010101);
    int at;
    if (length >= 8) {
        for (at = 0; at + 8 < length; at += 8)
            memcpy(pixel + at, &eight, 8);
        memcpy(pixel + length - 8, &eight, 8);
    } else if (length >= 4) {
        memcpy(pixel, &eight, 4);
        memcpy(pixel + length - 4, &eight, 4);
    } else {
        for (at = 0; at < length; at++)
            pixel[at] = value;
    }
}

/* Fill a rectangle within the frame. */
static inline void fill_box(
    const struct game *g, uint8_t *frame, int64_t top, int64_t left, int height, int width, int color)
{
    for (int64_t channel = 0; channel < g->channels; channel++) {
        uint8_t *corner = frame + (channel * SIZE + top) * SIZE + left;
        for (int row = 0; row < height; row++)
            fill(corner + row * SIZE, g->colors[color * g->channels + channel], width);
    }
}

#define FILL_SPAN(row, column, length) fill(corner + (row) * SIZE + (column), value, length);

/* Draw a sprite with its upper left corner at (top, left), which must lie within the frame. */
#define STAMP(SHAPE, top, left, color) \
    for (int64_t channel = 0; channel < g->channels; channel++) { \
        uint8_t *corner = frame + (channel * SIZE + (top)) * SIZE + (left); \
        const uint8_t value = g->colors[(color) * g->channels + channel]; \
        SHAPE(FILL_SPAN) \
    }

/* Position at which a sprite has been drawn in a frame. */
struct mark {
    bool there;
    uint8_t row, column;
};

/* Draw a sprite and record where. */
#define PUT(SHAPE, top, left, color, mark) \
    do { \
        const int64_t put_top = (top), put_left = (left); \
        (mark).there = put_top >= 0 && put_left >= 0 && put_top <= SIZE - SHAPE##_HEIGHT && \
                       put_left <= SIZE - SHAPE##_WIDTH; \
        if ((mark).there) { \
            (mark).row = (uint8_t)put_top; \
            (mark).column = (uint8_t)put_left; \
            STAMP(SHAPE, put_top, put_left, color) \
        } \
    } while (0)

/* Erase a sprite where it has been drawn. */
#define CLEAR(SHAPE, mark) \
    if ((mark).there) { \
        STAMP(SHAPE, (mark).row, (mark).column, BACKGROUND) \
    }
