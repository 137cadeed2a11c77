"""The alarm against records written by hand."""

from sgan.evaluation.alarms import alarms, latest

FINE = {
    "collapsed_classes": 0.0,
    "copied": 0.05,
    "entropy_ratio": 0.6,
    "conditional_ratio": 0.1,
    "d_accuracy": 0.6,
    "fid": 900.0,
}


def test_a_healthy_record_raises_no_alarm():
    assert alarms(FINE) == []


def test_each_alarm_names_what_is_wrong_and_by_how_much():
    assert alarms(FINE | {"collapsed_classes": 0.3}) == ["collapse: 30% of the classes are missed or repeat themselves"]
    assert alarms(FINE | {"copied": 0.2}) == [
        "copies: 20% of the samples are as near to a training image as 5% of real images are"
    ]
    for name, word in (("entropy_ratio", "noise"), ("conditional_ratio", "condition")):
        assert alarms(FINE | {name: 0.949}) == []
        (text,) = alarms(FINE | {name: 1.02})
        assert text.startswith(f"the {word} has no effect")
        assert "102%" in text
    assert alarms(FINE | {"d_accuracy": 0.989}) == []
    assert alarms(FINE | {"d_accuracy": 0.995}) == ["the discriminator wins: it is right in 99.5%"]


def test_losses_of_a_joint_stage_keep_their_level():
    (text,) = alarms({"level1/entropy_ratio": 1.0, "level0/entropy_ratio": 0.5, "collapsed_classes": 0.0})
    assert text.startswith("level1: the noise has no effect")


def line(images: int, **metrics: float) -> dict:
    return {"images": images, "metrics": metrics}


def test_only_the_last_evaluation_after_the_first_step_counts():
    lines = [line(0, collapsed_classes=1.0), line(10, collapsed_classes=0.5), line(20, collapsed_classes=0.0)]
    assert latest({"level0": lines[:1]}) == {}
    assert list(latest({"level0": lines[:2]})) == ["level0"]
    assert latest({"level0": lines}) == {}
    assert latest({"level0": [*lines, line(30, entropy_ratio=1.0)]}) == {}  # a point between two evaluations
    assert list(latest({"level0": [*lines, line(30, fid=9.0, entropy_ratio=1.0)]})) == ["level0"]


def test_the_joint_stage_stands_for_its_levels_once_it_is_evaluated():
    records = {
        "level1": [line(5, feature_fid=3.0, entropy_ratio=0.99)],
        "level0": [line(5, collapsed_classes=0.2, entropy_ratio=0.5)],
        "joint": [line(0, collapsed_classes=1.0)],
    }
    assert list(latest(records)) == ["level1", "level0"]
    records["joint"].append(line(5, collapsed_classes=0.0))
    assert latest(records) == {}


def test_final_scores_say_whether_classes_have_collapsed_and_images_are_copied():
    records = {"level0": [line(5, collapsed_classes=0.1, copied=0.1, entropy_ratio=1.0)]}
    assert len(latest(records)["level0"]) == 2
    found = latest(records, {"collapsed_classes": 0.0, "fid": 5.0})
    assert {label: len(texts) for label, texts in found.items()} == {"level0": 1}
    assert list(latest(records, {"collapsed_classes": 0.2})) == ["level0", "score"]
    assert list(latest(records, {"copied": 0.9})) == ["level0", "score"]
