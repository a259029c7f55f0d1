"""Foundation models: find, load, freeze, and attach an adapter and a head."""

from fftmoe.backbones.attach import attach_adapter as attach_adapter
from fftmoe.backbones.attach import head_parameters as head_parameters
from fftmoe.backbones.attach import load_adapter as load_adapter
from fftmoe.backbones.attach import logits as logits
from fftmoe.backbones.find import BUILTIN_MINILM as BUILTIN_MINILM
from fftmoe.backbones.find import resolve_model as resolve_model
from fftmoe.backbones.load import HEAD_MODULES as HEAD_MODULES
from fftmoe.backbones.load import load_backbone as load_backbone
from fftmoe.backbones.load import load_tokenizer as load_tokenizer
from fftmoe.backbones.pooling import MeanPoolClassifier as MeanPoolClassifier
