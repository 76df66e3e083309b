"""Reinforcement learning: DQN and its extensions, PQN, streaming Q(lambda), replay, evaluation and plots."""
