"""The check of exported networks, and files that cannot be put in place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from zerokara.core.config import UserError
from zerokara.core.models.exporting import compare, put_in_place


def test_compare_uses_a_batch_and_a_single_image() -> None:
    def reference(pixels: Tensor) -> np.ndarray:
        return np.tile(np.array([0.3, 0.7]), (len(pixels), 1))

    def maps(pixels: Tensor, label: Tensor) -> np.ndarray:
        return np.asarray((pixels + label.view(-1, 1, 1, 1)).numpy())

    def depends_on_the_batch(pixels: Tensor) -> np.ndarray:
        return np.asarray(reference(pixels) + (len(pixels) == 1) * np.array([0.5, -0.5]))

    pixels, label = torch.zeros(4, 1, 2, 2), torch.arange(4)
    assert compare(reference, reference, pixels, 1e-4, "probability") == (0, 0)
    assert compare(depends_on_the_batch, reference, pixels, 0.6, "probability") == (0.5, 1)
    with pytest.raises(UserError, match=r"A probability of the exported network differs by 0\.5"):
        compare(depends_on_the_batch, reference, pixels, 1e-4, "probability")
    assert compare(maps, maps, (pixels, label), 1e-4, "pixel") == (0, 0)
    with pytest.raises(UserError, match=r"A pixel of the exported network differs by 3 "):
        compare(lambda x, label: maps(x, 2 * label), maps, (pixels, label), 1e-4, "pixel")
    with pytest.raises(UserError, match="differs by nan"):
        compare(lambda x: reference(x) * np.nan, reference, pixels, 1e-4, "Q-value")


def test_a_file_is_copied_and_an_unusable_folder_gets_a_sentence(tmp_path: Path) -> None:
    written = tmp_path / "a.onnx"
    written.write_bytes(b"content")
    put_in_place(written, tmp_path / "new" / "folder" / "b.onnx")
    assert (tmp_path / "new" / "folder" / "b.onnx").read_bytes() == b"content"
    with pytest.raises(UserError, match=r"a\.onnx/c\.onnx cannot be written \(.*\): name another folder with --out"):
        put_in_place(written, written / "c.onnx")
