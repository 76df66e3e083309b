"""Let a trained agent act in a loop of Gymnasium: it resizes, converts and stacks the frames itself.

python examples/play_in_gymnasium.py                 # a trained agent that ships with zerokara
python examples/play_in_gymnasium.py runs/my-env
"""

from __future__ import annotations

import sys

import gymnasium

import zerokara
from zerokara.envs.lookup import find


def main() -> None:
    """Play one episode."""
    agent = zerokara.load_agent(sys.argv[1] if len(sys.argv) > 1 else "catch")
    _, target = find(agent.config.env)
    env = target() if callable(target) else gymnasium.make(target)  # or the environment that you have
    frame, _ = env.reset(seed=0)
    agent.reset()
    score, ended = 0.0, False
    while not ended:
        frame, reward, terminated, truncated, _ = env.step(agent.act(frame, epsilon=0.01))
        score += float(reward)
        ended = terminated or truncated
    print(f"score {score:g}, Q-values at the end: {agent.q_values().round(2).tolist()}")


if __name__ == "__main__":
    main()
