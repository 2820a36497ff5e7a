"""The explained variance of each layer's inputs on samples of training data (EVA)."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .samples import (
    Passes,
    Sample,
    every_second,
    named_layers,
    numbered,
    restored,
    warn_of_uncalled,
    without_noise,
)

if TYPE_CHECKING:
    from .hosts.peft import IncrementalPCA

FEWEST_TOKENS = 1024
"""Tokens are gathered up to this number before the components are updated, so that short samples
do not cost an SVD each; or up to twice the number of components where that is more."""

_SEED = 42  # of the random projections of the SVD, PEFT's own
_OVERSAMPLING = 2  # columns of the random projection for each component, PEFT's own too

Ratios = Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class ExplainedVariance:
    """How much of the variance of each layer's inputs its first components explain.

    Attributes:
        components: How many were asked for; a layer with fewer input features has as many.
        ratios: Module name to the share of the variance that each component explains, the largest
            first; all 0 for a layer that no sample called.
        halves: The same for every second sample of each task, and for the others; None for a half
            that was not measured, or has too few tokens.
    """

    components: int
    ratios: Ratios
    halves: tuple[Ratios | None, Ratios | None] = (None, None)

    def by_expert(self, rank: int) -> dict[str, tuple[float, ...]]:
        """Module name to what the components of its first, second, ... expert explain together.

        Args:
            rank: Components of an expert.
        """
        starts = range(0, self.components, rank)
        return {
            name: tuple(math.fsum(ratios[start : start + rank]) for start in starts)
            for name, ratios in self.ratios.items()
        }

    def half(self, which: int) -> ExplainedVariance:
        """What one half of the samples says.

        Args:
            which: 0 for the first, third, ... sample of a task, 1 for the others.

        Raises:
            ValueError: If it was not measured, or has too few tokens.
        """
        ratios = self.halves[which]
        if ratios is None:
            raise ValueError("Half of the samples was not measured, or has too few tokens.")
        return ExplainedVariance(self.components, ratios)


def measure_explained_variance(
    model: nn.Module,
    modules: Sequence[str],
    samples: Sequence[Sample],
    components: int,
    *,
    halves: bool = False,
    autocast: torch.dtype | None = None,
    progress: Callable[[int], None] | None = None,
) -> ExplainedVariance:
    """Measure how much of the variance of each layer's inputs its first components explain.

    The inputs are those of every token of the samples but padding, prompt or not, in one forward
    pass without labels, gradients or dropout. Their principal components come from PEFT's
    incremental SVD, in float32 (PEFT itself goes on in float64 after the first update). Layers that
    are given one tensor share one. The model and the random states are left as they were found,
    also after an error.

    Args:
        model: A transformers model; its weights may be quantised.
        modules: Names of linear layers: anything called with its input `[..., in]` as the first
            positional argument.
        samples: The samples; each is moved to the device of the model's input embedding. Tokens
            whose `attention_mask` is 0 are taken out.
        components: Components of each layer, at least 1.
        halves: Whether to measure either half of the samples by itself too, which takes as much
            again but for the forward passes.
        autocast: Compute under `torch.autocast` with this dtype.
        progress: Called with the number of samples done, after each.

    Returns:
        The ratios, with modules in the order given.

    Warns:
        UserWarning: If no sample calls a module.

    Raises:
        ValueError: If there are no samples, a module does not exist, is no linear layer or is not
            called like one, its inputs are NaN or infinite (names module and sample), there are
            fewer tokens than components, or the model fails on a sample that is longer than its
            config's `max_position_embeddings`.
        NotImplementedError: If layers share their input on some samples only; names them.
    """
    if components < 1:
        raise ValueError(f"components is {components}: it must be at least 1")
    if not samples:
        raise ValueError("There are no samples to measure the inputs of layers on.")
    targets = named_layers(model, modules)
    with restored(model), torch.no_grad():
        without_noise(model)
        # Logits take a large matrix of their own, and only a layer that makes them needs them.
        makes_logits = _output_layer(model) in targets.values()
        passes = Passes(model, autocast, **({} if makes_logits else {"logits_to_keep": 1}))
        inputs = _Inputs(targets, components, halves)
        sides = every_second([sample.task for sample in samples])
        for (label, sample), side in zip(numbered(samples, progress), sides, strict=True):
            inputs.begin(label, side)
            passes.run(_as_called(passes.inputs(sample)), label, lambda output: None)
    warn_of_uncalled(modules, inputs.called, "explained variance")
    return inputs.found(components)


def _as_called(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the labels and the tokens that are padding."""
    inputs = {key: value for key, value in inputs.items() if key != "labels"}
    mask = inputs.get("attention_mask")
    if mask is None or mask.ndim != 2 or bool(mask.all()):
        return inputs
    kept = mask[0].bool()
    return {
        key: value[:, kept] if value.shape[:2] == mask.shape else value
        for key, value in inputs.items()
    }


def _output_layer(model: Any) -> nn.Module | None:
    find = getattr(model, "get_output_embeddings", None)
    return find() if find is not None else None


class _Inputs:
    """What goes into some layers, gathered by hooks; taking them away is the caller's.

    Attributes:
        called: How often each layer was called.
    """

    def __init__(self, targets: Mapping[str, nn.Module], components: int, halves: bool) -> None:
        self.called: Counter[str] = Counter()
        self._count = components
        self._parts = 3 if halves else 1  # all samples, and either half
        self._owners: dict[str, str] = {}
        self._components: dict[str, tuple[Components, ...]] = {}
        self._names = list(targets)
        for name, module in targets.items():
            module.register_forward_pre_hook(partial(self._take, name=name))

    def begin(self, label: str, half: int) -> None:
        """Say which sample the next inputs are of."""
        self._label, self._half = label, half
        self._seen: dict[int, tuple[weakref.ref[Tensor], int, str]] = {}

    def found(self, components: int) -> ExplainedVariance:
        """The ratios of all layers.

        Raises:
            ValueError: If there were too few tokens; names the first layer.
        """
        for name, owner in self._owners.items():
            self._check_sharing(name, owner, self.called[name] == self.called[owner])
        known = {
            owner: tuple(one.ratios() for one in parts) for owner, parts in self._components.items()
        }
        for owner, (ratios, *_) in known.items():
            if ratios is None:
                tokens = self._components[owner][0].tokens
                raise ValueError(
                    f"{owner} gets {tokens} tokens of the samples, too few to find {components} "
                    "components of its inputs. Take more samples, or ask for fewer components: by "
                    "a smaller rho, budget or rank (lora_r)."
                )
        nothing = (0.0,) * components

        def of(part: int) -> Ratios | None:
            found = {}
            for name in self._names:
                owner = self._owners.get(name)
                ratios = nothing if owner is None else known[owner][part]
                if ratios is None:
                    return None
                found[name] = ratios
            return found

        whole = of(0)
        assert whole is not None
        if self._parts == 1:
            return ExplainedVariance(components, whole)
        return ExplainedVariance(components, whole, (of(1), of(2)))

    def _take(self, module: nn.Module, args: tuple[Any, ...], name: str) -> None:
        x = args[0] if args else None
        if not (isinstance(x, Tensor) and x.is_floating_point() and x.ndim > 0):
            raise ValueError(
                f"{name} ({type(module).__name__}) is not called like a linear layer, with one "
                "floating-point tensor [..., in]. Leave it out of the target modules."
            )
        self.called[name] += 1
        owner = self._owner(name, x)
        if self._owners.setdefault(name, owner) != name:
            self._check_sharing(name, self._owners[name], owner == self._owners[name])
            return
        tokens = x.detach().reshape(-1, x.shape[-1])
        if not bool(tokens.isfinite().all()):
            raise ValueError(
                f"The input of {name} is not finite on {self._label}. Look for NaN or infinity in "
                "the model's weights, or compute in bfloat16 or float32."
            )
        if name not in self._components:
            self._components[name] = tuple(
                Components(self._count, x.shape[-1]) for _ in range(self._parts)
            )
        for part in (0, 1 + self._half)[: self._parts]:
            self._components[name][part].add(tokens)

    def _owner(self, name: str, x: Tensor) -> str:
        """The first layer of this pass that was given the same tensor."""
        reference, version, owner = self._seen.get(id(x), (None, 0, name))
        if reference is None or reference() is not x or version != x._version:
            self._seen[id(x)] = weakref.ref(x), x._version, name
            return name
        return owner

    def _check_sharing(self, name: str, owner: str, shared: bool) -> None:
        if not shared:
            raise NotImplementedError(
                f"{name} is given the input of {owner} on some samples and another one on others. "
                "Leave one of them out of the target modules."
            )


class Components:
    """The first principal components of all tokens so far.

    Args:
        count: How many components are kept.
        features: Size of a token.
    """

    def __init__(self, count: int, features: int) -> None:
        self._count = min(count, features)
        self._features = features
        self._pca: IncrementalPCA | None = None
        self._waiting: list[Tensor] = []
        self._batch = max(_OVERSAMPLING * self._count, FEWEST_TOKENS)
        self.tokens = 0

    def add(self, tokens: Tensor) -> None:
        """Take in tokens, `[n, features]` of any floating-point type; they are copied."""
        if not len(tokens):
            return
        self.tokens += len(tokens)
        self._waiting.append(tokens.clone())
        if sum(map(len, self._waiting)) >= self._batch:
            self._update()

    def ratios(self) -> tuple[float, ...] | None:
        """The share of the tokens' variance that each component explains, the largest first.

        Returns:
            One number in [0, 1] for each component, all 0 where the tokens do not vary; None if
            there were fewer tokens than components.
        """
        if self.tokens < self._count:
            return None
        if self._waiting:
            self._update()
        assert self._pca is not None
        found = self._pca.explained_variance_ratio_.double().nan_to_num(nan=0.0)
        return tuple(found.clamp(0, 1).tolist())

    def _update(self) -> None:
        from .hosts.peft import IncrementalPCA

        tokens = torch.cat(self._waiting).float()
        self._waiting = []
        rows = len(tokens)
        if self._pca is None:
            self._pca = IncrementalPCA(
                n_components=self._count,
                lowrank=True,
                lowrank_q=_OVERSAMPLING * self._count,
                lowrank_seed=_SEED,
            )
        else:
            rows += self._count + 1  # the components so far and the shift of the mean
        # A random projection cannot have more columns than the matrix has rows or columns.
        self._pca.lowrank = _OVERSAMPLING * self._count <= min(rows, self._features)
        with torch.autocast(tokens.device.type, enabled=False):
            # Unchecked: the last tokens may be fewer than the components.
            self._pca.partial_fit(tokens, check_input=False)
