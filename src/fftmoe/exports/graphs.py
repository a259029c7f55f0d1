"""The adapted model as a graph that needs none of this package: a `.pt2` file of torch.export, or an ONNX file.

The batch, and of texts the number of tokens, stay open. All experts are computed and the unchosen gated to zero
(`compute: wide`): the one form whose shapes do not depend on what the router decides.
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
from fftmoe.exports.check import Batch, answers, difference, probes, require
from fftmoe.exports.folder import digest_of, write_json
from fftmoe.exports.load import Source, open_run
from fftmoe.store import disk_errors

GRAPH, ONNX = "model.pt2", "model.onnx"
# The run may have computed its experts in another order of additions, an ONNX runtime everything.
REORDERED, OTHER_RUNTIME = 1e-4, 1e-3
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class TextGraph(nn.Module):
    """From token ids to logits; the names of the arguments are those of the graph's inputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 [B, S] both; [B, C], or [B, S, V] of a language model."""
        return logits(self.model, {"input_ids": input_ids, "attention_mask": attention_mask})


class ImageGraph(nn.Module):
    """From pixels to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """float32 [B, 3, H, W], normalised as the model's image processor does; [B, C]."""
        return logits(self.model, {"pixel_values": pixel_values})


def export_graph(run: Path, folder: Path, *, top_k: int | None = None) -> dict[str, Any]:
    """`model.pt2`, which `torch.export.load` opens; what `export.json` says of it is returned."""
    source = open_run(run, top_k)
    batches, expected = _expected(source)
    with disk_errors(folder), _quiet():
        torch.export.save(_traced(source, batches[-1]), folder / GRAPH)
        module = torch.export.load(folder / GRAPH).module()
    with torch.inference_mode():
        found = difference([module(**batch) for batch in batches], expected)
    return _told(source, folder, GRAPH, require(found, REORDERED, "graph"))


def export_onnx(run: Path, folder: Path, *, top_k: int | None = None) -> dict[str, Any]:
    """`model.onnx`; what `export.json` says of it is returned.

    Raises:
        InputError: the packages of the extra `export` are missing.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"--to onnx needs {', '.join(missing)}; run: pip install 'fftmoe[export]'")
    import onnxruntime

    source = open_run(run, top_k)
    batches, expected = _expected(source)
    with disk_errors(folder), _quiet():
        graph = torch.onnx.export(_traced(source, batches[-1]), (), dynamo=True, verbose=False, output_names=["logits"])
        assert graph is not None
        graph.save(folder / ONNX)
    session = onnxruntime.InferenceSession(str(folder / ONNX), providers=["CPUExecutionProvider"])
    found = [
        torch.from_numpy(session.run(None, {name: value.numpy() for name, value in batch.items()})[0])
        for batch in batches
    ]
    return _told(source, folder, ONNX, require(difference(found, expected), OTHER_RUNTIME, "graph"))


def _expected(source: Source) -> tuple[list[Batch], list[Tensor]]:
    batches = probes(source.trained)
    return batches, answers(source.trained.model, batches)


def _traced(source: Source, example: Batch) -> torch.export.ExportedProgram:
    model = source.trained.model.get_base_model()
    for moe in adapter.blocks(model).values():
        moe.compute = "wide"
    graph = ImageGraph(model) if "pixel_values" in example else TextGraph(model)
    open_axes = (0,) if "pixel_values" in example else (0, 1)
    shapes = {name: dict.fromkeys(open_axes, torch.export.Dim.DYNAMIC) for name in example}
    return torch.export.export(graph.eval(), (), example, dynamic_shapes=shapes)


def _told(source: Source, folder: Path, name: str, compared: dict[str, float]) -> dict[str, Any]:
    trained = source.trained
    write_json(folder / "labels.json", {"labels": list(trained.label_names)})
    moe = next(iter(adapter.blocks(trained.model).values()), None)
    used = {} if moe is None else {"top_k": moe.top_k}
    return {**compared, "weights": digest_of(folder / name), **used}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch and onnxscript say of their own insides, about which a caller can do nothing."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
