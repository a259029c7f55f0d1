"""Data: where it comes from, how it becomes tokens and batches, and which client holds what."""

from fftmoe.data.batches import evaluation_batches as evaluation_batches
from fftmoe.data.batches import training_batches as training_batches
from fftmoe.data.examples import Examples as Examples
from fftmoe.data.images import ImageExamples as ImageExamples
from fftmoe.data.images import ImageSplit as ImageSplit
from fftmoe.data.images import LabelledImages as LabelledImages
from fftmoe.data.images import load_images as load_images
from fftmoe.data.partition import Partition as Partition
from fftmoe.data.partition import make_partition as make_partition
from fftmoe.data.ragged import Ragged as Ragged
from fftmoe.data.sources import LabelledText as LabelledText
from fftmoe.data.sources import Split as Split
from fftmoe.data.sources import Wanted as Wanted
from fftmoe.data.sources import load_source as load_source
from fftmoe.data.token_cache import default_cache_dir as default_cache_dir
from fftmoe.data.token_cache import tokenize_cached as tokenize_cached
from fftmoe.data.tokens import TokenizedText as TokenizedText
from fftmoe.data.tokens import tokenize_texts as tokenize_texts
from fftmoe.data.with_prefix import WithPrefix as WithPrefix
