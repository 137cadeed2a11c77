"""The authors' weight files (released code: mnist/pretrained/encoder.npz, and encoder.npz and generator.npz of
cifar/pretrained).

Each holds arr_0, arr_1 ...: the arrays of each layer in the order of lasagne.layers.get_all_param_values. W of a dense
layer is (inputs, units). With batch normalisation (nn.py) a layer has no b, but beta, gamma, and the running mean and
variance.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sgan.checks import ConfigError
from sgan.config import IMAGE, LABEL, GanRecipe, Level
from sgan.models.encoder import Encoder
from sgan.models.generator import Generator
from sgan.shapes import Dataset


def load_released(path: str | Path, dataset: Dataset, mean: Tensor | None = None) -> Encoder:
    """Read one of the authors' encoders, frozen; ConfigError where the file is not one, or is of another dataset.

    Its convolutions do not flip their kernels (Conv2DDNNLayer's default).

    Args:
        path: the .npz file; nothing in it is unpickled.
        dataset: the row that the encoder is of, presets.DATASETS["mnist"] or ["cifar10"].
        mean: the image to subtract from images in [0, 1], (channels, size, size), such as the released meanimg.npy;
            none for MNIST."""
    encoder = Encoder(dataset, 0.01)
    _fill(Path(path), encoder.modules(), dataset, "encoder")
    if mean is not None:
        encoder.mean.copy_(mean)
    return encoder.eval().requires_grad_(False)


def load_generator(path: str | Path, dataset: Dataset, mean: Tensor) -> list[Generator]:
    """Read the authors' stack of G1 and G0, frozen, from the image up; ConfigError as for `load_released`.

    The file lists G1 before G0, and in each the noise's layers before the label's (sampling.py). Its transposed
    convolutions flip their kernels (the default of Theano's AbstractConv2d_gradInputs), torch's do not.

    Args:
        path, dataset: as for `load_released`.
        mean: the image that is subtracted from G0's sigmoid, (channels, size, size): the released meanimg.npy."""
    image, features = (Generator(dataset, GanRecipe(), Level(*ends)) for ends in ((IMAGE, "fc3"), ("fc3", LABEL)))
    parts = [part for each in (features, image) for part in (each.embed_noise, each.embed_condition, each.body)]
    _fill(Path(path), (module for part in parts for module in part.modules()), dataset, "generator")
    first = next(module for module in features.body.modules() if isinstance(module, nn.Linear))
    noise = dataset.gan.label_noise_hidden or features.noise  # theirs is given [z, y], ours [y, z]
    first.weight.data = torch.cat([first.weight.data[:, noise:], first.weight.data[:, :noise]], 1)
    image.mean.copy_(mean)
    return [each.eval().requires_grad_(False) for each in (image, features)]


def load_mean(path: Path, dataset: Dataset) -> Tensor:
    """Read the mean image, (channels, size, size) in [0, 1], from the authors' .npy file; ConfigError as above."""
    shape = (dataset.channels, dataset.size, dataset.size)
    return torch.from_numpy(_checked(_read(path).get("", np.empty(0)), shape, str(path), dataset))


def _fill(path: Path, modules: Iterable[nn.Module], dataset: Dataset, network: str) -> None:
    """Copy the arrays of a file into layers, in the file's order."""
    arrays, places = _read(path), list(_places(modules))
    if set(arrays) != {f"arr_{index}" for index in range(len(places))}:
        raise ConfigError(
            f"{path} must hold the arrays arr_0 to arr_{len(places) - 1} of the {dataset.name} {network}, but holds "
            f"{', '.join(sorted(arrays))}"
        )
    for index, (tensor, axes, flip) in enumerate(places):
        shape = tuple(tensor.shape[axis] for axis in axes)
        array = _checked(arrays[f"arr_{index}"], shape, f"arr_{index} of {path}", dataset)
        tensor.data.copy_(torch.from_numpy(array).permute(*axes).flip(flip))


def _places(modules: Iterable[nn.Module]) -> Iterator[tuple[Tensor, tuple[int, ...], tuple[int, ...]]]:
    """Yield each tensor of the layers, the order of its axes in the file, and the axes that are flipped there."""
    for module in modules:
        match module:
            case nn.BatchNorm1d() | nn.BatchNorm2d():
                state = module.state_dict()
                yield from ((state[name], (0,), ()) for name in ("bias", "weight", "running_mean", "running_var"))
            case nn.Linear() | nn.Conv2d() | nn.ConvTranspose2d():
                dense, turned = module.weight.dim() == 2, isinstance(module, nn.ConvTranspose2d)
                yield module.weight, (1, 0) if dense else (0, 1, 2, 3), (2, 3) if turned else ()
                if module.bias is not None:
                    yield module.bias, (0,), ()


def _read(path: Path) -> dict[str, np.ndarray]:
    """Return name -> array of an .npz file; an .npy file has one array, named ""."""
    try:
        found = np.load(path, allow_pickle=False)
        return {"": found} if isinstance(found, np.ndarray) else dict(found)
    except Exception as error:  # NumPy raises almost anything for a file that is none of its own
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{path} cannot be read as a file of NumPy's arrays ({reason})") from error


def _checked(array: np.ndarray, shape: tuple[int, ...], what: str, dataset: Dataset) -> np.ndarray:
    """The array in float32; ConfigError unless it holds finite numbers of this shape."""
    if array.shape != shape or array.dtype.kind != "f" or not np.isfinite(array).all():
        raise ConfigError(
            f"{what} must hold finite numbers of shape {shape} for {dataset.name}, but has shape {array.shape} and "
            f"type {array.dtype}; is it of another dataset?"
        )
    return np.ascontiguousarray(array, dtype=np.float32)
