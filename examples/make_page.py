"""Make a folder with a page on which trained networks run in the browser: generators with sliders, an agent on frames.

python examples/make_page.py                                # the folder page/, networks that ship with zerokara
python examples/make_page.py page runs/my-agent runs/my-gan # an agent, then generators of your own
npm install --prefix page onnxruntime-web                   # what runs the networks, from the npm registry
python -m http.server --directory page                      # a browser loads no networks from plain files

Then open generator.html at the address that the last command prints. ONNX needs three further packages:
pip install onnx onnxscript onnxruntime
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np

import zerokara
from zerokara.agents import export as agent_export
from zerokara.generative import export as generator_export

STEPS = 300


def record(agent: zerokara.Agent, steps: int) -> np.ndarray:
    """Let the agent play, and return the frames (T, H, W) uint8: observation i consists of the frames i, i + 1, ..."""
    with contextlib.closing(agent.make_env(1)) as env:
        if env.frame_channels != 1 or env.obs_dtype != np.uint8:
            raise zerokara.UserError(
                f"{agent.name} sees no grayscale frames, which the page shows: name another agent."
            )
        obs = env.reset(seed=0)
        frames = list(obs[0])
        for _ in range(steps - 1):
            step = env.step(np.atleast_1d(agent.act(obs)))
            if step.terminal[0] or step.truncated[0]:  # the next observation begins another episode
                break
            obs = step.obs
            frames.append(obs[0, -1])
    return np.stack(frames)


def main() -> None:
    """Write the page, the networks as ONNX files, the recorded frames and the list of networks."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "page")
    agent_name, *generators = sys.argv[2:] or ["pong", "digits", "conditional-digits"]
    agent = zerokara.load_agent(agent_name)
    frames = record(agent, STEPS)
    for name in generators:
        generator_export.main([name, "--out", str(folder)])
    agent_export.main([agent_name, "--out", str(folder / f"{agent.name}.onnx")])
    np.save(folder / f"{agent.name}.npy", frames)
    names = [f"{zerokara.load_generator(name).name}.onnx" for name in generators]
    (folder / "models.json").write_text(json.dumps([*names, f"{agent.name}.onnx"]))
    shutil.copy(Path(__file__).with_name("generator.html"), folder)
    print(f"{folder}: generator.html, {len(names)} generators, {agent.name} with {len(frames)} frames")


if __name__ == "__main__":
    main()
