"""Situations with boxes."""

from __future__ import annotations

from tests.situations.files import DETECT, Situation, coco_file, coco_folder, png, turned, voc, voc_file, yolo

BOXES = (
    Situation(
        "YOLO polygons",
        DETECT,
        "wrong, silent: IoU with the true boxes .185",
        ("boxes of a.png: 10, 5, 30, 15",),
        lambda: yolo({"set/a.txt": "0 .25 .5 .5 .25 .75 .5 .5 .75\n"}),
    ),
    Situation(
        "YOLO lines in pixels",
        DETECT,
        "wrong, silent: the whole image",
        (
            "2 left out: the line '0 3 3 8 8' of a.txt: its numbers must be fractions",
            "a.png has no valid annotation",
        ),
        lambda: yolo({"set/a.txt": "0 3 3 8 8\n"}),
    ),
    Situation(
        "a VOC file whose image is in another folder",
        DETECT,
        "wrong, silent: matched with the image of the other folder",
        ("1 annotation without an image of the same name: set2/m.xml",),
        lambda: (
            {f"set/set1/{name.removeprefix('set/')}": each for name, each in voc({}).items()}
            | {"set/set1/m.png": png(), "set/set3/m.png": png(), "set/set2/m.xml": voc_file("m.png")}
        ),
    ),
    Situation(
        "a.b.xml beside a.jpg",
        DETECT,
        "wrong, silent: matched with a.jpg",
        ("1 annotation without an image of the same name: a.b.xml",),
        lambda: voc({"set/a.b.xml": voc_file("")}),
    ),
    Situation(
        "one damaged XML file",
        DETECT,
        "the run ended",
        ("1 left out: b.xml in set is invalid",),
        lambda: voc({"set/b.xml": "<annotation>"}),
    ),
    Situation(
        "COCO's own annotations",
        DETECT,
        "wrong, silent: images twice, in train and test at once; or KeyError",
        ("by the names of folders", "files without boxes of instances", "captions_train2017.json"),
        coco_folder,
    ),
    Situation(
        "a stated size that is not the image's: shrunken",
        DETECT,
        "wrong, silent: boxes clipped into wrong places",
        ("1 image has another size than its annotation states", "boxes of a.png: 0, 0, 10, 5"),
        lambda: voc({"set/a.xml": voc_file("a.png", (80, 40))}),
    ),
    Situation(
        "a stated size of another shape",
        DETECT,
        "wrong, silent: boxes clipped into wrong places",
        ("1 left out: a.png in set has 40x20 pixels, but a.xml states 33x31",),
        lambda: voc({"set/a.xml": voc_file("a.png", (33, 31))}),
    ),
    Situation(
        "an image that EXIF turns by half a turn",
        DETECT,
        "silent: turned",
        ("1 turned as their EXIF orientation says",),
        lambda: voc({"set/a.png": turned()}),
    ),
    Situation(
        "names in data.yaml with numbers, quotes, commas and comments",
        DETECT,
        "wrong, silent: misread",
        ("classes: cat, large | dog # 1",),
        lambda: yolo({"set/data.yaml": "names: # two\n  0: 'cat, large'\n  1: \"dog # 1\" # a dog\n"}),
    ),
    Situation(
        "names that YAML takes for other things",
        DETECT,
        "right; with a YAML library, since then: classes True, False and 8",
        ("classes: yes | no | 010",),
        lambda: yolo({"set/data.yaml": "names: [yes, no, 010]\n"}),
    ),
    Situation(
        "labels without an image, images without labels",
        DETECT,
        "not mentioned",
        (
            "9 images without a text file count as images without objects",
            "1 text file without an image of the same name",
        ),
        lambda: yolo({"set/z.txt": "0 .5 .5 .5 .5\n"}),
    ),
    Situation(
        "different names for one id in two COCO files",
        DETECT,
        "KeyError",
        ("classes: cat | dog",),
        lambda: (
            yolo({})
            | {
                "set/one.json": coco_file("abcdef"),
                "set/two.json": coco_file("ghijkl", categories=[{"id": 1, "name": "dog"}]),
            }
        ),
    ),
    Situation(
        "one damaged annotation of COCO",
        DETECT,
        "the run ended: KeyError",
        ("1 left out: the annotation {'id': 7} in x.json: it has no image_id",),
        lambda: (
            yolo({})
            | {
                "set/x.json": coco_file(
                    "abcdefghijkl",
                    annotations=[{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}, {"id": 7}],
                )
            }
        ),
    ),
    Situation(
        "class number 40,000,000",
        DETECT,
        "a list of that length",
        ("classes: 0 | 40000000",),
        lambda: yolo({"set/a.txt": "40000000 .5 .5 .5 .5\n"}),
    ),
    Situation(
        "byte-order marks",
        DETECT,
        "the run ended; a part of the first name",
        ("classes: cat | dog",),
        lambda: yolo({"set/classes.txt": "\ufeffcat\ndog\n", "set/a.txt": "\ufeff1 .5 .5 .5 .5\n"}),
    ),
    Situation(
        "one truncated JPEG",
        DETECT,
        "the run ended",
        ("1 left out: a.png in set cannot be decoded",),
        lambda: yolo({"set/a.png": png(side=(20, 40), kind="JPEG")[:400]}),
    ),
)
