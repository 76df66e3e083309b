"""Tests of captioned images: Flickr8k's two formats and COCO's, in folders and zips, and invalid data."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from zerokara.core.config import UserError
from zerokara.core.data.captions import load_captions, parse_coco, parse_csv, parse_tokens
from zerokara.core.media import png_bytes


def png(gray_level: int, width: int = 40) -> bytes:
    return png_bytes(np.full((30, width, 3), gray_level, np.uint8))


def test_three_formats_give_equal_captions() -> None:
    expected = [("a.jpg", "A dog, wet ."), ("a.jpg", "Two."), ("b.jpg", "It's a cat")]
    left_out: list[str] = []
    assert parse_csv('image,caption\na.jpg,"A dog, wet ."\na.jpg,Two.\n\nb.jpg,It\'s a cat\n', left_out) == expected
    assert parse_csv("a.jpg,A dog, wet .\na.jpg,Two.\nb.jpg,It's a cat", left_out) == expected  # no header, no quotes
    assert parse_tokens("a.jpg#0\tA dog, wet .\na.jpg#1\tTwo.\n\nb.jpg#0\tIt's a cat\n", left_out) == expected
    coco = {
        "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 9, "file_name": "val2014/b.jpg"}],
        "annotations": [
            {"image_id": 7, "caption": "A dog, wet ."},
            {"image_id": 7, "caption": " Two.\n"},
            {"image_id": 9, "caption": "It's a cat"},
        ],
    }
    assert parse_coco(json.dumps(coco), left_out) == expected
    assert left_out == []


def test_a_zip_and_a_folder(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "few.zip", "w") as archive:
        archive.writestr("images/b.png", png(200, 60))
        archive.writestr("images/a.png", png(10))
        archive.writestr("__MACOSX/images/a.png", b"invalid")
        archive.writestr("captions.txt", "image,caption\nb.png,White .\na.png,Black .\na.png,Dark .\n")
    captioned = load_captions("few", image_size=24, data_dir=tmp_path)
    assert captioned.names == ("a.png", "b.png")
    assert captioned.captions == (("Black .", "Dark ."), ("White .",))
    assert captioned.images.shape == (2, 3, 24, 24)
    assert captioned.images[:, 0, 0, 0].tolist() == [10, 200]
    selected = captioned.take([1])
    assert (selected.names, selected.captions, len(selected)) == (("b.png",), (("White .",),), 1)
    folder = tmp_path / "coco"
    (folder / "val2014").mkdir(parents=True)
    (folder / "val2014" / "x.png").write_bytes(png(77))
    content = {"images": [{"id": 1, "file_name": "x.png"}], "annotations": [{"image_id": 1, "caption": "Gray"}]}
    (folder / "captions_val2014.json").write_text(json.dumps(content))
    assert load_captions(str(folder), image_size=16).captions == (("Gray",),)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.txt", "hello", "has no captions: expected captions.txt"),
        ("captions.txt", "image,caption\nnone.png,Two\n", r"captions of 1 images .* 'none.png'"),
        ("captions.txt", "image,caption\na.png\n", "The line 'a.png' has no caption"),
        ("x.token.txt", "a.png#0 no tab\n", "is not image#number, a tab, and a caption"),
        ("captions_x.json", '{"images": []}', "lacks 'annotations'"),
        ("captions_x.json", "{", "cannot be parsed as captions"),
    ],
)
def test_invalid_data_are_rejected(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / "a.png").write_bytes(png(10))
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load_captions(str(tmp_path), image_size=16)


def test_what_cannot_be_used_is_left_out_and_named(tmp_path: Path) -> None:
    """The published Flickr8k.token.txt names a photograph that does not exist."""
    for name in ("a.png", "b.png", "without.png"):
        (tmp_path / name).write_bytes(png(10))
    (tmp_path / "c.png").write_bytes(png(10)[:50])
    lines = ["photos/a.png#0\tOne", "gone.jpg.1#0\tTwo", "b.png#0 no tab", "b.png#1\tThree", "c.png#0\tFour"]
    (tmp_path / "Flickr8k.token.txt").write_text("\n".join(lines))
    captioned = load_captions(str(tmp_path), image_size=16)
    assert captioned.names == ("a.png", "b.png")
    assert captioned.captions == (("One",), ("Three",))
    messages = " ".join(captioned.messages)
    for part in ("3 left out", "gone.jpg.1 has captions, but does not exist", "'b.png#0 no tab' is not", "c.png in"):
        assert part in messages
    assert "1 images without a caption are not used, such as without.png" in messages


def test_a_quotation_mark_without_its_counterpart_swallows_no_line() -> None:
    left_out: list[str] = []
    text = 'image,caption\na.jpg,"A dog\nb.jpg,Two\nc.jpg,"He says ""no"""\n' + "d.jpg," + "x" * 200_000 + "\n"
    assert parse_csv(text, left_out) == [("a.jpg", "A dog"), ("b.jpg", "Two"), ("c.jpg", 'He says "no"')]
    assert len(left_out) == 1
    assert "too long" in left_out[0]


def test_captions_of_coco_with_unknown_images() -> None:
    left_out: list[str] = []
    coco = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "x"}]}
    coco["annotations"].append({"image_id": 2, "caption": "y"})
    assert parse_coco(json.dumps(coco), left_out) == [("a.jpg", "x")]
    assert left_out == ["A caption has the image_id 2, which no image has."]
    with pytest.raises(ValueError, match="too deeply"):
        parse_coco("[" * 200_000, left_out)


def test_unknown_data_set_suggests_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "flickr.zip").write_bytes(b"")
    with pytest.raises(UserError, match=r"no data set 'flicker' \(did you mean flickr\?\)"):
        load_captions("flicker", image_size=16, data_dir=tmp_path)


def test_flickr8k(data_dir: Path) -> None:
    captioned = load_captions("flickr8k-1000", image_size=16, data_dir=data_dir)
    assert len(captioned) == 1_000
    assert {len(sentences) for sentences in captioned.captions} == {5}
    assert captioned.captions[0][1] == "A girl going into a wooden building ."


def test_line_breaks_in_captions() -> None:
    """A quoted caption may have several lines, and separators of Unicode are not ends of lines."""
    left_out: list[str] = []
    text = 'image,caption\r\na.jpg,"A cat\nwith a ball, and\nruns"\r\nb.jpg,Two\u2028dogs\x85\r\n'
    assert parse_csv(text, left_out) == [("a.jpg", "A cat with a ball, and runs"), ("b.jpg", "Two\u2028dogs")]
    assert parse_tokens("a.jpg#0\tTwo\u2028dogs\r\n", left_out) == [("a.jpg", "Two\u2028dogs")]
    assert parse_csv('a.jpg,"A dog\n' + "and\n" * 30 + 'b.jpg,"Two"\n', left_out := []) == [
        ("a.jpg", "A dog"),
        ("b.jpg", "Two"),
    ]
    assert len(left_out) == 30


def test_ids_of_coco_as_text_and_as_numbers() -> None:
    images, rows = [{"id": "1", "file_name": "a.jpg"}], [{"image_id": 1, "caption": "x"}]
    content: dict[str, object] = {"images": images, "annotations": rows}
    assert parse_coco(json.dumps(content), []) == [("a.jpg", "x")]
    images.append({"id": "1", "file_name": "b.jpg"})
    with pytest.raises(ValueError, match=r"the id '1' belongs to a\.jpg and to b\.jpg"):
        parse_coco(json.dumps(content), [])
