"""Image data sets as uint8 tensors: generated glyphs, MNIST, Fashion-MNIST, CIFAR, class folders and zips, LSUN.

train = load("mnist", "train")
rest, held_out = hold_out(train, 5_000, seed=0)
streets = load_masks("camvid", "train")  # images with segmentation masks
"""

from zerokara.core.data.masks import UNLABELED, MaskSet, load_masks
from zerokara.core.data.sources import DATASETS, load
from zerokara.core.data.types import ImageSet, Progress, Split, hold_out

__all__ = ["DATASETS", "UNLABELED", "ImageSet", "MaskSet", "Progress", "Split", "hold_out", "load", "load_masks"]
