"""Files that a run is started from: what it needs of them is saved in its folder, where a resumed run reads it.

    style = read_image(resumed_file(config, "style.png") or Path(config.style))  # before the run folder is opened
    save_input(run, "style.png", png_bytes(style))  # afterwards

Without this, a run could not be resumed, or would continue differently, after such a file was moved or replaced. The
weights that a network is initialized with are not needed: they are in its first checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from zerokara.core.config import UserError
from zerokara.core.run_folder import read_config
from zerokara.core.zoo import registry as zoo

if TYPE_CHECKING:
    from zerokara.core.run import Run


def resumed_extra(config: Any) -> dict[str, Any]:
    """Return `extra` in config.json of the run that a config resumes; {} for a new run.

    Args:
        config: has the fields name and resume. Without a name, it is that of no run.

    Raises:
        UserError: as `core.run_folder.read_config`.
    """
    return dict(read_config(Path("runs") / config.name)["extra"]) if config.resume and config.name else {}


def resumed_file(config: Any, name: str) -> Path | None:
    """Return a file in the folder of the run that a config resumes; None for a new run, and if there is no such file.

    Args:
        config: has the fields name and resume.
        name: of the file.
    """
    path = Path("runs") / config.name / name
    return path if config.resume and config.name and path.is_file() else None


def check_origin(config: Any, word: str) -> None:
    """Check that a file still exists which a resumed run needs because an older release saved nothing of it.

    Args:
        config: has the fields name and resume.
        word: run folder, file, or name in the zoo that the run was started from; "" if there is none.

    Raises:
        UserError: it does not exist.
    """
    if config.resume and word and word not in zoo.files() and not Path(word).expanduser().exists():
        raise UserError(
            f"There is no {word}, which runs/{config.name} was started from, and the older release that started it "
            f"saved no copy in the run folder: restore it to resume the run."
        )


def save_input(run: Run, name: str, content: bytes) -> None:
    """Write a file into the run folder, if it is not there yet. In other processes than the main one, do nothing.

    Raises:
        UserError: it cannot be written.
    """
    from zerokara.core.checkpoint import write_content  # imports PyTorch

    path = run.folder / name
    if run.world.is_main and not path.exists():
        write_content(path, content)
