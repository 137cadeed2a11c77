"""The encoder E: a classifier with named layers (taps), split at any subset of them (paper, "Pre-trained Encoder").

h_0 = image, h_{i+1} = E_i(h_i), h_N = label; E_i is the run of layers between two taps.
"""

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn

from sgan.config import IMAGE, LABEL, TAPS
from sgan.data.batches import to_input
from sgan.shapes import Dataset

ORDER = (IMAGE, *TAPS)
PART = 100
"""Images per forward pass in `Encoder.features`: with more, the layers' outputs do not fit into a CPU's caches."""


def tap_shapes(dataset: Dataset) -> dict[str, tuple[int, ...]]:
    """Return name -> shape, without the batch, of the image, of every tap, and of the one-hot label."""
    first, second = dataset.encoder.maps
    shrink = dataset.encoder.kernel - 1 - 2 * dataset.encoder.padding
    conv1 = dataset.size - shrink
    conv2 = conv1 // 2 - shrink
    return {
        IMAGE: (dataset.channels, dataset.size, dataset.size),
        "conv1": (first, conv1, conv1),
        "pool1": (first, conv1 // 2, conv1 // 2),
        "conv2": (second, conv2, conv2),
        "pool2": (second, conv2 // 2, conv2 // 2),
        "fc3": (dataset.encoder.features,),
        "fc4": (dataset.classes,),
        LABEL: (dataset.classes,),
    }


class Encoder(nn.Module):
    """conv1-pool1-conv2-pool2-fc3-fc4 with a ReLU after conv1, conv2 and fc3; fc4 gives logits.

    Attributes:
        mean: the image that is subtracted from images in [0, 1], (1, channels, size, size)."""

    def __init__(self, dataset: Dataset, init_std: float, classes: int | None = None):
        super().__init__()
        shape, sizes = dataset.encoder, tap_shapes(dataset)
        (first, second), pooled = shape.maps, math.prod(sizes["pool2"])
        self.layers = nn.ModuleDict(
            {
                "conv1": nn.Sequential(
                    nn.Conv2d(dataset.channels, first, shape.kernel, padding=shape.padding), nn.ReLU()
                ),
                "pool1": nn.MaxPool2d(2),
                "conv2": nn.Sequential(nn.Conv2d(first, second, shape.kernel, padding=shape.padding), nn.ReLU()),
                "pool2": nn.MaxPool2d(2),
                "fc3": nn.Sequential(nn.Flatten(), nn.Linear(pooled, shape.features), nn.ReLU()),
                "fc4": nn.Linear(shape.features, classes or dataset.classes),
            }
        )
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=init_std) if parameter.dim() > 1 else nn.init.zeros_(parameter)
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(1, *sizes[IMAGE]))

    def forward(self, h: Tensor, start: str = IMAGE, end: str = LABEL) -> Tensor:
        """The layers after tap `start` up to tap `end`; from image to label, the logits (batch, classes)."""
        return self.taps(h, start, end)[TAPS[-1] if end == LABEL else end]

    def taps(self, h: Tensor, start: str = IMAGE, end: str = LABEL) -> dict[str, Tensor]:
        """The outputs of all taps after `start` up to `end`, with `start` itself."""
        outputs, last = {start: h}, TAPS[-1] if end == LABEL else end
        for name in ORDER[ORDER.index(start) + 1 : ORDER.index(last) + 1]:
            outputs[name] = h = self.layers[name](h)
        return outputs

    @torch.no_grad()
    def features(self, inputs: Tensor, names: Collection[str], start: str = IMAGE) -> dict[str, Tensor]:
        """The outputs (n, ...) of the taps `names` for any number of uint8 images (n, channels, size, size), or of
        features at the tap `start`."""
        end, parts = max(names, key=TAPS.index), []
        for part in inputs.split(PART):
            taps = self.taps(to_input(part, self.mean) if start == IMAGE else part, start, end)
            parts.append([taps[name] for name in names])
        return dict(zip(names, map(torch.cat, zip(*parts, strict=True)), strict=True))
