"""List and plot the misclassified images of a trained classifier.

    python -m vision.misread runs/classify-mnist-deep_cnn-fast-1
    python -m vision.misread runs/classify-mnist-deep_cnn-fast-1 --split test

Prints a table of the errors, the most confident ones first, and precision, recall and F1 score of each class
(scikit-learn). Writes misread-<split>.png, confusion-<split>.png and misread-<split>.json to the run folder. The
default split is validation: a test set on which choices are made is no longer a test set.

Shapes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from zerokara.core.command_line import check_command_line, parse
from zerokara.core.config import Positional, Range, run_main
from zerokara.core.programs import program_command

MAX_CLASSES = 100  # a larger confusion matrix is unreadable


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of vision.misread."""

    RENAMED: ClassVar[Mapping[str, str]] = {"most": "max_images"}
    """Renamed options, old name to new name."""

    runs: Annotated[tuple[str, ...], Positional("runs/<name>")] = ()
    """Run folder."""
    split: Literal["validation", "test"] = "validation"
    """Images to evaluate: the validation images, or the test set."""
    max_images: Annotated[int, Range(1, 300)] = 30
    """Maximum number of misclassified images in the table and the figure, the most confident ones. The JSON file has
    all of them."""
    out: str = ""
    """Output folder; empty: the run folder."""
    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:<n> or mps."""
    threads: Annotated[int, Range(0)] = 0
    """CPU threads; 0: one per core."""


if __name__ == "__main__":
    check_command_line(partial(parse, Options, {}), __doc__)  # before the imports below, which take seconds

from rich import box
from rich.table import Table

from zerokara.core.report import output_folder, table_console, write_figure, write_json
from zerokara.vision.classification.pictures import draw_confusion, draw_misread, misread_indices
from zerokara.vision.classification.scoring import Scores
from zerokara.vision.studies.finished_run import load_trained, single_run_folder


def mistakes(scores: Scores, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return all misclassified images as JSON values, in decreasing order of confidence."""
    rows = []
    for index in misread_indices(scores, max_images=len(scores.label_N)):
        label, prediction = int(scores.label_N[index]), int(scores.prediction_N[index])
        rows.append(
            {
                "image": index,
                "label": classes[label],
                "guess": classes[prediction],
                "confidence": float(scores.probability_NK[index, prediction]),
                "probability_of_label": float(scores.probability_NK[index, label]),
            }
        )
    return rows


def report(scores: Scores, classes: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return precision, recall, F1 score and number of images by class, and their means ("macro avg", ...)."""
    from sklearn.metrics import classification_report

    # By number, not by name: a class could have the name of a mean.
    by_number = classification_report(
        scores.label_N.numpy(),
        scores.prediction_N.numpy(),
        labels=range(len(classes)),
        output_dict=True,
        zero_division=0.0,
    )
    names = {str(number): name for number, name in enumerate(classes)}
    return {
        names.get(key, key): {name: float(value) for name, value in row.items()}
        for key, row in by_number.items()
        if isinstance(row, dict)
    }


def mistakes_table(rows: Sequence[dict[str, Any]], max_rows: int, images: int) -> Table:
    """Return a table of the first misclassified images."""
    shown = rows[:max_rows]
    title = f"{len(rows)} of {images:,} misclassified" + (
        f", the {len(shown)} most confident" if len(shown) < len(rows) else ""
    )
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for column in ("image", "label", "prediction", "probability", "of the label"):
        table.add_column(column, justify="right", overflow="fold")
    for row in shown:
        probabilities = f"{row['confidence']:.1%}", f"{row['probability_of_label']:.1%}"
        table.add_row(str(row["image"]), row["label"], row["guess"], *probabilities)
    return table


def report_table(rows: dict[str, dict[str, float]]) -> Table:
    """Return a table with a row for each class and each mean."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("class", overflow="fold")
    for column in ("precision", "recall", "F1", "images"):
        table.add_column(column, justify="right")
    for name, row in rows.items():
        ratios = (f"{row[key]:.4f}" for key in ("precision", "recall", "f1-score"))
        table.add_row(name, *ratios, f"{row['support']:,.0f}")
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program: evaluate the images, print the tables, write the files and print their paths."""
    options = parse(Options, {}, argv, __doc__ or "")
    run_folder = single_run_folder(options.runs, program_command("vision.misread"))
    trained = load_trained(run_folder, device=options.device, threads=options.threads)
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
    figure = draw_misread(images, scores, classes, options.max_images)
    if figure is not None:
        written.append(write_figure(folder / f"misread-{options.split}.png", figure))
    if len(classes) <= MAX_CLASSES:
        written.append(write_figure(folder / f"confusion-{options.split}.png", draw_confusion(scores, classes)))

    console = table_console()
    if rows:
        console.print(mistakes_table(rows, options.max_images, len(images)))
    console.print(report_table(by_class))
    console.print(
        f"{trained.name}: {scores.error:.2%} of {len(images):,} {options.split} images misclassified", highlight=False
    )
    for path in written:
        print(path, flush=True)


if __name__ == "__main__":
    run_main(main)
