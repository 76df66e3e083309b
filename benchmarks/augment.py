"""Measure the time in milliseconds of each kind of augmentation for one batch on one core. Prints JSON.

    python -m benchmarks.augment
    python -m benchmarks.augment --batch 128 --channels 3 --side 32

The kinds are measured alternately and repeatedly. The minimum is printed, because load from other programs can only
increase the time. `--process-time` measures CPU time instead of wall-clock time.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import torch

from benchmarks.result import print_result
from zerokara.core.augment import Augment

AFFINE: dict[str, Any] = {"rotation_degrees": 10.0, "shift": 0.08, "scale": 0.1, "shear_degrees": 10.0}
KINDS = {
    "affine": Augment(**AFFINE),
    "affine and elastic": Augment(**AFFINE, elastic_pixels=1.0),
    "crop": Augment(crop_pixels=4),
    "flip": Augment(flip=True),
    "brightness and contrast": Augment(brightness=0.2, contrast=0.2),
    "cutout": Augment(cutout=0.3),
    "mixup": Augment(mixup=0.2),
    "cutmix": Augment(cutmix=1.0),
}


def main() -> None:
    """Parse the arguments, measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--side", type=int, default=28)
    parser.add_argument("--calls", type=int, default=200, help="calls per measurement")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--process-time", action="store_true", help="measure CPU time instead of wall-clock time")
    options = parser.parse_args()
    torch.set_num_threads(1)
    clock = time.process_time if options.process_time else time.perf_counter
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(options.batch, options.channels, options.side, options.side, generator=generator)
    target = torch.rand(options.batch, 10, generator=generator)
    minimum = dict.fromkeys(KINDS, float("inf"))
    for _ in range(options.repetitions):
        for name, augment in KINDS.items():
            augment.mix(augment(x, generator), target, generator)
            begin = clock()
            for _ in range(options.calls):
                augment.mix(augment(x, generator), target, generator)
            minimum[name] = min(minimum[name], (clock() - begin) / options.calls)
    print_result({"images": list(x.shape), "ms": {k: round(1e3 * s, 3) for k, s in minimum.items()}})


if __name__ == "__main__":
    main()
