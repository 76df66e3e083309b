"""Tests of the warnings about failing training (each comes in time, once, and only with reason) and of accuracies."""

from __future__ import annotations

import pytest
import torch

from zerokara.generative.gan.collapse_monitor import MIN_INTERVALS, CollapseMonitor, accuracies

REAL, FAKE = torch.tensor([2.0, -1.0]), torch.tensor([0.5, -3.0])


def test_warns_once_of_a_perfect_discriminator() -> None:
    monitor = CollapseMonitor()
    warnings = [monitor.discriminator(1.0, 0.995, update) for update in range(10)]
    assert [update for update, warning in enumerate(warnings) if warning] == [MIN_INTERVALS - 1]
    warning = warnings[MIN_INTERVALS - 1]
    assert warning is not None
    assert warning.startswith(
        "update 3: the discriminator classifies nearly all images correctly (100.0% of real and 99.5% of gen"
    )
    assert "(--ada blit geometry color, or --diffaugment color translation cutout)" in warning


def test_no_warning_if_accuracy_is_high_only_on_one_side_or_briefly() -> None:
    monitor = CollapseMonitor()
    for update in range(20):
        assert monitor.discriminator(1.0, 0.9, update) is None
        assert monitor.discriminator(0.9, 1.0, update) is None
    for update in range(20):
        assert monitor.discriminator(1.0, 0.5 if update % MIN_INTERVALS == 0 else 1.0, update) is None


def test_warns_again_after_the_discriminator_was_imperfect() -> None:
    monitor = CollapseMonitor()
    accuracies = [1.0] * MIN_INTERVALS + [0.8] + [1.0] * MIN_INTERVALS
    assert sum(monitor.discriminator(accuracy, accuracy, 0) is not None for accuracy in accuracies) == 2


def test_warns_once_of_each_mode_collapse() -> None:
    monitor = CollapseMonitor()
    assert monitor.samples(0.9, 10.0, None, 0) is None
    warning = monitor.samples(0.2, 10.0, 10.0, 500)
    assert warning is not None
    assert "between samples is 20% of that between real images" in warning
    assert "--resume --rollback" in warning
    assert monitor.samples(0.1, 10.0, 10.0, 1000) is None
    assert monitor.samples(0.9, 10.0, 10.0, 1500) is None
    assert monitor.samples(0.2, 10.0, 10.0, 2000) is not None


def test_warns_of_a_score_that_gets_much_worse() -> None:
    monitor = CollapseMonitor()
    assert monitor.samples(0.9, 19.0, 10.0, 500) is None
    warning = monitor.samples(0.9, 49.0, 10.0, 1000)
    assert warning is not None
    assert "the score is 49, the best was 10" in warning


def test_warns_at_the_second_evaluation_of_samples_that_never_were_diverse() -> None:
    monitor = CollapseMonitor()
    assert monitor.samples(0.05, 90.0, None, 500) is None
    assert monitor.samples(0.05, 90.0, 90.0, 1000) is not None
    assert monitor.samples(0.05, 90.0, 90.0, 1500) is None
    assert monitor.samples(0.3, 50.0, 90.0, 2000) is None
    monitor = CollapseMonitor()
    assert monitor.samples(0.05, 90.0, None, 500) is None
    assert monitor.samples(0.3, 50.0, 90.0, 1000) is None, "gray samples at the start, diverse ones later"


def test_warns_of_a_missing_class_at_the_second_evaluation() -> None:
    monitor = CollapseMonitor()
    fractions = (0.002, 0.002, 0.002, 0.05, 0.008, 0.05, 0.0, 0.0)
    warnings = [monitor.classes(fraction, 0.09, update) for update, fraction in enumerate(fractions)]
    assert [text is not None for text in warnings] == [False, True, False, False, False, False, False, True]
    assert warnings[1] is not None
    assert "0.20% of samples" in warnings[1]
    assert "9.00% of real images" in warnings[1]
    assert monitor.classes(None, None, 9) is None


def test_loads_an_older_checkpoint_without_all_counters() -> None:
    monitor = CollapseMonitor()
    monitor.load_state_dict({"won": 2, "best_spread": 0.5, "warned_of_collapse": True})
    assert (monitor.won, monitor.best_spread, monitor.warned_of_collapse, monitor.missing) == (2, 0.5, True, 0)


def test_counters_survive_saving_and_loading() -> None:
    monitor, resumed = CollapseMonitor(), CollapseMonitor()
    for update in range(MIN_INTERVALS - 1):
        monitor.discriminator(1.0, 1.0, update)
    monitor.samples(0.9, 1.0, None, 0)
    assert monitor.samples(0.1, 1.0, 1.0, 250) is not None
    monitor.classes(0.0, 0.1, 0)
    resumed.load_state_dict(monitor.state_dict())
    assert resumed == monitor
    assert resumed.samples(0.1, 1.0, 1.0, 500) is None, "it was warned of before"
    assert resumed.discriminator(1.0, 1.0, MIN_INTERVALS) is not None


@pytest.mark.parametrize(
    ("name", "real", "fake"),
    [("bce", 0.5, 0.5), ("hinge", 0.5, 0.5), ("least-squares", 0.5, 0.5), ("wasserstein", 0.5, 0.5)],
)
def test_accuracy_by_hand(name: str, real: float, fake: float) -> None:
    """Compare accuracies. The midpoint of the mean scores is -0.375."""
    result = accuracies(name, REAL, FAKE)
    assert [float(fraction) for fraction in result] == [real, fake]


def test_accuracy_uses_the_boundary_of_the_loss() -> None:
    real, fake = torch.tensor([0.9, 1.1]), torch.tensor([0.1, 0.2])
    assert [float(fraction) for fraction in accuracies("least-squares", real, fake)] == [1, 1]
    assert [float(fraction) for fraction in accuracies("bce", real, fake)] == [1, 0]
    for name in ("wasserstein", "relativistic"):  # a constant added to all scores changes nothing
        assert [float(fraction) for fraction in accuracies(name, real + 7, fake + 7)] == [1, 1]
