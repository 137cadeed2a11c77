"""The report of a sweep: its tables against numbers worked out by hand, from a store, and its page in a browser."""

import io
import math
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from browser import chromium
from command import ended
from PIL import Image

from sgan.checks import ConfigError
from sgan.evaluation import grid
from sgan.store.files import Record, StoreError, read_json, sha256, write_json
from sgan.store.local import FIGURES, Store
from sweeps import ledger, report
from sweeps.planning import manifest
from sweeps.reporting import document, plots, results, tables

KEY = "ab12"
# Inception score, FID, seconds of each seed. SGAN: means 9.2 and 12, standard deviations 0.2 and 2.
SCORES = {
    "sgan": {0: (9.0, 10.0, 30.0), 1: (9.2, 12.0, 40.0), 2: (9.4, 14.0, 50.0)},
    "near": {0: (9.0, 13.0, 10.0), 1: (9.06, 14.0, 10.0), 2: "diverged"},  # means 9.03 and 13.5
    "far": {0: (5.0, 80.0, 9.0), 1: "failed", 2: None},
    "absent": {0: None, 1: None, 2: None},
}
TITLES = {"sgan": "SGAN", "near": "DCGAN (adv+cond+ent)", "far": "DCGAN (adv)", "absent": "Seventh"}


def fingerprint(samples: int = 5000, weights: str = "f00d") -> dict:
    fields = {"network": "classifier", "weights": weights, "resize": "none", "samples": samples, "splits": 10}
    fields |= {"shuffle": "RandomState(2020)", "reference": "digits, 1,347 training images"}
    return {"scores": fields, "classes": fields}


def finish(
    store: Store,
    name: str,
    seconds: float,
    scores: dict,
    status: str = "done",
    commit: str = "abc123",
    said: dict | None = None,
) -> None:
    folder = store.begin(name)
    metrics = {"g_adv": 0.5}
    if "far" in name:
        metrics |= {"collapsed_classes": 0.0, "entropy_ratio": 1.0}
    Record(folder).add(100, metrics)
    facts = {
        "fingerprint": said or fingerprint(),
        "kind": name.partition("-")[0],
        "name": name,
        "status": status,
        "reason": "g_adv is nan",
        "images": 100,
        "generator_images": 100 if name.startswith("level") else 0,
    }
    facts |= {"seconds": seconds, "commit": commit, "machine": "two cores", "torch": "2.11", "scores": scores}
    store.publish(name, facts)


def make(root: Path, seeds=(0, 1, 2), commit: str = "abc123", samples=lambda seed: 5000) -> Store:
    """A store with the sweep above."""
    store = Store(root)
    real = {"inception_score": 9.8, "fid": 0.7, "judge_accuracy": 0.99, "diversity": 1.0}
    finish(store, "judge-x", 5.0, real, said=fingerprint(samples=1347))
    trials = []
    for rank, (variant, ends) in enumerate(SCORES.items()):
        for seed in seeds:
            name, result = f"score-{variant}-{seed}", ends[seed]
            weights = {"adversarial": 1.0, "conditional": 1.0, "entropy": 10.0}
            config = {"seed": seed, "variant": {"weights": weights}}
            own = {"cuts": "fc3", "config": config, "config_key": f"c0ffee-{variant}"}
            own |= {"phase": "ablation", "rerun": f"--variants {variant}", "rank": rank, "title": TITLES[variant]}
            own |= {
                "paper": "8.59 ± 0.12" if variant == "sgan" else "",
                "base": "sgan",
                "changes": {},
                "base_variant": variant,
            }
            level = f"level-{variant}-{seed}"
            stages = [{"label": "level0", "name": level}, {"label": "score", "name": name}]
            trials.append({"name": name, "run": name, "variant": variant, "seed": seed, **own, "stages": stages})
            if result == "diverged":
                finish(store, name, 1.0, {}, "diverged")
            elif result == "failed":
                write_json(store.failure(name), {"trial": name, "error": "no memory", "time": 1_700_000_500.0})
            elif result:
                scores = {"inception_score": result[0], "inception_score_split_std": 0.1, "fid": result[1]}
                labels = {} if variant == "far" else {"accuracy": 0.9, "judge_accuracy": 0.85}
                finish(store, level, result[2], {})
                # Scoring takes time too, but trains nothing.
                scores |= labels | {"diversity": 0.8}
                finish(
                    store,
                    name,
                    7.0,
                    scores,
                    commit=commit if seed else "abc123",
                    said=fingerprint(samples(seed)),
                )
    value = {
        "key": KEY,
        "title": "digits, recipe tiny",
        "command": "python sweeps/ablation.py --dataset digits",
        "commit": "abc123-dirty",
        "machine": "two cores, no GPU",
        "started": 1_700_000_000.0,  # 2023-11-14 in UTC
        "settings": {"dataset": "digits", "recipe": "tiny"},
        "judges": ["judge-x"],
        "paper_real": "11.24 ± 0.12",
        "trials": trials,
    }
    manifest.write(store, value)
    return store


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Store:
    return make(tmp_path_factory.mktemp("store"))


def cells(section: str, variant: str) -> list[str]:
    row = next(line for line in section.splitlines() if line.startswith(f"| {variant} "))
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


def test_the_table_has_a_row_a_trial(store):
    table = results.read(store, KEY).trials
    assert list(table["variant"]) == [variant for variant in SCORES for _ in range(3)]
    assert list(table["seed"]) == [0, 1, 2] * 4
    assert list(table["outcome"]) == ["done"] * 5 + ["diverged", "done", "failed"] + ["interrupted"] * 4
    assert list(table["fid"].dropna()) == [10.0, 12.0, 14.0, 13.0, 14.0, 80.0]
    assert len(table["accuracy"].dropna()) == 5
    assert set(table["reason"]) == {"", "score: g_adv is nan", "no memory"}
    assert results.SCORES["best_fid"].heading == "Best FID"


def test_a_subset_of_variants_and_seeds(store):
    table = results.read(store, KEY, variants=["near", "sgan"], seeds=[1]).trials
    assert list(zip(table["variant"], table["seed"], strict=True)) == [("sgan", 1), ("near", 1)]


def test_summary_against_numbers_worked_out_by_hand(store):
    summary = results.read(store, KEY).summary
    assert list(summary) == list(SCORES)

    def of(variant: str, score: str) -> tuple[float, ...]:
        return tuple(summary[variant][score, name] for name in ("mean", "std", "count"))

    assert of("sgan", "fid") == pytest.approx((12.0, 2.0, 3))
    assert of("sgan", "inception_score") == pytest.approx((9.2, 0.2, 3))
    assert of("sgan", "train_seconds") == pytest.approx((40.0, 10.0, 3))
    assert of("near", "fid") == pytest.approx((13.5, math.sqrt(0.5), 2))
    assert of("far", "fid") == pytest.approx((80.0, math.nan, 1), nan_ok=True)
    assert all(map(math.isnan, of("absent", "fid")))


def test_the_section_of_a_sweep(store):
    section = document.markdown(results.read(store, KEY))
    assert section.startswith("## digits, recipe tiny\n\nSGAN has the lowest mean FID, 12.00; DCGAN (adv+cond+ent) is")
    # On seeds 0 and 1: 13 - 10 and 14 - 12.
    assert cells(section, "SGAN") == ["12.00 ± 2.00", "–", "9.20 ± 0.20"]
    near = ["13.50 ± 0.71", "+2.50 [2.00, 3.00]", "9.03 ± 0.04"]
    assert cells(section, "DCGAN (adv+cond+ent) (2/3) ⚠") == near
    assert cells(section, "DCGAN (adv) (1/3) ⚠") == ["80.00", "+70.00", "5.00"]
    assert cells(section, "Seventh (0/3)") == ["–"] * 3
    assert cells(section, "Real, held out") == ["0.70", "–", "9.80"]
    assert "- ⚠ DCGAN (adv): 2 of 3 seeds went wrong, for example: level0: the noise has no effect: the" in section
    assert "- ⚠ DCGAN (adv+cond+ent): 1 of 3 seeds went wrong, for example: diverged: score: g_adv is nan." in section
    assert "⚠ SGAN" not in section
    row = next(line for line in section.splitlines() if line.startswith("| DCGAN (adv+cond+ent) | FID ↓"))
    assert [cell.strip() for cell in row.split("|")[3:8]] == ["2", "+2.50 [2.00, 3.00]", "0.5", "1", "0.00"]
    assert max(len(line) for line in section.splitlines() if line.startswith("|")) <= 100
    page = document.html(results.read(store, KEY), [], "runs")
    assert page.count("8.59 ± 0.12") == page.count("11.24 ± 0.12") == 1
    assert "0.900 ± 0.000" in page
    assert "```\npython sweeps/ablation.py --dataset digits\n```" in section
    assert "Commit abc123; two cores, no GPU; 2023-11-14; sweep ab12." in section
    assert "Judge of scores and classes: network classifier, weights f00d, resize none, samples 5000, " in section
    assert "compare only the order of the rows, not the numbers" in page


def test_a_sweep_of_equal_compute_says_how_equal_it_was(store):
    sweep = results.read(store, KEY)
    found = [sweep.values(variant, "generator_images") for variant in sweep.titles]
    means = [float(images.mean()) for images in found if len(images)]
    sweep.manifest["settings"]["match"] = "images"
    (line,) = [line for line in tables.facts(sweep) if line.startswith("Equal generator images are planned")]
    assert f"{min(means):,.4g} (" in line
    assert f"{max(means):,.4g} (" in line


def test_curves_go_on_through_all_stages(tmp_path):
    store, stages = Store(tmp_path), {"encoder": 5.0, "level1": 10.0, "level0": 20.0, "joint": 8.0, "score": 1.0}
    lines = {
        "level1": [(60, {"feature_fid": 1.0}, "")],
        "level0": [
            (0, {"fid": 50.0}, ""),
            (50, {"generator_steps": 2.0, "fid": 7.0}, "other"),
            (100, {"generator_steps": 1.0, "fid": 20.0}, ""),
        ],
        "joint": [(0, {"fid": 19.0}, ""), (40, {"generator_steps": 1.0, "fid": 10.0}, "")],
    }
    for label, seconds in stages.items():
        folder = store.begin(f"{label}-x")
        record = Record(folder)
        for line in lines.get(label, ()):
            record.add(*line)
        images = {"level0": 100, "joint": 40}
        facts = {"kind": label.rstrip("01"), "name": f"{label}-x", "status": "done", "images": images.get(label, 60)}
        facts |= {
            "generator_images": images.get(label, 0),
            "flops": images.get(label, 0) * 10,
            "seconds": seconds,
            "fingerprint": {},
            "commit": "abc",
            "scores": {},
        }
        store.publish(f"{label}-x", facts | {"machine": "two cores", "torch": "2.11"})
    own = [{"label": label, "name": f"{label}-x"} for label in stages]
    trial = {"name": "score-x", "variant": "sgan", "seed": 0, "stages": own, "cuts": "fc3", "phase": "ablation"}
    trial |= {"rank": 0, "title": "SGAN", "paper": "", "base": "sgan", "base_variant": "sgan", "changes": {}}
    trial |= {"run": "score-x", "rerun": "", "config": {}, "config_key": "c0ffee"}
    head = {**manifest.read(make(tmp_path / "other"), KEY), "judges": [], "trials": [trial]}
    manifest.write(store, head)
    found = results.curves(results.read(store, KEY), "fid")
    # Two generator steps for the first fifty images. The joint stage begins with the first score of the whole stack.
    assert found["images"].to_list() == [0, 150, 150, 190]
    assert found["flops"].to_list() == [0, 1000, 1000, 1400]
    assert found["value"].to_list() == [50, 20, 19, 10]
    assert found["alone"].to_list() == [True, True, False, False]
    assert found["point"].to_list() == [0, 1, 2, 3]


def test_scores_of_different_fingerprints_are_refused(tmp_path):
    store = make(tmp_path / "store", samples=lambda seed: 5000 if seed < 2 else 50_000)
    with pytest.raises(ConfigError, match="samples of scores is 5000 in some and 50000 in others"):
        results.read(store, KEY)
    assert results.read(store, KEY, seeds=[0, 1]).fingerprint == fingerprint(5000)
    with pytest.raises(ConfigError):
        report.main((store.address,), tmp_path / "out.md")
    assert not (tmp_path / "out.md").exists()


def test_one_seed_has_no_spread(store):
    section = document.markdown(results.read(store, KEY, seeds=[0]))
    assert cells(section, "SGAN") == ["10.00", "–", "9.00"]
    assert cells(section, "DCGAN (adv+cond+ent)") == ["13.00", "+3.00", "9.00"]
    assert "With 1 paired seed no order can be established: 4 comparisons need 8 seeds (p < 0.05 after Holm" in section


def test_without_finished_trials(store):
    section = document.markdown(results.read(store, KEY, ["absent"]))
    assert "No trial has finished with a FID. There is nothing to compare." in section
    assert "There is nothing to compare" in document.html(results.read(store, KEY, []), [], "runs")


def test_a_sweep_that_the_store_does_not_have(store):
    with pytest.raises(StoreError, match="zz99"):
        results.read(store, "zz99")


def test_devices_are_named_where_trials_differ_in_them(tmp_path):
    store = make(tmp_path / "store")
    assert "more than one device" not in document.markdown(results.read(store, KEY))
    facts = store.facts("level-sgan-1")
    write_json(store.stage("level-sgan-1") / "stage.json", facts | {"machine": "a GPU"})
    assert "version of torch: a GPU, torch 2.11; two cores, torch 2.11." in document.markdown(results.read(store, KEY))


def test_the_report_names_no_path_of_this_machine(tmp_path):
    stores = [make(tmp_path / name, commit="def456").address for name in ("first", "second")]
    out = tmp_path / "RESULTS.md"
    report.main((stores[0], stores[1]), out)
    text = out.read_text()
    assert "python sweeps/report.py first second --out RESULTS.md\n" in text
    assert text.count("## digits, recipe tiny") == 2
    assert "Commits abc123, def456;" in text
    assert str(tmp_path) not in text
    assert str(Path.cwd()) not in text
    report.main((stores[0], stores[1]), out)
    assert out.read_text() == text


def test_a_search_shows_its_plots_and_what_was_only_explored_apart(tmp_path):
    store = make(tmp_path / "store")
    shares = {"entropy": [0.7, 0.5, 0.9], "split": [0.1, 0.0, 0.3]}
    record = manifest.read(store, KEY) | {"explored": 7, "importance": shares, "score": "fid"}
    record["settings"] |= {"seed": 1000}
    for number, trial in enumerate(record["trials"]):
        trial |= {"number": number, "params": {"entropy": 1.0 + number, "split": f"fc{number}"}}
        trial["phase"] = "explore" if trial["variant"] == "near" else "confirm"
        trial["title"] = "0: fc3, 1 : 1 : 10 (default)" if trial["variant"] == "sgan" else trial["title"]
    manifest.write(store, record)
    report.main((store.address,), tmp_path / "SEARCHED.md")
    text = (tmp_path / "SEARCHED.md").read_text()
    assert "DCGAN (adv+cond+ent)" not in text
    assert "7 configs were explored at seed 1000" in text
    assert "| against the default |" in " ".join(text.split())
    for name, title in (("importance", "Importance of each parameter for FID"), ("history", "FID of every explored")):
        assert f"![{title}" in text
        assert f"(SEARCHED/{KEY}/{name}.png)" in text
        assert (tmp_path / "SEARCHED" / KEY / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "SEARCHED" / KEY / "report.html").read_text()
    assert "Explored configs" in page
    assert "FID of every explored config" in page


def test_a_file_that_cannot_be_written_is_one_error(store, tmp_path):
    with pytest.raises(ConfigError, match=r"--out .*absent/out\.md does not exist"):
        report.main((store.address,), tmp_path / "absent" / "out.md")


def test_a_missing_store_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert ended("sweeps/report.py", tmp_path / "none", "--out", tmp_path / "out.md") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("file", "entry", "value", "message"),
    [
        ("sweeps/ab12/sweep.json", "judges", [7], "judges.0 must be a valid string, but got 7"),
        ("sweeps/ab12/sweep.json", "settings", {}, "settings.dataset is missing"),
        ("sweeps/ab12/trials/sgan-0.json", "seed", "x", "seed must be a valid integer, but got 'x'"),
        ("sweeps/ab12/trials/sgan-0.json", "stages", [], "stages must have at least 1 item"),
        ("sweeps/ab12/trials/sgan-0.json", "rerun", "'", "rerun: No closing quotation"),
        ("stages/score-sgan-0/stage.json", "scores", {"fid": "x"}, "scores.fid must be a valid number, but got 'x'"),
        ("stages/level-sgan-0/stage.json", "files", {"../../a": ""}, "'../../a' is no name of a file"),
    ],
)
def test_a_whole_file_of_another_kind_is_an_error_with_its_name(file, entry, value, message, tmp_path):
    path = make(tmp_path).root / file
    write_json(path, read_json(path) | {entry: value})
    with pytest.raises(StoreError, match=f"{re.escape(str(path))}.*{re.escape(message)}"):
        document.markdown(results.read(Store(tmp_path), KEY))


def test_a_title_of_any_text_is_one_cell(tmp_path):
    for path in (make(tmp_path / "store").root / "sweeps" / KEY / "trials").glob("sgan-*.json"):
        write_json(path, read_json(path) | {"title": "A|B $5_$ of\ntwo lines"})
    report.main((str(tmp_path / "store"),), tmp_path / "My Results.md")
    text = (tmp_path / "My Results.md").read_text()
    assert "| A\\|B $5_$ of two lines" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") - line.count("\\|") for line in tables} == {5, 8}
    for link in re.findall(r"!?\[.*?\]\((\S+)\)", text):
        assert (tmp_path / unquote(link)).is_file()
    assert "](My%20Results/" in text


def test_a_command_of_a_hostile_record_is_words_alone(tmp_path):
    path = make(tmp_path).root / "sweeps" / KEY / "trials" / "sgan-0.json"
    write_json(path, read_json(path) | {"rerun": "--seeds 1; rm -rf ~ $(reboot)"})
    row = next(row for row in manifest.read(Store(tmp_path), KEY)["trials"] if row["name"] == "score-sgan-0")
    script = f"printf '%s\\n' {row['rerun']}"
    said = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=60).stdout
    assert said.splitlines() == ["--seeds", "1;", "rm", "-rf", "~", "$(reboot)"]


def test_a_store_damaged_anywhere_is_one_error_or_the_same_report(tmp_path):
    """Every kind of file: no other error, and no number that is not in the store."""
    store = make(tmp_path / "store", seeds=(0,))
    store.note("sweep started", sweep=KEY)
    out, dice = tmp_path / "REPORT.md", random.Random(0)
    commands: list[Callable[[], None]] = [
        lambda: ledger.main(store.address),
        lambda: report.main((store.address,), out),
    ]
    for command in commands:
        command()
    expected, held = rows(out), tmp_path / "held"
    shutil.copytree(store.root, held)
    kinds: dict[tuple[str, ...], list[Path]] = {}
    for path in sorted(path for path in held.rglob("*") if path.is_file() and path.suffix != ".lock"):
        inside = path.relative_to(held)
        kinds.setdefault((inside.parts[0], inside.parts[-1] if inside.parts[0] == "stages" else ""), []).append(inside)
    errors = []
    for _ in range(2):
        for files in kinds.values():
            victim = store.root / dice.choice(files)
            deleted = damage(victim, dice)
            for command in commands:
                try:
                    command()
                except ConfigError as error:
                    errors.append(str(error))
                else:
                    # A trial without a stage, a failure or a row has not ended: only the rest of its table stays.
                    assert command is commands[0] or deleted or rows(out) == expected, victim
            shutil.rmtree(store.root)
            shutil.copytree(held, store.root)
    assert len(errors) >= len(kinds)
    assert not [error for error in errors if "\n" in error]


def test_samples_stand_side_by_side_pixel_for_pixel_with_real_images_last(tmp_path):
    store = make(tmp_path / "store", seeds=(0,))
    for place, variant in enumerate(("sgan", "near", "far")):
        folder = store.stage(f"score-{variant}-0")
        facts = read_json(folder / "stage.json")
        for name, level in (("classes", 60 * (place + 1)), ("real", 240)):
            file = f"{FIGURES}/{name}.png"
            images = torch.full((4, 1, 8, 8), level, dtype=torch.uint8)
            grid.save(images, folder / file, 2, grid.Words("a title"))
            facts["files"][file] = sha256(folder / file)
        write_json(folder / "stage.json", facts)
    (samples, *_) = plots.draw(results.read(store, KEY))
    picture = np.asarray(Image.open(io.BytesIO(samples.png)).convert("L"))
    side = 2 * 48 + 4  # two images of 6 pixels a pixel, and the gap
    bar, gap = side // 9, side // 40
    assert picture.shape == (2 * (bar + side), 2 * side + gap)
    for level, top, left in ((60, 0, 0), (120, 0, 1), (180, 1, 0), (240, 1, 1)):
        panel = picture[bar + top * (bar + side) :, left * (side + gap) :][:side, :side]
        assert {*panel[:48, :48].flat, *panel[52:, 52:].flat} == {level}
        assert {*panel[48:52].flat, *panel[:, 48:52].flat} == {255}


MEASURE = """() => ({
  images: [...document.images].map(image => image.naturalWidth),
  overflows: [...document.querySelectorAll("body, body *")]
    .filter(each => !each.closest(".wide") && each.getBoundingClientRect().right > innerWidth + 1)
    .map(each => each.tagName),
  width: document.documentElement.scrollWidth })"""


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_in_a_browser(width, store, tmp_path):
    sweep = results.read(store, KEY)
    pictures = plots.draw(sweep)
    path, asked = tmp_path / "page.html", []
    path.write_text(document.html(sweep, pictures, "runs"))
    with chromium() as browser:
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        found = page.evaluate(MEASURE)
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}  # one file, no network
    assert len(found["images"]) == len(pictures) > 1
    assert min(found["images"]) > 0
    assert (found["overflows"], found["width"]) == ([], width)


def rows(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.startswith("| ")]


def damage(path: Path, dice: random.Random) -> bool:
    """Flip, cut off, put in, or delete; returns whether it was deleted."""
    held, kind = bytearray(path.read_bytes()), dice.choice(["flip", "flip", "cut", "put", "delete"])
    at = dice.randrange(len(held) or 1)
    if kind == "delete":
        path.unlink()
    elif kind == "flip" and held:
        held[at] ^= 1 << dice.randrange(8)
    elif kind == "cut":
        del held[at:]
    else:
        held[at:at] = dice.randbytes(4)
    if kind != "delete":
        path.write_bytes(held)
    return kind == "delete"
