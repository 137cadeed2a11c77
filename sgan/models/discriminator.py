"""Discriminators for levels that make any tap. Each has a second output, the head Q, which recovers the noise.

Legend: B batch, Z noise size, F features, C maps, S height and width, K classes.
"""

import torch
from torch import Tensor, nn

from sgan.config import IMAGE, GanRecipe, Level
from sgan.models.encoder import tap_shapes
from sgan.models.generator import NORM_EPS, initialise, noise_size
from sgan.shapes import Dataset

LEAK = 0.2


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
    """D_i on h_i, and Q_i(z_i | h_i), which shares all layers of D_i except its last (paper, "Entropy Loss").

    forward(h): h is (B, C, S, S) or (B, F). Returns the logits (B, 1), or (B, K) for discriminator "classes", and
    Q's mean (B, Z) of z, or (B, codes.size) of its codes, where categorical ones are logits. Batch normalisation keeps
    no running averages: a discriminator is not used after training."""

    def __init__(self, dataset: Dataset, recipe: GanRecipe, level: Level):
        super().__init__()
        target, shape, of_images = tap_shapes(dataset)[level.low], dataset.gan, level.low == IMAGE
        self.pooled = of_images and shape.mean_pool
        layers: list[nn.Module] = [Noise(recipe.image_noise if of_images else recipe.feature_noise)]
        maps = inputs = target[0]
        if len(target) == 1:
            for width, norm in shape.vector_fc:
                block: list[nn.Module] = [nn.Linear(inputs, width, bias=not norm), nn.LeakyReLU(recipe.dense_slope)]
                if norm:
                    block.insert(1, nn.BatchNorm1d(width, eps=NORM_EPS, track_running_stats=False))
                    block = [Noise(recipe.hidden_noise), *block, Noise(recipe.hidden_noise)]
                layers += block
                inputs = width
        else:
            rows, widths = (shape.image_convs, shape.image_fc) if of_images else (shape.map_convs, shape.map_fc)
            side = target[-1]
            for index, row in enumerate(rows):
                norm = row.norm or (of_images and index > 0 and recipe.discriminator_norm)
                layers += [nn.Dropout(recipe.dropout)] if row.dropout else []
                layers += [nn.Conv2d(maps, row.maps, row.kernel, row.stride, row.padding, bias=not norm)]
                layers += [nn.BatchNorm2d(row.maps, eps=NORM_EPS, track_running_stats=False)] if norm else []
                layers += [nn.LeakyReLU(LEAK)]
                maps, side = row.maps, (side + 2 * row.padding - row.kernel) // row.stride + 1
            layers += [nn.Flatten()] if widths else []
            inputs = maps * side * side
            for width in widths:
                layers += [nn.Linear(inputs, width), nn.LeakyReLU(recipe.dense_slope)]
                inputs = width
        self.trunk = nn.Sequential(*layers)
        outputs = dataset.classes if recipe.discriminator == "classes" else 1
        self.logits = nn.Linear(maps if self.pooled else inputs, outputs)
        self.q = nn.Linear(inputs, level.codes.size if level.codes else noise_size(dataset, level))
        self.sigmoid_q = shape.sigmoid_q and level.codes is None
        initialise(self, recipe.init_std, recipe.convolution_std, recipe.dense_glorot)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        trunk = self.trunk(h)
        logits = self.logits(trunk.mean((2, 3)) if self.pooled else trunk.flatten(1))
        mean = self.q(trunk.flatten(1))
        return logits, torch.sigmoid(mean) if self.sigmoid_q else mean
