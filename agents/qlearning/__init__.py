"""Q-learning: networks, heads, losses, schedules, exploration and replay buffers."""
