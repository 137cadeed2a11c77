"""Datasets and the widths of their networks: frozen dataclasses, whose rows are in presets.py."""

import dataclasses
from typing import Annotated, Any

from pydantic import Field

from sgan.checks import checked, validated

Width = Annotated[float, Field(gt=0, le=4)]  # Factor on every hidden width


@validated()
class Conv:
    """One convolution of a discriminator; `norm`: batch normalisation after it, `dropout`: dropout before it."""

    maps: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    norm: bool = False
    dropout: bool = False


@validated()
class EncoderShape:
    """Widths of the encoder: conv1 and conv2 maps with their square kernel and padding, and the width of fc3."""

    maps: tuple[int, int]
    kernel: int
    padding: int
    features: int


@validated()
class GanShape:
    """Widths of the generators and discriminators of one dataset.

    Attributes:
        maps: hidden maps of the image generator at pool2, conv2, pool1, conv1 (mirrors the encoder).
        kernel: kernel size of its transposed convolutions.
        image_noise, feature_noise: size of z in the level that makes images, and in every other level.
        noise_hidden: fully connected widths through which z passes in a generator that ends in maps.
        label_noise_hidden: width through which z passes in the label-to-vector generator; None feeds z itself.
        label_hidden: width through which the label passes there; None feeds the one-hot label itself.
        vector_hidden: the further hidden widths of that generator.
        image_convs, image_fc: trunk of the image discriminator, and the fully connected widths after it.
        mean_pool: the image discriminator's logits come from the mean over positions (needs image_fc empty).
        vector_fc: trunk of a vector discriminator: (width, batch normalisation) of each layer.
        map_convs, map_fc: as image_convs and image_fc, for a discriminator on feature maps.
        sigmoid_q: Q ends in a sigmoid instead of being linear."""

    maps: tuple[int, int, int, int]
    kernel: int
    image_noise: int
    feature_noise: int
    noise_hidden: tuple[int, ...]
    vector_hidden: tuple[int, ...]
    image_convs: tuple[Conv, ...]
    image_fc: tuple[int, ...]
    vector_fc: tuple[tuple[int, bool], ...]
    map_convs: tuple[Conv, ...]
    map_fc: tuple[int, ...]
    label_noise_hidden: int | None = None
    label_hidden: int | None = None
    mean_pool: bool = False
    sigmoid_q: bool = False


OF_NOISE = ("image_noise", "feature_noise", "noise_hidden", "label_noise_hidden")
UNSCALED = ("kernel", *OF_NOISE, "mean_pool", "sigmoid_q")
"""Fields of GanShape that `Dataset.scaled` leaves as they are. Layers that z alone passes through (OF_NOISE) are among
them, since fewer units than z has numbers would lose a part of z."""


@validated()
class Dataset:
    """The format of a dataset's images and the widths of its networks. `flips`: mirrored images keep their class."""

    name: str
    channels: int
    size: int
    classes: int
    encoder: EncoderShape
    gan: GanShape
    flips: bool = False

    def scaled(self, width: float) -> "Dataset":
        """Return the row with every hidden width not in UNSCALED multiplied by `width`, and at least 4. Width 1 returns
        the row itself. ConfigError for a bad width."""
        width = checked(Width, width, "width")
        if width == 1:  # so layers narrower than 4 stay as they are
            return self

        def scale(value: Any) -> Any:
            match value:
                case None | bool():
                    return value
                case int():
                    return max(4, round(value * width))
                case Conv():
                    return dataclasses.replace(value, maps=scale(value.maps))
            return tuple(map(scale, value))

        widths = {name: scale(value) for name, value in vars(self.gan).items() if name not in UNSCALED}
        layers = {name: scale(getattr(self.encoder, name)) for name in ("maps", "features")}
        encoder, gan = dataclasses.replace(self.encoder, **layers), dataclasses.replace(self.gan, **widths)
        return dataclasses.replace(self, encoder=encoder, gan=gan)
