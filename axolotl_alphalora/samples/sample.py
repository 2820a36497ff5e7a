"""Samples, and running them through a model one at a time, with the layers measured meanwhile."""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

_NAMED = 3

_Result = TypeVar("_Result")


@dataclass(frozen=True, eq=False)
class Sample:
    """One sequence as the model takes it.

    Attributes:
        task: The task that the sequence counts for.
        inputs: The model's arguments, `[1, T]` tensors on the CPU: `input_ids`, `labels` and
            whatever else there is for each token.
    """

    task: str
    inputs: Mapping[str, Tensor]


def share_out(count: int, available: Mapping[str, float]) -> dict[str, int]:
    """Share a number out among tasks as evenly as what they have allows.

    Args:
        count: What to share out.
        available: The most that each task can take; may be infinite.

    Returns:
        Task to its share, in the order given; earlier tasks get what is left over. The shares of
        two tasks differ by more than one only if the smaller is all that its task can take, and
        they add up to `count` if the tasks can take as much.
    """
    shares = dict.fromkeys(available, 0)
    while takers := [task for task in shares if shares[task] < available[task]]:
        takers = takers[: count - sum(shares.values())]
        if not takers:
            break
        for task in takers:
            shares[task] += 1
    return shares


def every_second(tasks: Sequence[str]) -> list[int]:
    """Say which half each sample is in.

    Args:
        tasks: The task of each sample.

    Returns:
        0 for the first, third, ... sample of a task, 1 for the others.
    """
    seen: Counter[str] = Counter()
    halves = []
    for task in tasks:
        halves.append(seen[task] % 2)
        seen[task] += 1
    return halves


class Passes:
    """Forward passes of a transformers model.

    Args:
        model: The model.
        autocast: Compute under `torch.autocast` with this dtype.
        options: More arguments of the model's forward; those that it does not take are left out.
    """

    def __init__(self, model: Any, autocast: torch.dtype | None, **options: Any) -> None:
        self._model = model
        self._autocast = autocast
        self._device = next(model.get_input_embeddings().parameters()).device
        takes = inspect.signature(model.forward).parameters
        options = {"use_cache": False, **options}
        self._options = {key: value for key, value in options.items() if key in takes}

    def inputs(self, sample: Sample) -> dict[str, Tensor]:
        """A sample's arguments on the device of the model's input embedding."""
        return {key: value.to(self._device) for key, value in sample.inputs.items()}

    def run(
        self, inputs: Mapping[str, Tensor], label: str, read: Callable[[Any], _Result]
    ) -> _Result:
        """Run the model once.

        Args:
            inputs: What `inputs` returned.
            label: What the sample is called in an error.
            read: Takes what the model returns; what it returns is returned.

        Raises:
            ValueError: See `explained`.
        """
        enabled = self._autocast is not None
        with explained(self._model, inputs["input_ids"], label):
            with torch.autocast(self._device.type, dtype=self._autocast, enabled=enabled):
                output = self._model(**inputs, **self._options)
            return read(output)


@contextmanager
def explained(model: Any, input_ids: Tensor, label: str) -> Iterator[None]:
    """Say why a model fails on a sample, where that can be seen from its tokens.

    Args:
        model: The model.
        input_ids: The sample's tokens, [1, T].
        label: What the sample is called in an error.

    Raises:
        ValueError: In the place of what the model raises, if the sample is longer than its config's
            `max_position_embeddings`, or has a token that it has no embedding for.
    """
    largest = int(input_ids.max())  # after an error on a GPU nothing can be read there
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (IndexError, RuntimeError) as error:
        weight = getattr(model.get_input_embeddings(), "weight", None)
        if weight is not None and largest >= len(weight):
            raise ValueError(
                f"The model has {len(weight)} embeddings, and {label} has the token {largest}: the "
                "rows were made with another tokenizer."
            ) from error
        length, limit = input_ids.shape[-1], _positions(model)
        if limit is None or length <= limit:
            raise
        raise ValueError(
            f"The model fails on {label}, which has {length} tokens: its config allows for "
            f"{limit} (`max_position_embeddings`). Set `sequence_len` to {limit} or less (for a "
            "JSON lines file `--sequence-len`)."
        ) from error


def numbered(
    samples: Sequence[Sample], progress: Callable[[int], None] | None = None
) -> Iterator[tuple[str, Sample]]:
    """Go through samples.

    Args:
        samples: The samples.
        progress: Called with the number of samples done, after each.

    Yields:
        What a sample is called in errors, and the sample.
    """
    for done, sample in enumerate(samples, start=1):
        yield f"sample {done} of {len(samples)} (task {sample.task!r})", sample
        if progress is not None:
            progress(done)


def named_layers(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """Find linear layers by their names.

    Raises:
        ValueError: If there is none of that name, or it is no linear layer.
    """
    known = dict(model.named_modules(remove_duplicate=False))
    layers = {}
    for name in names:
        if name not in known:
            raise ValueError(
                f"The model has no module named {name!r}. Names are those of `named_modules()`."
            )
        module = known[name]
        sides = getattr(getattr(module, "weight", None), "ndim", 0)
        if sides != 2 and not hasattr(module, "in_features"):
            raise ValueError(
                f"{name} ({type(module).__name__}) is not a linear layer. Leave it out of the "
                "target modules."
            )
        layers[name] = module
    return layers


def warn_of_uncalled(names: Sequence[str], called: Collection[str], what: str) -> None:
    """Warn of layers that no sample has called.

    Args:
        names: All that are measured.
        called: Those that were called.
        what: What is 0 for a layer that was not.

    Warns:
        UserWarning: If there are any.
    """
    left = [name for name in names if name not in called]
    if not left:
        return
    some = ", ".join(left[:_NAMED]) + (", ..." if len(left) > _NAMED else "")
    warnings.warn(
        f"No sample calls {len(left)} of the {len(names)} target modules ({some}), so their "
        f"{what} is 0. That is right where the model does not need them for this data, as a "
        "vision tower for text. If it uses their weight without calling them, as fused kernels do, "
        "they are not measured: leave them out with `lora_exclude_modules`, or take another "
        "strategy.",
        stacklevel=3,
    )


def _positions(model: Any) -> int | None:
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    return getattr(config, "max_position_embeddings", None)
