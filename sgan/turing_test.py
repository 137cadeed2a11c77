"""Visual Turing test: people tell generated images from real ones (SGAN, section 4.4).

python -m sgan.turing_test RUN_OR_PATH... [--store runs] [--port 8000] [--help]
"""

import base64
import os
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import fastapi
import torch
import tyro
import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware
from torch import Tensor
from torchvision.io import encode_png
from tyro.conf import Positional

import sgan
from sgan.checks import ConfigError, require
from sgan.command_line import run
from sgan.data.datasets import read
from sgan.sample import locate
from sgan.store import votes
from sgan.store.files import StoreError
from sgan.store.local import Store
from sgan.store.s3 import open_store

HOST = "127.0.0.1"
IMAGES = 9  # Images a page, as in the paper
POOL = 1000  # Images of each kind that pages draw from
RANDOM = secrets.SystemRandom()
Name = Annotated[str, fastapi.Path(pattern="^[0-9a-f]{32}$")]  # Of a voter, and of their file in the store
Place = Annotated[int, fastapi.Query(ge=0, lt=IMAGES)]


@dataclass(frozen=True)
class Options:
    """Serve a page on this machine that shows real and generated images, nine at a time, and asks which is which.

    The votes are kept in the store. Ctrl-C ends it and prints each model's error rate: 0.5 where nobody can tell."""

    sources: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN_OR_PATH")]
    """Ids of MLflow runs, names of finished score stages (score-0123456789abcdef), or folders of models."""
    store: str = "runs"
    """Output store (a folder, or s3://bucket/folder) with the runs or stages; it gets the votes."""
    data: Path = Path("data")
    """Folder with the datasets' files."""
    port: int = 8000
    """Port of the page."""


@dataclass
class Page:
    """The page of a voter: the voter's earlier `votes`; nine `images` of one model and of its training set, in random
    order; whether each is `real`; and the `answers` so far."""

    votes: list[dict[str, Any]]
    stage: str
    images: list[str]
    real: list[bool]
    answers: list[bool | None] = field(default_factory=lambda: [None] * IMAGES)
    token: str = field(default_factory=secrets.token_urlsafe)

    @property
    def state(self) -> dict[str, Any]:
        """The facts that the browser may know; they reveal nothing about images without an answer."""
        pairs = zip(self.real, self.answers, strict=True)
        known = [None if answer is None else {"answer": answer, "right": real == answer} for real, answer in pairs]
        errors = sum(vote["real"] != vote["answer"] for vote in self.votes)
        return {"page": self.token, "answers": known, "votes": len(self.votes), "errors": errors}


class TuringTest:
    """The state of a test while it runs.

    Args:
        store: gets the votes.
        pools: name of a score stage -> generated and real images, each (n, channels, size, size) uint8."""

    def __init__(self, store: Store, pools: dict[str, tuple[Tensor, Tensor]]):
        self.store, self.pools = store, pools
        self.pages: dict[str, Page] = {}  # by the voter's name
        self.lock = threading.Lock()  # the server answers in threads

    def page(self, voter: Name) -> dict[str, Any]:
        """Return a voter's page, the same until all of it is answered, with its images as PNG in base64."""
        with self.lock:
            page = self.pages.get(voter)
            if page is None or None not in page.answers:
                page = self.pages[voter] = self._draw(page.votes if page else votes.read(self.store, voter))
            return {"images": page.images, **page.state}

    def vote(self, voter: Name, page: str, place: Place, answer: bool) -> dict[str, Any]:
        """Keep a vote on an image of the voter's page; a second one on the same image changes nothing. HTTPException
        where the page is not the voter's, or the vote cannot be kept."""
        with self.lock:
            shown = self.pages.get(voter)
            if shown is None or shown.token != page:
                raise HTTPException(409, "this page is not the one in front of this voter; reload it")
            if shown.answers[place] is None:
                about = {"time": time.time(), "stage": shown.stage, "page": page, "place": place}
                line = {**about, "real": shown.real[place], "answer": answer}
                try:
                    votes.keep(self.store, voter, [*shown.votes, line])
                except (OSError, StoreError) as error:
                    raise HTTPException(503, f"the vote could not be kept ({error}); give it again") from error
                shown.votes.append(line)
                shown.answers[place] = answer
            return shown.state

    def _draw(self, known: list[dict[str, Any]]) -> Page:
        """Draw a page of the model with the fewest votes of a voter. Each image is real with probability 1/2."""
        seen = Counter(vote["stage"] for vote in known)
        stage = min(self.pools, key=lambda name: (seen[name], RANDOM.random()))
        real = [RANDOM.random() < 0.5 for _ in range(IMAGES)]
        drawn = [RANDOM.choice(self.pools[stage][kind]) for kind in real]
        return Page(known, stage, [png(image) for image in drawn], real)


def png(image: Tensor) -> str:
    """Encode a uint8 image (channels, size, size) as PNG in base64, uncompressed: its length must reveal nothing."""
    return base64.b64encode(encode_png(image, compression_level=0).numpy().tobytes()).decode()


def pools(sources: Sequence[str], address: str, data: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Generated and real images of each model, (n, channels, size, size) uint8, of the same labels, by the name of the
    score stage. ConfigError where a model or its dataset cannot be read."""
    found = {}
    for source in sources:
        model = sgan.load(locate(source, address))
        known = read(model.dataset, data)
        chosen = torch.tensor(RANDOM.sample(range(len(known.images)), min(POOL, len(known.images))))
        made = model.sample(known.labels[chosen], RANDOM.randrange(2**63))
        found[model.about["trial"]] = made, known.images[chosen]
    return found


def application(test: TuringTest) -> FastAPI:
    """Return the web application. A random part of the address identifies a voter, so that a reload continues, and two
    voters in one browser do not mix. Sites of other origins cannot reach it by a name that resolves to this machine."""
    app = FastAPI(openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    html = Path(__file__).with_suffix(".html").read_text()

    @app.get("/")
    def begin() -> RedirectResponse:
        return RedirectResponse(f"/{secrets.token_hex(16)}/")

    @app.get("/{voter}/")
    def show(voter: Name) -> HTMLResponse:
        return HTMLResponse(html)

    app.get("/{voter}/page")(test.page)
    app.post("/{voter}/votes")(test.vote)
    return app


def main(options: Options) -> None:
    """Serve the test until Ctrl-C, and print the results. ConfigError where an option is not usable."""
    require(0 <= options.port < 2**16, f"--port must be from 0 to 65535, but got {options.port}")
    require(bool(options.sources), "name at least one RUN_OR_PATH")
    found = pools(options.sources, options.store, options.data)
    test = TuringTest(open_store(options.store), found)
    try:
        listening = socket.create_server((HOST, options.port))
    except OSError as error:
        message = f"port {options.port} cannot be used ({os.strerror(error.errno or 0)}); name another one with --port"
        raise ConfigError(message) from error
    print(f"open http://{HOST}:{listening.getsockname()[1]}/ and press Ctrl-C here when you are done", flush=True)
    config = uvicorn.Config(application(test), log_level="warning")
    with suppress(KeyboardInterrupt):  # uvicorn sends the signal on when it has ended
        uvicorn.Server(config).run([listening])
    known = votes.results(test.store)
    print(*(f"{stage}  {known.get(stage, votes.Tally(0, 0))}" for stage in test.pools), sep="\n")


if __name__ == "__main__":
    run(main, Options, "python -m sgan.turing_test")
