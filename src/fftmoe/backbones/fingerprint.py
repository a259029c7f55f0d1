"""A short name for a backbone, by which two machines can check that they have the same one."""

import json
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from fftmoe.backbones.load import HEAD_MODULES
from fftmoe.records import digest

# Fields of a configuration that say where the model was found, what wrote it and what it is used for. The same model
# can have other values on another machine.
BOOKKEEPING = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "id2label", "label2id"}


def fingerprint(model: Any) -> str:
    """Sixteen hexadecimal digits for the weights of a backbone and for its configuration.

    Adapters and heads are left out, because their values come from the server. The backbone is frozen, so the result is
    computed once for a model; it takes a tenth of a second for 100 MB.
    """
    found = getattr(model, "backbone_fingerprint", None)
    if found is None:
        config = {name: value for name, value in model.config.to_diff_dict().items() if name not in BOOKKEEPING}
        found = digest(_backbone_tensors(model), json.dumps(config, sort_keys=True, default=str))
        model.backbone_fingerprint = found
    return found


def _backbone_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the backbone, by the names that they have in a model without an adapter."""
    inner: nn.Module = getattr(model, "get_base_model", lambda: model)()
    adapted = [path for path, module in inner.named_modules() if isinstance(module, BaseTunerLayer)]
    return {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in inner.state_dict().items()
        if not set(HEAD_MODULES) & set(name.split("."))
        and all(not name.startswith(f"{path}.") or name.startswith(f"{path}.base_layer.") for path in adapted)
    }
