"""The visual Turing test: what a voter can know, what is kept of their votes, and the page in a real browser."""

import base64
import io
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from browser import chromium
from conftest import finish, tiny_plan, tiny_recipe
from fastapi import HTTPException
from PIL import Image
from s3 import serve

from sgan.checks import ConfigError
from sgan.presets import VARIANTS
from sgan.store import votes
from sgan.store.local import Store
from sgan.store.s3 import BucketStore
from sgan.turing_test import IMAGES, Options, TuringTest, main

VOTERS = ("0" * 31 + "1", "0" * 31 + "2")
BLACK, WHITE = (torch.full((50, 1, 8, 8), value, dtype=torch.uint8) for value in (0, 255))


def fake(store: Store, *stages: str) -> TuringTest:
    """A test whose generated images are black and whose real ones are white."""
    return TuringTest(store, dict.fromkeys(stages or ("score-1",), (BLACK, WHITE)))


def white(image: str) -> bool:
    with Image.open(io.BytesIO(base64.b64decode(image))) as picture:
        return bool(np.asarray(picture).all())


def answer_all(test: TuringTest, voter: str, wrong: int = 0) -> None:
    """Answer a page as one who sees all, but for the first `wrong` images."""
    page = test.page(voter)
    for place, image in enumerate(page["images"]):
        test.vote(voter, page["page"], place, white(image) ^ (place < wrong))


def test_nothing_but_the_pixels_tells_real_from_generated(tmp_path):
    """Names, sizes and order: 400 pages, whose images at each place, and next to each real one, are real half of the
    time, within six standard deviations; as many pages of each model."""
    test, real = fake(Store(tmp_path), "score-1", "score-2"), []
    for _ in range(400):
        page = test.page(VOTERS[0])
        assert set(page) == {"images", "page", "answers", "votes", "errors"}
        assert page["answers"] == [None] * IMAGES
        assert len({len(image) for image in page["images"]}) == 1
        assert test.page(VOTERS[0]) == page
        real.append([white(image) for image in page["images"]])
        test.pages[VOTERS[0]].answers = [True] * IMAGES  # on to the next one, without 9 writes
    shown = np.array(real)
    assert abs(shown.mean(0) - 0.5).max() < 6 * math.sqrt(0.25 / 400)
    same = (shown[:, 1:] == shown[:, :-1]).mean()
    assert abs(same - 0.5) < 6 * math.sqrt(0.25 / 3200)
    assert len({row.tobytes() for row in shown}) > 200
    noise = torch.randint(0, 256, (40, 3, 32, 32)).byte()
    coloured = TuringTest(Store(tmp_path), {"score-1": (noise, torch.zeros_like(noise))}).page(VOTERS[1])
    assert len({len(image) for image in coloured["images"]}) == 1


def test_votes_count_once_survive_a_restart_and_do_not_mix(tmp_path):
    store = Store(tmp_path)
    test = fake(store)
    page = test.page(VOTERS[0])
    first = test.vote(VOTERS[0], page["page"], 4, white(page["images"][4]))
    assert first["answers"][4] == {"answer": white(page["images"][4]), "right": True}
    assert test.vote(VOTERS[0], page["page"], 4, not white(page["images"][4])) == first
    assert votes.results(store) == {"score-1": (0, 1)}
    with pytest.raises(HTTPException, match="409"):
        test.vote(VOTERS[0], "another page", 3, True)
    answer_all(test, VOTERS[1], wrong=3)
    assert test.page(VOTERS[0])["votes"] == 1
    restarted = fake(store, "score-2")
    assert restarted.page(VOTERS[0])["votes"] == 1
    answer_all(restarted, VOTERS[0], wrong=9)
    assert votes.results(store) == {"score-1": (3, 10), "score-2": (9, 9)}
    file = store.root / votes.FOLDER / f"{VOTERS[0]}.jsonl"
    assert len(file.read_text().splitlines()) == 10
    file.write_text(file.read_text()[:-9] + "\n[]\n{}\n")
    assert votes.results(store) == {"score-1": (3, 10), "score-2": (8, 8)}


def test_a_vote_that_cannot_be_kept_can_be_given_again(tmp_path):
    test = fake(Store(tmp_path))
    page = test.page(VOTERS[0])
    (tmp_path / votes.FOLDER).write_text("in the way")
    with pytest.raises(HTTPException, match=r"503: the vote could not be kept .*exists"):
        test.vote(VOTERS[0], page["page"], 0, True)
    (tmp_path / votes.FOLDER).unlink()
    assert test.vote(VOTERS[0], page["page"], 0, True)["votes"] == 1
    assert votes.results(test.store)["score-1"].votes == 1


def test_votes_in_a_bucket_are_seen_from_another_host(tmp_path, monkeypatch):
    with serve() as api:
        address = api.bucket("votes")
        for name, voter in zip(("one", "two"), VOTERS, strict=True):
            monkeypatch.setenv("SGAN_CACHE", str(tmp_path / name))
            answer_all(fake(BucketStore(address)), voter, wrong=2)
        assert votes.results(BucketStore(address)) == {"score-1": (4, 18)}
        answer_all(fake(BucketStore(address)), VOTERS[0])
        assert votes.results(BucketStore(address)) == {"score-1": (4, 27)}


@pytest.mark.parametrize(("errors", "count"), [(0, 9), (3, 10), (24, 90), (90, 90)])
def test_the_interval_is_wilsons(errors, count):
    """Wilson (1927): the rates whose distance from the share of errors is 1.96 of their own standard errors."""
    for bound in votes.Tally(errors, count).interval():
        if 0 < bound < 1:
            assert abs(errors / count - bound) / math.sqrt(bound * (1 - bound) / count) == pytest.approx(1.959964, 1e-5)
        else:
            assert bound == errors / count
    assert str(votes.Tally(0, 0)) == "no votes"


@dataclass(frozen=True)
class Served:
    """The command while it serves the model of a tiny score stage."""

    name: str
    store: Store
    address: str
    process: "subprocess.Popen[str]"


@pytest.fixture(scope="module")
def served(tmp_path_factory, classifiers) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("served") / "store"
    shutil.copytree(classifiers, root)
    trial = tiny_plan(tiny_recipe(steps=1), VARIANTS["dcgan-adv-cond-ent"].variant)
    finish(trial, root)
    name = trial.name
    command = [sys.executable, "-m", "sgan.turing_test", name, "--store", str(root), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert found, line + process.stdout.read()
        yield Served(name, Store(root), found[0], process)
    finally:
        process.kill()
        process.wait()


def ask(url: str, method: str = "GET", host: str = "") -> Any:
    request = urllib.request.Request(url, method=method, headers={"Host": host} if host else {})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)


def test_a_page_answers_its_voter_and_no_one_else(served):
    with urllib.request.urlopen(served.address, timeout=60) as reply:
        voter = reply.url
        assert re.fullmatch(f"{served.address}[0-9a-f]{{32}}/", voter)
    page = ask(f"{voter}page")
    for url, method, code in (
        (f"{voter}votes?page=other&place=0&answer=true", "POST", 409),
        (f"{voter}votes?page={page['page']}&place=9&answer=true", "POST", 422),
        (f"{served.address}{VOTERS[0]}/votes?page={page['page']}&place=0&answer=true", "POST", 409),
        (f"{served.address}..%2f..%2fetc/page", "GET", 404),
        (f"{served.address}short/page", "GET", 422),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(url, method)
        assert refused.value.code == code
    with pytest.raises(urllib.error.HTTPError, match="400"):
        ask(f"{voter}page", host="elsewhere.example")  # a name of another site that leads here
    assert ask(f"{voter}page") == page


def test_nine_votes_by_mouse_and_key_a_reload_and_two_voters_at_once(served):
    before = votes.results(served.store).get(served.name, votes.Tally(0, 0))
    with chromium() as browser:
        first, second = (browser.new_page() for _ in VOTERS)
        trouble: list[str] = []
        for page in (first, second):
            page.on("console", lambda message: trouble.append(message.text))
            page.on("pageerror", lambda error: trouble.append(str(error)))
            page.goto(served.address)
            page.wait_for_selector("img")
        assert first.url != second.url

        def count(page: Any, answers: int) -> None:
            page.wait_for_function(f"document.querySelectorAll('figure.right, figure.wrong').length == {answers}")

        for number, key in enumerate("rgr", 1):
            first.keyboard.press(key)
            count(first, number)
        first.get_by_role("button", name="generated").nth(2).click()  # the sixth image
        count(first, 4)
        second.keyboard.press("g")
        count(second, 1)
        images = first.locator("img").evaluate_all("all => all.map(each => each.src)")
        first.reload()
        count(first, 4)
        assert first.locator("img").evaluate_all("all => all.map(each => each.src)") == images
        classes = first.locator("figure").evaluate_all("all => all.map(each => each.className)")
        assert [each in ("right", "wrong") for each in classes] == [place in (0, 1, 2, 5) for place in range(IMAGES)]
        assert classes[3] == "now"
        for number in range(5, IMAGES + 1):
            first.keyboard.press("r")
            count(first, number)
        errors = first.locator("figure.wrong").count()
        assert first.inner_text("#status") == f"9 answers, {errors} wrong"
        kept = [len(votes.read(served.store, page.url.split("/")[3])) for page in (first, second)]
        assert kept == [9, 1]
        mistakes = errors + second.locator("figure.wrong").count()
        assert votes.results(served.store) == {served.name: (before.errors + mistakes, before.votes + 10)}
        first.keyboard.press("Enter")
        count(first, 0)
        assert first.locator("img").evaluate_all("all => all.map(each => each.src)") != images
        assert first.inner_text("#status") == f"9 answers, {errors} wrong"
        first.set_viewport_size({"width": 375, "height": 700})
        assert first.evaluate("document.documentElement.scrollWidth") <= 375
        assert trouble == []


def test_an_option_that_cannot_be_used_is_named(served):
    name, root, port = served.name, str(served.store.root), int(served.address.split(":")[2].strip("/"))
    for options, words in (
        (Options((name,), root, port=port), f"port {port} cannot be used (Address already in use); name another"),
        (Options((), root), "RUN_OR_PATH"),
        (Options(("score-0",), root), "'score-0' is no folder, and no run or stage"),
        (Options((name,), root, port=70_000), "--port must be from 0 to 65535, but got 70000"),
    ):
        with pytest.raises(ConfigError, match=re.escape(words)):
            main(options)


def test_the_command_prints_the_result_when_it_ends(served):
    voter = f"{served.address}{VOTERS[1]}/"
    page = ask(f"{voter}page")
    for place in range(IMAGES):
        state = ask(f"{voter}votes?page={page['page']}&place={place}&answer=true", "POST")
    assert sum(not answer["right"] for answer in state["answers"]) == state["errors"]
    tally = votes.results(served.store)[served.name]
    served.process.send_signal(signal.SIGINT)
    output, _ = served.process.communicate(timeout=60)
    assert served.process.returncode == 0
    assert output == f"{served.name}  {tally}\n"
