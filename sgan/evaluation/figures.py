"""The paper's figures for a finished stack (section 4, and its appendix of samples). Each depends on the weights alone,
since all noise comes from one seed.

A score stage keeps each figure as figures/<name>.png, with text around the images; `sgan.evaluation.grid.unlabelled`
reads only the images. In the figure `classes`, two trials with the same layers have the same noise.

Legend: n images, K classes, R rows (at most 10), F features; images uint8 (n, channels, size, size) in row order.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from sgan.data.batches import Data
from sgan.evaluation.grid import Words
from sgan.evaluation.judges import Judge
from sgan.evaluation.scores import nearest
from sgan.models.stack import Stack, descend, draw, label_condition, samplers, unfolded
from sgan.shapes import Dataset

Figure = tuple[Tensor, Words]  # Images, and the text around them; there is one row of images per row label
SEED = 7
COLUMNS, MOST_ROWS = 10, 10
TRIPLES = 3  # Samples per row of the figure `neighbours`, each followed by its two neighbours
SIDE = 84  # Side in pixels, about, to which small images are enlarged: figures are about 900 pixels wide
DRAWS = tuple(map(str, range(1, COLUMNS + 1)))
STEPS = tuple(f"{step / (COLUMNS - 1):.2f}" for step in range(COLUMNS))
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
WORDS = {
    "classes": Words("Samples, a row a class", "ten draws of all noise",
        "Look for rows that show their class, and for images of a row that differ. A row of equal images has "
        "collapsed: there the noise is ignored.", DRAWS),
    "unlabelled": Words("Samples of a stack without labels", "each image has its own noise; rows mean nothing",
        "Look for variety: all kinds of images should be there. Equal images have collapsed.", DRAWS),
    "interpolation_noise": Words("From one draw of the noise to another",
        "all noise moves in a straight line; a categorical code stays",
        "Look for small steps and for images that stay plausible on the way. A jump, or a blur in the middle, is a "
        "region of the noise that the stack has not learned.", STEPS),
    "interpolation_labels": Words("From one class to the next",
        "the label moves in a straight line, and the noise stays",
        "Look for a smooth change from one class to the other in the same style. The labels in between were never "
        "seen in training.", STEPS),
    "fixed_condition": Words("One condition of the image level, its own noise varies",
        "ten draws of z0 for the same condition",
        "A row has one condition, such as one generated fc3 feature. Look for differences in a row: they are what "
        "the last generator adds by itself. Without entropy loss a row tends to repeat one image.", DRAWS),
    "fixed_noise": Words("One noise of the image level, the levels above vary",
        "ten draws of the noise of all levels above, for the same z0",
        "Look for what changes in a row, such as the shape, and for what stays, such as the stroke: this is how the "
        "levels share the work.", DRAWS),
    "codes": Words("Categorical code", "ten draws of all other noise",
        "A row has one value of the code, which is learned without labels. Look for rows of one class each; two "
        "classes in a row, or one class in two rows, are where the code is not the class.", DRAWS),
    "continuous_code": Words("First continuous code", "the code goes from 0 to 1, and all else stays",
        "Look for one property that changes steadily, such as slant or width, in the same way in every row.", STEPS),
    "neighbours": Words("Nearest training images",
        "three times: a sample, the training image nearest in pixels, and the one nearest in the judge's features",
        "Look for samples that differ from both neighbours. A sample that equals one was learned by heart.",
        ("sample", "pixels", "features") * TRIPLES),
    "real": Words("Training images, a row a class", "ten images of each class",
        "What samples should look like: compare the variety in a row with that of the samples.", DRAWS),
}  # fmt: skip
"""Name of a figure -> the text around it, without row labels. The figure `classes` of a stack without labels uses
"unlabelled"."""


def class_names(dataset: Dataset) -> tuple[str, ...]:
    """Return the class names: CIFAR-10's, or numbers. An image folder's numbers count its sorted sub-folders."""
    return CIFAR10 if dataset.name == "cifar10" else tuple(map(str, range(dataset.classes)))


def samples(stack: Stack, statistics: str, names: Sequence[str]) -> dict[str, Figure]:
    """Return the figures that show only samples, by name. WORDS describes their rows. Chained generators are separated.
    `fixed_condition` is the paper's panel (c); for a stack without entropy loss, it is panel (d).

    Args:
        stack, statistics: a stack, and its batch normalisation when sampling ("running" or "batch").
        names: the class names."""
    stack, classes = samplers(unfolded(stack), statistics), len(names)
    top, device, named = stack[-1].level, stack[0].mean.device, _rows(stack, names)
    rows, drawn = len(named), dict[str, Figure]()
    labels = torch.arange(rows, device=device).repeat_interleave(COLUMNS)
    condition = label_condition(stack[-1], labels)
    along = torch.linspace(0, 1, COLUMNS, device=device).repeat(rows)[:, None]

    (varied,) = _noise(stack, rows * COLUMNS, 1)
    held = [z[::COLUMNS].repeat_interleave(COLUMNS, 0) for z in varied]
    first, last = ([z.repeat_interleave(COLUMNS, 0) for z in noise] for noise in _noise(stack, rows, 2))
    between = [(1 - along) * start + along * end for start, end in zip(first, last, strict=True)]

    def add(name: str, condition: Tensor, noise: list[Tensor], rows: Sequence[str] = named, words: str = "") -> None:
        drawn[name] = descend(stack, condition, noise), replace(WORDS[words or name], rows=rows)

    if top.codes:
        plain, values = stack[-1].noise - top.codes.size, top.codes.categorical
        code = slice(plain, plain + values)
        between[-1][:, code] = first[-1][:, code]
        coded, moved = varied[-1].clone(), first[-1].clone()
        coded[:, code] = moved[:, code] = F.one_hot(labels % values, values).to(coded)
        moved[:, code.stop] = along[:, 0]
        by_code = [f"code {row % values}" for row in range(rows)]
        add("codes", condition, [coded], by_code)
        add("continuous_code", condition, [moved], by_code)
    add("classes", condition, varied, words="classes" if top.labels else "unlabelled")
    add("interpolation_noise", condition, between)
    if top.labels or len(stack) > 1:  # otherwise there is no condition to keep fixed
        add("fixed_condition", condition, [varied[0], *held[1:]])
    if len(stack) > 1:
        add("fixed_noise", condition, [held[0], *varied[1:]])
    if top.labels:
        following = label_condition(stack[-1], (labels + 1) % classes)
        between_labels = [f"{names[row]} to {names[(row + 1) % classes]}" for row in range(rows)]
        add("interpolation_labels", (1 - along) * condition + along * following, first, between_labels)
    return drawn


def neighbours(stack: Stack, statistics: str, names: Sequence[str], images: Tensor, judge: Judge) -> Figure:
    """Return triples of a sample, the training image nearest in pixels, and the one nearest in the judge's features.
    Distances are Euclidean; `stack`, `statistics` and `names` are as in `samples`."""
    stack = samplers(unfolded(stack), statistics)
    named = _rows(stack, names)
    labels = torch.arange(len(named), device=images.device).repeat_interleave(TRIPLES)
    (noise,) = _noise(stack, len(labels), 1)
    made = descend(stack, label_condition(stack[-1], labels), noise)
    alike = images[nearest(made, images)[1]]
    akin = images[nearest(judge.describe(made).features, judge.real.features)[1].to(images.device)]
    return torch.stack([made, alike, akin], 1).flatten(0, 1), replace(WORDS["neighbours"], rows=named)


def real(data: Data, names: Sequence[str]) -> Figure:
    """Return training images, one row per class; a class with fewer than ten repeats them."""
    rows, named = [], []
    for label, name in enumerate(names[:MOST_ROWS]):
        members = (data.labels == label).nonzero().flatten()
        if len(members):
            rows.append(data.images[members[torch.arange(COLUMNS, device=members.device) % len(members)]])
            named.append(name)
    return torch.cat(rows), replace(WORDS["real"], rows=named)


def _rows(stack: Stack, names: Sequence[str]) -> Sequence[str]:
    """Return the row labels: class names, or numbers for a stack without labels."""
    shown = names[:MOST_ROWS]
    return shown if stack[-1].level.labels else [f"row {row}" for row in range(1, len(shown) + 1)]


def _noise(stack: Stack, count: int, draws: int) -> list[list[Tensor]]:
    """Return `draws` draws of z for every generator, (count, Z) each; they are always the same."""
    numbers, device = torch.Generator().manual_seed(SEED), stack[0].mean.device
    return [[draw(generator, count, device, numbers) for generator in stack] for _ in range(draws)]
