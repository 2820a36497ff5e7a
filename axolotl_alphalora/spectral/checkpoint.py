"""Full-precision weights read from a safetensors checkpoint, one tensor at a time."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from axolotl_alphalora.spectral.files import CheckpointFiles, UnreadableCheckpoint, locate

__all__ = ["CheckpointWeights", "MissingTensor"]

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class MissingTensor(UnreadableCheckpoint):
    """The checkpoint holds no weight for a module."""


class CheckpointWeights:
    """The weights of a checkpoint in one or more safetensors files.

    Make one with :meth:`open`. Only the files' headers are read then; each weight is read when it
    is asked for and not kept.
    """

    def __init__(
        self, directory: str, files: dict[str, Path], dtype: str, revision: str | None
    ) -> None:
        self._directory = directory
        self._files = files
        self._dtype = dtype
        self._revision = revision
        self._without_prefix: dict[str, list[str]] = {}
        for key in files:
            self._without_prefix.setdefault(key.partition(".")[2], []).append(key)

    @classmethod
    def open(cls, model: str | Path, revision: str | None = None) -> CheckpointWeights:
        """Open a checkpoint and check that it holds weights and not quantised codes.

        Args:
            model: A local directory, or the id of a model repository: its files are taken from the
                cache and, unless the hub is set offline, downloaded where they are missing.
            revision: Branch, tag or commit of the repository; ignored for a directory.

        Raises:
            UnreadableCheckpoint: If there is no ``model.safetensors`` or
                ``model.safetensors.index.json``, if a file is missing or damaged, if
                ``config.json`` has a ``quantization_config``, or if the dtype of a weight is none
                of float64, float32, float16 and bfloat16.
        """
        source = locate(model, revision)
        _refuse_quantised(source)
        files: dict[str, Path] = {}
        dtypes: set[str] = set()
        for path in _shards(source):
            keys, found = _read_header(path)
            files.update(dict.fromkeys(keys, path))
            dtypes |= found
        return cls(source.name, files, "+".join(sorted(dtypes)), source.revision)

    @property
    def description(self) -> dict[str, str | None]:
        """What a plan records.

        Returns:
            ``source``: ``"safetensors"``; ``dtype``: the dtype of the weight matrices, several
            joined by ``+``; ``revision``: the commit of a repository, None for a directory.
        """
        return {"source": "safetensors", "dtype": self._dtype, "revision": self._revision}

    def tensor(self, module_name: str) -> Tensor:
        """Read ``<module>.weight`` on the CPU, in the dtype in which it is stored.

        The first component of a name may be missing on either side: a checkpoint saved from a base
        model calls ``transformer.h.0.attn.c_attn`` by the name ``h.0.attn.c_attn``, and the other
        way round.

        Args:
            module_name: Name of the module within the model.

        Raises:
            MissingTensor: If the checkpoint has no such weight.
            UnreadableCheckpoint: If its file is damaged.
        """
        key = self._key(module_name)
        path = self._files[key]
        try:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise UnreadableCheckpoint(f"cannot read tensor {key!r} of {path}: {error}") from error

    def location(self, module_name: str) -> str:
        """Return ``tensor '<key>' of <file>``.

        Raises:
            MissingTensor: If the checkpoint has no such weight.
        """
        key = self._key(module_name)
        return f"tensor {key!r} of {self._files[key]}"

    def _key(self, module_name: str) -> str:
        exact = f"{module_name}.weight"
        shorter = exact.partition(".")[2]
        longer = self._without_prefix.get(exact, [])
        candidates = [key for key in (exact, shorter) if key in self._files] or longer
        if not candidates or (len(candidates) > 1 and candidates is longer):
            raise MissingTensor(
                f"no weight for module {module_name!r} in {self._directory}: it has no tensor "
                f"{exact!r}, with or without a prefix{self._hint(exact, candidates)}"
            )
        return candidates[0]

    def _hint(self, exact: str, candidates: list[str]) -> str:
        if candidates:
            return f", and more than one fits with a prefix: {', '.join(sorted(candidates))}"
        nearest = difflib.get_close_matches(exact, self._files, n=1, cutoff=0)
        return f"; the nearest is {nearest[0]!r}" if nearest else ""


def _refuse_quantised(source: CheckpointFiles) -> None:
    path = source.find("config.json")
    if path is None:
        return
    quantization = _read_json(path).get("quantization_config")
    if isinstance(quantization, dict):
        method = quantization.get("quant_method", "unnamed method")
        raise UnreadableCheckpoint(
            f"{source.name} is quantised ({method}, quantization_config of {path}): its files hold "
            "codes, not weights"
        )


def _shards(source: CheckpointFiles) -> list[Path]:
    """Return the checkpoint's safetensors files, each once."""
    single = source.find(_SINGLE)
    if single is not None:
        return [single]
    index = source.find(_INDEX)
    if index is None:
        raise UnreadableCheckpoint(
            f"{source.name} has neither {_SINGLE} nor {_INDEX}{source.what_else()}: "
            "save it in safetensors, or analyse the loaded model"
        )
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UnreadableCheckpoint(f"{index} has no weight_map")
    shards = []
    for name in sorted(set(weight_map.values())):
        path = source.find(name)
        if path is None:
            raise UnreadableCheckpoint(f"{index} names {name}, which is missing")
        shards.append(path)
    return shards


def _read_json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnreadableCheckpoint(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise UnreadableCheckpoint(f"{path} holds no JSON object")
    return content


def _read_header(path: Path) -> tuple[Iterable[str], set[str]]:
    """Return a file's keys and the dtypes of its weight matrices.

    Raises:
        UnreadableCheckpoint: If the file is damaged or a weight's dtype is not a plain float.
    """
    dtypes = set()
    try:
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
            for key in keys:
                if not key.endswith(".weight"):
                    continue
                part = file.get_slice(key)
                if part.get_dtype() not in _DTYPES:
                    raise UnreadableCheckpoint(
                        f"tensor {key!r} of {path} has dtype {part.get_dtype()}: quantised codes, "
                        "not weights"
                    )
                if len(part.get_shape()) == 2:
                    dtypes.add(_DTYPES[part.get_dtype()])
    except (SafetensorError, OSError) as error:
        raise UnreadableCheckpoint(f"cannot read {path}: {error}") from error
    return keys, dtypes
