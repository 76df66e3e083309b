/* Snake, as in snake.py. */

#include "arcade.h"

#define BOARD (CELLS * CELLS)

struct drawn {
    uint8_t color[BOARD]; /* color index of each cell */
};

/* Put food on a free cell, chosen uniformly at random. */
static inline void feed(const struct game *g, int64_t i)
{
    const int64_t *body = g->body + i * BOARD;
    int64_t num_free = 0, choice, cell = 0;
    for (int c = 0; c < BOARD; c++)
        num_free += body[c] == 0;
    choice = integers(&g->stream[i], 0, num_free);
    for (int c = 0; c < BOARD; c++)
        if (body[c] == 0 && choice-- == 0)
            cell = c;
    g->food[2 * i] = cell / CELLS;
    g->food[2 * i + 1] = cell % CELLS;
}

static inline void start(const struct game *g, int64_t i)
{
    int64_t *body = g->body + i * BOARD;
    const int64_t row = integers(&g->stream[i], 0, CELLS);
    memset(body, 0, BOARD * sizeof *body);
    for (int column = 0; column < START_LENGTH; column++)
        body[row * CELLS + column] = column + 1;
    g->head[2 * i] = row;
    g->head[2 * i + 1] = START_LENGTH - 1;
    g->heading[i] = RIGHT;
    g->length[i] = START_LENGTH;
    feed(g, i);
}

static inline bool on_board(int64_t row, int64_t column)
{
    return row >= 0 && row < CELLS && column >= 0 && column < CELLS;
}

static inline struct outcome advance(const struct game *g, int64_t i, int64_t action)
{
    int64_t *body = g->body + i * BOARD, row, column;
    bool eaten, dead;
    if ((action + 2) % 4 != g->heading[i])
        g->heading[i] = action;
    row = g->head[2 * i] + MOVES[2 * (g->heading[i] & 3)];
    column = g->head[2 * i + 1] + MOVES[2 * (g->heading[i] & 3) + 1];
    dead = !on_board(row, column);
    eaten = !dead && row == g->food[2 * i] && column == g->food[2 * i + 1];
    g->length[i] += eaten;
    /* The tail moves first, so the head may enter the cell that the tail leaves. */
    if (!eaten)
        for (int c = 0; c < BOARD; c++)
            body[c] -= body[c] > 0;
    dead = dead || body[row * CELLS + column] > 0;
    /* The head of a dead snake stays in its cell in the last observation. */
    if (!dead) {
        g->head[2 * i] = row;
        g->head[2 * i + 1] = column;
        body[row * CELLS + column] = g->length[i];
    }
    if (eaten)
        feed(g, i);
    return (struct outcome){(float)(eaten - dead), dead || g->length[i] >= FULL_LENGTH, false};
}

static inline void draw(const struct game *g, int64_t i, uint8_t *frame, struct drawn *drawn)
{
    const int64_t *body = g->body + i * BOARD, *food = g->food + 2 * i, *head = g->head + 2 * i;
    uint8_t color[BOARD];
    for (int c = 0; c < BOARD; c++)
        color[c] = body[c] > 0 ? COLOR_BODY : BACKGROUND;
    if (on_board(food[0], food[1]))
        color[food[0] * CELLS + food[1]] = COLOR_FOOD;
    if (on_board(head[0], head[1]))
        color[head[0] * CELLS + head[1]] = COLOR_HEAD;
    for (int c = 0; c < BOARD; c++)
        if (color[c] != drawn->color[c])
            fill_box(g, frame, c / CELLS * CELL, c % CELLS * CELL, CELL - 1, CELL - 1, color[c]);
    memcpy(drawn->color, color, BOARD);
}

#include "step.h"
