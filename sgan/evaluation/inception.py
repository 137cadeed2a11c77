"""The network of exact Inception scores: torch-fidelity's `inception-v3-compat`. It is the TensorFlow graph of
2015-12-05 that the paper used, with that graph's resize to 299 x 299 and its 1,008 logits without bias."""

import functools
import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from sgan.checks import ConfigError, require
from sgan.evaluation.scores import Features, join
from sgan.store.files import sha256

NETWORK = "inception-v3-compat"
RESIZE = "bilinear as in TensorFlow 1, to 299x299"
BATCH = 64  # torch-fidelity's batch, so that sums are rounded in the same order
FILE = Path(URL_INCEPTION_V3).name
DIGEST = Path(FILE).stem.rpartition("-")[2]  # The end of the file's name is the beginning of its SHA-256


def find_weights(given: Path | None) -> Path:
    """Return the path of the given weights file, or torch-fidelity's, downloaded if missing; ConfigError if absent."""
    path = given or Path(torch.hub.get_dir()) / "checkpoints" / FILE
    if path.is_file():
        return path.absolute()
    require(given is None, f"there are no Inception weights at {given}; --judge-weights names the file {FILE}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), DIGEST, progress=False)
    except Exception as error:  # a download raises almost anything; the advice is the same
        raise ConfigError(
            f"the Inception weights cannot be downloaded ({error!r:.200}); get {URL_INCEPTION_V3} on a machine with a "
            "network and name the file with --judge-weights, or choose another --judge where there is one"
        ) from error
    return path


def check_weights(path: Path) -> str:
    """Return the SHA-256 of a weights file; ConfigError where it holds more than tensors, or those of another network.

    torch-fidelity unpickles the file later, which can run code; so this function first reads it as tensors alone."""
    try:
        with warnings.catch_warnings(action="ignore"):  # torch warns of a file before it refuses it
            fits = tuple(torch.load(path, map_location="cpu", weights_only=True)["fc.weight"].shape) == (1008, 2048)
    except Exception as error:  # a damaged file makes torch's reader raise almost anything
        raise ConfigError(f"{path} holds no weights ({error!r:.200}); it must be {FILE}") from error
    require(fits, f"{path} holds weights of another network; it must be {FILE} of torch-fidelity")
    return sha256(path)


class Inception:
    """The network of a weights file on a device; ConfigError where the file holds no weights of this network."""

    def __init__(self, weights: Path, device: str):
        self.weights, self.device = check_weights(weights), device
        try:
            layers = ["2048", "logits_unbiased"]
            network = FeatureExtractorInceptionV3(NETWORK, layers, feature_extractor_weights_path=str(weights))
        except RuntimeError as error:  # torch's error for names and shapes that do not fit
            raise ConfigError(f"{weights} does not fit the network; it must be {FILE} of torch-fidelity") from error
        self.network = network.to(device).eval()

    @torch.no_grad()
    def describe(self, images: Tensor) -> Features:
        """Return features (n, 2048) and logits (n, 1008), on the CPU, for uint8 images (n, 1 or 3, height, width)."""
        parts = (part.expand(-1, 3, -1, -1).to(self.device) for part in images.split(BATCH))
        return join(Features(*self.network(part.contiguous())) for part in parts)


load = functools.lru_cache(maxsize=1)(Inception)  # Cached, since every score in a process needs the network
