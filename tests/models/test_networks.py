"""Architectures against the numbers of the released code, and every way to cut the encoder into levels."""

import itertools
import math

import pytest
import torch
from conftest import PAPER, RELEASED, TINY, named_recipe
from torch import Tensor, nn

from sgan.config import IMAGE, INNER_TAPS, LABEL, TAPS, GanRecipe, Level
from sgan.data.batches import pixel_mean
from sgan.models.discriminator import Discriminator, Noise
from sgan.models.encoder import Encoder, tap_shapes
from sgan.models.generator import Generator
from sgan.presets import DATASETS
from sgan.shapes import Dataset

SPLITS = [cuts for count in range(6) for cuts in itertools.combinations(INNER_TAPS, count)]
META = torch.device("meta")
# Released code. Trainable parameters, and multiply-accumulates an image in millions.
PARAMETERS = {
    "cifar10": {"E": 1_031_818, "G1": 808_192, "G0": 5_367_171, "D1": 425_532, "D0": 1_066_010},
    "mnist": {"E": 160_362, "G1": 426_240, "G0": 1_516_097, "D1": 144_691, "D0": 794_675},
}
MULTIPLICATIONS = {
    "cifar10": {"E": 25.06, "G0": 213.16, "D0": 100.97},
    "mnist": {"E": 2.23, "G0": 36.12, "D0": 6.48},
}
TAP_SHAPES = {
    "cifar10": [(3, 32, 32), (64, 28, 28), (64, 14, 14), (128, 10, 10), (128, 5, 5), (256,), (10,), (10,)],
    "mnist": [(1, 28, 28), (32, 24, 24), (32, 12, 12), (32, 8, 8), (32, 4, 4), (256,), (10,), (10,)],
    "digits": [(1, 8, 8), (8, 8, 8), (8, 4, 4), (16, 4, 4), (16, 2, 2), (32,), (10,), (10,)],
}
MAPS = {  # every map that the bottom generator and the image discriminator make, in order
    ("cifar10", "G0"): [(256, 5, 5), (256, 10, 10), (128, 14, 14), (128, 28, 28), (3, 32, 32)],
    ("mnist", "G0"): [(128, 4, 4), (128, 8, 8), (64, 12, 12), (64, 24, 24), (1, 28, 28)],
    ("cifar10", "D0"): [(96, 32, 32), (96, 16, 16), (192, 16, 16), (192, 8, 8), (192, 6, 6), (192, 6, 6)],
    ("mnist", "D0"): [(32, 14, 14), (64, 7, 7), (128, 4, 4)],
}


LEVELS = {"0": Level(IMAGE, "fc3"), "1": Level("fc3", LABEL)}


def network(dataset: str, name: str, device: torch.device | str = META) -> nn.Module:
    """One of the released networks E, G1, G0, D1 or D0."""
    row, recipe = DATASETS[dataset], named_recipe("released", dataset).gan
    with torch.device(device):
        if name == "E":
            return Encoder(row, 0.01)
        if name.startswith("G"):
            return Generator(row, recipe, LEVELS[name[1]])
        return Discriminator(row, recipe, LEVELS[name[1]])


def inputs(module: nn.Module, dataset: str) -> tuple[Tensor, ...]:
    """Something of the right shape to give a released network."""
    shapes = tap_shapes(DATASETS[dataset])
    if isinstance(module, Generator):
        condition = shapes["fc3"] if module.level.low == IMAGE else shapes[LABEL]
        return torch.rand(2, *condition, device=META), torch.rand(2, module.noise, device=META)
    return (torch.rand(2, *shapes[IMAGE], device=META),)


def parameters(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("dataset", "name"), [(row, name) for row, table in PARAMETERS.items() for name in table])
def test_trainable_parameters_are_the_released_ones(dataset, name):
    assert parameters(network(dataset, name)) == PARAMETERS[dataset][name]


@pytest.mark.parametrize(("dataset", "name"), [(row, name) for row, table in MULTIPLICATIONS.items() for name in table])
def test_multiplications_are_the_released_ones(dataset, name):
    total = 0

    def count(module: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.ConvTranspose2d):
            total += given[0][0].numel() * module.out_channels * math.prod(module.kernel_size)
        elif isinstance(module, nn.Conv2d):
            total += made[0].numel() * module.in_channels * math.prod(module.kernel_size)
        elif isinstance(module, nn.Linear):
            total += module.in_features * module.out_features

    module = network(dataset, name)
    for part in module.modules():
        part.register_forward_hook(count)
    module(*inputs(module, dataset))
    assert total / 1e6 == pytest.approx(MULTIPLICATIONS[dataset][name], abs=0.005)


@pytest.mark.parametrize(("dataset", "name"), MAPS)
def test_maps_have_the_released_sizes(dataset, name):
    shapes = []
    module = network(dataset, name)
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d, nn.Unflatten)):
            part.register_forward_hook(lambda part, given, made: shapes.append(tuple(made.shape[1:])))
    module(*inputs(module, dataset))
    assert shapes == MAPS[dataset, name]


def layers(module: nn.Module) -> str:
    """The layers in order, in short."""
    short = {"Linear": "fc", "Conv2d": "c", "ConvTranspose2d": "d", "ReLU": "relu", "LeakyReLU": "lrelu"}
    short |= {"BatchNorm1d": "BN", "BatchNorm2d": "BN", "Dropout": "dropout", "Noise": "noise"}
    return " ".join(short[type(part).__name__] for part in module.modules() if type(part).__name__ in short)


@pytest.mark.parametrize(
    ("dataset", "name", "expected"),
    [
        ("cifar10", "G1", "fc BN relu fc BN relu fc BN relu fc BN relu fc"),
        ("mnist", "G1", "fc BN relu fc BN relu fc"),
        ("cifar10", "G0", "fc BN relu fc BN relu fc BN relu d BN relu d BN relu d BN relu d"),
        ("mnist", "G0", "fc BN relu fc BN relu d BN relu d BN relu d BN relu d"),
        ("cifar10", "D1", "noise fc lrelu noise fc BN lrelu noise fc fc"),
        ("mnist", "D1", "noise fc lrelu fc lrelu fc fc"),
        (
            "cifar10",
            "D0",
            "noise c lrelu c BN lrelu dropout c BN lrelu c BN lrelu dropout c BN lrelu c lrelu fc fc",
        ),
        ("mnist", "D0", "noise c lrelu c lrelu c lrelu fc lrelu fc fc"),
        ("cifar10", "E", "c relu c relu fc relu fc"),
    ],
)
def test_layers_come_in_the_released_order(dataset, name, expected):
    assert layers(network(dataset, name)) == expected


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_dropout_and_noise_have_their_distribution_in_any_layout(layout):
    torch.manual_seed(0)
    h = torch.rand(100, 8, 15, 9).add(1).to(memory_format=layout).requires_grad_()
    count = h.numel()
    made = nn.Dropout(0.3)(h)
    kept = made != 0
    assert made.stride() == h.stride()
    assert abs(kept.sum().item() - 0.7 * count) < 4 * math.sqrt(0.7 * 0.3 * count)
    # Neighbours of either order are dropped independently of each other.
    for dim in (0, 1, 3):
        both = (kept.narrow(dim, 1, kept.shape[dim] - 1) & kept.narrow(dim, 0, kept.shape[dim] - 1)).float().mean()
        assert both.item() == pytest.approx(0.49, abs=0.01)
    torch.testing.assert_close(made[kept], h[kept] / 0.7, rtol=1e-4, atol=0)
    (gradient,) = torch.autograd.grad(made.sum(), h)
    torch.testing.assert_close(gradient, kept / 0.7, rtol=1e-4, atol=0)
    assert torch.equal(nn.Dropout(0.3).eval()(h), h)

    noise = Noise(0.3)(h) - h
    assert (Noise(0.3)(h)).stride() == h.stride()
    assert noise.std().item() == pytest.approx(0.3, abs=4 * 0.3 / math.sqrt(2 * count))
    assert abs(noise.mean().item()) < 4 * 0.3 / math.sqrt(count)


def test_noise_and_dropout_of_the_released_cifar_stages():
    recipe = named_recipe("released", "cifar10")

    def strengths(gan: GanRecipe, level: str) -> list[float]:
        with META:
            found = Discriminator(DATASETS["cifar10"], gan, LEVELS[level])
        return [
            part.std if isinstance(part, Noise) else part.p
            for part in found.trunk
            if isinstance(part, (Noise, nn.Dropout))
        ]

    assert strengths(recipe.gan, "1") == [0.2, 0.0, 0.0]
    assert strengths(recipe.joint, "1") == [0.2, 0.2, 0.2]
    assert strengths(recipe.gan, "0") == [0.05, 0.1, 0.1]
    assert strengths(recipe.joint, "0") == [0.05, 0.3, 0.3]


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_taps_have_the_shapes_that_the_encoder_makes(dataset):
    row = DATASETS[dataset]
    with META:
        made = Encoder(row, 0.01).taps(torch.rand(2, row.channels, row.size, row.size))
    shapes = tap_shapes(row)
    assert {tap: tuple(tensor.shape[1:]) for tap, tensor in made.items()} == {
        tap: shapes[tap] for tap in (IMAGE, *TAPS)
    }
    if dataset != "digits":
        assert list(shapes.values()) == TAP_SHAPES["cifar10" if dataset == "svhn" else dataset]


def test_features_of_many_images_are_those_of_each(digits):
    torch.manual_seed(0)
    encoder, some = Encoder(TINY, 0.3), digits.images[:230]
    encoder.mean.copy_(pixel_mean(some, True))
    found = encoder.features(some, ("pool1", "fc3"))
    assert found.keys() == {"pool1", "fc3"}
    taps = encoder.taps(some.float() / 255 - encoder.mean)
    assert all(torch.allclose(values, taps[name], rtol=1e-4, atol=1e-6) for name, values in found.items())
    assert not found["fc3"].requires_grad


def test_an_encoder_cut_anywhere_is_the_same_encoder():
    torch.manual_seed(0)
    encoder = Encoder(TINY, 0.3)
    image = torch.rand(3, 1, 8, 8)
    whole = encoder(image)
    for cuts in SPLITS:
        h = image
        for low, high in itertools.pairwise((IMAGE, *cuts, LABEL)):
            h = encoder(h, low, high)
        assert torch.equal(h, whole)
    assert torch.equal(encoder(image, IMAGE, IMAGE), image)


@pytest.mark.parametrize(("dataset", "recipe"), [("digits", PAPER), ("mnist", PAPER), ("cifar10", RELEASED)])
def test_every_split_has_levels_that_fit_and_train(dataset, recipe):
    """All 32 sets of cuts, 1 to 6 levels: each level makes the shape that the one below is given."""
    row = DATASETS[dataset]
    assert len(SPLITS) == 32
    assert {len(cuts) + 1 for cuts in SPLITS} == {1, 2, 3, 4, 5, 6}
    levels = {pair for cuts in SPLITS for pair in itertools.pairwise((IMAGE, *cuts, LABEL))}
    assert len(levels) == 21
    for low, high in levels:
        _check_level(row, recipe, low, high)


def _check_level(row: Dataset, recipe: GanRecipe, low: str, high: str) -> None:
    """Generator and discriminator have the right shapes and a gradient everywhere."""
    with META:
        level = Level(low, high)
        generator, discriminator = Generator(row, recipe, level), Discriminator(row, recipe, level)
        encoder = Encoder(row, 0.01)
        condition = torch.rand(2, *tap_shapes(row)[high])
        made = generator(condition, torch.rand(2, generator.noise))
        assert tuple(made.shape[1:]) == tap_shapes(row)[low]
        assert generator.noise == (row.gan.image_noise if low == IMAGE else row.gan.feature_noise)
        logits, mean = discriminator(made)
        assert tuple(logits.shape) == (2, row.classes if recipe.discriminator == "classes" else 1)
        assert tuple(mean.shape) == (2, generator.noise)
        recovered = encoder(made, low, high)
        assert recovered.shape == condition.shape
        (logits.sum() + mean.sum() + recovered.sum()).backward()
    for name, parameter in [*generator.named_parameters(), *discriminator.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.shape == parameter.shape


@pytest.mark.parametrize(
    ("low", "high"), [(IMAGE, "fc3"), (IMAGE, LABEL), (IMAGE, "conv1"), ("conv2", "pool2"), ("fc3", LABEL)]
)
def test_what_a_generator_makes_depends_on_condition_and_noise_and_has_the_range_of_its_tap(low, high):
    torch.manual_seed(0)
    generator = Generator(TINY, PAPER, Level(low, high))
    condition, z = torch.rand(8, *tap_shapes(TINY)[high]), torch.rand(8, generator.noise)
    made = generator(condition, z)
    assert not torch.allclose(made, generator(condition.flip(0), z))
    assert not torch.allclose(made, generator(condition, z.flip(0)))
    assert made.min() >= 0
    if low == IMAGE:
        assert made.max() <= 1
        generator.mean.fill_(0.25)
        torch.testing.assert_close(generator(condition, z), made - 0.25)


def test_a_generator_without_labels_is_given_nothing():
    generator = Generator(TINY, PAPER, Level(IMAGE, LABEL, labels=False))
    assert generator(torch.zeros(3, 0), torch.rand(3, generator.noise)).shape == (3, 1, 8, 8)
    labelled = Generator(TINY, PAPER, Level(IMAGE, LABEL))
    first = generator.body[0]
    assert isinstance(first, nn.Linear)
    assert parameters(labelled) - parameters(generator) == TINY.classes * first.out_features


@pytest.mark.parametrize("name", ["G1", "G0", "D1", "D0", "E"])
def test_weights_start_as_in_the_released_independent_training(name):
    torch.manual_seed(0)
    module = network("mnist", name, "cpu")
    std = 0.01 if name == "E" else 0.02
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            count = part.weight.numel()
            assert part.weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * count))
            assert part.weight.mean().item() == pytest.approx(0, abs=5 * std / math.sqrt(count))
            assert part.bias is None or not part.bias.any()
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert part.eps == 1e-6
            assert part.momentum == 0.1
            assert (part.weight == 1).all()
            assert not part.bias.any()


@pytest.mark.parametrize("level", LEVELS)
def test_discriminators_start_as_in_the_released_joint_training_on_mnist(level):
    """Convolutions N(0, 0.01) and leaky; all else Glorot-uniform, U(-a, a) with a^2 = 6 / (inputs + outputs), of which
    the standard deviation is a / sqrt(3); hidden layers of that with ReLU."""
    torch.manual_seed(0)
    module = Discriminator(DATASETS["mnist"], named_recipe("released", "mnist").joint, LEVELS[level])
    parts = [part for part in module.trunk if isinstance(part, (nn.Linear, nn.Conv2d, nn.LeakyReLU))]
    for part, after in itertools.pairwise(parts):
        if isinstance(after, nn.LeakyReLU):
            assert after.negative_slope == (0.2 if isinstance(part, nn.Conv2d) else 0.0)
    for part in (*parts, module.logits, module.q):
        if isinstance(part, nn.Conv2d):
            assert part.weight.std().item() == pytest.approx(0.01, rel=5 / math.sqrt(2 * part.weight.numel()))
        elif isinstance(part, nn.Linear):
            bound, count = math.sqrt(6 / (part.in_features + part.out_features)), part.weight.numel()
            assert 0.9 * bound < part.weight.abs().max().item() <= bound
            assert part.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=5 / math.sqrt(2 * count))
    assert sum(isinstance(part, nn.Conv2d) for part in parts) == {"1": 0, "0": 3}[level]


def test_a_bias_stands_where_no_batch_normalisation_does():
    for dataset, name in itertools.product(("cifar10", "mnist"), ("G1", "G0", "D1", "D0")):
        parts = [part for part in network(dataset, name).modules() if not list(part.children())]
        parts = [part for part in parts if not isinstance(part, (Noise, nn.Unflatten, nn.Flatten, nn.Dropout))]
        for part, after in itertools.pairwise(parts):
            if hasattr(part, "bias") and not isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
                assert (part.bias is None) == isinstance(after, (nn.BatchNorm1d, nn.BatchNorm2d)), (name, part)


def test_the_released_cifar_logits_come_from_the_mean_over_positions():
    torch.manual_seed(0)
    discriminator = network("cifar10", "D0", "cpu").eval()
    assert isinstance(discriminator, Discriminator)
    images = torch.rand(2, 3, 32, 32)
    logits, mean = discriminator(images)
    trunk = discriminator.trunk(images)
    assert trunk.shape == (2, 192, 6, 6)
    by_hand = trunk.flatten(2).sum(2) / 36 @ discriminator.logits.weight.T + discriminator.logits.bias
    torch.testing.assert_close(logits, by_hand)
    by_hand = trunk.reshape(2, 6912) @ discriminator.q.weight.T + discriminator.q.bias
    torch.testing.assert_close(mean, by_hand)


@pytest.mark.parametrize(("dataset", "bounded"), [("mnist", True), ("cifar10", False)])
def test_q_ends_in_a_sigmoid_on_mnist_only(dataset, bounded):
    discriminator = network(dataset, "D1", "cpu").eval()
    assert isinstance(discriminator, Discriminator)
    nn.init.constant_(discriminator.q.bias, 3.0)
    nn.init.zeros_(discriminator.q.weight)
    _, mean = discriminator(torch.rand(2, 256))
    assert mean[0, 0].item() == pytest.approx(1 / (1 + math.exp(-3)) if bounded else 3.0, rel=1e-6)


def test_the_leaky_slope_is_the_released_one():
    parts = [part for part in network("cifar10", "D0").modules() if isinstance(part, nn.LeakyReLU)]
    assert {part.negative_slope for part in parts} == {0.2}


def test_noise_is_added_while_training_only():
    torch.manual_seed(0)
    noise, h = Noise(0.2), torch.ones(1000, 100)
    added = noise(h) - h
    assert added.std().item() == pytest.approx(0.2, rel=0.01)
    assert added.mean().item() == pytest.approx(0.0, abs=0.002)
    assert torch.equal(noise.eval()(h), h)
