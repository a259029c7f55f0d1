"""A finished run in the forms that others use: PEFT folders, a plain LoRA, graphs for devices."""

from fftmoe.exports.export import FORMATS as FORMATS
from fftmoe.exports.export import export_run as export_run
