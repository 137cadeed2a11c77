"""The authors' encoder files (released code: mnist/pretrained/encoder.npz, cifar/pretrained/encoder.npz)."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sgan.checks import ConfigError
from sgan.models.encoder import Encoder
from sgan.shapes import Dataset

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
"""Mean of CIFAR-10's training images in [0, 1], a channel."""


class ReleasedError(ConfigError):
    """A file that is none of the released encoders; the message names the file, the array and the fault."""


def load_released(path: str | Path, dataset: Dataset, mean: Tensor | None = None) -> Encoder:
    """One of the authors' encoders, frozen; ReleasedError where the file is none of these, or of another dataset.

    The file holds arr_0, arr_1 ...: W and b of each layer, as lasagne.layers.get_all_param_values lists them. Its
    convolutions do not flip their kernels (Conv2DDNNLayer's default); W of a dense layer is (inputs, units).

    Args:
        path: the .npz file; nothing in it is unpickled.
        dataset: the row that the encoder is of, presets.DATASETS["mnist"] or ["cifar10"].
        mean: the image to subtract from images in [0, 1], (channels, size, size), such as the released meanimg.npy.
            Without it zeros for grey images, CIFAR10_MEAN for colour ones.
    """
    path, encoder = Path(path), Encoder(dataset, 0.01)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except Exception as error:  # NumPy raises almost anything for a file that is none of its own
        reason = str(error).partition("\n")[0]
        raise ReleasedError(f"{path} cannot be read as an .npz file of arrays ({reason})") from error
    parameters = dict(enumerate(encoder.parameters()))  # weight and bias of conv1, conv2, fc3 and fc4
    if set(arrays) != {f"arr_{index}" for index in parameters}:
        raise ReleasedError(
            f"{path} must hold the arrays arr_0 to arr_7, W and b of each layer, but holds {', '.join(sorted(arrays))}"
        )
    for index, parameter in parameters.items():
        array, dense = arrays[f"arr_{index}"], parameter.dim() == 2
        shape = tuple(parameter.shape)[:: -1 if dense else 1]
        if array.shape != shape or array.dtype.kind != "f" or not np.isfinite(array).all():
            raise ReleasedError(
                f"arr_{index} of {path} must hold finite numbers of shape {shape} for {dataset.name}, but has shape "
                f"{array.shape} and type {array.dtype}; is it the encoder of another dataset?"
            )
        values = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
        parameter.data.copy_(values.T if dense else values)
    default = torch.tensor(CIFAR10_MEAN)[:, None, None] if dataset.channels == 3 else torch.zeros(1, 1, 1)
    encoder.mean.copy_(default if mean is None else mean)
    return encoder.eval().requires_grad_(False)
