"""Situations with masks, and with folders named after splits."""

from __future__ import annotations

import numpy as np

from tests.situations.files import (
    CAPTION,
    CAPTIONS,
    CLASSIFY,
    DCGAN,
    DETECT,
    SEGMENT,
    Situation,
    captions,
    classes,
    halves,
    masked,
    png,
    yolo,
)

MASKS = (
    Situation(
        "masks of 0 and 255, two classes",
        f"{SEGMENT} --classes sky ground",
        "wrong, silent: 255 was unlabeled, everything sky, test mean IoU 100.0%",
        ("values 0 50.0%, 255 (unlabeled) 50.0%", "--mask-values 0 255"),
        lambda: masked(halves(0, 255)),
    ),
    Situation(
        "the same, with their values",
        f"{SEGMENT} --classes sky ground --mask-values 0 255",
        "no such option",
        ("values 0 (sky) 50.0%, 255 (ground) 50.0%",),
        lambda: masked(halves(0, 255)),
    ),
    Situation(
        "masks of two other values",
        SEGMENT,
        "wrong, silent: 129 classes, 127 without a pixel",
        ("values 0 50.0%, 128 50.0%", "list all --classes"),
        lambda: masked(halves(0, 128)),
    ),
    Situation(
        "a value of no class",
        f"{SEGMENT} --classes a b c",
        "the run ended, without the histogram",
        ("has pixels of class 3, but there are 3 classes", "values 0 50.0%, 3 50.0%"),
        lambda: masked(halves(0, 3)),
    ),
    Situation(
        "a class without a pixel",
        f"{SEGMENT} --classes a b c",
        "not mentioned",
        ("no pixel of train has the class c",),
        lambda: masked(halves(0, 1)),
    ),
    Situation(
        "float masks with fractions",
        f"{SEGMENT} --classes a b",
        "wrong, silent: .5 was 0",
        ("has a pixel of class 0.5: class numbers must be whole numbers",),
        lambda: masked(halves(0.5, 1, "TIFF", np.float32), "tif"),
    ),
    Situation(
        "masks in JPEG",
        f"{SEGMENT} --classes a b",
        "the formats that are read, not the reason",
        ("12 masks in", "compression changes class numbers", "save masks as PNG"),
        lambda: masked(halves(0, 1, "JPEG"), "jpg"),
    ),
    Situation(
        "one list of PASCAL VOC names an image that does not exist",
        "vision.segment --data ./set --classes a b",
        "silent: the lists were not used; with a folder above them the run ended",
        ("1 left out: set lacks JPEGImages/none.jpg",),
        lambda: {
            **{f"set/JPEGImages/{k}.jpg": png(kind="JPEG") for k in range(8)},
            **{f"set/SegmentationClass/{k}.png": halves(0, 1) for k in range(8)},
            "set/ImageSets/Segmentation/train.txt": "0\n1\n2\n3\nnone\n",
            "set/ImageSets/Segmentation/val.txt": "4\n5\n6\n7\n",
        },
    ),
)
SPLITS = (
    Situation(
        "Train and Test",
        CLASSIFY,
        "wrong, silent: classes Test, Train",
        ("classes: cat, dog", "Train/ and Test/"),
        lambda: classes("Train/{label}", "Test/{label}"),
    ),
    Situation(
        "training_set and test_set",
        CLASSIFY,
        "wrong, silent: classes test_set, training_set",
        ("classes: cat, dog", "training_set/ and test_set/"),
        lambda: classes("training_set/{label}", "test_set/{label}"),
    ),
    Situation(
        "seg_train/seg_train",
        CLASSIFY,
        "wrong, silent: classes seg_test, seg_train",
        ("classes: cat, dog", "seg_train/ and seg_test/"),
        lambda: classes("seg_train/seg_train/{label}", "seg_test/seg_test/{label}"),
    ),
    Situation(
        "splits below the classes",
        CLASSIFY,
        "silent: train and val were one set",
        ("classes: cat, dog", "train/ and val/"),
        lambda: classes("{label}/train", "{label}/val"),
    ),
    Situation(
        "folders that are neither classes nor splits",
        CLASSIFY,
        "silent: classes 2019, 2020",
        ("classes: 2019, 2020", "each class (2019, 2020) has the same folders (cat, dog)"),
        lambda: classes("2019/{label}", "2020/{label}"),
    ),
    Situation(
        "training and validation, for a GAN",
        f"{DCGAN} --conditional",
        "wrong, silent: classes training, validation",
        ("classes: cat, dog",),
        lambda: classes("training/{label}", "validation/{label}", number=60),
    ),
    Situation(
        "Training and VALID, for masks",
        f"{SEGMENT} --classes a b",
        "splits, in these letters only",
        ("7 training images",),
        lambda: masked(halves(0, 1), train="Training", test="VALID"),
    ),
    Situation(
        "train and valid, for boxes",
        DETECT,
        "silent: split at random",
        ("by the names of folders",),
        lambda: yolo({}, "set/train/images") | yolo({}, "set/valid/images"),
    ),
    Situation(
        "train and dev, for captions",
        CAPTION,
        "silent: split at random",
        ("3 training images", "2 test images"),
        lambda: captions(CAPTIONS, images=(*(f"train/{k}.png" for k in range(4)), "dev/4.png", "dev/5.png")),
    ),
)
