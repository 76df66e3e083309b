"""Playing: the DQN family, its replay, evaluation and films."""
