"""Random orders as torch draws them, without torch, whose import takes a second."""

import numpy as np


class Shuffle:
    """Called, the next `torch.randperm` of a CPU generator with this seed: the Mersenne Twister's 32-bit numbers,
    modulo how many are left, choose what goes next (PyTorch, ATen/native/TensorFactories.cpp, `randperm_cpu`).

    shuffle(count): an order of 0 ... count - 1, (count,) int64.
    """

    def __init__(self, seed: int):
        self.random = np.random.RandomState(seed)

    def __call__(self, count: int) -> np.ndarray:
        order = np.arange(count)
        draws = self.random.randint(0, 2**32, size=max(0, count - 1), dtype=np.uint32)
        for place, draw in enumerate(draws.tolist()):
            other = place + draw % (count - place)
            order[place], order[other] = order[other], order[place]
        return order
