"""Gives a backbone a short name, by which two machines can check that they have the same one."""

from typing import Any

from fftmoe.adapter.bound import HEAD_MODULES, base_tensors
from fftmoe.records import digest
from fftmoe.strict import hash_text

# Fields of a configuration that say where the model was found, what wrote it and what it is used for. The same model
# can have other values on another machine.
BOOKKEEPING = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "id2label", "label2id"}


def fingerprint(model: Any) -> str:
    """Return sixteen hexadecimal digits for the weights of a backbone and for its configuration.

    Numbers of 16 bits count as the float32 numbers that they are equal to, because machines keep them differently.
    Adapters and heads are left out, because their values come from the server. The backbone is frozen, so the result is
    computed once for a model; it takes a tenth of a second for 100 MB.
    """
    found = getattr(model, "backbone_fingerprint", None)
    if found is None:
        config = {name: value for name, value in model.config.to_diff_dict().items() if name not in BOOKKEEPING}
        found = digest(base_tensors(model, HEAD_MODULES), hash_text(config), widened=True)
        model.backbone_fingerprint = found
    return found
