"""Exports the adapted model as a graph that runs without this package: a `.pt2` file of torch.export, or an ONNX file.

The batch size and the number of tokens stay open. The graph computes all experts and multiplies the unchosen ones by
zero (`compute: wide`), because only then does no shape depend on the decisions of the router.
"""

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fftmoe import adapter
from fftmoe.backbones import logits
from fftmoe.errors import InputError
from fftmoe.exports.check import REORDERED, Batch, answers, difference, probes, require
from fftmoe.exports.folder import file_digest, write_json
from fftmoe.store import disk_errors
from fftmoe.trained.run import TrainedModel

GRAPH, ONNX = "model.pt2", "model.onnx"
OTHER_RUNTIME = 1e-3  # an ONNX runtime computes everything in its own way
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class TextGraph(nn.Module):
    """Computes logits from token ids; the arguments of `forward` name the inputs of the graph."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Compute logits [B, C], or [B, S, V] for a language model, from two int64 [B, S]."""
        return logits(self.model, {"input_ids": input_ids, "attention_mask": attention_mask})


class ImageGraph(nn.Module):
    """Computes logits from pixels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Compute logits [B, C] from float32 [B, 3, H, W], normalised as the model's image processor does it."""
        return logits(self.model, {"pixel_values": pixel_values})


def export_graph(trained: TrainedModel, folder: Path) -> dict[str, Any]:
    """Write `model.pt2`, which `torch.export.load` opens.

    Returns:
        What `export.json` records about this format.

    Raises:
        RunError: the graph gives other logits.
    """
    batches = probes(trained)
    expected = answers(trained.model, batches)
    with disk_errors(folder), _quiet():
        torch.export.save(_traced(trained, batches[-1]), folder / GRAPH)
        module = torch.export.load(folder / GRAPH).module()
    with torch.inference_mode():
        found = difference([module(**batch) for batch in batches], expected)
    return _record(trained, folder, GRAPH, require(found, REORDERED, "graph"))


def check_onnx_packages() -> None:
    """Check that what `export_onnx` needs is installed.

    Raises:
        InputError: packages of the extra `export` are missing.
    """
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"--to onnx needs {', '.join(missing)}; run: pip install 'fftmoe[export]'")


def export_onnx(trained: TrainedModel, folder: Path) -> dict[str, Any]:
    """Write `model.onnx`.

    Returns:
        What `export.json` records about this format.

    Raises:
        InputError: packages of the extra `export` are missing. RunError: the graph gives other logits.
    """
    check_onnx_packages()
    import onnxruntime

    batches = probes(trained)
    expected = answers(trained.model, batches)
    with disk_errors(folder), _quiet():
        traced = _traced(trained, batches[-1])
        graph = torch.onnx.export(traced, (), dynamo=True, verbose=False, output_names=["logits"])
        assert graph is not None
        graph.save(folder / ONNX)
    session = onnxruntime.InferenceSession(str(folder / ONNX), providers=["CPUExecutionProvider"])
    found = [
        torch.from_numpy(session.run(None, {name: value.numpy() for name, value in batch.items()})[0])
        for batch in batches
    ]
    return _record(trained, folder, ONNX, require(difference(found, expected), OTHER_RUNTIME, "graph"))


def _traced(trained: TrainedModel, example: Batch) -> torch.export.ExportedProgram:
    model = trained.model.get_base_model()
    for moe in adapter.blocks(model).values():
        moe.compute = "wide"
    graph = ImageGraph(model) if "pixel_values" in example else TextGraph(model)
    open_axes = (0,) if "pixel_values" in example else (0, 1)
    shapes = {name: dict.fromkeys(open_axes, torch.export.Dim.DYNAMIC) for name in example}
    return torch.export.export(graph.eval(), (), example, dynamic_shapes=shapes)


def _record(trained: TrainedModel, folder: Path, name: str, compared: dict[str, float]) -> dict[str, Any]:
    """Write the names of the labels, and give what `export.json` records."""
    write_json(folder / "labels.json", {"labels": list(trained.run.label_names)})
    moe = next(iter(adapter.blocks(trained.model).values()), None)
    top_k = {} if moe is None else {"top_k": moe.top_k}
    return {**compared, "weights": file_digest(folder / name), **top_k}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the warnings of torch and onnxscript about their own code, which a user cannot act on."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
