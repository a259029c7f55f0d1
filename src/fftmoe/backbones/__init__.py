"""Finds, loads and freezes a foundation model, attaches an adapter and a head, runs it, and caches its frozen part.

No method, client or recipe is known here. Every package above may import it; `tasks` and `store` stand next to it.
"""

from fftmoe.adapter.pooling import MeanPoolClassifier as MeanPoolClassifier
from fftmoe.backbones.answers import TextInPieces as TextInPieces
from fftmoe.backbones.answers import end_ids_of as end_ids_of
from fftmoe.backbones.answers import prompt_text_of as prompt_text_of
from fftmoe.backbones.answers import text_of as text_of
from fftmoe.backbones.attach import add_to_head as add_to_head
from fftmoe.backbones.attach import attach_adapter as attach_adapter
from fftmoe.backbones.attach import copy_head as copy_head
from fftmoe.backbones.attach import features as features
from fftmoe.backbones.attach import head_inputs as head_inputs
from fftmoe.backbones.attach import head_parameters as head_parameters
from fftmoe.backbones.attach import load_adapter as load_adapter
from fftmoe.backbones.attach import logits as logits
from fftmoe.backbones.attach import logits_and_head_inputs as logits_and_head_inputs
from fftmoe.backbones.builtin import BUILTIN_MINILM as BUILTIN_MINILM
from fftmoe.backbones.builtin import BUILTIN_SMOLLM2 as BUILTIN_SMOLLM2
from fftmoe.backbones.checkpointing import enable_checkpointing as enable_checkpointing
from fftmoe.backbones.decoding import Decoding as Decoding
from fftmoe.backbones.find import resolve_model as resolve_model
from fftmoe.backbones.fingerprint import fingerprint as fingerprint
from fftmoe.backbones.finite import NO_ANSWER as NO_ANSWER
from fftmoe.backbones.finite import check_finite_outputs as check_finite_outputs
from fftmoe.backbones.generate import continuations as continuations
from fftmoe.backbones.generate import continue_greedily as continue_greedily
from fftmoe.backbones.generate import plain_generation as plain_generation
from fftmoe.backbones.gguf import open_gguf as open_gguf
from fftmoe.backbones.load import POOLED as POOLED
from fftmoe.backbones.load import load_backbone as load_backbone
from fftmoe.backbones.load import loading_arguments as loading_arguments
from fftmoe.backbones.pairs import outputs as outputs
from fftmoe.backbones.pairs import with_references as with_references
from fftmoe.backbones.placement import compute_dtype as compute_dtype
from fftmoe.backbones.placement import device_of as device_of
from fftmoe.backbones.placement import find_device as find_device
from fftmoe.backbones.placement import find_precision as find_precision
from fftmoe.backbones.placement import on_device as on_device
from fftmoe.backbones.placement import place as place
from fftmoe.backbones.positions import check_vocabulary as check_vocabulary
from fftmoe.backbones.positions import most_tokens_of as most_tokens_of
from fftmoe.backbones.positions import readable_tokens as readable_tokens
from fftmoe.backbones.prefix import check_prefix as check_prefix
from fftmoe.backbones.prefix import check_skipped as check_skipped
from fftmoe.backbones.prefix import enable_resume as enable_resume
from fftmoe.backbones.prefix import first_adapted_block as first_adapted_block
from fftmoe.backbones.prefix import num_states as num_states
from fftmoe.backbones.prefix import prefix_states as prefix_states
from fftmoe.backbones.prefix import prefix_tensors as prefix_tensors
from fftmoe.backbones.quantize import check_quantization as check_quantization
from fftmoe.backbones.readers import ImageFormat as ImageFormat
from fftmoe.backbones.readers import load_image_processor as load_image_processor
from fftmoe.backbones.readers import load_reader as load_reader
from fftmoe.backbones.readers import load_tokenizer as load_tokenizer
from fftmoe.backbones.token_losses import token_losses as token_losses
