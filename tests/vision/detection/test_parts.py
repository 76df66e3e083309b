"""Parts of detection checked by hand: loss, batches, SVMs, average precision, cached proposals, config."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.vision import drawn_boxes as shapes
from zerokara.core.boxes import decode, iou
from zerokara.core.command_line import parse
from zerokara.core.config import Stopped, UserError, from_dict
from zerokara.core.data.boxes import BoxSet, load_boxes
from zerokara.core.distributed import World
from zerokara.core.models.classifier import ClassifierMetadata
from zerokara.vision.detection import proposals as proposal_files
from zerokara.vision.detection.batches import Candidates, CropBatches, ImageBatches, all_candidates
from zerokara.vision.detection.config import PRESETS, Config, resolve_backbone
from zerokara.vision.detection.detector import Detections, Svm
from zerokara.vision.detection.learner import loss, make_metadata
from zerokara.vision.detection.pictures import draw_detections, sheet, worst_first
from zerokara.vision.detection.proposals import Proposals, coverage, find_all
from zerokara.vision.detection.scoring import precision
from zerokara.vision.detection.selective_search import SearchSettings
from zerokara.vision.detection.svm import Vectors, fit

SEARCH = SearchSettings(colours=("rgb",), scales=(50.0,), similarities=("ctsf",))
CONFIG = Config(
    data="x", backbone="resnet20", regions_per_update=32, images_per_update=2, crop_side=32, image_side=96, flip="both"
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> BoxSet:
    return load_boxes(str(shapes.write(tmp_path_factory.mktemp("data") / "shapes", 12)), image_side=96)


@pytest.fixture(scope="module")
def proposed(drawn: BoxSet, tmp_path_factory: pytest.TempPathFactory) -> list[Proposals]:
    return find_all(drawn, SEARCH, 200, tmp_path_factory.mktemp("cache"))


# ---- loss


def test_loss_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [0.0, math.log(2), 0.0]])
    codes = torch.zeros(2, 2, 4)
    codes[1, 0] = torch.tensor([0.5, 3.0, 0, 0])
    target = torch.tensor([[9.0, 9, 9, 9], [0, 0, 0, 0]])
    total, boxes = loss(logits, codes, torch.tensor([0, 1]), target, 2.0)
    expected_boxes = (0.5 * 0.5**2 + 2.5) / 2  # codes of background regions are ignored
    assert float(boxes) == pytest.approx(expected_boxes)
    assert float(total) == pytest.approx((math.log(3) + math.log(2)) / 2 + 2 * expected_boxes)
    total, boxes = loss(logits, codes, torch.tensor([0, 0]), target, 2.0)
    assert float(boxes) == 0


# ---- batches


def test_candidates_by_hand() -> None:
    truth, label = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]]), torch.tensor([1, 0])
    regions = torch.tensor([[0.0, 0, 10, 8], [20, 0, 30, 4], [50, 50, 60, 60]])
    each = Candidates.of(truth, label, regions)
    torch.testing.assert_close(each.overlap, torch.tensor([1, 1, 0.8, 0.4, 0]))
    assert each.label[:4].tolist() == [1, 0, 1, 0]
    assert each.target[2].tolist() == truth[0].tolist()
    assert each.foreground(CONFIG).tolist() == [0, 1, 2]
    assert each.background(CONFIG).tolist() == [3, 4]
    assert each.background(dataclasses.replace(CONFIG, background_iou=0.1)).tolist() == [3]
    assert each.background(dataclasses.replace(CONFIG, background_iou=0.45)).tolist() == [3, 4]
    no_truth = Candidates.of(truth[:0], label[:0], regions)
    assert no_truth.background(CONFIG).tolist() == [0, 1, 2]
    assert len(no_truth.foreground(CONFIG)) == 0


def test_boxes_and_labels_match_the_pixels_also_when_flipped(drawn: BoxSet, proposed: list[Proposals]) -> None:
    batches = ImageBatches(CONFIG, drawn, all_candidates(drawn, proposed), torch.Generator().manual_seed(0))
    seen = set()
    for _ in range(6):
        batch = batches.sample(drawn.images, torch.tensor([4, 7]))
        assert batch.pixels.shape == (2, 3, *drawn.images.shape[2:])
        assert (torch.bincount(batch.image) <= 16).all()  # an image with little structure has fewer proposals
        shown = batch.label > 0
        assert 0 < int(shown.sum()) <= 8
        target = decode(batch.boxes, batch.codes[:, None])[:, 0][shown]
        assert (iou(batch.boxes[shown], target).diagonal() >= 0.5 - 1e-4).all()
        for box, which, label in zip(
            target.round().int().tolist(), batch.image[shown], batch.label[shown], strict=True
        ):
            x, y = (box[0] + box[2]) // 2, (box[1] + box[3]) // 2
            color = (batch.pixels[which, :, y, x] * 255).round().int().tolist()
            assert color == list(shapes.COLOURS[drawn.classes[int(label) - 1]]), "the box is not where the shape is"
        seen.add(tuple(batch.pixels[0, :, 0, 0].tolist()))
    assert len(seen) > 1, "no image was flipped"


def test_crop_batches_show_the_object_of_their_label(drawn: BoxSet, proposed: list[Proposals]) -> None:
    metadata = make_metadata(CONFIG, drawn, None)
    batches = CropBatches(CONFIG, metadata, all_candidates(drawn, proposed), torch.Generator().manual_seed(0))
    batch = batches.sample(drawn.images, torch.tensor([0, 1]))
    assert batch.pixels.shape == (32, 3, 32, 32)
    assert (batch.label > 0).sum() == 8
    for crop, label in zip(batch.pixels[:8], batch.label[:8], strict=True):
        middle = crop[:, 12:20, 12:20].mean((1, 2)) * 255
        other = "square" if drawn.classes[int(label) - 1] == "disc" else "disc"
        own, far = (
            (middle - torch.tensor(shapes.COLOURS[name]).float()).abs().sum()
            for name in (drawn.classes[int(label) - 1], other)
        )
        assert own < far
    assert torch.equal(batch.boxes[0], torch.tensor([0.0, 0, 32, 32]))
    assert batch.image.tolist() == list(range(32))


# ---- SVMs


def test_svms_and_box_regression_fit_separable_data() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(-1, 2, 600)  # -1: a proposal
    vector = rng.normal(0, 0.3, (600, 4)).astype(np.float32)
    vector[label >= 0, label[label >= 0]] += 3
    overlap = np.zeros((600, 2), np.float32)
    overlap[label >= 0, label[label >= 0]] = 1
    code = (vector[:, :4] * [1, 2, 3, 4] + 5).astype(np.float32)
    vectors = Vectors(vector, np.repeat(np.arange(6), 100), label, overlap, label.clip(0), overlap.max(1), code)
    svm = Svm(2, 4)
    config = dataclasses.replace(CONFIG, svm_c=1.0, ridge=1e-4)
    negatives = fit(config, svm, vectors, ("a", "b"))
    scores, codes = svm(torch.from_numpy(vector))
    assert ((scores.numpy() > 0.5) == overlap.astype(bool)).mean() > 0.99
    shown = np.flatnonzero(label == 1)
    np.testing.assert_allclose(codes[shown, 1].numpy(), code[shown], atol=0.05)
    assert negatives.keys() == {"a", "b"}
    assert all(120 <= number <= (label != index).sum() for index, number in enumerate(negatives.values()))
    again = Svm(2, 4)
    fit(config, again, vectors, ("a", "b"))
    assert all(torch.equal(one, other) for one, other in zip(svm.buffers(), again.buffers(), strict=True))


# ---- average precision


def found_in(boxes: BoxSet, shift: float = 0.0) -> list[Detections]:
    """Return the true boxes as detections, shifted to the right by `shift` pixels."""
    move = torch.tensor([shift, 0, shift, 0])
    return [Detections(b + move, torch.ones(len(b)), label) for b, label in zip(boxes.boxes, boxes.labels, strict=True)]


def test_average_precision_by_hand(drawn: BoxSet) -> None:
    perfect = precision(drawn, found_in(drawn))
    assert (perfect.map_50, perfect.map_50_95) == (1.0, 1.0)
    assert perfect.by_class == {"disc": 1.0, "square": 1.0}
    nearly = precision(drawn, found_in(drawn, 4.0))
    assert nearly.map_50 == 1.0
    assert 0.1 < nearly.map_50_95 < 0.6
    empty = precision(drawn, [Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long())] * len(drawn))
    assert (empty.map_50, empty.by_class) == (0.0, {"disc": 0.0, "square": 0.0})
    discs = [
        Detections(f.boxes[f.labels == 0], f.scores[f.labels == 0], f.labels[f.labels == 0]) for f in found_in(drawn)
    ]
    assert precision(drawn, discs).by_class == {"disc": 1.0, "square": 0.0}


def test_a_false_positive_with_the_highest_score_halves_precision() -> None:
    """One true positive after one false positive: precision 1/2 at every recall."""
    one = BoxSet(
        images=torch.zeros(1, 3, 50, 50, dtype=torch.uint8),
        sizes=torch.tensor([[50, 50]]),
        scales=torch.tensor([0.5], dtype=torch.float64),
        boxes=(torch.tensor([[0.0, 0, 10, 10]]),),
        labels=(torch.tensor([1]),),
        names=("a",),
        classes=("absent", "present"),
        source="",
    )
    found = Detections(
        torch.tensor([[30.0, 30, 40, 40], [0, 0, 10, 10]]), torch.tensor([0.9, 0.8]), torch.tensor([1, 1])
    )
    scored = precision(one, [found])
    assert scored.map_50 == pytest.approx(0.5)
    assert scored.by_class.keys() == {"present"}


# ---- cached proposals


def test_proposals_are_computed_once_and_cached(
    drawn: BoxSet, proposed: list[Proposals], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    few = drawn.take(range(4))
    first = find_all(few, SEARCH, 200, tmp_path, progress=lambda done, total: counts.append(done))
    assert counts == [1, 2, 3, 4]
    assert all(torch.equal(one.boxes, other.boxes) for one, other in zip(first, proposed, strict=False))
    files = sorted(tmp_path.rglob("*.npz"))
    assert len(files) == 4
    calls: list[int] = []
    whole = proposal_files.timed_search

    def counted(picture: np.ndarray, settings: SearchSettings) -> tuple[np.ndarray, float]:
        calls.append(1)
        return whole(picture, settings)

    monkeypatch.setattr(proposal_files, "timed_search", counted)
    files[0].write_bytes(files[0].read_bytes()[:50])
    np.savez(files[1], boxes=np.zeros((3, 5), np.int32), seconds=1.0)
    again = find_all(few, SEARCH, 5, tmp_path)
    assert len(calls) == 2, "valid files were not read, or damaged ones were"
    assert all(torch.equal(one.boxes, other.boxes[:5]) for one, other in zip(again, first, strict=True))
    assert [each.seconds for each in find_all(few, SEARCH, 5, tmp_path)] == [each.seconds for each in again]
    whole_file = files[2].read_bytes()
    for seed in range(300):  # every damaged file is made anew, or is read with proposals of the right shape
        rng = np.random.default_rng(seed)
        damaged = bytearray(whole_file)
        for position in rng.integers(len(damaged), size=3):
            damaged[position] = rng.integers(256)
        files[2].write_bytes(bytes(damaged[: rng.integers(1, len(damaged))] if seed % 2 else damaged))
        found = proposal_files.read(files[2], few.picture(2).shape[:2])
        assert found is None or found.boxes.shape[1:] == (4,)
    find_all(few, dataclasses.replace(SEARCH, sigma=1.0), 5, tmp_path)
    assert len(calls) == 6, "other settings need other proposals"
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--proposal-cache"):
        find_all(few, SEARCH, 5, tmp_path / "file")


@pytest.mark.parametrize("box", [(-1, 0, 5, 5), (5, 0, 5, 5), (5, 5, 8, 3), (0, 0, 41, 5), (0, 0, 5, 31)])
def test_cached_boxes_outside_of_the_image_or_without_area_are_not_used(tmp_path: Path, box: tuple[int, ...]) -> None:
    sound = np.array([(0, 0, 40, 30), (3, 4, 9, 8)], np.int32)
    proposal_files.write(tmp_path / "a.npz", sound, 1.0)
    found = proposal_files.read(tmp_path / "a.npz", (30, 40))
    assert found is not None
    assert found.boxes.tolist() == sound.tolist()
    proposal_files.write(tmp_path / "a.npz", np.array([sound[0], box], np.int32), 1.0)
    assert proposal_files.read(tmp_path / "a.npz", (30, 40)) is None


def test_several_processes_give_the_same_proposals(drawn: BoxSet, proposed: list[Proposals], tmp_path: Path) -> None:
    found = find_all(drawn, SEARCH, 200, tmp_path, processes=2)
    assert all(torch.equal(one.boxes, other.boxes) for one, other in zip(found, proposed, strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Second(World):
    """Process 1 of two. The other one, of another machine, has cached images and searches every second missing one."""

    images: BoxSet
    cached: frozenset[int] = frozenset()
    other_stopped: bool = False
    rank: int = 1
    size: int = 2
    rounds: list[set[int]] = dataclasses.field(default_factory=list)

    def gather(self, value: Any) -> list[Any]:
        if isinstance(value, bool):  # of `raising_together`
            return [False, value]
        if isinstance(value, set):
            missing = sorted(set(range(len(self.images))) - self.cached - value)
            self.rounds.append({*(self.cached - value), *missing[::2]})
            return [set(self.cached), value]
        sent = set() if self.other_stopped or len(self.rounds) > 1 else self.rounds[0]
        self.rounds.append(set(value[0]))
        found = {index: proposal_files.timed_search(self.images.picture(index), SEARCH) for index in sent}
        return [(found, self.other_stopped), value]


@pytest.mark.parametrize(
    ("cached", "own", "sent"),
    [
        (set(), set(), {1, 3}),  # each process searches two images
        ({0, 1, 2, 3}, set(), set()),  # the other one sends all
        ({0}, {1, 2}, {1, 2}),  # each sends what it has, and the other one searches image 3
        ({0, 1, 2, 3}, {0, 1, 2, 3}, None),
    ],
)
def test_processes_that_train_together_divide_the_search(
    drawn: BoxSet, proposed: list[Proposals], tmp_path: Path, cached: set[int], own: set[int], sent: set[int] | None
) -> None:
    few, counts = drawn.take(range(4)), list[int]()
    find_all(few.take(sorted(own)), SEARCH, 200, tmp_path)
    world = Second(images=few, cached=frozenset(cached))
    found = find_all(few, SEARCH, 200, tmp_path, progress=lambda done, total: counts.append(done), world=world)
    assert all(torch.equal(one.boxes, other.boxes) for one, other in zip(found, proposed, strict=False))
    assert len(found) == 4
    assert len(list(tmp_path.rglob("*.npz"))) == 4, "what another machine sends is cached, too"
    assert world.rounds[1:] == ([] if sent is None else [sent])
    assert counts == list(range(len(own) + 1, len(own) + 1 + len((sent or set()) - own)))


def test_a_signal_in_another_process_stops_the_search(drawn: BoxSet, tmp_path: Path) -> None:
    few = drawn.take(range(4))
    with pytest.raises(Stopped):
        find_all(few, SEARCH, 200, tmp_path, world=Second(images=few, other_stopped=True))
    assert len(list(tmp_path.rglob("*.npz"))) == 2, "what was searched is kept"


def test_coverage_by_hand(drawn: BoxSet, proposed: list[Proposals]) -> None:
    assert coverage(drawn, proposed).recall_50 > 0.95
    exact = [Proposals(boxes, 0.0) for boxes in drawn.boxes]
    covered = coverage(drawn, exact)
    assert (covered.recall_50, covered.recall_70, covered.overlap) == (1.0, 1.0, 1.0)
    assert covered.number == pytest.approx(np.mean([len(boxes) for boxes in drawn.boxes]))
    assert "100.0%" in str(covered)


# ---- config: backbone, help text, names


def test_backbone_width_and_stem_are_filled_in(tmp_path: Path) -> None:
    slim, metadata = resolve_backbone(Config(data="x"))
    assert (slim.backbone, slim.width_multiplier, slim.stem, metadata) == ("resnet18", 0.45, "medium", None)
    assert slim.options() == {"width": 0.45, "stem": "medium"}
    named, _ = resolve_backbone(Config(data="x", backbone="vgg16"))
    assert (named.width_multiplier, named.stem, named.options()) == (1.0, None, {})
    known = ClassifierMetadata(
        backbone="resnet20",
        head="pooled",
        classes=("a", "b"),
        channels=3,
        image_size=(32, 32),
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
        options={"width": 0.5},
    )
    known.save(tmp_path / "model.safetensors", known.build().state_dict())
    from_run, metadata = resolve_backbone(Config(data="x", pretrained_backbone=str(tmp_path)))
    assert (from_run.backbone, from_run.width_multiplier, metadata) == ("resnet20", 0.5, known)
    (tmp_path / "model.safetensors").rename(tmp_path / "published.pth")
    with pytest.raises(UserError, match="--backbone"):
        resolve_backbone(Config(data="x", pretrained_backbone=str(tmp_path / "published.pth")))
    with pytest.raises(UserError, match="There is no nowhere"):
        resolve_backbone(Config(data="x", pretrained_backbone="nowhere"))
    for name in PRESETS:
        assert parse(Config, PRESETS, ["--preset", name], "").preset == name


def test_images_are_normalized_by_the_moments_of_the_training_images(drawn: BoxSet) -> None:
    own = make_metadata(CONFIG, drawn, None)
    pixels = drawn.images.double().div(255)
    np.testing.assert_allclose(own.mean, pixels.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(own.std, pixels.std((0, 2, 3), correction=0), rtol=1e-6)


def test_old_names_are_accepted_and_keep_the_cache_name() -> None:
    old = {"search_colours": ["rgb"], "foreground": 0.5, "units": 32, "width": 0.5, "init_backbone": "zoo"}
    config = from_dict(Config, old, "config.json")
    assert (config.search_color_spaces, config.foreground_fraction, config.hidden_units) == (("rgb",), 0.5, 32)
    assert (config.width_multiplier, config.pretrained_backbone) == (0.5, "zoo")
    typed = parse(Config, PRESETS, ["--search-colours", "rgb", "--foreground", "0.5", "--units", "32"], "")
    assert (typed.search_color_spaces, typed.foreground_fraction, typed.hidden_units) == (("rgb",), 0.5, 32)
    # Names of cache folders that earlier versions wrote.
    assert SearchSettings().key() == "eb1cec491a7ec00e"
    assert SEARCH.key() == "19c8968538eb5773"
    assert Config().search().key() == SearchSettings().key()


# ---- drawing


def test_boxes_are_drawn(drawn: BoxSet) -> None:
    found = found_in(drawn)
    picture = drawn.picture(0)
    drawn_picture = draw_detections(picture, found[0], drawn.classes, truth_n4=drawn.boxes[0])
    assert drawn_picture.shape == picture.shape
    assert not np.array_equal(drawn_picture, picture)
    assert np.array_equal(draw_detections(picture, found[0].above(2.0), drawn.classes), picture)
    large = draw_detections(np.repeat(np.repeat(picture, 9, 0), 9, 1), found[0], drawn.classes, scale=9.0)
    assert large.shape == (picture.shape[0] * 9, picture.shape[1] * 9, 3)
    assert sheet(drawn, found, confidence=0.5, max_images=3).shape == (72 * 2 + 4, 96 * 2 + 4, 3)


def test_images_with_most_errors_come_first(drawn: BoxSet) -> None:
    found = found_in(drawn)
    found[5] = found[5].above(2.0)
    assert worst_first(drawn, found, 0.5)[0] == 5
    found[2] = Detections(found[2].boxes + 50, found[2].scores, found[2].labels)
    assert set(worst_first(drawn, found, 0.5)[:2]) == {2, 5}
