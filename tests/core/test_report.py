"""JSON files, plots and tables: content, atomic writing, and layout."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from zerokara.core.config import UserError
from zerokara.core.report import (
    OutputNames,
    figure_pixels,
    image_figure,
    new_figure,
    numbered,
    plot_confusion,
    read_json,
    read_result,
    shown_names,
    table_console,
    tables_within,
    write_figure,
    write_json,
)


@pytest.mark.parametrize("stderr", [False, True])
@pytest.mark.parametrize(("terminal", "width"), [(False, 160), (True, 90)])
def test_a_table_is_as_wide_as_the_terminal_and_160_columns_in_a_file(
    stderr: bool, terminal: bool, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = [io.StringIO(), io.StringIO()]
    for stream, is_terminal in zip(streams, (terminal, not terminal), strict=True):
        stream.isatty = lambda is_terminal=is_terminal: is_terminal  # type: ignore[method-assign,misc]
    monkeypatch.setattr("sys.stderr" if stderr else "sys.stdout", streams[0])
    monkeypatch.setattr("sys.stdout" if stderr else "sys.stderr", streams[1])
    monkeypatch.setenv("COLUMNS", "90")  # for rich, the width of a terminal; bash does not pass it on to programs
    console = table_console(stderr=stderr)
    console.print("x" * width)
    assert (console.width, console.file) == (width, streams[0])
    assert streams[0].getvalue() == "x" * width + "\n"


def test_json_round_trip(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {"error": 0.25, "names": ["ö"]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"error": 0.25, "names": ["ö"]}
    assert path.read_text().endswith("}\n")


def test_a_figure_that_was_not_measured_is_null_and_is_read_as_nan(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    path = write_json(tmp_path / "a.json", {"figures": {"error": nan, "loss": 0.5}, "rows": [{"a": (inf, 1)}]})
    content = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert content == {"figures": {"error": None, "loss": 0.5}, "rows": [{"a": [None, 1]}]}
    figures = read_result(path, "error")["figures"]
    assert np.isnan(figures["error"])
    assert figures["loss"] == 0.5


def test_size_and_pixels_of_a_plot(tmp_path: Path) -> None:
    figure, all_axes = new_figure(columns=3, rows=2, width=2, height=1)
    assert len(all_axes) == 6
    all_axes[4].set_facecolor("red")
    path = write_figure(tmp_path / "a.png", figure, dpi=50)
    with Image.open(path) as image:
        assert image.size == (300, 100)
        written = np.asarray(image.convert("RGB"))
    assert tuple(written[75, 150]) == (255, 0, 0)
    assert tuple(written[25, 150]) == (255, 255, 255)
    pixels = figure_pixels(figure)
    assert pixels.shape == (200, 600, 3)
    assert pixels.dtype == np.uint8
    assert tuple(pixels[150, 300]) == (255, 0, 0)


@pytest.mark.parametrize("width", [30, 80, 200])
def test_wide_table_is_split_to_fit_the_width(width: int) -> None:
    """Each cell is printed completely, in several tables that repeat the first column."""
    columns = ["run", *(f"column-{index:02}" for index in range(12))]
    rows = [[f"run-{row}", *(f"cell-{row}-{index}" for index in range(12))] for row in range(3)]
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as captured:
        for table in tables_within(columns, rows, width):
            console.print(table)
    lines = captured.get().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    printed = captured.get().split()
    assert all(printed.count(cell) == 1 for row in rows for cell in row[1:])
    assert all(printed.count(heading) == 1 for heading in columns[1:])
    assert printed.count("run-0") == {30: 12, 80: 3, 200: 1}[width]


def test_images_are_plotted_in_rows_with_their_titles() -> None:
    """Each image is in its cell of the grid, in its proportions, below its title; the longest has two lines."""
    images = [np.full((2, 4, channels), 50 * index, np.uint8) for index, channels in enumerate((1, 3, 1, 3))]
    titles = ["a", "b\nb", "c", "d"]
    figure = image_figure(images, titles, columns=3, width=1.0, height=1.2)
    assert figure.get_size_inches().tolist() == pytest.approx([3, 2.4])
    pixels = figure_pixels(figure)
    assert pixels.shape == (240, 300, 3)
    (axes,) = figure.axes
    assert not axes.axison
    *texts, heading = axes.texts
    assert [text.get_text() for text in texts] == titles
    assert heading.get_text() == ""
    assert [np.asarray(image.get_array()).shape for image in axes.images] == [(2, 4), (2, 4, 3)] * 2
    for index, (image, text) in enumerate(zip(axes.images, texts, strict=True)):
        row, column = divmod(index, 3)
        box, title = image.get_window_extent(), text.get_window_extent()
        assert box.width == pytest.approx(2 * box.height)
        assert box.width == pytest.approx(92)
        cell = (100 * column, 240 - 120 * (row + 1), 100 * (column + 1), 240 - 120 * row)
        for x0, y0, x1, y1 in (box.extents, title.extents):
            assert cell[0] <= x0 < x1 <= cell[2]
            assert cell[1] <= y0 < y1 <= cell[3]
        assert title.y0 >= box.y1
        middle = (title.x0 + title.x1) / 2
        assert middle == pytest.approx(50 + 100 * column, abs=1)
        assert (pixels[240 - int(box.y0 + box.height / 2), int(middle)] == 50 * index).all()


def test_a_heading_is_above_the_images() -> None:
    image = np.zeros((4, 2, 1), np.uint8)
    plain, headed = (image_figure([image], ["a"], width=2.0, height=2.0, heading=heading) for heading in ("", "all"))
    assert plain.get_size_inches().tolist() == [2, 2]
    width, height = headed.get_size_inches()
    assert height > 2
    figure_pixels(headed)
    title, heading = (text.get_window_extent() for text in headed.axes[0].texts)
    assert title.y1 <= heading.y0 < heading.y1 <= 100 * height
    assert (heading.x0 + heading.x1) / 2 == pytest.approx(50 * width, abs=1)


def test_confusion_matrix_by_hand() -> None:
    """Of four images of a, one is taken for b; of class c there are none."""
    confusion = np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    figure, (left, right) = new_figure(2)
    plot_confusion(left, confusion, ("a", "b", "c"), max_fraction=0.5)
    plot_confusion(right, confusion, ("cat", "dog", "fox"), percent=True)
    texts = [[(*text.get_position(), text.get_text(), text.get_color()) for text in axes.texts] for axes in figure.axes]
    assert texts[0] == [(0, 0, "3", "white"), (1, 0, "1", "black"), (1, 1, "2", "white")]
    assert texts[1] == [(0, 0, "75", "white"), (1, 0, "25", "black"), (1, 1, "100", "white")]
    assert np.asarray(left.images[0].get_array()).tolist() == [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 0]]
    assert [label.get_text() for label in right.get_yticklabels()] == ["cat", "dog", "fox"]


def test_numbered_names() -> None:
    assert list(itertools.islice(numbered("a-7"), 3)) == ["a-7", "a-7-2", "a-7-3"]


def test_names_of_results_are_new(tmp_path: Path) -> None:
    """No two results have one name, none replaces an input, and a mask is not replaced by another image's result."""
    names = OutputNames(tmp_path, [tmp_path / "in.png", Path("elsewhere/b.png")])
    assert names.choose("a-mask", ".png", "-mask.png") == "a-mask"
    assert names.choose("a", ".png", "-mask.png") == "a-2"
    assert [names.choose(stem, ".png") for stem in ("b", "b", "in", "in")] == ["b", "b-2", "in-2", "in-3"]


def test_names_in_a_table_are_distinct() -> None:
    files = [Path("x/1.png"), Path("y/1.png"), Path("y/2.png")]
    assert list(shown_names(files).values()) == [str(Path("x/1.png")), str(Path("y/1.png")), "2.png"]


@pytest.mark.parametrize(
    "content",
    [
        *("", "[1]", "{}", "7", "[" * 100_000, '{"figures": {"error": 0.1', '{"figures": [0.1]}', '{"figures": null}'),
        *('{"figures": {"error": "small"}, "by_class": {}}', '{"figures": {}, "by_class": {}}'),
        *('{"figures": {"error": 0.1}}', '{"figures": {"error": 0.1}, "by_class": 3}'),
    ],
)
def test_a_damaged_result_is_one_sentence(tmp_path: Path, content: str) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"figures": {"error": 0.1}, "by_class": {"ant": 0.2}})
    assert read_result(path, "error", mappings=["by_class"])["figures"] == {"error": 0.1}
    path.write_text(content)
    with pytest.raises(UserError, match=r"result\.json is damaged: delete it, and evaluate the run again"):
        read_result(path, "error", mappings=["by_class"])


@pytest.mark.parametrize("content", ["", "[1]", "7", "{}", "[" * 100_000, '{"of": {}}', '{"of": ["a"', b"\xff\xfe"])
def test_another_json_file_is_one_sentence_that_names_it(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "saved.json"
    write_json(path, {"of": ["a"]})
    assert read_json(path, of=list) == {"of": ["a"]}
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"saved\.json (is damaged|was not written).*delete it, and repeat the same"):
        read_json(path, of=list)
