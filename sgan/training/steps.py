"""The training steps of a classifier and of a stack: what the loop runs."""

import functools
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sgan.checks import content_key
from sgan.config import IMAGE, LABEL, EncoderRecipe, GanRecipe, Level, Weights
from sgan.data.batches import Batches, Data, pixel_mean, random_flips, to_input, turned
from sgan.models.discriminator import Discriminator
from sgan.models.encoder import Encoder
from sgan.models.generator import Chain, Generator
from sgan.models.stack import draw, label_condition
from sgan.training import losses
from sgan.training.cuda_graphs import Phases
from sgan.training.optimizers import adam, in_layout_of

VARIANCE_IMAGES = 2000  # Real images from which the variance of their features is taken
CACHE_BYTES = 2**29  # Real features are computed once and kept up to this size, else again for each batch

FORMAT = torch.channels_last  # Convolutions are faster with channels last, on CPUs and on GPUs


def role_seed(seed: int, role: str) -> int:
    """The seed of one stage of a trial: the same for every variant, another for every role, so that the joint stage
    does not see the levels' batches and noise again."""
    return int(content_key([seed, role])[:12], 16)


def step_seed(seed: int, step: int) -> int:
    """The seed of everything random in one step."""
    return (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + 1) % 2**63


class ClassifierTask:
    """Trains an encoder as a classifier with cross-entropy (paper, "Pre-trained Encoder"). It predicts the labels, or
    the angle by which each image was turned."""

    def __init__(self, encoder: Encoder, data: Data, recipe: EncoderRecipe, seed: int):
        self.encoder, self.data, self.recipe, self.seed = encoder, data, recipe, seed
        self.modules: dict[str, nn.Module] = {"encoder": encoder}
        self.optimisers = {"encoder": adam(encoder, recipe.adam)}
        self.batches = Batches(len(data.images), recipe.batch, seed, data.images.device)
        self.images, self.labels = (torch.empty_like(part[: recipe.batch]) for part in (data.images, data.labels))
        self.phases = Phases(data.images.device)

    def step(self, step: int) -> dict[str, Tensor]:
        torch.manual_seed(step_seed(self.seed, step))
        index = self.batches[step]
        images, labels = self.data.images[index], self.data.labels[index]
        if self.recipe.objective == "rotation":
            labels = torch.randint(4, labels.shape, device=labels.device)
            images = turned(images, labels)
        self.images.copy_(images)
        self.labels.copy_(labels)
        return self.phases("step", self._update)

    def _update(self) -> dict[str, Tensor]:
        """One optimiser step on `images` and `labels`."""
        images = to_input(self.images, self.encoder.mean)
        images = random_flips(images) if self.recipe.flips else images
        loss = F.cross_entropy(self.encoder(images), self.labels)
        self.optimisers["encoder"].zero_grad()
        loss.backward()
        self.optimisers["encoder"].step()
        return {"class_loss": loss.detach()}


class Generated(NamedTuple):
    """What one level makes of a batch: the generator's output `h`, its z, and its condition. Between levels, the
    gradient through `condition` is scaled by `feedback`."""

    h: Tensor
    z: Tensor
    condition: Tensor


class GanTask:
    """Trains levels: one on real features (independent stage), or all, each on the output from above (joint stage).

    A step is one discriminator step and, by the recipe's rule, one or more generator steps (paper, "Stacked
    Generators"; released code for the rule).

    Args:
        networks: a generator and its discriminator, with Q inside, for each of neighbouring levels, from the lower up;
            more than one pair means the joint stage.
        encoder: frozen; None where no loss and no condition needs it.
        feedback: share of the gradient of a level's loss that reaches the level above."""

    def __init__(
        self,
        networks: Sequence[tuple[Generator | Chain, Discriminator]],
        encoder: Encoder | None,
        data: Data,
        recipe: GanRecipe,
        weights: Weights,
        seed: int,
        feedback: float = 1.0,
    ):
        self.stack = [generator for generator, _ in networks]
        self.discriminators = [discriminator for _, discriminator in networks]
        self.encoder, self.data, self.recipe, self.weights = encoder, data, recipe, weights
        self.seed, self.feedback = seed, feedback
        self.levels = [generator.level for generator in self.stack]
        self.generator, self.discriminator = nn.ModuleList(self.stack), nn.ModuleList(self.discriminators)
        self.norms = [each for each in self.generator.modules() if isinstance(each, nn.BatchNorm1d | nn.BatchNorm2d)]
        # Subtracted from images. All computations have the parameters' precision, except where autocast lowers it.
        self.mean = pixel_mean(data.images, recipe.pixel_mean).to(next(self.generator.parameters()).dtype)
        if self.levels[0].low == IMAGE:
            self.stack[0].mean.copy_(self.mean)
        self.modules: dict[str, nn.Module] = {"generator": self.generator, "discriminator": self.discriminator}
        self.optimisers = {name: adam(module, recipe.adam) for name, module in self.modules.items()}
        self.batches = Batches(len(data.images), recipe.batch, seed, data.images.device)
        self.index = torch.zeros(recipe.batch, dtype=torch.long, device=data.images.device)
        self.batch: tuple[dict[str, Tensor], list[Generated]]
        self.phases = Phases(data.images.device)
        self.beside = self.phases.beside
        self.needed = {level.low for level in self.levels} | {self.levels[-1].high} - {LABEL}
        self.cache: dict[str, Tensor] = {}  # real features of the whole training set, where they fit
        taps = self.needed - {IMAGE}
        if self.encoder is not None and taps:
            one = self.encoder.features(data.images[:1], taps)
            if sum(tap.numel() for tap in one.values()) * 4 * len(data.images) <= CACHE_BYTES:
                self.cache = self.encoder.features(data.images, taps)
        # Losses of a generator that ignores z (entropy) or its condition (conditional). The latter is the variance of
        # the real features if it always makes their mean, or log K if its output is independent of the label.
        some: dict[str, float | Tensor] = {LABEL: math.log(self.stack[0].classes)}
        if self.encoder is not None and (highs := {level.high for level in self.levels} - {LABEL}):
            features = self.encoder.features(data.images[:VARIANCE_IMAGES], highs)
            some |= {tap: values.var(0).mean() for tap, values in features.items()}
        self.trivial = {self._name(each, "conditional_ratio"): some[each.high] for each in self.levels}
        self.trivial |= {self._name(each, "entropy_ratio"): losses.trivial_entropy(each.codes) for each in self.levels}

    def real(self, index: Tensor) -> dict[str, Tensor]:
        """The real batch of these training images: tap -> features, the image under "image", labels (B,) under
        "label"."""
        real = {tap: values[index] for tap, values in self.cache.items()}
        if self.needed - {IMAGE} - set(real):
            assert self.encoder is not None
            real |= self.encoder.features(self.data.images[index], self.needed - {IMAGE})
        if IMAGE in self.needed:
            real[IMAGE] = to_input(self.data.images[index], self.mean)
        return real | {LABEL: self.data.labels[index]}

    def generate(self, condition: Tensor, averages: bool = True) -> list[Generated]:
        """What every level makes, the lowest first, from the top level's condition. `averages`: whether the running
        averages of batch normalisation move."""
        for norm in self.norms:
            norm.track_running_stats = averages
        batch = list[Generated]()
        for generator in reversed(self.stack):
            if batch:
                condition = batch[0].h.detach() if self.feedback == 0 else batch[0].h.view_as(batch[0].h)
                if condition.requires_grad:
                    condition.register_hook(lambda gradient: gradient * self.feedback)
            z = draw(generator, len(condition), condition.device)
            with self._autocast():
                made = generator(condition, z)
            batch.insert(0, Generated(made.to(self.mean.dtype), z, condition))
        return batch

    def _autocast(self) -> AbstractContextManager[object]:
        """The precision of a forward pass, as a new context for each one: a context casts weights only once, and Adam
        changes them between passes."""
        lower = self.recipe.precision == "bfloat16"
        return torch.autocast(self.mean.device.type, torch.bfloat16) if lower else nullcontext()

    def _judge(self, discriminator: Discriminator, h: Tensor) -> tuple[Tensor, Tensor]:
        with self._autocast():
            logits, recovered = discriminator(h)
        return logits.to(self.mean.dtype), recovered.to(self.mean.dtype)

    def step(self, step: int) -> dict[str, Tensor]:
        torch.manual_seed(step_seed(self.seed, step))
        self.index.copy_(self.batches[step])
        if len({steps for _, steps in self.recipe.generator_steps}) == 1:
            return self.phases("step", self._whole_step)
        report = self.phases("discriminator", self.discriminator_step)
        lowest = report[self._name(self.levels[0], "d_adversarial")].item() / 2
        repeats = losses.generator_steps(self.recipe.generator_steps, lowest)
        for repeat in range(repeats):
            new = repeat > 0 or self.recipe.fresh_noise
            anew = functools.partial(self.generator_step, True)  # a batch allows only one backward pass
            report |= self.phases(f"generator {new}", functools.partial(self.generator_step, new), anew)
        return report | {"generator_steps": torch.tensor(float(repeats))}

    def _whole_step(self) -> dict[str, Tensor]:
        """A step whose number of generator steps is fixed."""
        report = self.discriminator_step()
        repeats = self.recipe.generator_steps[0][1]
        for repeat in range(repeats):
            report |= self.generator_step(repeat > 0 or self.recipe.fresh_noise)
        return report | {"generator_steps": torch.full((), float(repeats), device=self.index.device)}

    def discriminator_step(self) -> dict[str, Tensor]:
        """Load the next batch, and update all D and Q on it. Their pass over real features needs no generator."""
        real, top = self.real(self.index), self.stack[-1]
        condition = label_condition(top, real[LABEL]) if top.level.high == LABEL else real[top.level.high]
        self.beside.begin()
        # Only generator steps move the running averages (released code); here they move if one reuses this batch.
        batch = self.generate(condition, averages=not self.recipe.fresh_noise)
        self.batch = real, batch
        recipe, report, parts, judged = self.recipe, {}, [], []
        for level, discriminator, fake in zip(self.levels, self.discriminators, batch, strict=True):
            with self.beside():
                real_logits, _ = self._judge(discriminator, real[level.low])
            judged.append((real_logits, *self._judge(discriminator, fake.h.detach())))
        self.beside.join()
        for level, fake, (real_logits, fake_logits, recovered) in zip(self.levels, batch, judged, strict=True):
            terms = {
                "d_adversarial": losses.discriminator(real_logits, fake_logits),
                "d_accuracy": losses.discriminator_accuracy(real_logits, fake_logits),
            }
            loss = recipe.discriminator_scale * terms["d_adversarial"]
            if self.weights.entropy > 0:
                terms["d_entropy"] = losses.entropy(recovered, fake.z, level.codes)
                loss = loss + self.weights.entropy * terms["d_entropy"]
            if recipe.discriminator == "classes" and recipe.class_weight > 0:
                terms["d_class"] = F.cross_entropy(real_logits, real[LABEL])
                loss = loss + recipe.class_weight * terms["d_class"]
            parts.append(loss)
            report |= {self._name(level, name): value.detach() for name, value in terms.items()}
        self._update("discriminator", torch.stack(parts).sum())
        return report

    def generator_step(self, new: bool) -> dict[str, Tensor]:
        """Update all G with the sum over levels of the weighted sum over losses (paper, "Stacked Generators"), on what
        the discriminator step generated, or on a new draw."""
        real, batch = self.batch
        batch = self.generate(batch[-1].condition) if new else batch
        weights, report, parts, terms = self.weights, {}, [], list[tuple[Level, str, Tensor]]()
        self.beside.begin()
        for level, discriminator, fake in zip(self.levels, self.discriminators, batch, strict=True):
            with self.beside():
                if weights.conditional > 0 and level.conditioned:
                    target = real[LABEL] if level.high == LABEL else fake.condition
                    encoded = self._encoded(fake.h, level)
                    terms.append((level, "conditional", losses.conditional(encoded, target)))
            if weights.adversarial > 0 or weights.entropy > 0:
                logits, recovered = self._judge(discriminator, fake.h)
                terms.append((level, "adversarial", losses.adversarial(logits, self.recipe.adversarial)))
                terms.append((level, "entropy", losses.entropy(recovered, fake.z, level.codes)))
        self.beside.join()
        for level, name, term in terms:
            weight, ratio = getattr(weights, name), self._name(level, f"{name}_ratio")
            if weight > 0:
                parts.append(weight * term)
                report[self._name(level, f"g_{name}")] = term.detach()
                if ratio in self.trivial:
                    report[ratio] = term.detach() / self.trivial[ratio]
        self._update("generator", torch.stack(parts).sum())
        return report

    def _encoded(self, fake: Tensor, level: Level) -> Tensor:
        """The encoder's output for a level's output. Images lack the GAN's mean image, but must lack the encoder's."""
        assert self.encoder is not None
        fake = fake + self.mean - self.encoder.mean if level.low == IMAGE else fake
        with self._autocast():
            return self.encoder(fake, level.low, level.high).to(self.mean.dtype)

    def _update(self, name: str, loss: Tensor) -> None:
        """One optimiser step; gradients go to this side's parameters only."""
        parameters = list(self.modules[name].parameters())
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = None if gradient is None else in_layout_of(parameter, gradient)
        self.optimisers[name].step()

    def _name(self, level: Level, name: str) -> str:
        """Return the name of a loss; in the joint stage it begins with the level."""
        return name if len(self.levels) == 1 else f"level{self.levels.index(level)}/{name}"
