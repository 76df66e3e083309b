/* Breaker, as in breaker.py. */

#include "arcade.h"

#define BRICKS (BRICK_ROWS * BRICK_COLUMNS)

struct drawn {
    struct mark ball, paddle;
    uint8_t lives;
    uint64_t bricks; /* one bit for each */
};

static inline void serve(const struct game *g, int64_t i)
{
    g->paddle[i] = (SIZE - PADDLE_WIDTH) / 2;
    g->ball_row[i] = SERVE_ROW;
    g->ball_column[i] = integers(&g->stream[i], 20, SIZE - BALL - 20 + 1);
    g->rise[i] = BALL_SPEED;
    g->drift[i] = SERVE_DRIFTS[integers(&g->stream[i], 0, SERVE_DRIFTS_LENGTH)];
}

static inline void start(const struct game *g, int64_t i)
{
    memset(g->bricks + i * BRICKS, true, BRICKS);
    g->lives[i] = LIVES;
    serve(g, i);
}

/* Bits of the bricks that are there. */
static inline uint64_t brick_bits(const struct game *g, int64_t i)
{
    uint64_t bits = 0;
    for (int b = 0; b < BRICKS; b++)
        bits |= (uint64_t)g->bricks[i * BRICKS + b] << b;
    return bits;
}

static inline struct outcome advance(const struct game *g, int64_t i, int64_t action)
{
    int64_t row, lead, contact;
    bool broken = false, down, hit, lost, terminal, life_lost;
    g->paddle[i] = clip(g->paddle[i] + (action - STAY) * PADDLE_SPEED, 0, SIZE - PADDLE_WIDTH);
    row = bounce(g->ball_row[i] + g->rise[i], &g->rise[i], SIZE);
    g->ball_column[i] = bounce(g->ball_column[i] + g->drift[i], &g->drift[i], SIZE - BALL);

    /* The middle of the ball's leading edge breaks a brick. The ball then keeps its row and reverses. */
    lead = g->rise[i] < 0 ? row : row + BALL - 1;
    if (lead >= WALL_TOP && lead < WALL_BOTTOM) {
        const int64_t column = (g->ball_column[i] + BALL / 2) / BRICK_WIDTH;
        bool *brick = &g->bricks[i * BRICKS + (lead - WALL_TOP) / BRICK_HEIGHT * BRICK_COLUMNS + column];
        broken = *brick;
        *brick = false;
    }
    if (broken)
        g->rise[i] = -g->rise[i];
    else
        g->ball_row[i] = row;

    down = g->ball_row[i] >= REBOUND_ROW;
    contact = g->ball_column[i] - g->paddle[i] + BALL - 1;
    hit = down && contact >= 0 && contact < CONTACTS;
    if (down)
        g->ball_row[i] = REBOUND_ROW;
    if (hit) {
        g->rise[i] = -BALL_SPEED;
        g->drift[i] = REBOUND_DRIFTS[contact * REBOUND_DRIFTS_LENGTH / CONTACTS];
    }

    lost = down && !hit;
    g->lives[i] -= lost;
    terminal = g->lives[i] == 0 || !brick_bits(g, i);
    life_lost = lost && !terminal;
    if (life_lost)
        serve(g, i);
    return (struct outcome){(float)broken, terminal, life_lost};
}

/* Bits of the bricks that a ball at this position overlaps. */
static inline uint64_t overlapped(const struct mark *ball)
{
    uint64_t bits = 0;
    if (ball->row + BALL <= WALL_TOP || ball->row >= WALL_BOTTOM)
        return 0;
    for (int row = 0; row < BRICK_ROWS; row++) {
        const int top = WALL_TOP + row * BRICK_HEIGHT;
        if (ball->row + BALL <= top || ball->row >= top + BRICK_HEIGHT)
            continue;
        for (int column = ball->column / BRICK_WIDTH; column <= (ball->column + BALL - 1) / BRICK_WIDTH; column++)
            bits |= UINT64_C(1) << (row * BRICK_COLUMNS + column);
    }
    return bits;
}

static inline void draw(const struct game *g, int64_t i, uint8_t *frame, struct drawn *drawn)
{
    const uint8_t lives = (uint8_t)clip(g->lives[i], 0, LIVES);
    const uint64_t bricks = brick_bits(g, i);
    uint64_t outdated = bricks ^ drawn->bricks;
    bool lives_outdated = lives != drawn->lives;
    CLEAR(PADDLE_SHAPE, drawn->paddle)
    if (drawn->ball.there) {
        STAMP(BALL_SHAPE, drawn->ball.row, drawn->ball.column, BACKGROUND)
        outdated |= bricks & overlapped(&drawn->ball);
        lives_outdated |= drawn->ball.row < LIFE_ROW + LIFE_SHAPE_HEIGHT;
    }
    for (; outdated; outdated &= outdated - 1) {
        const int b = __builtin_ctzll(outdated), row = b / BRICK_COLUMNS, column = b % BRICK_COLUMNS;
        /* The first colors belong to the rows of the wall. */
        const int color = bricks >> b & 1 ? 1 + row : BACKGROUND;
        fill_box(
            g, frame, WALL_TOP + row * BRICK_HEIGHT, column * BRICK_WIDTH, BRICK_HEIGHT - 1, BRICK_WIDTH - 1, color);
    }
    if (lives_outdated)
        for (int life = 0; life < LIVES; life++)
            STAMP(LIFE_SHAPE, LIFE_ROW, LIFE_COLUMNS[life], lives > life ? COLOR_LIFE : BACKGROUND)
    drawn->bricks = bricks;
    drawn->lives = lives;
    PUT(PADDLE_SHAPE, PADDLE_ROW, g->paddle[i], COLOR_PADDLE, drawn->paddle);
    PUT(BALL_SHAPE, g->ball_row[i], g->ball_column[i], COLOR_BALL, drawn->ball);
}

#include "step.h"
