"""An Axolotl YAML as it is written: its keys' spelling, their values, their paths.

`alphalora plan` reads a YAML through it, and so does the host's validation, before the host fills
in its defaults. Knows the host's keys by name alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from ..files import expanded
from .config import ADAPTER, AlphaLoraConfigBlock

YAML_SUFFIXES = (".yml", ".yaml")

PLUGIN = "axolotl_alphalora.AlphaLoraPlugin"

_FAMILIES = ("lora_", "peft_", "loraplus_")

_SPELLINGS = {PLUGIN, "axolotl_alphalora.plugin.plugin.AlphaLoraPlugin"}

_NEAR = 0.85
"""How like one of our keys another key must be to be a misspelling: no key of the host's is."""

_ALIASES = {
    "model_config": "overrides_of_model_config",
    "model_kwargs": "overrides_of_model_kwargs",
    "model_revision": "revision_of_model",
    "model_type": "type_of_model",
}
"""Other names that the host takes for its keys."""

_PATHS = ("base_model", "lora_model_dir", "resume_from_checkpoint")
"""Keys of the host that may name a directory which the plugin reads."""


class _Key(NamedTuple):
    """What a key of the host takes here: its type, the type in words, and an example."""

    adapter: TypeAdapter[Any]
    words: str
    example: Any


def _key(annotation: Any, words: str, example: Any) -> _Key:
    return _Key(TypeAdapter(annotation), words, example)


_Text = Annotated[str, Field(min_length=1)]
_Names = list[_Text]
_SWITCH = _key(bool, "true or false", "true")
_NAMES = "a list of names"

KEYS: Mapping[str, _Key] = {
    "base_model": _key(_Text, "a directory or a hub id", "org/model"),
    "revision_of_model": _key(_Text, "a branch, tag or commit", "main"),
    "trust_remote_code": _SWITCH,
    "overrides_of_model_config": _key(
        dict[str, Any], "a mapping of settings", "{rope_theta: 1000000.0}"
    ),
    "load_in_4bit": _SWITCH,
    "load_in_8bit": _SWITCH,
    "bnb_config_kwargs": _key(
        dict[str, Any], "a mapping of options", "{bnb_4bit_use_double_quant: false}"
    ),
    "embeddings_skip_upcast": _SWITCH,
    "lora_r": _key(Annotated[int, Field(ge=1)], "a whole number of at least 1", "8"),
    "lora_alpha": _key(Annotated[int, Field(ge=1)], "a whole number of at least 1", "16"),
    "lora_dropout": _key(
        Annotated[float, Field(ge=0, lt=1)], "a number of at least 0 and below 1", "0.05"
    ),
    "lora_target_modules": _key(
        _Text | _Names, f"{_NAMES}, or one regular expression", "[q_proj, v_proj]"
    ),
    "lora_target_linear": _SWITCH,
    "lora_exclude_modules": _key(
        _Text | _Names, f"{_NAMES}, or one regular expression", "[lm_head]"
    ),
    "lora_modules_to_save": _key(_Names, _NAMES, "[embed_tokens, lm_head]"),
    "lora_model_dir": _key(_Text, "the directory or hub id of an adapter", "./out"),
    "lora_on_cpu": _SWITCH,
    "peft_layers_to_transform": _key(
        list[Annotated[int, Field(ge=0)]], "a list of the blocks' indices", "[0, 1]"
    ),
    "peft_layers_pattern": _key(_Names, _NAMES, "[layers]"),
    "peft_use_rslora": _SWITCH,
    "peft_autocast_adapter_dtype": _SWITCH,
    "loraplus_lr_ratio": _key(
        Annotated[float, Field(gt=0, allow_inf_nan=False)], "a number above 0", "16"
    ),
}
"""Keys of the host that the plugin goes by, in the order of docs/configuration.md."""


REFUSED_KEYS = frozenset(
    {
        "lora_alpha_pattern",
        "lora_embedding_kernel",
        "lora_fan_in_fan_out",
        "lora_fp32_gradients",
        "lora_mlp_kernel",
        "lora_o_kernel",
        "lora_qkv_kernel",
        "lora_rank_pattern",
        "lora_target_parameters",
        "loraplus_lr_embedding",
        "peft",
        "peft_ensure_weight_tying",
        "peft_init_lora_weights",
        "peft_layer_replication",
        "peft_trainable_token_indices",
        "peft_use_dora",
    }
)
"""The host's other adapter options: spelt right, though the plugin refuses them. The host's own
schema would take seconds to import."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Read an Axolotl configuration as it is written, under the host's own names of its keys.

    Raises:
        ValueError: If it cannot be read, is not UTF-8 or not YAML, or holds no keys; names the
            file and says what is wrong.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text ({_encoding(path)}): save it again with the encoding UTF-8."
        ) from error
    try:
        found = yaml.safe_load(text)
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply to be read.") from error
    except yaml.YAMLError as error:
        tab = getattr(error, "problem", None) and r"'\t'" in str(error.problem)
        hint = " Indent with spaces: YAML takes no tabs." if tab else ""
        raise ValueError(f"{path} is not YAML: {error}{hint}") from error
    if isinstance(found, dict):
        for other in _ALIASES.keys() & found:
            found[_ALIASES[other]] = found.pop(other)
        return found
    what = "is empty" if found is None else f"holds a {type(found).__name__} and no keys"
    raise ValueError(
        f"{path} is no Axolotl configuration: it {what}. It begins like this: `base_model: NAME`."
    )


def as_written(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Check and read the values of a configuration for `adapter: alphalora`.

    Args:
        cfg: The mapping that a YAML holds, or a validated configuration.

    Returns:
        The same with the types of `KEYS`, and with `~` in paths read as the home directory.

    Raises:
        ValueError: Names every key with a wrong value, the value, and what it takes.
    """
    found, errors = dict(cfg), []
    for key, wanted in KEYS.items():
        value = cfg.get(key)
        if value is None:
            continue
        try:
            found[key] = _read(wanted, value)
        except (ValidationError, ValueError):
            shown = str(value).lower() if isinstance(value, bool) else value
            errors.append(
                f"`{key}: {shown}` must be {wanted.words}, for example `{key}: {wanted.example}`."
            )
    if errors:
        raise ValueError(" ".join(errors))
    return found | {key: expanded(found[key]) for key in _PATHS if isinstance(found.get(key), str)}


def lacking(cfg: Mapping[str, Any]) -> str | None:
    """What a new adapter needs of the configuration, in words; None if it is all there."""
    missing = [f"`{key}`" for key in ("lora_r", "lora_alpha") if not cfg.get(key)]
    if not missing:
        return None
    return (
        f"`adapter: {ADAPTER}` needs {' and '.join(missing)}: the rank and the scaling of one "
        "expert, for example `lora_r: 8` and `lora_alpha: 16`."
    )


def check_adapter(name: Any) -> None:
    """Refuse a name that looks like a misspelling of ours.

    Raises:
        ValueError: Says which name is meant.
    """
    if not isinstance(name, str) or name == ADAPTER:
        return
    if get_close_matches(_letters(name), [ADAPTER], cutoff=0.8):
        raise ValueError(f"`adapter: {name}` is no adapter. Did you mean `adapter: {ADAPTER}`?")


def check_plugins(names: Any) -> None:
    """Refuse an entry of `plugins:` that looks like a misspelling of ours, unless ours is there.

    Raises:
        ValueError: Names the entry and the right name.
    """
    entries = [names] if isinstance(names, str) else names
    if not isinstance(entries, Sequence):
        return
    dotted = {str(entry): str(entry).replace(":", ".") for entry in entries}
    if _SPELLINGS & set(dotted.values()):
        return
    for entry, name in dotted.items():
        if "alphalora" in _letters(name) or get_close_matches(_letters(name), [_letters(PLUGIN)]):
            raise ValueError(f"`plugins:` holds {entry}. Did you mean `{PLUGIN}`?")


def check_spelling(cfg: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse misspelt adapter options and keys of `KEYS`, which Axolotl would drop without a word.

    Args:
        cfg: The mapping that a YAML holds.
        known: The options of the host and of the loaded plugins, or those of adapters alone.

    Raises:
        ValueError: Names every such key, and the nearest one that there is.
    """
    options = [name for name in known if name.startswith((*_FAMILIES, ADAPTER))]
    bare = {name.partition("_")[2]: name for name in options if name.startswith(_FAMILIES)}
    spelt = {_letters(name): name for name in [*options, *KEYS, ADAPTER]}
    errors = []
    for key, value in cfg.items():
        if value is None or not isinstance(key, str) or key in {*known, *KEYS, ADAPTER}:
            continue
        letters = _letters(key)
        if key in AlphaLoraConfigBlock.model_fields:
            errors.append(f"`{key}` belongs into the `alphalora:` block: `alphalora.{key}`.")
        elif (
            key in bare
            or letters.startswith(("lora", "peft"))
            or get_close_matches(letters, spelt, cutoff=_NEAR)
        ):
            close = get_close_matches(letters, spelt, n=1)
            near = bare.get(key) or (spelt[close[0]] if close else None)
            advice = f"Did you mean `{near}`?" if near else "Remove it."
            errors.append(f"`{key}` is not an option of Axolotl or of a loaded plugin. {advice}")
    if errors:
        raise ValueError(" ".join(errors))


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


def _read(wanted: _Key, value: Any) -> Any:
    """A value by its key's type; a truth value is no number, though Python takes it for one."""
    read = wanted.adapter.validate_python(value)
    if isinstance(value, bool) and not isinstance(read, bool):
        raise ValueError
    return read


def _encoding(path: Path) -> str:
    start = path.read_bytes()[:4]
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "it is UTF-16"
    zeros = start.count(0)
    return "it seems to be UTF-16 or UTF-32" if zeros else "it is in another encoding, or no text"
