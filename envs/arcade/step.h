/* Entry points of a compiled game. They take the arrays of the game, the frames (N, F, SIZE, SIZE) to draw in, and a
   record of what these frames show already: all zeros for black frames. Only the differences are drawn. */

const int64_t drawn_bytes = sizeof(struct drawn);

/* Start an episode in every environment. */
void reset(const struct game *game, uint8_t *frames, struct drawn *drawn)
{
    const struct game g = *game;
    const int64_t frame_bytes = g.channels * SIZE * SIZE;
    for (int64_t i = 0; i < g.num_envs; i++) {
        start(&g, i);
        g.age[i] = 0;
        draw(&g, i, frames + i * frame_bytes, &drawn[i]);
    }
}

/* Step all environments, and start new episodes in those that ended. Returns their number. */
int64_t step(const struct game *game, uint8_t *frames, struct drawn *drawn)
{
    const struct game g = *game; /* a copy, which stores of pixels cannot modify */
    const int64_t frame_bytes = g.channels * SIZE * SIZE;
    int64_t ended = 0;
    for (int64_t i = 0; i < g.num_envs; i++) {
        uint8_t *frame = frames + i * frame_bytes;
        const struct outcome outcome = advance(&g, i, g.action[i]);
        const bool truncated = ++g.age[i] >= TIME_LIMIT_STEPS && !outcome.terminal;
        g.reward[i] = outcome.reward;
        g.terminal[i] = outcome.terminal;
        g.truncated[i] = truncated;
        g.life_lost[i] = outcome.life_lost;
        draw(&g, i, frame, &drawn[i]);
        if (outcome.terminal || truncated) {
            memcpy(g.last_frame + ended * frame_bytes, frame, (size_t)frame_bytes);
            g.ended[ended++] = i;
            start(&g, i);
            g.age[i] = 0;
            draw(&g, i, frame, &drawn[i]);
        }
    }
    return ended;
}
