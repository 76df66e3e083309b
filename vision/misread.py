"""Misread: which images a trained classifier gets wrong, and what it takes them for.

    python -m vision.misread runs/classify-mnist-deep_cnn-fast-1
    python -m vision.misread runs/classify-mnist-deep_cnn-fast-1 --split test

Prints a table of the mistakes, the most confident ones first, and precision, recall and F1 of each class as
scikit-learn counts them. Leaves misread-<split>.png, confusion-<split>.png and misread-<split>.json in the run's
folder. Without --split the validation images are looked at: who looks at the test set to choose has no test set left.

Shapes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table

from zerokara.core.config import Positional, Range, parse, run_main
from zerokara.core.programs import program_command
from zerokara.core.report import output_folder, write_figure, write_json
from zerokara.vision.classification.pictures import draw_confusion, draw_misread, misread_indices
from zerokara.vision.classification.scoring import Scores
from zerokara.vision.studies.finished_run import load_trained, single_run_folder

MOST_CLASSES = 100  # of a confusion matrix that can be read


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which mistakes to show, and where."""

    runs: Annotated[tuple[str, ...], Positional("runs/<name>")] = ()
    """Folder of the run."""
    split: Literal["validation", "test"] = "validation"
    """Images to look at: those held out of the training set, or the test set."""
    most: Annotated[int, Range(1, 300)] = 30
    """Mistakes in the table and the picture, the most confident ones; the JSON file has them all."""
    out: str = ""
    """Folder for the files; empty: the run's."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: as many as there are cores."""


def mistakes(scores: Scores, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Every misread image as plain values, the most confident mistakes first."""
    rows = []
    for place in misread_indices(scores, max_images=len(scores.label_N)):
        label, guess = int(scores.label_N[place]), int(scores.prediction_N[place])
        rows.append(
            {
                "image": place,
                "label": classes[label],
                "guess": classes[guess],
                "confidence": float(scores.probability_NK[place, guess]),
                "probability_of_label": float(scores.probability_NK[place, label]),
            }
        )
    return rows


def report(scores: Scores, classes: Sequence[str]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and number of images by class, and their plain and weighted means ("macro avg", ...)."""
    from sklearn.metrics import classification_report

    # By number, not by name: two classes may share a name with a mean.
    found = classification_report(
        scores.label_N.numpy(),
        scores.prediction_N.numpy(),
        labels=range(len(classes)),
        output_dict=True,
        zero_division=0.0,
    )
    named = {str(number): name for number, name in enumerate(classes)}
    return {
        named.get(key, key): {name: float(value) for name, value in row.items()}
        for key, row in found.items()
        if isinstance(row, dict)
    }


def mistakes_table(rows: Sequence[dict[str, Any]], most: int, number: int) -> Table:
    """A row for each of the first mistakes."""
    shown = rows[:most]
    title = f"{len(rows)} of {number:,} misread" + (
        f", the {len(shown)} most confident" if len(shown) < len(rows) else ""
    )
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for column in ("image", "label", "guess", "confidence", "of the label"):
        table.add_column(column, justify="right", overflow="fold")
    for row in shown:
        chances = f"{row['confidence']:.1%}", f"{row['probability_of_label']:.1%}"
        table.add_row(str(row["image"]), row["label"], row["guess"], *chances)
    return table


def report_table(rows: dict[str, dict[str, float]]) -> Table:
    """A row for each class and each mean."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("class", overflow="fold")
    for column in ("precision", "recall", "F1", "images"):
        table.add_column(column, justify="right")
    for name, row in rows.items():
        ratios = (f"{row[key]:.4f}" for key in ("precision", "recall", "f1-score"))
        table.add_row(name, *ratios, f"{row['support']:,.0f}")
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Score, print, draw, and say where the files are."""
    options = parse(Options, {}, argv, __doc__ or "")
    trained = load_trained(
        single_run_folder(options.runs, program_command("vision.misread")), device=options.device, threads=options.threads
    )
    folder = output_folder(options.out, trained.folder)
    images = trained.images(options.split)
    scores = trained.score(images)
    classes = trained.metadata.classes
    rows, by_class = mistakes(scores, classes), report(scores, classes)
    content = {
        "run": trained.name,
        "split": options.split,
        "images": len(images),
        "misread": len(rows),
        "error": scores.error,
        "views": trained.config.tta_views,
        "classes": by_class,
        "confusion": scores.confusion_KK.tolist(),
        "mistakes": rows,
    }
    written = [write_json(folder / f"misread-{options.split}.json", content)]
    figure = draw_misread(images, scores, classes, options.most)
    if figure is not None:
        written.append(write_figure(folder / f"misread-{options.split}.png", figure))
    if len(classes) <= MOST_CLASSES:
        written.append(write_figure(folder / f"confusion-{options.split}.png", draw_confusion(scores, classes)))

    console = Console()
    if rows:
        console.print(mistakes_table(rows, options.most, len(images)))
    console.print(report_table(by_class))
    console.print(
        f"{trained.name}: {scores.error:.2%} of {len(images):,} {options.split} images misread", highlight=False
    )
    for path in written:
        print(path, flush=True)


if __name__ == "__main__":
    run_main(main)
