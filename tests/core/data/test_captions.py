"""Tests of captioned images: Flickr8k's two formats and COCO's, in folders and zips, and invalid data."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from zerokara.core.config import UserError
from zerokara.core.data.captions import CaptionSet, load_captions, parse_coco, parse_csv, parse_tokens
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
    assert parse_coco(json.dumps(coco), left_out) == [*expected[:2], ("val2014/b.jpg", "It's a cat")]
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
        ("captions.txt", "image,caption\nnone.png,Two\n", r"captions of 1 missing image, .* 'none.png'"),
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
    assert "not used: 1 image without a caption, such as without.png" in messages


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


def captioned_folder(folder: Path, images: str, **files: str) -> CaptionSet:
    """Write images, whose paths are separated by spaces, and caption files; load them."""
    for number, name in enumerate(images.split()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(number))
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return load_captions(str(folder), image_size=16)


def test_images_of_one_name_in_two_folders(tmp_path: Path) -> None:
    text = "x/1.png,X\ny/1.png,Y\n2.png,Two\n3.png,Three\n"
    captioned = captioned_folder(tmp_path, "x/1.png y/1.png z/2.png x/3.png y/3.png", captions__txt=text)
    assert captioned.names == ("x/1.png", "y/1.png", "2.png")
    assert captioned.captions == (("X",), ("Y",), ("Two",))
    assert "3.png has captions, but it is not clear which of 2 images of this name." in captioned.messages[-1]


def test_captions_in_several_files(tmp_path: Path) -> None:
    """Flickr8k's archive has base forms of all captions; two other files of one image are mentioned."""
    tokens = {"x__token__txt": "1.png#0\tA dog runs\n", "x__lemma__token__txt": "1.png#0\tA dog run\n"}
    captioned = captioned_folder(tmp_path, "1.png", **tokens)
    assert captioned.captions == (("A dog runs",),)
    assert captioned.messages[0].startswith("x.lemma.token.txt is not used")
    captioned = captioned_folder(tmp_path, "1.png", captions__txt="1.png,One\n")
    assert captioned.captions == (("One", "A dog runs"),)
    assert any("1 image has captions in several files" in line for line in captioned.messages)
    (tmp_path / "x.token.txt").unlink()
    (tmp_path / "captions.txt").unlink()
    assert captioned_folder(tmp_path, "1.png").captions == (("A dog run",),)


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("image_name| comment_number| comment", "a.jpg| 0| A dog, wet |."),
        ("id;caption;image", "7;A dog, wet |.;a.jpg"),
        ("File_Name\ttext", "a.jpg\tA dog, wet |."),
        (",image,caption", "0,a.jpg,A dog, wet |."),
    ],
)
def test_columns_of_a_header(header: str, line: str) -> None:
    left_out: list[str] = []
    assert parse_csv(f"{header}\n{line}\n", left_out) == [("a.jpg", "A dog, wet |.")]
    assert left_out == []


def test_unknown_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="name the columns image and caption"):
        parse_csv("photo,number,words\na.jpg,0,A dog\n", [])


def test_encodings_and_ends_of_lines(tmp_path: Path) -> None:
    text = "\ufeffimage,caption\r\na.png,Un caf\xe9\r\n"
    assert captioned_folder(tmp_path, "a.png", captions__csv=text).captions == (("Un caf\xe9",),)
    (tmp_path / "captions.csv").write_bytes("image,caption\na.png,caf\xe9\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"captions\.csv in .* is not in UTF-8 \(byte 23\): save it"):
        load_captions(str(tmp_path), image_size=16)


def test_damaged_annotations_of_coco_are_left_out() -> None:
    left_out: list[str] = []
    rows: list[object] = [{"image_id": 1, "caption": each} for each in ("x", "", None)]
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [*rows, {"caption": "y"}, "z", None]}
    assert parse_coco(json.dumps(content), left_out) == [("a.jpg", "x")]
    assert len(left_out) == 5
    assert all("has no image_id or no caption" in line for line in left_out)


def test_splits_of_folders_files_and_lists(tmp_path: Path) -> None:
    text = "1.png,One\n2.png,Two\n"
    assert captioned_folder(tmp_path / "a", "train/1.png dev/2.png", captions__txt=text).splits == ("train", "val")
    lists = {"Flickr_8k__trainImages__txt": "1.png\n", "Flickr_8k__testImages__txt": "2.png\n"}
    listed = captioned_folder(tmp_path / "b", "1.png 2.png", captions__txt=text, **lists)
    assert listed.splits == ("train", "test")
    assert listed.take([1]).splits == ("test",)
    coco = [
        json.dumps({"images": [{"id": 1, "file_name": f"{k}.png"}], "annotations": [{"image_id": 1, "caption": "x"}]})
        for k in (1, 2)
    ]
    files = {"captions_train2017__json": coco[0], "captions_val2017__json": coco[1]}
    assert captioned_folder(tmp_path / "c", "1.png 2.png", **files).splits == ("train", "val")
    assert captioned_folder(tmp_path / "d", "train/1.png train/2.png", captions__txt=text).splits == ()
