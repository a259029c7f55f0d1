"""A name for a backbone, by which two machines find out whether they have the same one."""

import json
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from fftmoe.backbones.load import HEAD_MODULES
from fftmoe.records import digest

# Where a model was found, who wrote it down, and what it is used for: the same model has others elsewhere.
BOOKKEEPING = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "id2label", "label2id"}


def fingerprint(model: Any) -> str:
    """Sixteen hexadecimal digits for the weights that a checkpoint gave and what its configuration says of them.

    Adapters and heads have no part in it: their values come from the server. It is computed once for a model, as its
    backbone is frozen, in a tenth of a second for 100 MB.
    """
    known = getattr(model, "backbone_fingerprint", None)
    if known is None:
        config = {name: value for name, value in model.config.to_diff_dict().items() if name not in BOOKKEEPING}
        known = digest(_backbone_tensors(model), json.dumps(config, sort_keys=True, default=str))
        model.backbone_fingerprint = known
    return known


def _backbone_tensors(model: nn.Module) -> dict[str, Tensor]:
    """By the names that they have without an adapter around them."""
    inner: nn.Module = getattr(model, "get_base_model", lambda: model)()
    adapted = [path for path, module in inner.named_modules() if isinstance(module, BaseTunerLayer)]
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in inner.state_dict().items()
        if not set(HEAD_MODULES) & set(name.split("."))
        and all(not name.startswith(f"{path}.") or name.startswith(f"{path}.base_layer.") for path in adapted)
    }
