/* Shooter, as in shooter.py. */

#include "arcade.h"

struct drawn {
    struct mark rock[SLOTS], ship, shot;
    uint8_t lives;
};

/* Put a new rock at the top, at a random column. */
static inline void spawn_rock(const struct game *g, int64_t i, int64_t slot)
{
    g->rock_row[i * SLOTS + slot] = 0;
    g->rock_column[i * SLOTS + slot] = integers(&g->stream[i], 0, SIZE - ROCK + 1);
    g->rock_there[i * SLOTS + slot] = true;
}

static inline void start(const struct game *g, int64_t i)
{
    memset(g->rock_there + i * SLOTS, false, SLOTS);
    g->ship[i] = (SIZE - SHIP_WIDTH) / 2;
    g->shot_there[i] = false;
    g->lives[i] = LIVES;
    spawn_rock(g, i, 0);
}

static inline struct outcome advance(const struct game *g, int64_t i, int64_t action)
{
    int64_t *rock_row = g->rock_row + i * SLOTS, *rock_column = g->rock_column + i * SLOTS, number;
    bool *rock_there = g->rock_there + i * SLOTS, hit, lost = false, terminal;
    int lowest = -1;
    g->ship[i] = clip(g->ship[i] + STEPS[action], 0, SIZE - SHIP_WIDTH);

    /* The shot moves before a new one may be fired. A new shot is first drawn at the muzzle. */
    if (g->shot_there[i])
        g->shot_row[i] -= SHOT_SPEED;
    for (int slot = 0; slot < SLOTS; slot++) {
        int64_t offset;
        if (!rock_there[slot])
            continue;
        rock_row[slot] += FALL;
        offset = rock_column[slot] + ROCK / 2 - (g->shot_column[i] + SHOT_WIDTH / 2);
        /* If the shot touches two rocks, it destroys the lower one. */
        if (g->shot_there[i] && offset > -REACH && offset < REACH && g->shot_row[i] < rock_row[slot] + ROCK &&
            rock_row[slot] < g->shot_row[i] + SHOT_HEIGHT && (lowest < 0 || rock_row[slot] > rock_row[lowest]))
            lowest = slot;
    }
    hit = lowest >= 0;
    if (hit)
        rock_there[lowest] = false;
    if (hit || g->shot_row[i] < 0)
        g->shot_there[i] = false;
    if (action == FIRE && !g->shot_there[i]) {
        g->shot_row[i] = MUZZLE_ROW;
        g->shot_column[i] = g->ship[i] + (SHIP_WIDTH - SHOT_WIDTH) / 2;
        g->shot_there[i] = true;
    }

    for (int slot = 0; slot < SLOTS; slot++)
        lost |= rock_there[slot] && rock_row[slot] >= GROUND_ROW;
    g->lives[i] -= lost;
    terminal = g->lives[i] == 0;
    if (!terminal) /* otherwise the last rock stays in the last observation */
        for (int slot = 0; slot < SLOTS; slot++)
            rock_there[slot] = rock_there[slot] && rock_row[slot] < GROUND_ROW;

    number = (g->age[i] + 1) / ROCK_EVERY;
    if (number > 0 && number * ROCK_EVERY == g->age[i] + 1 && !terminal)
        spawn_rock(g, i, number % SLOTS);
    return (struct outcome){(float)(hit - lost), terminal, lost && !terminal};
}

static inline void draw(const struct game *g, int64_t i, uint8_t *frame, struct drawn *drawn)
{
    const uint8_t lives = (uint8_t)clip(g->lives[i], 0, LIVES);
    bool lives_outdated = lives != drawn->lives || (drawn->shot.there && drawn->shot.row < LIFE_ROW + LIFE_SHAPE_HEIGHT);
    CLEAR(SHIP_SHAPE, drawn->ship)
    for (int slot = 0; slot < SLOTS; slot++) {
        CLEAR(ROCK_SHAPE, drawn->rock[slot])
        lives_outdated |= drawn->rock[slot].there && drawn->rock[slot].row < LIFE_ROW + LIFE_SHAPE_HEIGHT;
    }
    CLEAR(SHOT_SHAPE, drawn->shot)
    if (lives_outdated)
        for (int life = 0; life < LIVES; life++)
            STAMP(LIFE_SHAPE, LIFE_ROW, LIFE_COLUMNS[life], lives > life ? COLOR_LIFE : BACKGROUND)
    drawn->lives = lives;
    PUT(SHIP_SHAPE, SHIP_ROW, g->ship[i], COLOR_SHIP, drawn->ship);
    for (int slot = 0; slot < SLOTS; slot++) {
        drawn->rock[slot].there = false;
        if (g->rock_there[i * SLOTS + slot])
            PUT(ROCK_SHAPE, g->rock_row[i * SLOTS + slot], g->rock_column[i * SLOTS + slot], COLOR_ROCK,
                drawn->rock[slot]);
    }
    drawn->shot.there = false;
    if (g->shot_there[i])
        PUT(SHOT_SHAPE, g->shot_row[i], g->shot_column[i], COLOR_SHOT, drawn->shot);
}

#include "step.h"
