"""Situations with images, captions, weights, caches and downloads."""

from __future__ import annotations

import json

from tests.situations.files import (
    CAPTION,
    CAPTIONS,
    CLASSIFY,
    DCGAN,
    DETECT,
    Situation,
    animation,
    captions,
    classes,
    png,
    scattered,
    with_transparency,
    yolo,
)

IMAGES = (
    Situation(
        "white ink on transparency",
        DCGAN,
        "wrong, silent: white squares; digits erred in 91.5%",
        ("1 with transparency, placed on black",),
        lambda: scattered({"ink.png": with_transparency()}),
    ),
    Situation(
        "the same, with a chosen ground",
        f"{DCGAN} --background white",
        "no such option",
        ("1 with transparency, placed on white",),
        lambda: scattered({"ink.png": with_transparency()}),
    ),
    Situation(
        "a PGM file of 16 bits",
        DCGAN,
        "left out as an image of 32 bits",
        ("122 images", "1 of 16 bits, reduced to 8"),
        lambda: scattered({"a.pgm": b"P5 28 28 65535\n" + bytes(range(98)) * 16}),
    ),
    Situation(
        "a gray image of 12 bits in 16",
        DCGAN,
        "left out as an image of 32 bits; since then black, silent",
        ("1 of 16 bits without values above 4,095, which become at most 15 of 255",),
        lambda: scattered({"a.pgm": b"P5 28 28 65535\n" + bytes((15, 255)) * 28 * 28}),
    ),
    Situation(
        "HEIC, JFIF and AVIF",
        DCGAN,
        "silent: dropped",
        ("123 images", "1 left out: b.heic has a format that cannot be read here"),
        lambda: scattered({"a.jfif": png(kind="JPEG"), "b.heic": b"x", "c.avif": png(kind="AVIF")}),
    ),
    Situation(
        "an animation",
        DCGAN,
        "silent: its first frame",
        ("1 with several images, of which the first is used",),
        lambda: scattered({"a.gif": animation()}),
    ),
    Situation(
        "hidden files",
        "vision.predict digits set --device cpu --threads 1 --json",
        "the program ended",
        ("set/1.png",),
        lambda: {"set/1.png": png(), "set/._1.png": b"x", "set/.DS_Store": b"x", "set/Thumbs.db": b"x"},
    ),
    Situation(
        "a link to the parent folder",
        CLASSIFY,
        "silent: images many times; 4 became 220",
        ("13 training images", "the link set/cat/up is not followed"),
        lambda: {**classes("{label}"), "link:set/cat/up": "set"},
    ),
    Situation(
        "a class folder that is a link, for a GAN",
        f"{DCGAN} --conditional",
        "silent: not read",
        ("classes: cat, dog, linked",),
        lambda: {
            **classes("{label}", number=60),
            "other/1.png": png(),
            "other/2.png": png(),
            "link:set/linked": "other",
        },
    ),
    Situation(
        "links in a zip file",
        "vision.classify --data ./set.zip",
        "left out as invalid images",
        ("not followed: 1 link in set.zip, such as cat/up",),
        test="tests/core/data/test_folders.py::test_links_in_a_zip_are_named",
    ),
    Situation(
        "one truncated image",
        CLASSIFY,
        "the run ended",
        ("1 left out: cat/1.png in set is empty",),
        lambda: {**classes("{label}"), "set/cat/1.png": b""},
    ),
    Situation(
        "many damaged images",
        CLASSIFY,
        "the run ended at the first one",
        ("20 of 216 images in set cannot be used, and at most a tenth may be left out",),
        test="tests/core/data/test_image_files.py::test_many_damaged_images_are_refused",
    ),
)
TEXTS = (
    Situation(
        "Flickr8k's token file names a photograph that does not exist",
        CAPTION,
        "refused",
        ("1 left out: gone.jpg.1 has captions, but does not exist",),
        lambda: captions("".join(f"{k}.png#0\tA dog\n" for k in range(6)) + "gone.jpg.1#0\tPeople\n", "x.token.txt"),
    ),
    Situation(
        "a quotation mark without its counterpart",
        CAPTION,
        "wrong, silent: all lines were one caption; in a long file a traceback",
        ("caption of 0.png: A dog",),
        lambda: captions(CAPTIONS.replace("A dog 0", '"A dog 0')),
    ),
    Situation(
        "images of one name in two folders",
        CAPTION,
        "refused; since then wrong, silent: one image had the captions of both",
        ("caption of a/1.png: A", "caption of b/1.png: B"),
        lambda: captions(
            "a/1.png,A\nb/1.png,B\n2.png,C\n3.png,D\n4.png,E\n",
            images=("a/1.png", "b/1.png", "2.png", "3.png", "4.png"),
        ),
    ),
    Situation(
        "Flickr8k's captions a second time, in base forms",
        CAPTION,
        "wrong, silent: both counted",
        ("x.lemma.token.txt is not used", "caption of 0.png: A dog runs"),
        lambda: (
            captions("".join(f"{k}.png#0\tA dog runs\n" for k in range(6)), "x.token.txt")
            | {"set/x.lemma.token.txt": "0.png#0\tA dog run\n"}
        ),
    ),
    Situation(
        "columns of Flickr30k",
        CAPTION,
        "refused; with commas wrong, silent: captions began with their number",
        ("caption of 0.png: A dog",),
        lambda: captions("image_name| comment_number| comment\n" + "".join(f"{k}.png| 0| A dog\n" for k in range(6))),
    ),
    Situation(
        "a file in Latin-1",
        CAPTION,
        "refused, with Python's message",
        ("captions.txt in set is not in UTF-8 (byte 11): save it in this encoding",),
        lambda: captions("0.png,A caf\xe9\n".encode("latin-1")),
    ),
    Situation(
        "a caption of COCO that is null",
        CAPTION,
        "wrong, silent: the caption None",
        ("1 left out: The annotation", "has no image_id or no caption"),
        lambda: captions(
            json.dumps(
                {
                    "images": [{"id": k, "file_name": f"{k}.png"} for k in range(6)],
                    "annotations": [{"image_id": k, "caption": None if k == 5 else "A dog"} for k in range(6)],
                }
            ),
            "captions_x.json",
        ),
    ),
)
PUBLISHED = "tests/vision/test_published_weights.py"
DOWNLOADS = "tests/core/data/test_download.py"
OTHERS = (
    Situation(
        "GoogLeNet's published weights",
        "vision.segment --backbone googlenet --weights googlenet.pth",
        "wrong, silent: ImageNet's moments",
        ("mean 0.5, 0.5, 0.5 and standard deviation 0.5, 0.5, 0.5",),
        test=f"{PUBLISHED}::test_every_program_normalizes_as_its_config_says",
    ),
    Situation(
        "weights of timm with moments of their own",
        "vision.classify --backbone resnet18 --weights model.safetensors",
        "wrong, silent: the moments of the training images",
        ("as these weights of resnet18 expect",),
        test="tests/core/models/test_normalization.py::test_published_files_bring_their_normalization",
    ),
    Situation(
        "torchvision's features of VGG-16",
        "generative.style_transfer a.png b.png --weights vgg16_features-amdegroot-88682ab5.pth",
        "wrong, silent: ImageNet's moments",
        ("mean 0.48235, 0.45882, 0.40784 and standard deviation 0.00392157",),
        test="tests/core/models/test_normalization.py::test_a_known_file_is_recognized_by_its_checksum",
    ),
    Situation(
        "a batch of one image, with BatchNorm",
        "vision.classify --batch-size 1 --backbone resnet18",
        "traceback",
        ("A forward pass over a single image leaves BatchNorm one value per channel",),
        test="tests/test_nothing_created.py::test_a_mistake_creates_nothing",
    ),
    Situation(
        "accumulation down to one image",
        "vision.classify --batch-size 8 --accumulation-steps 8 --backbone resnet18",
        "traceback",
        ("A forward pass over a single image leaves BatchNorm one value per channel",),
        test="tests/test_nothing_created.py::test_a_mistake_creates_nothing",
    ),
    Situation(
        "damaged caches of proposals",
        DETECT,
        "traceback for 221 of 1,157 damaged files",
        ("made anew",),
        test="tests/vision/detection/test_parts.py::test_proposals_are_computed_once_and_cached",
    ),
    Situation(
        "a damaged LMDB",
        "generative.dcgan --data ./church_outdoor_train_lmdb",
        "the process ended by SIGBUS",
        ("is damaged inside",),
        test="tests/core/data/test_lsun.py::test_a_database_that_is_damaged_inside_is_refused",
    ),
    Situation(
        "broken metadata in safetensors and generators, zips, JSON nested 200,000 deep",
        "generative.sample x.safetensors",
        "traceback, or memory",
        ("one sentence",),
        test="tests/fuzz/test_fuzz.py::test_damaged_files",
    ),
    Situation(
        "a TorchScript archive in place of weights",
        "vision.classify --weights x.pth",
        "PyTorch's advice to run its code",
        ("is a TorchScript archive, which contains a program",),
        test="tests/core/models/test_weights.py::test_files_that_are_no_weights",
    ),
    Situation(
        "Content-Length: abc",
        "vision.classify --data mnist",
        "traceback",
        ("its Content-Length is 'abc' instead of a number",),
        test=f"{DOWNLOADS}::test_an_invalid_length_is_a_bad_mirror",
    ),
    Situation(
        "an endless download",
        "vision.classify --data mnist",
        "no end",
        ("it sends more than",),
        test=f"{DOWNLOADS}::test_an_endless_download_ends",
    ),
    Situation(
        "redirects: to http, in a circle, to an invalid address",
        "vision.classify --data mnist",
        "followed, or a traceback",
        ("redirected from https to",),
        test=f"{DOWNLOADS}::test_invalid_redirects_are_one_sentence",
    ),
    Situation(
        "plain-http mirrors of MNIST",
        "vision.classify --data mnist",
        "used, with MD5",
        ("gone",),
        test=f"{DOWNLOADS}::test_no_file_is_downloaded_without_encryption",
    ),
    Situation(
        "an Inception network that is a program",
        "generative.metrics --help",
        "not said",
        ("runs",),
        test="tests/generative/test_metrics.py::test_help_says_that_an_inception_network_is_a_program",
    ),
    Situation(
        "an empty text file",
        DETECT,
        "an image without boxes",
        ("classes: 0",),
        lambda: yolo({"set/d.txt": ""}),
    ),
)
