"""Generators for a level between any two taps.

A generator that ends in maps mirrors the encoder: each of its steps undoes one encoder layer (fc3: a fully connected
layer to pool2's size; a pool: a transposed convolution that doubles the size; a convolution: a transposed convolution
that restores the size). Between fc3 and the image this is the released G0, between the label and fc3 the released G1.

Legend: B batch, Z noise size, F features, C maps, S height and width, K classes.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from sgan.config import IMAGE, GanRecipe, Level
from sgan.models.encoder import ORDER, tap_shapes
from sgan.shapes import Dataset

NORM_EPS = 1e-6  # Epsilon of batch normalisation (released code, nn.py)


def noise_size(dataset: Dataset, level: Level) -> int:
    """Return Z of a level, with its codes."""
    own = dataset.gan.image_noise if level.low == IMAGE else dataset.gan.feature_noise
    return own + len(level.through) * dataset.gan.feature_noise + (level.codes.size if level.codes else 0)


def initialise(module: nn.Module, std: float, convolution_std: float | None = None, glorot: bool = False) -> None:
    """Weights N(0, std), biases 0, batch normalisation 1 and 0 (released code).

    Args:
        convolution_std: std for convolutions; None: `std`.
        glorot: weights of fully connected layers are U(-a, a) with a = sqrt(6 / (inputs + outputs)) instead (Glorot and
            Bengio 2010)."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            if glorot and isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
            else:
                nn.init.normal_(part.weight, std=std if isinstance(part, nn.Linear) else convolution_std or std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def _mlp(inputs: int, widths: tuple[int | None, ...]) -> nn.Sequential:
    """Return a fully connected layer per width, with batch normalisation, no bias, and ReLU; None adds no layer."""
    layers: list[nn.Module] = []
    for width in filter(None, widths):
        layers += [nn.Linear(inputs, width, bias=False), nn.BatchNorm1d(width, eps=NORM_EPS), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers)


class Generator(nn.Module):
    """G_i: (h_{i+1}, z_i) -> h_i (paper, "Stacked Generators"), with h_{i+1} a label, a vector, maps, or nothing.

    forward(condition, z): condition is (B, K) one-hot for a label, (B, F), (B, C, S, S), or (B, 0) for nothing;
    z is (B, Z) in U(0, 1). Returns h_i: features >= 0, or an image in [0, 1] minus `mean`."""

    def __init__(self, dataset: Dataset, recipe: GanRecipe, level: Level):
        super().__init__()
        shapes, shape = tap_shapes(dataset), dataset.gan
        target, condition = shapes[level.low], shapes[level.high] if level.conditioned else (0,)
        self.level, self.classes, self.noise = level, dataset.classes, noise_size(dataset, level)
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(1, *target))
        if len(target) == 1:  # a vector from a label: the released G1
            self.embed_noise = _mlp(self.noise, (shape.label_noise_hidden,))
            self.embed_condition = _mlp(condition[0], (shape.label_hidden,))
            inputs = (shape.label_noise_hidden or self.noise) + (shape.label_hidden or condition[0])
            body = _mlp(inputs, shape.vector_hidden)
            self.body = nn.Sequential(body, nn.Linear(shape.vector_hidden[-1], target[0]))
        else:
            self.embed_noise = _mlp(self.noise, shape.noise_hidden)
            self.embed_condition = nn.Identity()
            self.body = nn.Sequential(*self._steps(dataset, condition))
        initialise(self, recipe.init_std)

    def _steps(self, dataset: Dataset, condition: tuple[int, ...]) -> list[nn.Module]:
        """The layers from the condition down to maps or an image."""
        shapes, shape, low, high = tap_shapes(dataset), dataset.gan, self.level.low, self.level.high
        width: dict[str, int] = dict(zip(("pool2", "conv2", "pool1", "conv1"), shape.maps, strict=True))
        maps, kernel = condition[0] + shape.noise_hidden[-1], shape.kernel
        layers: list[nn.Module] = []
        from_vector = len(condition) == 1
        start = "fc3" if from_vector else high  # below a label, too, the first step undoes fc3
        path = ORDER[ORDER.index(low) : ORDER.index(start) + 1][::-1]
        if from_vector and len(path) == 2:  # one layer alone could not mix condition and noise
            layers += _mlp(maps, (shape.vector_hidden[-1],))
            maps = shape.vector_hidden[-1]
        elif not from_vector:
            layers += [nn.Conv2d(maps, width[high], 3, padding=1, bias=False)]
            maps = width[high]
            layers += [nn.BatchNorm2d(maps, eps=NORM_EPS), nn.ReLU()]
        for tap, below in pairwise(path):
            last = below == low
            outputs = shapes[below][0] if last else width[below]
            if tap == "fc3":
                side = shapes["pool2"][-1]
                flat = outputs * side * side
                layers += [nn.Linear(maps, flat, bias=last)]
                layers += [] if last else [nn.BatchNorm1d(flat, eps=NORM_EPS), nn.ReLU()]
                layers += [nn.Unflatten(1, (outputs, side, side))]
            else:  # a pool's inverse doubles the size; a convolution's inverse restores the border that it cut off
                pool = (2, (kernel - 1) // 2, kernel % 2)
                stride, padding, extra = pool if tap.startswith("pool") else (1, dataset.encoder.padding, 0)
                layers += [nn.ConvTranspose2d(maps, outputs, kernel, stride, padding, extra, bias=last)]
                layers += [] if last else [nn.BatchNorm2d(outputs, eps=NORM_EPS), nn.ReLU()]
            maps = outputs
        return layers

    def forward(self, condition: Tensor, z: Tensor) -> Tensor:
        noise, condition = self.embed_noise(z), self.embed_condition(condition)
        if condition.dim() == 4:
            noise = noise[:, :, None, None].expand(-1, -1, *condition.shape[2:])
        out = self.body(torch.cat([condition, noise], 1))
        return torch.sigmoid(out) - self.mean if self.level.low == IMAGE else torch.relu(out)


class Chain(nn.Module):
    """The generators of a stack as one: each gets the output of the one above (paper, section 4.4, "full generator").

    forward(condition, z): as Generator; z (B, Z) holds the noise of all generators, the lowest first, as in `parts`."""

    def __init__(self, level: Level, generators: list[Generator]):
        super().__init__()
        self.generators, self.parts = nn.ModuleList(generators), generators
        self.level, self.classes, self.sizes = level, generators[0].classes, [each.noise for each in generators]
        self.noise = sum(self.sizes)

    @property
    def mean(self) -> Tensor:
        """The mean image, (1, C, S, S), that is subtracted from the images."""
        return self.parts[0].mean

    def forward(self, condition: Tensor, z: Tensor) -> Tensor:
        for generator, noise in zip(reversed(self.parts), reversed(z.split(self.sizes, 1)), strict=True):
            condition = generator(condition, noise)
        return condition


def new_generator(dataset: Dataset, recipe: GanRecipe, level: Level) -> Generator | Chain:
    """Return the generator of a level: a single one, or a chain through the level's taps."""
    taps = (level.low, *level.through, level.high)
    parts = [Generator(dataset, recipe, Level(*ends, level.labels, level.codes)) for ends in pairwise(taps)]
    return Chain(level, parts) if level.through else parts[0]
