"""Generators, and discriminators with their Q head, for a level between any two taps.

A generator that ends in maps mirrors the encoder: each of its steps undoes one encoder layer (fc3: a fully connected
layer to pool2's size; a pool: a transposed convolution that doubles; a convolution: a transposed one that grows back).
Between fc3 and the image this is the released G0, between the label and fc3 the released G1.

Legend: B batch, Z noise size, C maps, S height and width, K classes.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from sgan.config import IMAGE, LABEL, TAPS, Codes, GanRecipe
from sgan.models.encoder import tap_shapes
from sgan.shapes import Dataset

LEAK = 0.2


def noise_size(dataset: Dataset, low: str, through: tuple[str, ...] = (), codes: Codes | None = None) -> int:
    """Z of the level whose generator makes `low`, passing through the named taps; codes come on top."""
    own = dataset.gan.image_noise if low == IMAGE else dataset.gan.feature_noise
    return own + len(through) * dataset.gan.feature_noise + (codes.size if codes else 0)


def _initialise(module: nn.Module, std: float) -> None:
    """Weights N(0, std), biases 0, batch normalisation 1 and 0 (released code)."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(part.weight, std=std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def _dense(inputs: int, width: int, eps: float) -> list[nn.Module]:
    """Fully connected, batch normalisation instead of the bias, ReLU."""
    return [nn.Linear(inputs, width, bias=False), nn.BatchNorm1d(width, eps=eps), nn.ReLU()]


def _mlp(inputs: int, widths: tuple[int, ...], eps: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers += _dense(inputs, width, eps)
        inputs = width
    return nn.Sequential(*layers)


def _up(tap: str, inputs: int, maps: int, kernel: int, padding: int, last: bool) -> nn.ConvTranspose2d:
    """The transposed convolution that undoes encoder layer `tap`: a pool doubles the size, a convolution grows it back
    by what its own padding lost."""
    if tap.startswith("pool"):
        return nn.ConvTranspose2d(inputs, maps, kernel, 2, (kernel - 1) // 2, kernel % 2, bias=last)
    return nn.ConvTranspose2d(inputs, maps, kernel, 1, padding, bias=last)


class Generator(nn.Module):
    """G_i: (h_{i+1}, z_i) -> h_i (paper, "Stacked Generators"), with h_{i+1} a label, a vector, maps, or nothing.

    forward(condition, z): condition is (B, K) one-hot for a label, (B, F), (B, C, S, S), or (B, 0) for nothing;
    z is (B, Z) in U(0, 1). Returns h_i: features >= 0, or an image in [0, 1] minus `mean`.
    """

    def __init__(
        self,
        dataset: Dataset,
        recipe: GanRecipe,
        low: str,
        high: str,
        labels: bool = True,
        codes: Codes | None = None,
    ):
        super().__init__()
        shapes, shape, eps = tap_shapes(dataset), dataset.gan, recipe.norm_eps
        target, condition = shapes[low], shapes[high] if labels or high != LABEL else (0,)
        self.low, self.noise = low, noise_size(dataset, low, codes=codes)
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(1, *target))
        if len(target) == 1:  # a vector from a label: the released G1
            self.embed_noise = _mlp(self.noise, _optional(shape.label_noise_hidden), eps)
            self.embed_condition = _mlp(condition[0], _optional(shape.label_hidden), eps)
            inputs = (shape.label_noise_hidden or self.noise) + (shape.label_hidden or condition[0])
            widths = shape.vector_hidden
            self.body = nn.Sequential(_mlp(inputs, widths, eps), nn.Linear(widths[-1], target[0]))
        else:
            self.embed_noise = _mlp(self.noise, shape.noise_hidden, eps)
            self.embed_condition = nn.Identity()
            self.body = self._maps(dataset, recipe, target, condition, high)
        _initialise(self, recipe.init_std)

    def _maps(
        self, dataset: Dataset, recipe: GanRecipe, target: tuple[int, ...], condition: tuple[int, ...], high: str
    ) -> nn.Sequential:
        """The steps from the condition down to maps or an image."""
        shapes, shape, eps = tap_shapes(dataset), dataset.gan, recipe.norm_eps
        width: dict[str, int] = dict(zip(("pool2", "conv2", "pool1", "conv1"), shape.maps, strict=True))
        maps = condition[0] + shape.noise_hidden[-1]
        layers: list[nn.Module] = []
        from_vector = len(condition) == 1
        start = "fc3" if from_vector else high  # below a label, too, the first step undoes fc3
        order = (IMAGE, *TAPS)
        steps = order[order.index(self.low) + 1 : order.index(start) + 1][::-1]
        if from_vector and len(steps) == 1:  # one layer alone could not mix condition and noise
            layers += _dense(maps, shape.vector_hidden[-1], eps)
            maps = shape.vector_hidden[-1]
        elif not from_vector:
            layers += [nn.Conv2d(maps, width[high], 3, padding=1, bias=False), nn.BatchNorm2d(width[high], eps=eps)]
            layers += [nn.ReLU()]
            maps = width[high]
        for tap in steps:
            below = order[order.index(tap) - 1]
            last = below == self.low
            outputs = target[0] if last else width[below]
            if tap == "fc3":
                side = shapes["pool2"][-1]
                layers += [nn.Linear(maps, outputs * side * side, bias=last)]
                layers += [] if last else [nn.BatchNorm1d(outputs * side * side, eps=eps), nn.ReLU()]
                layers += [nn.Unflatten(1, (outputs, side, side))]
            else:
                layers += [_up(tap, maps, outputs, shape.kernel, dataset.encoder.padding, last)]
                layers += [] if last else [nn.BatchNorm2d(outputs, eps=eps), nn.ReLU()]
            maps = outputs
        return nn.Sequential(*layers)

    def forward(self, condition: Tensor, z: Tensor) -> Tensor:
        noise, condition = self.embed_noise(z), self.embed_condition(condition)
        if condition.dim() == 4:
            noise = noise[:, :, None, None].expand(-1, -1, *condition.shape[2:])
        out = self.body(torch.cat([condition, noise], 1))
        return torch.sigmoid(out) - self.mean if self.low == IMAGE else torch.relu(out)


class Chain(nn.Module):
    """The generators of a stack as one: each is given what the one above makes (paper, section 4.4, "full generator").

    forward(condition, z): as Generator, z (B, Z) being the noise of all, that of the lowest first.
    """

    def __init__(self, generators: list[Generator]):
        super().__init__()
        self.generators = nn.ModuleList(generators)
        self.low, self.sizes = generators[0].low, [generator.noise for generator in generators]
        self.noise = sum(self.sizes)

    @property
    def mean(self) -> Tensor:
        """What is subtracted from the images, (1, C, S, S)."""
        return self.parts[0].mean

    @property
    def parts(self) -> list[Generator]:
        """The generators, from the lowest up."""
        return list(self.generators)  # pyright: ignore[reportReturnType]

    def forward(self, condition: Tensor, z: Tensor) -> Tensor:
        for generator, noise in zip(reversed(self.parts), reversed(z.split(self.sizes, 1)), strict=True):
            condition = generator(condition, noise)
        return condition


def new_generator(
    dataset: Dataset,
    recipe: GanRecipe,
    low: str,
    high: str,
    labels: bool,
    through: tuple[str, ...],
    codes: Codes | None,
) -> Generator | Chain:
    """The generator of a level from `high` to `low`: one, or a chain through the named taps."""
    bounds = (low, *through, high)
    parts = [Generator(dataset, recipe, *ends, labels, codes) for ends in pairwise(bounds)]
    return Chain(parts) if through else parts[0]


def _optional(width: int | None) -> tuple[int, ...]:
    return () if width is None else (width,)


class Noise(nn.Module):
    """Adds Gaussian noise of this std while training."""

    def __init__(self, std: float):
        super().__init__()
        self.std = std

    def forward(self, h: Tensor) -> Tensor:
        if not self.training or self.std == 0:
            return h
        # Drawn in the order of its shape: randn_like would follow channels_last, where CPUs are nine times slower.
        return h + self.std * torch.randn(h.shape, dtype=h.dtype, device=h.device)


class Discriminator(nn.Module):
    """D_i on h_i, and Q_i(z_i | h_i), which shares all of D_i but its last layer (paper, "Entropy Loss").

    forward(h): h is (B, C, S, S) or (B, F). Returns the logits (B, 1), or (B, K) for discriminator "classes", and
    Q's mean of what it recovers (B, recovered): of z, or of its codes, where categorical ones are logits. Batch
    normalisation keeps no running averages: nobody asks a discriminator after training.
    """

    def __init__(
        self, dataset: Dataset, recipe: GanRecipe, low: str, through: tuple[str, ...] = (), codes: Codes | None = None
    ):
        super().__init__()
        target, shape = tap_shapes(dataset)[low], dataset.gan
        self.pooled = low == IMAGE and shape.mean_pool
        layers: list[nn.Module] = [Noise(recipe.image_noise if low == IMAGE else recipe.feature_noise)]
        if len(target) == 1:
            inputs = target[0]
            for width, norm in shape.vector_fc:
                block: list[nn.Module] = [nn.Linear(inputs, width, bias=not norm), nn.LeakyReLU(LEAK)]
                if norm:
                    block.insert(1, nn.BatchNorm1d(width, eps=recipe.norm_eps, track_running_stats=False))
                    block = [Noise(recipe.hidden_noise), *block, Noise(recipe.hidden_noise)]
                layers += block
                inputs = width
            logit_inputs = inputs
        else:
            rows, widths = (shape.image_convs, shape.image_fc) if low == IMAGE else (shape.map_convs, shape.map_fc)
            maps, side = target[0], target[-1]
            for index, row in enumerate(rows):
                norm = row.norm or (low == IMAGE and index > 0 and recipe.discriminator_norm)
                layers += [nn.Dropout(recipe.dropout)] if row.dropout else []
                layers += [nn.Conv2d(maps, row.maps, row.kernel, row.stride, row.padding, bias=not norm)]
                layers += [nn.BatchNorm2d(row.maps, eps=recipe.norm_eps, track_running_stats=False)] if norm else []
                layers += [nn.LeakyReLU(LEAK)]
                maps, side = row.maps, (side + 2 * row.padding - row.kernel) // row.stride + 1
            inputs, logit_inputs = maps * side * side, maps
            if widths:
                layers += [nn.Flatten()]
                for width in widths:
                    layers += [nn.Linear(inputs, width), nn.LeakyReLU(LEAK)]
                    inputs = width
            if not self.pooled:
                logit_inputs = inputs
        self.trunk = nn.Sequential(*layers)
        self.logits = nn.Linear(logit_inputs, dataset.classes if recipe.discriminator == "classes" else 1)
        self.q = nn.Linear(inputs, codes.size if codes else noise_size(dataset, low, through))
        self.sigmoid_q = shape.sigmoid_q and codes is None
        _initialise(self, recipe.init_std)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        trunk = self.trunk(h)
        logits = self.logits(trunk.mean((2, 3)) if self.pooled else trunk.flatten(1))
        mean = self.q(trunk.flatten(1))
        return logits, torch.sigmoid(mean) if self.sigmoid_q else mean


def parameters(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(math.prod(parameter.shape) for parameter in module.parameters())
