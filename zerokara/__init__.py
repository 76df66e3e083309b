"""zerokara: one deep CNN that learns to see, generate and play from raw pixels.

This is the import name of everything in the project: `zerokara.core`, `zerokara.envs`, `zerokara.agents`,
`zerokara.generative` and `zerokara.vision`.

In an installed wheel these packages lie inside this folder. In a checkout they lie beside it, at the top of the
repository, so the repository is added to the package's search path.
"""

from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
if (_ROOT / "pyproject.toml").is_file() and (_ROOT / "agents" / "__init__.py").is_file():
    __path__.append(str(_ROOT))
