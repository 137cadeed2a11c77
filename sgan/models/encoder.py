"""The encoder E: a classifier with named taps, split at any subset of them (paper, "Pre-trained Encoder").

h_0 = image, h_{i+1} = E_i(h_i), h_N = label; E_i is the run of layers between two taps.
"""

import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sgan.checks import ConfigError
from sgan.config import IMAGE, LABEL, TAPS
from sgan.data.batches import image_shape, to_input
from sgan.shapes import Dataset

PART = 100
"""Images that `Encoder.features` looks at together: what the layers make of more does not fit into a CPU's caches."""


def tap_shapes(dataset: Dataset) -> dict[str, tuple[int, ...]]:
    """Shape without the batch of the image, of every tap, and of the label (one-hot)."""
    first, second = dataset.encoder.maps
    shrink = dataset.encoder.kernel - 1 - 2 * dataset.encoder.padding
    conv1 = dataset.size - shrink
    conv2 = conv1 // 2 - shrink
    return {
        IMAGE: image_shape(dataset),
        "conv1": (first, conv1, conv1),
        "pool1": (first, conv1 // 2, conv1 // 2),
        "conv2": (second, conv2, conv2),
        "pool2": (second, conv2 // 2, conv2 // 2),
        "fc3": (dataset.encoder.features,),
        "fc4": (dataset.classes,),
        LABEL: (dataset.classes,),
    }


CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
"""Mean of CIFAR-10's training images, a channel."""
RELEASED = ("conv1", "conv2", "fc3", "fc4")
"""Layers of the released encoders, in the order in which their files hold W and b of each."""


class ReleasedError(ConfigError):
    """A file that is none of the released encoders; the message names the file, the array and what is wrong."""


class Encoder(nn.Module):
    """conv1-pool1-conv2-pool2-fc3-fc4 with a ReLU after conv1, conv2 and fc3; fc4 gives logits."""

    def __init__(self, dataset: Dataset, init_std: float, classes: int | None = None):
        super().__init__()
        shape, sizes, self.classes = dataset.encoder, tap_shapes(dataset), classes or dataset.classes
        first, second = shape.maps
        self.layers = nn.ModuleDict(
            {
                "conv1": nn.Sequential(
                    nn.Conv2d(dataset.channels, first, shape.kernel, padding=shape.padding), nn.ReLU()
                ),
                "pool1": nn.MaxPool2d(2),
                "conv2": nn.Sequential(nn.Conv2d(first, second, shape.kernel, padding=shape.padding), nn.ReLU()),
                "pool2": nn.MaxPool2d(2),
                "fc3": nn.Sequential(
                    nn.Flatten(), nn.Linear(int(torch.Size(sizes["pool2"]).numel()), shape.features), nn.ReLU()
                ),
                "fc4": nn.Linear(shape.features, self.classes),
            }
        )
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=init_std) if parameter.dim() > 1 else nn.init.zeros_(parameter)
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(1, *sizes[IMAGE]))  # subtracted from the images it is trained on

    def forward(self, h: Tensor, start: str = IMAGE, end: str = LABEL) -> Tensor:
        """The layers after tap `start` up to tap `end`; from image to label, the logits (batch, classes)."""
        return self.taps(h, start, end)[TAPS[-1] if end == LABEL else end]

    def taps(self, h: Tensor, start: str = IMAGE, end: str = LABEL) -> dict[str, Tensor]:
        """The outputs of all taps after `start` up to `end`, with `start` itself."""
        first = 0 if start == IMAGE else TAPS.index(start) + 1
        last = len(TAPS) if end == LABEL else TAPS.index(end) + 1 if end != IMAGE else 0
        outputs = {start: h}
        for name in TAPS[first:last]:
            h = self.layers[name](h)
            outputs[name] = h
        return outputs

    @torch.no_grad()
    def features(self, images: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        """The outputs (n, ...) of the taps `names` for any number of uint8 images (n, channels, size, size)."""
        end, found = max(names, key=TAPS.index), {name: [] for name in names}
        for part in images.split(PART):
            taps = self.taps(to_input(part, self.mean), end=end)
            for name, parts in found.items():
                parts.append(taps[name])
        return {name: torch.cat(parts) for name, parts in found.items()}


def load_released(path: str | Path, dataset: Dataset, mean: Tensor | None = None) -> Encoder:
    """One of the authors' encoders (released code: mnist/pretrained/encoder.npz, cifar/pretrained/encoder.npz), frozen.

    The file holds arr_0, arr_1 ...: W and b of each layer, as lasagne.layers.get_all_param_values lists them. Its
    convolutions do not flip their kernels (Conv2DDNNLayer's default); W of a dense layer is (inputs, units).

    Args:
        path: the .npz file.
        dataset: the row that the encoder is of, presets.DATASETS["mnist"] or ["cifar10"].
        mean: what to subtract from images in [0, 1], (channels, size, size). Without it zeros for grey images, and for
            colour ones the released meanimg.npy where it lies beside the file or in ../data, else CIFAR-10's mean of
            each channel.
    Raises:
        ReleasedError: the file is none of these, or of another dataset.
    """
    path = Path(path)
    encoder = Encoder(dataset, 0.01)
    layers = [part for tap in RELEASED for part in encoder.layers[tap].modules() if isinstance(part, _WEIGHTED)]
    expected = [parameter for layer in layers for parameter in layer.parameters()]  # weight, bias
    arrays = _arrays(path, len(expected))
    for index, (array, parameter) in enumerate(zip(arrays, expected, strict=True)):
        dense = parameter.dim() == 2
        shape = tuple(parameter.shape)[:: -1 if dense else 1]
        if array.shape != shape or array.dtype.kind != "f" or not np.isfinite(array).all():
            raise ReleasedError(
                f"arr_{index} of {path} must hold finite numbers of shape {shape} for {dataset.name}, but has shape "
                f"{array.shape} and type {array.dtype}; is it the encoder of another dataset?"
            )
        values = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
        with torch.no_grad():
            parameter.copy_(values.T if dense else values)
    encoder.mean.copy_(_released_mean(path, dataset) if mean is None else mean)
    return encoder.eval().requires_grad_(False)


_WEIGHTED = (nn.Conv2d, nn.Linear)


def _arrays(path: Path, count: int) -> list[np.ndarray]:
    """arr_0 to arr_(count - 1) of an .npz file; nothing in it is unpickled."""
    try:
        with np.load(path, allow_pickle=False) as file:
            names = [f"arr_{index}" for index in range(count)]
            if not hasattr(file, "files") or set(file.files) != set(names):
                raise ReleasedError(
                    f"{path} must hold the arrays arr_0 to arr_{count - 1}, W and b of each layer, but holds "
                    f"{', '.join(sorted(getattr(file, 'files', ['one array'])))}"
                )
            return [file[name] for name in names]
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        if isinstance(error, ReleasedError):
            raise
        raise ReleasedError(
            f"{path} cannot be read as an .npz file of arrays ({str(error).splitlines()[0]})"
        ) from error


def _released_mean(path: Path, dataset: Dataset) -> Tensor:
    """What the released encoder of a dataset expects to be subtracted, broadcast over (channels, size, size)."""
    if dataset.channels == 1:
        return torch.zeros(1, 1, 1)
    for file in (path.parent / "meanimg.npy", path.parent.parent / "data" / "meanimg.npy"):
        if file.exists():
            found = np.load(file, allow_pickle=False)
            if found.shape != image_shape(dataset):
                raise ReleasedError(f"{file} must have the shape {image_shape(dataset)}, but has {found.shape}")
            return torch.from_numpy(found.astype(np.float32))
    return torch.tensor(CIFAR10_MEAN)[:, None, None]
