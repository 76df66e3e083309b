"""Actors of a distributed DQN run, and how they feed the replay buffer."""
