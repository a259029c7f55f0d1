"""Makes the adapter a PEFT method, so that `get_peft_model` and `PeftModel.from_pretrained` accept it."""

from aenum import extend_enum
from peft import PeftType
from peft.utils import register_peft_method

PEFT_NAME = "FFT_MOE"


def add_peft_type() -> None:
    """Add the member FFT_MOE to PEFT's closed enumeration; a second call does nothing."""
    if PEFT_NAME not in PeftType.__members__:
        extend_enum(PeftType, PEFT_NAME, PEFT_NAME)


def register(config_cls: type, model_cls: type) -> None:
    """Register the configuration and the tuner under FFT_MOE; a second call does nothing."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    add_peft_type()
    if PeftType[PEFT_NAME] not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=PEFT_NAME.lower(), prefix="moe_", config_cls=config_cls, model_cls=model_cls)
