"""What a model does on samples: its losses, what its routers decide, what its routed modules see.

And how far the predictions of an export are from the routed adapter's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapter import AlphaLoraLayer, adapted_layers, find_balancer, find_routers
from ..adapter.functional import route, weigh
from ..adapter.usage import RouterUsage, UsageMeter, combine
from ..hosts.constants import IGNORED
from ..inspection import ALL
from ..samples import Sample, explained
from ..threads import one_thread


@dataclass
class Moments:
    """Sums over the tokens that one routed module saw, fp64 on the CPU.

    With `z = A x` the experts' hidden values, [N*r] or fewer where they share their A, `h`
    [N*r] those of each expert times its gate, and `f = [z; R x]` [F] the hidden values and what
    the router reads of the input: its logits [N], or U x of a router `V U`. They need no more
    memory for more tokens or a wider layer.

    Attributes:
        ff: Sum of f fᵀ, [F, F].
        hf: Sum of h fᵀ, [N*r, F].
        gates: Sum of the gates, [N].
        hidden: How many of the F are z.
        tokens: Number of tokens.
    """

    ff: Tensor
    hf: Tensor
    gates: Tensor
    hidden: int
    tokens: int = 0

    @classmethod
    def empty(cls, experts: int, width: int, hidden: int, read: int) -> Moments:
        """Moments of no token: for N, N*r, and the sizes of z and R x."""
        features = hidden + read
        return cls(
            torch.zeros(features, features, dtype=torch.float64),
            torch.zeros(width, features, dtype=torch.float64),
            torch.zeros(experts, dtype=torch.float64),
            hidden,
        )

    def add(
        self, x: Tensor, a: Tensor, router: Tensor, top_k: int, router_down: Tensor | None = None
    ) -> None:
        """Add tokens.

        Args:
            x: [..., in].
            a: [N*r, in], the experts' down projections stacked, or fewer rows, shared.
            router: [N, in], or [N, R] with a `router_down`.
            top_k: Experts of a token.
            router_down: [R, in], or None.
        """
        x = x.reshape(-1, x.shape[-1]).to(a.dtype)
        read = F.linear(x, router if router_down is None else router_down)
        gates = route(read if router_down is None else F.linear(read, router), top_k)[0]
        z = F.linear(x, a).float()
        h = weigh(z, gates, len(self.hf) // self.hidden)  # [T, N*r]
        f = torch.cat([z, read.float()], -1)
        self.ff += (f.T @ f).double().cpu()
        self.hf += (h.T @ f).double().cpu()
        self.gates += gates.sum(0).double().cpu()
        self.tokens += x.shape[0]

    @property
    def mean_gates(self) -> Tensor:
        """Each expert's gate, averaged over all tokens: [N]; 1 / N where no token was seen."""
        if self.tokens == 0:
            return torch.full_like(self.gates, 1 / len(self.gates))
        return self.gates / self.tokens


@torch.inference_mode()
def calibrate(
    model: nn.Module,
    samples: Sequence[Sample],
    progress: Callable[[Sample], None] | None = None,
) -> dict[str, Moments]:
    """Run samples through a model, and sum up what its routed modules see.

    Args:
        model: The model with the adapter `default`; it is left in evaluation mode.
        samples: Single sequences, without padding.
        progress: Called after each sample.

    Returns:
        Module name to moments, for every module with a router.
    """
    model.eval()
    layers = [layer for layer in adapted_layers(model) if "default" in layer.alphalora_router]
    found = {}
    for layer in layers:
        a, b = layer.alphalora_A["default"], layer.alphalora_B["default"]
        router, down = _router(layer)
        read = router if down is None else down
        found[layer.module_name] = Moments.empty(len(router), b.shape[1], len(a), len(read))

    def note(layer: AlphaLoraLayer, args: tuple[Any, ...]) -> None:
        a, (router, down) = layer.alphalora_A["default"], _router(layer)
        with one_thread():
            found[layer.module_name].add(args[0], a, router, layer.top_k["default"], down)

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        for sample in _each(samples, progress):
            _run(model, inputs_for(model, sample))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _router(layer: AlphaLoraLayer) -> tuple[Tensor, Tensor | None]:
    """The router, and its lower part if it is of low rank."""
    return layer.alphalora_router["default"], layer.part("alphalora_router_down", "default")


def inputs_for(model: nn.Module, sample: Sample) -> dict[str, torch.Tensor]:
    """A sample's arguments, where the model is."""
    device = next(model.parameters()).device
    return {key: value.to(device) for key, value in sample.inputs.items()}


@torch.inference_mode()
def router_usage(
    model: nn.Module,
    samples: Sequence[Sample],
    progress: Callable[[Sample], None] | None = None,
) -> dict[str, dict[str, RouterUsage]]:
    """Run samples through a model and read what its routers decide.

    Args:
        model: The adapted model; it is left in evaluation mode.
        samples: Single sequences.
        progress: Called after each sample.

    Returns:
        Task to module name to usage. `ALL` comes first; the tasks follow if there are several.
        A model without routers gives an empty mapping.

    Raises:
        ValueError: If a task has the name that stands for all of them.
    """
    if any(sample.task == ALL for sample in samples):
        raise ValueError(f"a task is called {ALL!r}, which stands for all tasks: rename it.")
    model.eval()
    balancer = find_balancer(model)
    routers = find_routers(model)
    if balancer is None or not routers:
        return {ALL: {}}
    before = balancer.usage
    tasks: dict[str, dict[str, RouterUsage]] = {}
    try:
        for task in dict.fromkeys(sample.task for sample in samples):
            meter = UsageMeter()
            balancer.usage = {"eval": meter}
            for sample in _each([one for one in samples if one.task == task], progress):
                _run(model, inputs_for(model, sample))
            found = meter.pop(routers)
            tasks[task] = {name.rpartition(".")[0]: usage for name, usage in found.items()}
    finally:
        balancer.usage = before
        balancer.pop("eval")
    modules = dict.fromkeys(module for found in tasks.values() for module in found)
    whole = {m: combine(found[m] for found in tasks.values() if m in found) for m in modules}
    return {ALL: whole} | (tasks if len(tasks) > 1 else {})


@dataclass(frozen=True)
class Divergence:
    """Means over the tokens with a label, in nats.

    Attributes:
        rows: Number of sequences.
        tokens: Number of tokens with a label.
        kl: KL divergence of the export's next-token distribution from the routed adapter's,
            KL(routed || export).
        loss_routed: Cross-entropy of the routed adapter.
        loss_export: Cross-entropy of the export.
        loss_base: Cross-entropy of the base model.
    """

    rows: int
    tokens: int
    kl: float
    loss_routed: float
    loss_export: float
    loss_base: float

    def to_dict(self) -> dict[str, float]:
        """The numbers, with the perplexities."""
        losses = {key: value for key, value in asdict(self).items() if key.startswith("loss_")}
        perplexities = {
            key.replace("loss", "perplexity"): math.exp(min(value, 700.0))
            for key, value in losses.items()
        }
        return asdict(self) | perplexities


@torch.inference_mode()
def measure_divergence(
    model: Any,
    samples: Sequence[Sample],
    progress: Callable[[Sample], None] | None = None,
) -> Divergence:
    """Measure an export that is a second adapter of the same `PeftModel`.

    Args:
        model: The model with the routed adapter `default` and the adapter `export`; it is left in
            evaluation mode with the routed one active and frozen.
        samples: Single sequences with labels.
        progress: Called after each sample.
    """
    model.eval()
    sums = dict.fromkeys(("kl", "routed", "export", "base"), 0.0)
    tokens = 0
    for sample in _each(samples, progress):
        inputs, places, answers = _with_answers(model, sample)
        model.set_adapter("default", inference_mode=True)
        of_routed = _log_probabilities(model, inputs, places)
        model.set_adapter("export", inference_mode=True)
        of_export = _log_probabilities(model, inputs, places)
        sums["kl"] += float(F.kl_div(of_export, of_routed, log_target=True, reduction="sum"))
        sums["routed"] += float(F.nll_loss(of_routed, answers, reduction="sum"))
        sums["export"] += float(F.nll_loss(of_export, answers, reduction="sum"))
        del of_routed, of_export
        with model.disable_adapter():
            of_base = _log_probabilities(model, inputs, places)
        sums["base"] += float(F.nll_loss(of_base, answers, reduction="sum"))
        tokens += len(answers)
    model.set_adapter("default", inference_mode=True)
    mean = {key: value / tokens for key, value in sums.items()}
    return Divergence(
        len(samples), tokens, max(mean["kl"], 0.0), mean["routed"], mean["export"], mean["base"]
    )


@torch.inference_mode()
def losses_by_task(
    model: Any, samples: Sequence[Sample], progress: Callable[[Sample], None] | None = None
) -> dict[str, tuple[float, int]]:
    """Sum the cross-entropy of what a model is to say.

    Args:
        model: A causal language model; it is left in evaluation mode.
        samples: Single sequences with labels.
        progress: Called after each sample.

    Returns:
        Task to its loss, in nats and summed over the tokens with a label, and their number.
    """
    model.eval()
    sums: dict[str, tuple[float, int]] = {}
    for sample in _each(samples, progress):
        inputs, places, answers = _with_answers(model, sample)
        found = F.nll_loss(_log_probabilities(model, inputs, places), answers, reduction="sum")
        loss, tokens = sums.get(sample.task, (0.0, 0))
        sums[sample.task] = loss + float(found), tokens + len(answers)
    return sums


def _run(model: Any, inputs: dict[str, Tensor], **options: Any) -> Any:
    with explained(model, inputs["input_ids"], "a row"):
        return model(**inputs, **options)


def _each(samples: Sequence[Sample], progress: Callable[[Sample], None] | None) -> Iterator[Sample]:
    """Each sample; progress is told once it has been used."""
    for sample in samples:
        yield sample
        if progress is not None:
            progress(sample)


def _with_answers(model: Any, sample: Sample) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """A sample's arguments without labels, the [P] places that predict a label, the labels."""
    inputs = inputs_for(model, sample)
    labels = inputs.pop("labels")[0, 1:]
    places = labels.ne(IGNORED).nonzero().flatten()
    return inputs, places, labels[places]


def _log_probabilities(model: Any, inputs: dict[str, Tensor], places: Tensor) -> Tensor:
    """Log-probabilities of the next token at some places of one sequence: [P, V], fp32."""
    logits = _run(model, inputs, use_cache=False).logits[0, places]
    return F.log_softmax(logits.float(), dim=-1)
