"""The names of PEFT that are private, or in places that may move, and what each is needed for."""

from __future__ import annotations

import dataclasses

from peft import LoraConfig
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,  # `register_peft_method`, which fills these three, takes only
    PEFT_TYPE_TO_PREFIX_MAPPING,  # names of PEFT's own enum
    PEFT_TYPE_TO_TUNER_MAPPING,  # as above
)
from peft.tuners.tuners_utils import (
    BaseTuner,  # our model is one, and overrides private methods of it
    BaseTunerLayer,  # our layer is one
    check_target_module_exists,  # what `target_modules` and its kin mean
)
from peft.tuners.tuners_utils import (
    _get_in_out_features as in_out_features,  # sizes of a layer of any class
)
from peft.tuners.tuners_utils import (
    _maybe_include_all_linear_layers as include_all_linear_layers,  # what "all-linear" means
)
from peft.utils import (
    INCLUDE_LINEAR_LAYERS_SHORTHAND,  # the word "all-linear"
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,  # targets of a config that names none
    ModulesToSaveWrapper,  # what stands around a module that is trained in full
    get_peft_model_state_dict,  # modules that are trained in full, by their keys in the file
    get_quantization_kwargs,  # what a tuner hands on to its layers, for torchao
    quantization_extra_repr,  # how a quantised layer is printed
    resolve_quantization_backend,  # whether PEFT can adapt a layer of a class of its own
)
from peft.utils.constants import (
    SEQ_CLS_HEAD_NAMES,  # heads that some loaders add to a model
)
from peft.utils.incremental_pca import (
    IncrementalPCA,  # principal components of what does not fit into memory at once, as EVA takes
)
from peft.utils.integrations import (
    dequantize_module_weight,  # the weights of bitsandbytes' layers
)
from peft.utils.other import (
    get_pattern_key,  # which key of `rank_pattern` or `alpha_pattern` is a module's
)
from peft.utils.transformers_weight_conversion import (
    convert_peft_config_for_transformers,  # what PEFT makes of a LoRA's targets in some models
)

from ..registration import register


def lora_variants() -> list[str]:
    """The fields of PEFT's `LoraConfig` that make something else of it than a plain LoRA."""
    fields = dataclasses.fields(LoraConfig)
    return [field.name for field in fields if field.metadata.get("is_lora_variant")]


register()  # where this file is what imports PEFT, the adapter had to wait for the names above
