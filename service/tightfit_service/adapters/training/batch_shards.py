"""The gradient of a batch, computed by threads that take a part of it each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from tightfit_service.adapters.training.learner import Learner
from tightfit_service.adapters.training.training_set import Batch

Figures = tuple[float, ...]
LossOf = Callable[[Learner, Batch], tuple[torch.Tensor, Figures]]
"""Loss of a part of a batch, a scalar that leads to the parameters, and means over the part to be told."""

_Gradients = tuple[torch.Tensor | None, ...]


class BatchShards:
    """Learners of the same parameters, one per part of a batch.

    Threads that share the layers of a small network wait for each other hundreds of times a step: on two
    cores, with waiting threads asleep as in workers, steps of 128 images took a quarter less (median) with
    half of the images per thread (`benchmarks/training_speed.py`). BatchNorms then normalise by the
    statistics of their part, which generalises no worse down to 32 samples ("ghost batch
    normalization"; Hoffer et al., NeurIPS 2017).

    The sum over parts is taken in their order, so that results do not depend on which thread is first.
    """

    def __init__(self, learner: Learner, pool: ThreadPoolExecutor | None, count: int) -> None:
        """Take the learner and as many copies as there are other parts; see `shards_of`."""
        self._learners = (learner, *(learner.sharing() for _ in range(count - 1)))
        self._pool = pool

    def gradients(
        self, batch: Batch, parameters: Sequence[torch.Tensor], loss_of: LossOf
    ) -> Figures:
        """Leave the gradient of the mean loss in the parameters; return the means that `loss_of` tells."""
        parts = batch.parts(len(self._learners))
        work = [
            (learner, part, parameters, loss_of)
            for learner, part in zip(self._learners, parts, strict=False)
        ]
        if self._pool is None:
            found = [_gradients(*of_part) for of_part in work]
        else:
            found = [f.result() for f in [self._pool.submit(_gradients, *w) for w in work]]
        shares = [len(part) / len(batch) for part in parts]
        for parameter, *of_parts in zip(parameters, *(g for g, _ in found), strict=True):
            scaled = [s * g for s, g in zip(shares, of_parts, strict=True) if g is not None]
            parameter.grad = functools.reduce(torch.add, scaled) if scaled else None
        told = zip(*(figures for _, figures in found), strict=True)
        return tuple(sum(s * v for s, v in zip(shares, values, strict=True)) for values in told)


@contextmanager
def shards_of(learner: Learner) -> Iterator[BatchShards]:
    """Part batches as the learner's form says; each part has its share of torch's threads."""
    count = learner.form.shards
    if count == 1:
        yield BatchShards(learner, None, 1)
        return
    threads = torch.get_num_threads()
    each = max(1, threads // count)
    with ThreadPoolExecutor(count, "shard", torch.set_num_threads, (each,)) as pool:
        try:
            yield BatchShards(learner, pool, count)
        finally:
            # what a thread sets is what threads that come later begin with
            torch.set_num_threads(threads)


def _gradients(
    learner: Learner, part: Batch, parameters: Sequence[torch.Tensor], loss_of: LossOf
) -> tuple[_Gradients, Figures]:
    """Return the gradient of a part's loss and what is told of it.

    `backward` would add to the gradients that other threads add to at the same time.
    """
    loss, figures = loss_of(learner, part)
    return torch.autograd.grad(loss, parameters, allow_unused=True), figures
