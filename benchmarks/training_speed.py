"""How long a training step takes when threads share each layer, and when they share the batch.

OMP_WAIT_POLICY=PASSIVE python benchmarks/training_speed.py --data DIR [--batch N] [--steps N] [--rounds N]

In workers, threads that wait are asleep: hence the variable. DIR holds models/*.onnx. Each network is timed in float32 and, where the processor multiplies in it, in
bfloat16; as one part of all threads and as parts of fewer. The forms take turns, so that all of them meet
the same disturbances; shown are the fastest step and the median.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.recovery import NETWORKS

from tightfit_service.adapters.formats.onnx_import import OnnxImporter
from tightfit_service.adapters.training.batch_shards import Figures, shards_of
from tightfit_service.adapters.training.learner import Learner
from tightfit_service.adapters.training.number_format import TrainingFormat, has_fast_bf16
from tightfit_service.adapters.training.preparation import prepare
from tightfit_service.adapters.training.targets import find_targets
from tightfit_service.adapters.training.training_set import Batch

IMAGE = (3, 32, 32)
STATISTICS_SAMPLES = 256


def squares(learner: Learner, batch: Batch) -> tuple[torch.Tensor, Figures]:
    """Return a loss that needs no teacher."""
    loss = learner.outputs(batch.inputs, training=True)[0].float().square().mean()
    return loss, ()


def learner_of(graph: bytes, form: TrainingFormat) -> Learner:
    """Return a network in training, in a form."""
    targets = find_targets(graph)
    inputs = np.random.default_rng(0).normal(size=(STATISTICS_SAMPLES, *IMAGE)).astype(np.float32)
    student = prepare(graph, logits=targets[0].name, inputs=inputs)
    learner = Learner(module=student.module, targets=targets, form=form)
    form.place(learner.module)
    return learner


def seconds_of_steps(learner: Learner, batch: Batch, steps: int) -> list[float]:
    """Return the time of each step, the first two left out."""
    parameters = learner.parameters()
    found = []
    with shards_of(learner) as shards:
        for _ in range(steps + 2):
            begun = time.perf_counter()
            shards.gradients(batch, parameters, squares)
            found.append(time.perf_counter() - begun)
    return found[2:]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    inputs = np.random.default_rng(1).normal(size=(arguments.batch, *IMAGE)).astype(np.float32)
    batch = Batch(
        inputs=inputs, answers=((),), labels=np.zeros((arguments.batch, 1), dtype=np.int64)
    )
    plain = [TrainingFormat()]
    if has_fast_bf16():
        plain.append(TrainingFormat(channels_last=True, bf16=True))
    counts = sorted({1, torch.get_num_threads()})
    forms = [replace(form, shards=count) for form in plain for count in counts]
    print("| network | form | parts | fastest, ms | median, ms |\n|---|---|---|---|---|")
    for name, (file, _) in NETWORKS.items():
        graph = OnnxImporter().import_model((arguments.data / "models" / file).read_bytes()).graph
        learners = [learner_of(graph, form) for form in forms]
        seconds: dict[TrainingFormat, list[float]] = {form: [] for form in forms}
        for _ in range(arguments.rounds):
            for form, learner in zip(forms, learners, strict=True):
                seconds[form] += seconds_of_steps(learner, batch, arguments.steps)
        for form, found in seconds.items():
            fastest, median = 1e3 * min(found), 1e3 * statistics.median(found)
            print(f"| {name} | {form} | {form.shards} | {fastest:.1f} | {median:.1f} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
