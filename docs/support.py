"""The support tables, read from the markers on the tests. Knows nothing of the package itself.

`works` and `refused` mark a test that runs here; `untested` marks one that needs what this machine
lacks, and says what. Each takes the area, the feature and, if there is one, a note.
"""

import ast
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
STATUS = {"works": "works", "refused": "refused", "untested": "untested here"}
AREAS = (
    "Quantised bases",
    "Mixtures",
    "Trainers",
    "Data",
    "Allocation",
    "Memory and speed",
    "Scale-out",
    "Verbs",
    "Plans",
    "Seeing and exporting",
    "Serving",
    "Base models",
    "PEFT",
    "Robustness",
    "Host versions",
)

SUMMARY: dict[str, tuple[str, ...]] = {
    "Base in full precision, nf4 or int8: train, resume, evaluate, inference": (
        "`train`, through accelerate",
        "nf4 and int8: train, `evaluate`, `inference`, plain PEFT",
        "resume on nf4 and int8",
    ),
    "Checkpoints quantised by bitsandbytes or torchao": (
        "bitsandbytes checkpoints, with and without `load_in_*bit`",
        "torchao checkpoints (int8 weights)",
    ),
    "GPTQ, AWQ and HQQ checkpoints": (
        "GPTQ and AWQ checkpoints",
        "HQQ checkpoints",
    ),
    "Llama, Qwen 2 and 3, Mistral, Gemma 3, Phi 3, GPT-2, classifiers": (
        "Llama",
        "Qwen 2",
        "Qwen 3",
        "Mistral",
        "Gemma 3",
        "Phi 3",
        "GPT-2",
        "sequence classifiers",
    ),
    "Stacked experts of a mixture-of-experts base": ("stacked experts of a MoE base",),
    "SFT, DPO, IPO, KTO, ORPO, SimPO, GRPO, reward models": (
        "supervised fine-tuning",
        "`rl: dpo`",
        "`rl: ipo`",
        "`rl: kto`",
        "`rl: orpo`",
        "`rl: simpo`",
        "`rl: grpo`, without vLLM",
        "`reward_model`",
    ),
    "GRPO with vLLM": ("GRPO with vLLM",),
    "Sample packing, chat templates, streaming, pretraining text": (
        "sample packing",
        "multi-turn chats (`chat_template`)",
        "`streaming: true`",
        "`pretraining_dataset`, packed and streamed",
    ),
    "Gradient checkpointing, `torch_compile`, offloading to the CPU": (
        "gradient checkpointing, reentrant",
        "gradient checkpointing, not reentrant",
        "`torch_compile`, also with checkpointing",
        "`layer_offloading`",
        "`activation_offloading: legacy`",
    ),
    "Flash attention, flex attention, Liger": (
        "flash attention",
        "flex attention",
        "Liger",
    ),
    "DDP, FSDP2 and DeepSpeed ZeRO, on two CPU processes": (
        "DDP",
        "FSDP2",
        "DeepSpeed ZeRO-1",
        "DeepSpeed ZeRO-2",
        "DeepSpeed ZeRO-3",
    ),
    "Several GPUs": ("several GPUs (NCCL)",),
    "A run killed during a save resumes and ends with the same weights": (
        "SIGKILL and SIGTERM while a checkpoint is written",
        "`train` resumed (`auto_resume_from_checkpoints`)",
    ),
    "PEFT: save, load, several adapters, generation, pipelines": (
        "save and load",
        "several adapters",
        "generation from a saved adapter",
        "transformers pipelines",
    ),
    "Merging the routed adapter": ("merging", "`merge-lora`"),
    "Export to a plain LoRA, and merging that": (
        "`alphalora export`: what is written is what was measured",
        "Axolotl's `merge-lora` of the exported LoRA",
        "PEFT's `merge_and_unload` of the exported LoRA",
    ),
    "The routed adapter in vLLM: its arithmetic here, a real vLLM in `.ci/vllm`": (
        "the routed mixture of vLLM's layers, on stand-ins for them",
        "tensor parallelism, on stand-ins for vLLM's layers",
    ),
}
"""The README's rows: what a reader asks, and the features that answer it."""


@dataclass(frozen=True)
class Row:
    """One marker: what was tried, how it went, and the test that says so."""

    area: str
    feature: str
    status: str
    note: str
    file: str
    test: str


@dataclass(frozen=True)
class Feature:
    """A row of the table: all markers of one feature."""

    area: str
    name: str
    text: str
    status: str
    tests: tuple[str, ...]


def rows() -> list[Row]:
    """All markers of the test suite, in the order of areas, files and lines.

    Raises:
        ValueError: If a marker's arguments are no literals, or its area is unknown.
    """
    found = [row for file in sorted(TESTS.rglob("test_*.py")) for row in _rows_of(file)]
    return sorted(found, key=lambda row: AREAS.index(row.area))


def features() -> list[Feature]:
    """The rows of each feature of an area as one.

    Raises:
        ValueError: If the tests of a feature disagree about it.
    """
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows():
        groups[row.area, row.feature].append(row)
    found = []
    for (area, feature), group in groups.items():
        status = {row.status for row in group}
        if len(status) != 1:
            raise ValueError(f"{area}, {feature}: the tests disagree: {sorted(status)}")
        notes = "; ".join(dict.fromkeys(row.note for row in group if row.note))
        text = f"{feature}{f' ({notes})' if notes else ''}"
        tests = dict.fromkeys(f"[`{row.test}`](../tests/{row.file})" for row in group)
        found.append(Feature(area, feature, text, status.pop(), tuple(tests)))
    return found


def tables() -> str:
    """The tables of `support.md`: a section for each area, a line for each feature."""
    lines: list[str] = []
    for area in AREAS:
        lines += [f"## {area}", "", "| feature | | test |", "| --- | --- | --- |"]
        lines += [
            f"| {feature.text} | {feature.status} | {', '.join(feature.tests)} |"
            for feature in features()
            if feature.area == area
        ]
        lines.append("")
    return "\n".join(lines).strip()


def summary() -> str:
    """The README's table: each line's status is that of all the features it stands for.

    Raises:
        ValueError: If a line stands for a feature that is not there, or for some that differ.
    """
    known = {feature.name: feature for feature in features()}
    lines = ["| | |", "| --- | --- |"]
    for text, names in SUMMARY.items():
        missing = [name for name in names if name not in known]
        if missing:
            raise ValueError(f"{text}: no test is marked with {missing}")
        status = {known[name].status for name in names}
        if len(status) != 1:
            raise ValueError(f"{text}: the features disagree: {sorted(status)}")
        anchor = known[names[0]].area.lower().replace(" ", "-")
        lines.append(f"| {text} | [{status.pop()}](docs/support.md#{anchor}) |")
    return "\n".join(lines)


def _rows_of(file: Path) -> list[Row]:
    found = []
    tree = ast.parse(file.read_text())
    for test in tree.body:
        if not isinstance(test, ast.FunctionDef) or not test.name.startswith("test_"):
            continue
        calls = [c for d in test.decorator_list for c in ast.walk(d) if isinstance(c, ast.Call)]
        for call in sorted(calls, key=lambda call: call.lineno):
            status = _marker(call.func)
            if status is None:
                continue
            try:
                area, feature, *note = [ast.literal_eval(argument) for argument in call.args]
                AREAS.index(area)
            except ValueError as error:
                raise ValueError(f"{file.name}:{call.lineno}: {error}") from error
            path = file.relative_to(TESTS).as_posix()
            found.append(Row(area, feature, STATUS[status], " ".join(note), path, test.name))
    return found


def _marker(function: ast.expr) -> str | None:
    text = ast.unparse(function)
    return next((name for name in STATUS if text == f"pytest.mark.{name}"), None)
