"""A base model on disk: its layers and where their weights are, known without loading it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from .. import __version__
from ..blocks import Shapes
from .cache import Cache, file_digest, text_digest
from .checkpoint import FLOATS, CheckpointWeights, StoredTensors, quantization_method
from .live import LoadedWeights, WeightSource
from .model_files import UnreadableCheckpoint, check_model_files, locate

_OPTIONAL = {"bias", "g_idx"}
"""Parts of a layer that do not change its weight, or have the right value where none is stored."""


class BaseModel:
    """A base model on disk or in the hub's cache.

    Three kinds: full-precision files, which are read tensor by tensor; a quantised checkpoint and
    a `.gguf` file, which transformers loads.

    Args:
        name: Directory, repository id, or path of a `.gguf` file.
        revision: Branch, tag or commit of a repository.
        trust_remote_code: Whether the model's own code may run.
        cache: Where layers, digests and spectra are kept; None keeps nothing.
        whole: Whether all of the model is meant, or what is trained of it, see
            `definition`.

    Raises:
        UnreadableCheckpoint: If there is no such file, it is the directory of an adapter, or a
            pointer of git-lfs takes a file's place.
    """

    def __init__(
        self,
        name: str,
        revision: str | None = None,
        trust_remote_code: bool = False,
        cache: Cache | None = None,
        whole: bool = False,
    ) -> None:
        self.name = name
        self.whole = whole
        self.cache = cache or Cache(None)
        self._revision = revision
        self._trust_remote_code = trust_remote_code
        self._gguf = Path(name) if name.endswith(".gguf") else None
        if self._gguf is not None and not self._gguf.is_file():
            raise UnreadableCheckpoint(f"there is no file {name}")
        check_model_files(name, tokenizer=False)
        self._files = locate(self._gguf.parent if self._gguf else name, revision)

    @cached_property
    def skeleton(self) -> nn.Module:
        """The model's modules on the meta device: names and sizes, no weights.

        Raises:
            ValueError: If the config cannot be read, or transformers has no language model for it.
        """
        from .definition import skeleton

        if self._gguf is not None:
            folder, file = str(self._gguf.parent), self._gguf.name
            return skeleton(folder, gguf_file=file, whole=self.whole)
        return skeleton(self.name, self._revision, self._trust_remote_code, whole=self.whole)

    @cached_property
    def quantization(self) -> str | None:
        """The method that the checkpoint is quantised with, None for full precision."""
        return "gguf" if self._gguf else quantization_method(self._files)

    def layers(self, choose: Callable[[nn.Module], Shapes], choice: str) -> Shapes:
        """Return the layers that a function chooses, from the cache if it was asked before.

        What the function warns of is warned of each time.

        Args:
            choose: Takes the skeleton, returns exact name to (output features, input features).
            choice: What the function goes by, and the versions of what it uses: equal texts must
                mean equal answers.

        Raises:
            ValueError: As `skeleton` and the function do.
        """
        cache, identity = self._definition_cache()
        key = f"{identity} {choice}"
        known, warned = cache.get("layers", key), cache.get("layers-warned", key)
        if known is None or warned is None:
            skeleton = self.skeleton
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                known = choose(skeleton)
            warned = [str(one.message) for one in caught if one.category is UserWarning]
            cache.put("layers", key, known)
            cache.put("layers-warned", key, warned)
        for message in warned:
            warnings.warn(message, stacklevel=2)
        return {name: (rows, columns) for name, (rows, columns) in known.items()}

    def weights(self, shapes: Mapping[str, tuple[int, int]], load: bool = True) -> WeightSource:
        """Return the weights of layers.

        Args:
            shapes: The layers.
            load: Whether a quantised checkpoint may be loaded with transformers.

        Raises:
            UnreadableCheckpoint: If the files give no weights for the layers; says why.
        """
        if self.quantization is None:
            return self._stored_weights(shapes)
        if not load:
            raise UnreadableCheckpoint(
                f"{self.name} is quantised ({self.quantization}): its files hold codes, not weights"
            )
        files: list[Path | None] = [self._gguf or self._files.find("config.json")]
        left_out: Mapping[str, Sequence[str]] = {}
        if self._gguf is None:
            stored = StoredTensors(self._files)
            files += {info.path for info in stored.infos.values()}
            left_out = self._left_out(stored, lambda: self._weight_names(stored))
        return LoadedWeights(
            self.name,
            self.quantization,
            lambda: self._load(shapes),
            [file for file in files if file is not None],
            # A model's own code can change what its files mean.
            Cache(None) if self._trust_remote_code else self.cache,
            self._files.revision,
            left_out,
        )

    def _stored_weights(self, shapes: Mapping[str, tuple[int, int]]) -> CheckpointWeights:
        names = list(shapes)
        stored = StoredTensors(self._files, self.cache)
        kept, identity = self._definition_cache()
        key = " ".join([identity, stored.layout, text_digest("\n".join(names))])
        found = kept.get("names", key)
        table = cache(lambda: self._weight_names(stored))
        if found is None:
            found = {
                "keys": {name: table().keys_of(name) for name in names},
                "converted": [name for name in names if table().is_converted(name)],
            }
            kept.put("names", key, found)
        left_out = self._left_out(stored, table)
        weights = CheckpointWeights(stored, found["keys"], found["converted"], table, left_out)
        for name in names:
            if name in found["converted"]:
                continue
            shape = stored.infos[found["keys"][name][0]].shape
            if sorted(shape) != sorted(shapes[name]):
                raise UnreadableCheckpoint(
                    f"{weights.location(name)} has shape {shape}, but config.json makes a layer of "
                    f"{shapes[name]}: they belong to different models"
                )
        return weights

    def _left_out(
        self, stored: StoredTensors, table: Callable[[], Any]
    ) -> Mapping[str, Sequence[str]]:
        """Return the matrices in the files that no module of the model takes."""
        kept, identity = self._definition_cache()
        key = f"{identity} {stored.layout}"
        found = kept.get("left-out", key)
        if found is None:
            shapes = {name: info.shape for name, info in stored.infos.items()}
            found = table().left_out(shapes)
            kept.put("left-out", key, found)
        return found

    def _weight_names(self, stored: StoredTensors) -> Any:
        from .weight_names import WeightNames

        return WeightNames(self.skeleton, stored.infos)

    def _definition_cache(self) -> tuple[Cache, str]:
        """Return where facts of the model's definition are kept, and what identifies it."""
        config = self._gguf or self._files.find("config.json")
        if config is None or self._trust_remote_code:  # own code can change what a config means
            return Cache(None), ""
        versions = [version("transformers"), __version__]
        extent = "whole" if self.whole else "trained"
        return self.cache, " ".join([file_digest(config, self.cache), *versions, extent])

    def _load(self, names: Collection[str]) -> nn.Module:
        import torch

        from .definition import load_config, trained_class, whole_class

        options: dict[str, Any]
        if self._gguf is not None:
            place, options = str(self._gguf.parent), {"gguf_file": self._gguf.name}
            # In fp32 it need not fit a GPU; single matrices go there.
            dtype: Any = torch.float32
            device: Any = "cpu"
        else:
            place, options = self.name, {"revision": self._revision}
            dtype = "auto"
            device = 0 if torch.cuda.is_available() else "cpu"
        config = load_config(place, trust_remote_code=self._trust_remote_code, **options)
        if self._gguf is None:
            from ..hosts.transformers import AutoHfQuantizer

            if not AutoHfQuantizer.supports_quant_method(config.quantization_config):
                raise ValueError("it does not know the method and would take codes for weights")
        factory = (whole_class if self.whole else trained_class)(config, self.name)
        model, report = factory.from_pretrained(
            place,
            dtype=dtype,
            device_map={"": device},
            trust_remote_code=self._trust_remote_code,
            output_loading_info=True,
            **options,
        )
        for key in sorted(report["missing_keys"]):
            module, _, leaf = key.rpartition(".")
            if module in names and leaf not in _OPTIONAL:
                raise ValueError(f"it finds no {key!r} there and would fill in random values")
        if self._gguf is None:
            self._check_dequantised(model, names)
        return model

    def _check_dequantised(self, model: Any, names: Iterable[str]) -> None:
        """Refuse codes that were dequantised without their scales."""
        stored = StoredTensors(self._files)
        table = self._weight_names(stored)
        for name in names:
            weight = getattr(model.get_submodule(name), "weight", None)
            for key in table.keys_of(name):
                owner = key.removesuffix("weight")
                scaled = any("scale" in k for k in stored.infos if k.startswith(owner) and k != key)
                coded = stored.infos[key].dtype not in FLOATS
                if coded and type(weight) is nn.Parameter and not scaled:
                    raise ValueError(f"{key!r} holds codes, and there are no scales for them")
