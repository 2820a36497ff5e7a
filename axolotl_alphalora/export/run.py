"""The whole export: calibrate, build, measure, write."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from ..adapter import adapted_layers
from ..evaluation import Divergence, Moments, calibrate, measure_divergence
from ..files import ADAPTER_CARD, PROBE
from ..probe import Probe, make_probe, prompts_of
from ..progress import Stages
from ..samples import Sample
from .exported import Exported, check_divergence
from .factors import DEFAULT_METHOD, Factors, Method, build
from .llama_cpp import GgufType, check_gguf
from .lora import attach, check_targets, placed
from .output import RECORD, check_output, write_export


def export_adapter(
    model: Any,
    adapter: Path,
    output: Path,
    *,
    calibration: Sequence[Sample],
    held_out: Sequence[Sample],
    method: Method = DEFAULT_METHOD,
    rank: int | Literal["auto"] | None = None,
    same_rank: bool = False,
    max_kl: float | None = None,
    gguf: Path | None = None,
    gguf_type: GgufType = "f32",
    prefix: str | None = None,
    tokenizer: Any = None,
    notes: Mapping[str, Any] | None = None,
    stage: Stages | None = None,
    card: Callable[[Exported], str] | None = None,
) -> Exported:
    """Write a plain LoRA that stands in for a routed adapter; whole or not at all.

    Args:
        model: The `PeftModel` with the adapter as `default`; it is left in evaluation mode, with
            the adapter frozen.
        adapter: The adapter's directory; its tokenizer goes with the export.
        output: A new or empty directory.
        calibration: Rows that the routers are calibrated on, single sequences.
        held_out: Rows with labels that the divergence is measured on.
        method: How mixtures are replaced.
        rank: Compress modules of a higher rank to this one; `auto`: to the smallest with which the
            divergence is within `max_kl`.
        same_rank: Pad all modules with zeros to the highest rank.
        max_kl: Write nothing if the KL divergence per token is above this.
        gguf: A file to write it to as a LoRA for llama.cpp too.
        gguf_type: Of the numbers in that file.
        prefix: What the servers' model calls the part that is called `model` here; names only what
            is written, and not the file for llama.cpp.
        tokenizer: The model's; with it a probe is written beside the export.
        notes: Further facts for the record, as JSON values.
        stage: Shows progress.
        card: Describes the export for its `README.md`; without it there is none.

    Raises:
        ImportError: If the package `gguf` is needed and missing.
        ValueError: If the output is not empty, the divergence is above `max_kl` or not finite, or
            PEFT, llama.cpp or the prefix has no place for a module.
    """
    check_output(output, gguf)
    if rank == "auto" and max_kl is None:
        raise ValueError("--rank auto looks for the smallest rank within --max-kl: add it.")
    layers = adapted_layers(model)
    for layer in layers:
        placed(layer.module_name, prefix)
    check_targets((layer.module_name for layer in layers), model.get_base_model())
    if gguf is not None:
        names = [layer.module_name for layer in layers]
        check_gguf(names, model.get_base_model().config, _whole(model))
    moments = calibrate(model, calibration, progress=_step(stage, "Calibrating", calibration))
    notes = {"adapter": str(adapter), "rank": rank, "same_rank": same_rank, **(notes or {})}
    if rank == "auto":
        assert max_kl is not None
        rank = smallest_rank(model, moments, held_out, max_kl, method=method, stage=stage)
    updates = build(
        model,
        moments,
        method=method,
        rank=rank,
        same_rank=same_rank,
        progress=stage and stage("Fitting"),
    )
    divergence, probe = _measured(model, updates, held_out, max_kl, tokenizer, stage)
    full = {layer.module_name: layer.r["default"] for layer in layers}
    ranks = {name: update.rank for name, update in updates.items()}
    tokens = sum(sample.inputs["input_ids"].numel() for sample in calibration)
    found = Exported(
        method,
        ranks,
        sum(name in moments or kept < full[name] for name, kept in ranks.items()),
        [name for name, seen in moments.items() if seen.tokens == 0],
        _tied(model),
        {"rows": len(calibration), "tokens": tokens},
        divergence,
        notes,
        _whole(model),
        None if gguf is None else gguf.name,
        prefix,
        _is_text_part(model, updates),
        _added(model),
    )
    files = {RECORD: json.dumps(found.to_dict(), indent=2, allow_nan=False) + "\n"}
    if probe is not None:
        files[PROBE] = probe.to_json()
    if card is not None:
        files[ADAPTER_CARD] = card(found)
    write_export(model, layers, updates, adapter, output, files, prefix, gguf, gguf_type)
    return found


def smallest_rank(
    model: Any,
    moments: Mapping[str, Moments],
    held_out: Sequence[Sample],
    max_kl: float,
    *,
    method: Method,
    stage: Stages | None = None,
) -> int:
    """Halve the ranks again and again, measuring each as the price is.

    Args:
        model: The `PeftModel` with the adapter `default`.
        moments: As of the calibration.
        held_out: Rows with labels that the divergence is measured on.
        max_kl: The KL divergence per token that is allowed.
        method: How mixtures are replaced.
        stage: Shows progress.

    Returns:
        The rank; the export of all lower ones that were tried is further away.

    Raises:
        ValueError: If even uncompressed factors are further away than that.
    """

    def price(rank: int | None) -> tuple[float, int]:
        updates = build(model, moments, method=method, rank=rank)
        most = max(update.rank for update in updates.values())
        step = _step(stage, f"Measuring rank {most}", held_out)
        with _attached(model, updates):
            return measure_divergence(model, held_out, progress=step).kl, most

    kl, high = price(None)
    if kl > max_kl:
        raise ValueError(
            f"At full rank ({high}) the export is {kl:.4g} nats a token away from the routed "
            f"adapter, more than --max-kl {max_kl:g} allows, so no rank will do and nothing was "
            "written. Allow more, or give more --samples."
        )
    return lowest(high, lambda rank: price(rank)[0] <= max_kl)


def lowest(high: int, enough: Callable[[int], bool]) -> int:
    """Return the lowest rank that is enough, if all above it are too, by bisection.

    Args:
        high: A rank that is enough.
        enough: Whether a rank is.
    """
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return high


def _whole(model: Any) -> list[str]:
    """The modules that the adapter holds whole."""
    return sorted(model.peft_config["default"].modules_to_save or ())


def _measured(
    model: Any,
    updates: Mapping[str, Factors],
    held_out: Sequence[Sample],
    max_kl: float | None,
    tokenizer: Any,
    stage: Stages | None,
) -> tuple[Divergence, Probe | None]:
    """What the updates cost, and, with a tokenizer, what they answer."""
    probe = None
    with _attached(model, updates):
        step = _step(stage, "Measuring", held_out)
        divergence = measure_divergence(model, held_out, progress=step)
        check_divergence(divergence, max_kl)
        prompts = [] if tokenizer is None else prompts_of(held_out, tokenizer)
        if prompts:
            model.set_adapter("export", inference_mode=True)
            name = model.peft_config["default"].base_model_name_or_path or ""
            step = stage and stage("Asking")(prompts)
            probe = make_probe(model, tokenizer, prompts, base_model=name, method="lora", step=step)
    return divergence, probe


@contextmanager
def _attached(model: Any, updates: Mapping[str, Factors]) -> Iterator[None]:
    """Have updates beside the adapter as `export`, which is gone afterwards."""
    attach(model, updates)
    try:
        yield
    finally:
        model.set_adapter("default", inference_mode=True)
        model.delete_adapter("export")


def _base_config(model: Any) -> Any:
    """The settings in the base's own directory; None if it has none."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model.peft_config["default"].base_model_name_or_path)
    except (OSError, ValueError):
        return None


def _is_text_part(model: Any, modules: Iterable[str]) -> bool:
    """Whether the base's directory is a multimodal model's, of which only the text part is here."""
    whole = _base_config(model)
    alone = not any("language_model." in name for name in modules)
    return whole is not None and alone and whole.get_text_config() is not whole


def _added(model: Any) -> int:
    """Rows of the vocabulary that the base has not, and that the adapter does not train."""
    whole = _base_config(model)
    if whole is None or _whole(model):
        return 0
    rows = model.get_input_embeddings().weight.shape[0]
    return max(rows - whole.get_text_config().vocab_size, 0)


def _tied(model: Any) -> list[str]:
    """Adapted modules whose weight another module of the base model uses too."""
    uses = Counter(
        id(parameter)
        for module in model.get_base_model().modules()
        for parameter in module._parameters.values()
        if parameter is not None
    )
    return [
        layer.module_name
        for layer in adapted_layers(model)
        if uses[id(layer.get_base_layer().weight)] > 1
    ]


def _step(stage: Stages | None, what: str, samples: Sequence[Sample]) -> Any:
    return None if stage is None else stage(what)([sample.task for sample in samples])
