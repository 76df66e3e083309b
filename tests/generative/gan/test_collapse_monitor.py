"""Warnings come in time, once, and only where there is reason."""

from __future__ import annotations

from zerokara.generative.gan.collapse_monitor import MIN_INTERVALS, CollapseMonitor


def test_a_discriminator_that_keeps_winning_is_told_once() -> None:
    watch = CollapseMonitor()
    told = [watch.discriminator(1.0, 0.995, update) for update in range(10)]
    assert [update for update, warning in enumerate(told) if warning] == [MIN_INTERVALS - 1]
    warning = told[MIN_INTERVALS - 1]
    assert warning is not None
    assert warning.startswith("update 3: the discriminator tells all images apart (100.0% of real and 99.5% of painted")
    assert "--diffaugment" in warning


def test_winning_on_one_side_or_for_a_moment_is_no_reason() -> None:
    watch = CollapseMonitor()
    for update in range(20):
        assert watch.discriminator(1.0, 0.9, update) is None
        assert watch.discriminator(0.9, 1.0, update) is None
    for update in range(20):
        assert watch.discriminator(1.0, 0.5 if update % MIN_INTERVALS == 0 else 1.0, update) is None


def test_another_stretch_is_told_again() -> None:
    watch = CollapseMonitor()
    accuracies = [1.0] * MIN_INTERVALS + [0.8] + [1.0] * MIN_INTERVALS
    assert sum(watch.discriminator(accuracy, accuracy, 0) is not None for accuracy in accuracies) == 2


def test_samples_that_become_one_are_told_until_it_is_over() -> None:
    watch = CollapseMonitor()
    assert watch.samples(0.9, 10.0, None, 0) is None
    warning = watch.samples(0.2, 10.0, 10.0, 500)
    assert warning is not None
    assert "20% as far from each other as real ones" in warning
    assert "--resume --rollback" in warning
    assert watch.samples(0.1, 10.0, 10.0, 1000) is None
    assert watch.samples(0.9, 10.0, 10.0, 1500) is None
    assert watch.samples(0.2, 10.0, 10.0, 2000) is not None


def test_a_score_that_turns_bad_is_told() -> None:
    watch = CollapseMonitor()
    assert watch.samples(0.9, 19.0, 10.0, 500) is None
    warning = watch.samples(0.9, 49.0, 10.0, 1000)
    assert warning is not None
    assert "the score is 49, after 10 at its best" in warning


def test_samples_that_never_were_wide_are_told_the_second_time() -> None:
    watch = CollapseMonitor()
    assert watch.samples(0.05, 90.0, None, 500) is None
    assert watch.samples(0.05, 90.0, 90.0, 1000) is not None
    assert watch.samples(0.05, 90.0, 90.0, 1500) is None
    assert watch.samples(0.3, 50.0, 90.0, 2000) is None
    watch = CollapseMonitor()
    assert watch.samples(0.05, 90.0, None, 500) is None
    assert watch.samples(0.3, 50.0, 90.0, 1000) is None, "grey at the start, and wider since"


def test_a_class_that_is_not_painted_is_told_until_it_is() -> None:
    watch = CollapseMonitor()
    shares = (0.002, 0.002, 0.002, 0.05, 0.008, 0.05, 0.0, 0.0)
    told = [watch.classes(share, 0.09, update) for update, share in enumerate(shares)]
    assert [text is not None for text in told] == [False, True, False, False, False, False, False, True]
    assert told[1] is not None
    assert "0.20% of the samples" in told[1]
    assert "9.00% of real images" in told[1]
    assert watch.classes(None, None, 9) is None


def test_a_checkpoint_from_before_these_counts_is_read() -> None:
    watch = CollapseMonitor()
    watch.load_state_dict({"won": 2, "best_spread": 0.5, "warned_of_collapse": True})
    assert (watch.won, watch.best_spread, watch.warned_of_collapse, watch.missing) == (2, 0.5, True, 0)


def test_what_was_seen_outlives_an_interruption() -> None:
    watch, resumed = CollapseMonitor(), CollapseMonitor()
    for update in range(MIN_INTERVALS - 1):
        watch.discriminator(1.0, 1.0, update)
    watch.samples(0.9, 1.0, None, 0)
    assert watch.samples(0.1, 1.0, 1.0, 250) is not None
    watch.classes(0.0, 0.1, 0)
    resumed.load_state_dict(watch.state_dict())
    assert resumed == watch
    assert resumed.samples(0.1, 1.0, 1.0, 500) is None, "it was told before"
    assert resumed.discriminator(1.0, 1.0, MIN_INTERVALS) is not None
