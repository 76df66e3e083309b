/* Catch, as in catch.py. */

#include "arcade.h"

struct drawn {
    struct mark ball, paddle;
};

static inline void drop(const struct game *g, int64_t i)
{
    g->ball_row[i] = 0;
    g->ball_column[i] = integers(&g->stream[i], 0, SIZE - BALL + 1);
    g->drift[i] = integers(&g->stream[i], -2, 3);
}

static inline void start(const struct game *g, int64_t i)
{
    g->paddle[i] = (SIZE - PADDLE_WIDTH) / 2;
    g->dropped[i] = 0;
    drop(g, i);
}

static inline struct outcome advance(const struct game *g, int64_t i, int64_t action)
{
    int64_t miss;
    bool landed, caught, terminal;
    g->paddle[i] = clip(g->paddle[i] + (action - STAY) * PADDLE_SPEED, 0, SIZE - PADDLE_WIDTH);
    g->ball_row[i] += FALL;
    g->ball_column[i] = bounce(g->ball_column[i] + g->drift[i], &g->drift[i], SIZE - BALL);
    miss = g->ball_column[i] + BALL / 2 - (g->paddle[i] + PADDLE_WIDTH / 2);
    landed = g->ball_row[i] >= LANDING_ROW;
    caught = landed && miss > -((PADDLE_WIDTH + BALL) / 2) && miss < (PADDLE_WIDTH + BALL) / 2;
    g->dropped[i] += landed;
    terminal = g->dropped[i] >= BALLS;
    if (landed && !terminal)
        drop(g, i);
    return (struct outcome){(float)(2 * caught - landed), terminal, false};
}

static inline void draw(const struct game *g, int64_t i, uint8_t *frame, struct drawn *drawn)
{
    CLEAR(PADDLE_SHAPE, drawn->paddle)
    CLEAR(BALL_SHAPE, drawn->ball)
    PUT(PADDLE_SHAPE, PADDLE_ROW, g->paddle[i], COLOR_PADDLE, drawn->paddle);
    PUT(BALL_SHAPE, g->ball_row[i], g->ball_column[i], COLOR_BALL, drawn->ball);
}

#include "step.h"
