"""Configs of the agents: fields, presets and evaluation protocols."""
