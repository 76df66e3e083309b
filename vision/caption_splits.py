"""Compare captioning runs with their baselines over several data splits.

    for split in 0 1 2 3 4; do python -m vision.caption --split-seed $split; done
    python -m vision.caption_splits runs/caption-flickr8k-1000-resnet18-fast-*-1

Each run has its own test images. The captioner and its baselines are evaluated on the same images, so their differences
are paired. The tables have the mean difference over splits, its 95% interval by Student's t, and the p-value of the
hypothesis that there is no difference.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from zerokara.core.command_line import check_command_line, parse
from zerokara.core.config import Positional, UserError, error_summary, flag, from_dict, run_main, to_dict
from zerokara.core.programs import program_command
from zerokara.vision.captioning.config import Config

KIND = "caption"
METRICS = ("bleu1", "bleu2", "bleu3", "bleu4")
MAY_DIFFER = {"name", "split_seed", "resume", "quiet", "track", "device", "threads", "precision", "data_dir"}
Results = dict[int, dict[str, dict[str, float]]]  # split seed -> nic or baseline -> metric -> score


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of vision.caption_splits."""

    runs: Annotated[tuple[str, ...], Positional("runs/<name>")] = ()
    """Finished runs of vision.caption, each with a different --split-seed."""
    json: bool = False
    """Print JSON instead of tables."""


if __name__ == "__main__":
    check_command_line(partial(parse, Options, {}), __doc__)  # before the imports below, which take seconds

from rich import box
from rich.table import Table

from zerokara.core.report import table_console
from zerokara.core.run import Run
from zerokara.vision.captioning.scoring import PairedDifference, paired_difference

Differences = dict[str, dict[str, PairedDifference]]  # baseline -> metric -> difference


def read_results(folders: Sequence[Path]) -> Results:
    """Read the scores of runs.

    Raises:
        UserError: a run is not finished, is of another kind, or has other settings than the first one; two runs have
            the same split, or the same test images.
    """
    results: Results = {}
    first: dict[str, Any] = {}
    tested: dict[tuple[str, ...], Path] = {}  # names of test images -> run
    for folder in folders:
        # Runs of older versions have older names of settings, which from_dict translates.
        config = to_dict(from_dict(Config, Run.read_config(folder, KIND)["config"], f"{folder}/config.json"))
        settings = {name: value for name, value in config.items() if name not in MAY_DIFFER}
        first = first or settings
        if differing := [flag(name) for name, value in settings.items() if first.get(name) != value]:
            raise UserError(
                f"{folder} has another {' and '.join(differing)} than {folders[0]}: only runs that differ in nothing "
                f"but their --split-seed can be compared."
            )
        try:
            content = json.loads((folder / "result.json").read_text(encoding="utf-8"))
            scores = {name: {key: float(v) for key, v in row.items()} for name, row in content["figures"].items()}
            images = tuple(sorted(map(str, content["test"])))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{folder} has no readable result ({error_summary(error)}): finish the run with "
                f"{program_command('vision.caption')} --name {folder.name} --resume."
            ) from None
        if config["split_seed"] in results:
            raise UserError(f"Two of the runs have --split-seed {config['split_seed']}: name one run of each split.")
        # With named splits, the test images do not depend on --split-seed.
        if (other := tested.setdefault(images, folder)) != folder:
            raise UserError(
                f"{folder} and {other} have the same test images, as runs with named splits do, so their differences "
                f"are not independent: train with --no-named-splits and a --split-seed for each run."
            )
        results[config["split_seed"]] = scores
    return results


def compute_differences(results: Results) -> Differences:
    """Compute the difference between the captioner and each baseline, for every metric."""
    runs = list(results.values())
    baselines = [name for name in runs[0] if name != "nic"]
    return {
        name: {
            key: paired_difference([scores["nic"][key] for scores in runs], [scores[name][key] for scores in runs])
            for key in METRICS
        }
        for name in baselines
    }


def make_tables(results: Results, differences: Differences) -> list[Table]:
    """Return a table with BLEU-4 of every split, and a table of the differences."""
    bleu4 = Table(box=box.SIMPLE_HEAD, title="BLEU-4")
    names = list(next(iter(results.values())))
    for column in ("split", *names):
        bleu4.add_column(column.replace("_", " "), justify="right")
    for split, scores in sorted(results.items()):
        bleu4.add_row(str(split), *(f"{scores[name]['bleu4']:.2f}" for name in names))
    means = [sum(scores[name]["bleu4"] for scores in results.values()) / len(results) for name in names]
    bleu4.add_row("mean", *(f"{mean:.2f}" for mean in means))
    against = Table(box=box.SIMPLE_HEAD, title=f"nic minus baseline, {len(results)} splits, 95% interval")
    for column in ("baseline", *METRICS, "p of BLEU-4"):
        against.add_column(column.replace("_", " "), justify="left" if column == "baseline" else "right")
    for name, row in differences.items():
        cells = [f"{one.mean:+.2f} [{one.low:+.2f}, {one.high:+.2f}]" for one in row.values()]
        against.add_row(name.replace("_", " "), *cells, f"{row['bleu4'].p:.3g}")
    return [bleu4, against]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program: read runs, print tables."""
    options = parse(Options, {}, argv, __doc__ or "")
    if len(options.runs) < 2:
        raise UserError(
            f"At least two runs with different --split-seed are needed, and {len(options.runs)} were named: "
            f"type {program_command('vision.caption_splits')} runs/caption-*."
        )
    results = read_results([Path(folder).expanduser() for folder in options.runs])
    differences = compute_differences(results)
    if options.json:
        plain = {name: {key: dataclasses.asdict(one) for key, one in row.items()} for name, row in differences.items()}
        print(json.dumps({"splits": results, "differences": plain}, indent=2))
        return
    console = table_console()
    for table in make_tables(results, differences):
        console.print(table)


if __name__ == "__main__":
    run_main(main)
