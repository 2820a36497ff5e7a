"""vLLM's own loader of models, which gives the linear layers their experts afterwards."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn
from vllm.logger import init_logger
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from .layers import Kinds, Place, attach, find_places
from .saved import ANY_BASE_KEY, DIGEST_KEY, FOLDER_KEY, SavedAdapter, open_weights, read_adapter

logger = init_logger("vllm.alphalora")

HOW = f"""--additional-config '{{"{FOLDER_KEY}": "ADAPTER_DIR"}}'"""
UNTESTED = (
    "pipeline_parallel_size",
    "decode_context_parallel_size",
    "prefill_context_parallel_size",
)
"""Ways to divide a model that were not tested with an adapter."""


class AlphaLoraLoader(DefaultModelLoader):
    """Loads the base's weights as vLLM does by itself, and the adapter named in the config.

    Args:
        load_config: vLLM's; all but the format is honoured.
    """

    def __init__(self, load_config: Any) -> None:
        config = copy.copy(load_config)
        config.load_format = "auto"
        super().__init__(config)
        self._config: Any = None
        self._adapter: SavedAdapter | None = None
        self._places: list[Place] = []

    def load_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> nn.Module:
        """Load base and adapter.

        Raises:
            ValueError: If the adapter cannot be served, by this base or with these options; says
                why. Whatever can be known without the base's weights is said before they are read.
        """
        self._adapter = adapter = checked(vllm_config, model_config)
        self._config = vllm_config
        # The compiled graph is cached under what the config says.
        vllm_config.additional_config[DIGEST_KEY] = adapter.digest()
        model = super().load_model(
            vllm_config=vllm_config, model_config=model_config, prefix=prefix
        )
        from vllm.distributed import tensor_model_parallel_all_reduce

        with open_weights(adapter) as weights:
            attach(
                self._places,
                adapter,
                weights,
                model_config.dtype,
                torch.device(vllm_config.device_config.device),
                tensor_model_parallel_all_reduce,
            )
        logger.info(
            "AlphaLoRA: %d modules of %s are routed, in %d layers",
            len(adapter.planned),
            adapter.folder,
            len(self._places),
        )
        self._adapter = None
        model.load_weights = _refuse  # which is also called without a loader
        return model

    def load_weights(self, model: nn.Module, model_config: Any) -> None:
        """Find the adapter's places in the model, then read the base's weights."""
        if self._adapter is None:
            raise _no_reload()
        with open_weights(self._adapter) as weights:
            mla = bool(getattr(model_config, "use_mla", False))
            self._places = find_places(model, self._adapter, weights, vllm_kinds(), mla)
        super().load_weights(model, model_config)

    def get_all_weights(
        self, model_config: Any, model: nn.Module
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The base's weights, as they are loaded the first time."""
        if self._adapter is None:
            raise _no_reload()
        return super().get_all_weights(model_config, model)


def _no_reload() -> ValueError:
    return ValueError(
        "The weights of a base that serves an AlphaLoRA adapter cannot be loaded again in place: "
        "start vLLM anew"
    )


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise _no_reload()


def vllm_kinds() -> Kinds:
    """This vLLM's linear layers."""
    from vllm.model_executor.layers import linear

    return Kinds(
        base=linear.LinearBase,
        column=linear.ColumnParallelLinear,
        merged=linear.MergedColumnParallelLinear,
        qkv=linear.QKVParallelLinear,
        row=linear.RowParallelLinear,
        replicated=linear.ReplicatedLinear,
    )


def checked(vllm_config: Any, model_config: Any) -> SavedAdapter:
    """Read the adapter that the config names, and see that it can be served this way.

    Raises:
        ValueError: If it cannot; says which option, and what to do.
    """
    extra = vllm_config.additional_config
    if not isinstance(extra, dict) or not extra.get(FOLDER_KEY):
        raise ValueError(f"--load-format alphalora needs {HOW}")
    known = {FOLDER_KEY, ANY_BASE_KEY, DIGEST_KEY}
    for name in extra:
        if name.startswith(FOLDER_KEY) and name not in known:
            raise ValueError(
                f"--additional-config: {name!r} is none of {FOLDER_KEY}, {ANY_BASE_KEY}"
            )
    if getattr(vllm_config, "lora_config", None) is not None:
        raise ValueError(
            "--enable-lora would add other LoRAs to what the routed adapter gives: leave it out, "
            "or serve an export of the adapter (alphalora export) beside them"
        )
    if getattr(vllm_config, "speculative_config", None) is not None:
        raise ValueError(
            "--speculative-config loads a second model, which the adapter does not fit: leave it "
            "out"
        )
    if getattr(vllm_config, "weight_transfer_config", None) is not None:
        raise ValueError(
            "--weight-transfer-config loads other weights in place, which the adapter was not "
            "trained on: leave it out"
        )
    parallel = vllm_config.parallel_config
    for name in UNTESTED:
        if getattr(parallel, name, 1) > 1:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} was not tested with a routed adapter: leave it out")
    adapter = read_adapter(extra[FOLDER_KEY])
    if not extra.get(ANY_BASE_KEY):
        _check_base(adapter, model_config)
    return adapter


def _check_base(adapter: SavedAdapter, model_config: Any) -> None:
    if not _same(adapter.base_model, model_config.model):
        own = adapter.base_model or "a base that it does not name"
        raise ValueError(
            f"{adapter.folder} was trained on {own}, and --model is {model_config.model}. If they "
            f'are the same, add "{ANY_BASE_KEY}": true to --additional-config'
        )
    if not _same_revision(adapter.revision, model_config):
        raise ValueError(
            f"{adapter.folder} was trained on the revision {adapter.revision} of "
            f"{adapter.base_model}, and another one is to be loaded: add --revision "
            f'{adapter.revision}, or, if they are the same, "{ANY_BASE_KEY}": true to '
            "--additional-config"
        )


def _same_revision(wanted: str | None, model_config: Any) -> bool:
    """Whether a revision of the hub is asked for, or is what a path of the hub's cache holds.

    A directory of one's own has no revisions.
    """
    if wanted in (None, "main", model_config.revision):
        return True
    path = Path(model_config.model).expanduser()
    if path.parent.name != "snapshots":
        return path.is_dir()
    named = path.parents[1] / "refs" / str(wanted)
    return path.name == (named.read_text().strip() if named.is_file() else wanted)


def _same(one: str | None, other: str) -> bool:
    """Whether two names are those of one base: the same text, or the same directory.

    Or the hub's id and where its cache has that: offline, vLLM puts the one in the other's place.
    """
    if one is None or one == other:
        return one is not None
    paths = [Path(each).expanduser() for each in (one, other)]
    if f"models--{one.replace('/', '--')}" in paths[1].parts:
        return True
    return all(path.is_dir() for path in paths) and paths[0].resolve() == paths[1].resolve()
