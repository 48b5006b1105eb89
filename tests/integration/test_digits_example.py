"""The committed digits example is whole: its model, arrays and manifest belong together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import yaml

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"


def test_the_model_names_the_evaluation_digits_as_its_readme_says() -> None:
    manifest = yaml.safe_load((EXAMPLE / "dataset.yaml").read_text())
    split, preprocess = manifest["splits"]["evaluation"], manifest["preprocess"]
    with np.load(EXAMPLE / manifest["arrays"]) as arrays:
        images, labels = arrays[split["input"]], arrays[split["label"]]
    pixels = images.astype(np.float32) * preprocess["scale"]
    session = onnxruntime.InferenceSession(
        EXAMPLE / "digits.onnx", providers=["CPUExecutionProvider"]
    )
    (logits,) = session.run(None, {"image": pixels})
    assert pixels.shape == (500, 1, 8, 8)
    assert pixels.max() == 1.0
    assert (logits.argmax(axis=1) == labels).mean() >= 0.99


def test_training_and_evaluation_share_no_image() -> None:
    with np.load(EXAMPLE / "digits.npz") as arrays:
        train = {image.tobytes() for image in arrays["train_x"]}
        test = {image.tobytes() for image in arrays["test_x"]}
        assert set(arrays["train_y"].tolist()) == set(arrays["test_y"].tolist()) == set(range(10))
    assert not train & test


def test_the_files_stay_small() -> None:
    sizes = [(EXAMPLE / name).stat().st_size for name in ("digits.onnx", "digits.npz")]
    assert sum(sizes) < 300_000
    onnx.checker.check_model(EXAMPLE / "digits.onnx", full_check=True)
