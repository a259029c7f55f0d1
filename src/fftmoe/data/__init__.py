"""Data sets: where they are read from, how rows become examples in batches, and which client holds which example.

No recipe, model or method is known here; `setup/` calls these functions with the recipe's values, and packages that
train or evaluate use the examples.
"""

from fftmoe.data.batches import evaluation_batches as evaluation_batches
from fftmoe.data.batches import training_batches as training_batches
from fftmoe.data.columns import lists_of as lists_of
from fftmoe.data.columns import names_of as names_of
from fftmoe.data.columns import numbers_of as numbers_of
from fftmoe.data.columns import plain_columns as plain_columns
from fftmoe.data.columns import texts_of as texts_of
from fftmoe.data.completions import Completions as Completions
from fftmoe.data.completions import tokenize_completions as tokenize_completions
from fftmoe.data.declared import with_declared_labels as with_declared_labels
from fftmoe.data.examples import Examples as Examples
from fftmoe.data.held_out import FEWEST_DIVIDED as FEWEST_DIVIDED
from fftmoe.data.held_out import held_out_places as held_out_places
from fftmoe.data.held_out import num_held_out as num_held_out
from fftmoe.data.held_out import with_held_out as with_held_out
from fftmoe.data.images import ImageExamples as ImageExamples
from fftmoe.data.images import read_pixels as read_pixels
from fftmoe.data.labels import list_names as list_names
from fftmoe.data.labels import number_classes as number_classes
from fftmoe.data.labels import number_strata as number_strata
from fftmoe.data.learnable import check_content as check_content
from fftmoe.data.learnable import check_tagged as check_tagged
from fftmoe.data.lost import cut_notes as cut_notes
from fftmoe.data.lost import shared_notes as shared_notes
from fftmoe.data.names import is_blank as is_blank
from fftmoe.data.names import near_equal_notes as near_equal_notes
from fftmoe.data.names import sorted_names as sorted_names
from fftmoe.data.partition import Divide as Divide
from fftmoe.data.partition import Partition as Partition
from fftmoe.data.partition import make_partition as make_partition
from fftmoe.data.ragged import Ragged as Ragged
from fftmoe.data.rows_digest import RowsDigest as RowsDigest
from fftmoe.data.rows_digest import digest_of_rows as digest_of_rows
from fftmoe.data.sources import SplitRequest as SplitRequest
from fftmoe.data.sources import read_tables as read_tables
from fftmoe.data.table import Table as Table
from fftmoe.data.targets import TaggedText as TaggedText
from fftmoe.data.targets import TargetedText as TargetedText
from fftmoe.data.targets import several_hot as several_hot
from fftmoe.data.targets import tokenize_tagged as tokenize_tagged
from fftmoe.data.text_files import decoded as decoded
from fftmoe.data.text_files import lines_of as lines_of
from fftmoe.data.token_cache import default_cache_dir as default_cache_dir
from fftmoe.data.token_cache import tokenize_cached as tokenize_cached
from fftmoe.data.token_cache import tokenizer_digest as tokenizer_digest
from fftmoe.data.tokens import IGNORED as IGNORED
from fftmoe.data.tokens import TokenizedText as TokenizedText
from fftmoe.data.tokens import tokenize_texts as tokenize_texts
from fftmoe.data.unlabelled import read_images as read_images
from fftmoe.data.unlabelled import read_texts as read_texts
from fftmoe.data.with_prefix import WithPrefix as WithPrefix
