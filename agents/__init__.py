"""Reinforcement learning: DQN and its extensions, PQN, replay, evaluation and plots."""
