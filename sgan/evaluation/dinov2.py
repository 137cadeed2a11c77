"""DINOv2 (Oquab et al. 2023) as a judge. Of the networks that Stein et al. compared (2023, code: dgm-eval), its
distances agree best with people's judgement. It needs timm, an optional extra, and a weights file."""

import functools
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torchvision.transforms.v2.functional import InterpolationMode, normalize, resize

from sgan.checks import ConfigError, require
from sgan.evaluation.scores import Features, join
from sgan.store.files import sha256

NETWORK = "DINOv2"
SIZE = 224  # Pixels of an image's side, as in dgm-eval: 16 x 16 patches of 14 pixels
RESIZE = f"bicubic with antialiasing, to {SIZE}x{SIZE}"
BATCH = 50
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
"""Mean and std of ImageNet's pixels by channel, which normalise the network's inputs."""
MODELS = {384: "small", 768: "base", 1024: "large", 1536: "giant"}
"""Number of features -> size of the vision transformer. dgm-eval uses the large one."""
FILE = "dinov2_vitl14_pretrain.pth"
URL = f"https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/{FILE}"


def find_weights(given: Path | None) -> Path:
    """Return the path of the given weights file; ConfigError where the file or timm is missing."""
    install = ".uv/bin/uv pip install --python .venv/bin/python timm"
    require(bool(find_spec("timm")), f"--judge dinov2 needs timm; install it: {install}")
    if given is None:
        raise ConfigError(f"--judge dinov2 needs a file of its weights; get {URL} and name it with --judge-weights")
    require(given.is_file(), f"there are no weights of DINOv2 at {given}; --judge-weights names a file such as {FILE}")
    return given.absolute()


def _read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weights file: safetensors, or torch's format, read as tensors alone, since a pickle can
    run code. Its name does not tell which, since a store gives it another one. ConfigError where it is not DINOv2."""
    try:
        try:
            tensors = load_file(path)
        except SafetensorError:
            tensors = torch.load(path, "cpu", weights_only=True)
        features = tensors["cls_token"].shape[-1]
    except Exception as error:  # a damaged file makes the readers raise almost anything
        raise ConfigError(f"{path} holds no weights of DINOv2 ({error!r:.200}); it must be a file as {FILE}") from error
    if features not in MODELS or "register_tokens" in tensors or "reg_token" in tensors:
        raise ConfigError(f"{path} holds weights of another network; it must be a DINOv2 without registers, as {FILE}")
    return tensors


def check_weights(path: Path) -> str:
    """Return the SHA-256 of a weights file; ConfigError where it holds no weights of DINOv2."""
    _read(path)
    return sha256(path)


class DinoV2:
    """DINOv2 with the weights of a file, on a device; ConfigError where the file does not fit the network."""

    def __init__(self, weights: Path, device: str):
        import timm

        tensors = _read(weights)
        name = f"vit_{MODELS[tensors['cls_token'].shape[-1]]}_patch14_dinov2.lvd142m"
        options = {"pretrained_cfg_overlay": {"state_dict": tensors}, "num_classes": 0, "img_size": SIZE}
        self.weights, self.device = sha256(weights), device
        try:
            network = timm.create_model(name, pretrained=True, **options)
        except RuntimeError as error:  # torch's error for names and shapes that do not fit
            raise ConfigError(f"{weights} does not fit the network; it must be a file as {FILE}") from error
        self.network = network.to(device).eval()

    @torch.no_grad()
    def describe(self, images: Tensor) -> Features:
        """Return the features (n, 384 to 1536) of the class token, on the CPU, for uint8 images (n, 1 or 3, height,
        width). There are no logits."""
        parts = []
        for part in images.split(BATCH):
            colour = part.expand(-1, 3, -1, -1).to(self.device)
            large = resize(colour, [SIZE, SIZE], InterpolationMode.BICUBIC, antialias=True)
            found = self.network(normalize(large.float() / 255, MEAN, STD))
            parts.append(Features(found, found[:, :0]))
        return join(parts)


load = functools.lru_cache(maxsize=1)(DinoV2)  # Cached, since every score in a process needs the network
