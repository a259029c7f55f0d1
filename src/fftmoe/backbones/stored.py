"""Keeps frozen weights in the number format in which their checkpoint stores them, where nothing is lost by that.

A model that multiplies in bfloat16 converts the weights of every product to it, each time. Weights that are stored in
bfloat16 give the same products without a float32 copy, which takes twice the memory and the time of the conversion.
"""

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fftmoe.adapter.bound import HEAD_MODULES
from fftmoe.records import HALVES


def keep_stored(model: nn.Module, dtype: torch.dtype) -> None:
    """Leave the weights of products that are stored in `dtype` as they are, and make all other numbers float32.

    What the model computes is equal to the last bit to what it computes with float32 copies of all weights: outside of
    products, states stay float32.

    Args:
        model: with the dtypes of its checkpoint. Its classification head will be trained, and becomes float32.
        dtype: in which the model will multiply (`place`); float32 keeps nothing.
    """
    tied = _tied_tables(model)
    for name, module in model.named_modules():
        stored = {parameter.dtype for parameter in module.parameters(recurse=False)}
        is_table, is_head = module in tied, set(HEAD_MODULES) & set(name.split("."))
        is_product = isinstance(module, nn.Linear | Conv1D) or is_table
        if stored == {dtype} and dtype != torch.float32 and is_product and not is_head:
            if is_table:
                module.register_forward_hook(_widened)
            continue
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.is_floating_point():
                tensor.data = tensor.data.float()


def computes_in_16_bits(model: nn.Module) -> bool:
    """Return whether a loaded model computes numbers for itself in 16 bits, as Gemma does with the factor of its
    embeddings.

    Such numbers are not in the checkpoint, so they cannot be widened again: the model must be loaded in float32.
    """
    stored = model.state_dict().keys()
    return any(b.dtype in HALVES for name, b in model.named_buffers() if name not in stored)


def _tied_tables(model: nn.Module) -> set[nn.Module]:
    """Return the tables of embeddings whose weights are also those of a product, usually of a language model's head."""
    weights = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    return {module for module in model.modules() if type(module) is nn.Embedding and id(module.weight) in weights}


def _widened(_: nn.Module, __: object, output: Tensor) -> Tensor:
    return output.float()
