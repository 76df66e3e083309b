"""Captions over splits: whether a captioner is better than its baselines, on average and with an interval.

    for split in 0 1 2 3 4; do python -m vision.caption --split $split; done
    python -m vision.caption_splits runs/caption-flickr8k-1000-resnet18-fast-*-1

Each run has its own test photographs. On the same photographs the captioner and the baselines are compared, so the
differences are paired: their mean over splits, its 95% interval by Student's t, and the p-value of no difference.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich import box
from rich.console import Console
from rich.table import Table

from zerokara.core.command_line import parse
from zerokara.core.config import Positional, UserError, error_summary, run_main
from zerokara.core.programs import program_command
from zerokara.core.run import Run
from zerokara.vision.captioning.scoring import Paired, paired

KIND = "caption"
METRICS = ("bleu1", "bleu2", "bleu3", "bleu4")
SAME = {"name", "split", "resume", "quiet", "device", "threads", "precision", "data_dir"}  # may differ between splits


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which runs."""

    runs: Annotated[tuple[str, ...], Positional("runs/<name>")] = ()
    """Finished runs of vision.caption, each of another split."""
    json: bool = False
    """Print JSON instead of tables."""


def results(folders: Sequence[Path]) -> dict[int, dict[str, dict[str, float]]]:
    """By split, for nic and each baseline, its scores.

    Raises:
        UserError: a run that is not finished, of another kind, or with other settings than the first; two of one split.
    """
    found: dict[int, dict[str, dict[str, float]]] = {}
    first: dict[str, Any] = {}
    for folder in folders:
        config = Run.read_config(folder, KIND)["config"]
        settings = {name: value for name, value in config.items() if name not in SAME}
        first = first or settings
        if differing := [name for name, value in settings.items() if first.get(name) != value]:
            raise UserError(
                f"{folder} has another {' and '.join(differing)} than {folders[0]}: only runs that differ in their "
                f"--split alone can be compared."
            )
        try:
            content = json.loads((folder / "result.json").read_text(encoding="utf-8"))
            scores = {name: {key: float(v) for key, v in row.items()} for name, row in content["figures"].items()}
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise UserError(
                f"{folder} has no result that can be read ({error_summary(error)}): let it end with "
                f"{program_command('vision.caption')} --name {folder.name} --resume."
            ) from None
        if config["split"] in found:
            raise UserError(f"Two of the runs are of split {config['split']}: name one of each.")
        found[config["split"]] = scores
    return found


def compared(found: dict[int, dict[str, dict[str, float]]]) -> dict[str, dict[str, Paired]]:
    """For each baseline and metric how much better the captioner is."""
    runs = list(found.values())
    baselines = [name for name in runs[0] if name != "nic"]
    return {
        name: {key: paired([one["nic"][key] for one in runs], [one[name][key] for one in runs]) for key in METRICS}
        for name in baselines
    }


def tables(found: dict[int, dict[str, dict[str, float]]], differences: dict[str, dict[str, Paired]]) -> list[Table]:
    """BLEU-4 of every split, and the differences."""
    scores = Table(box=box.SIMPLE_HEAD, title="BLEU-4")
    names = list(next(iter(found.values())))
    for column in ("split", *names):
        scores.add_column(column.replace("_", " "), justify="right")
    for split, one in sorted(found.items()):
        scores.add_row(str(split), *(f"{one[name]['bleu4']:.2f}" for name in names))
    means = [sum(one[name]["bleu4"] for one in found.values()) / len(found) for name in names]
    scores.add_row("mean", *(f"{mean:.2f}" for mean in means))
    better = Table(box=box.SIMPLE_HEAD, title=f"nic minus baseline, {len(found)} splits, 95% interval")
    for column in ("baseline", *METRICS, "p of BLEU-4"):
        better.add_column(column.replace("_", " "), justify="left" if column == "baseline" else "right")
    for name, row in differences.items():
        cells = [f"{one.mean:+.2f} [{one.low:+.2f}, {one.high:+.2f}]" for one in row.values()]
        better.add_row(name.replace("_", " "), *cells, f"{row['bleu4'].p:.3g}")
    return [scores, better]


def main(argv: Sequence[str] | None = None) -> None:
    """The program: runs, tables."""
    options = parse(Options, {}, argv, __doc__ or "")
    if len(options.runs) < 2:
        raise UserError(
            f"At least two runs are needed, each of another --split, and {len(options.runs)} were named: "
            f"type {program_command('vision.caption_splits')} runs/caption-*."
        )
    found = results([Path(word).expanduser() for word in options.runs])
    differences = compared(found)
    if options.json:
        plain = {name: {key: dataclasses.asdict(one) for key, one in row.items()} for name, row in differences.items()}
        print(json.dumps({"splits": found, "differences": plain}, indent=2))
        return
    console = Console(width=None if sys.stdout.isatty() else 160)
    for table in tables(found, differences):
        console.print(table)


if __name__ == "__main__":
    run_main(main)
