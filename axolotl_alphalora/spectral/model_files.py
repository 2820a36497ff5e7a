"""Files of a checkpoint: in a local directory, or in the cache of a model hub."""

from __future__ import annotations

import re
from pathlib import Path

from ..files import ADAPTER_CONFIG, adapter_below, read_adapter_config

_POINTER = b"version https://git-lfs.github.com/spec/"
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".h5", ".msgpack")
_NO_MODEL = re.compile(
    r"(adapter_model|optimizer|scheduler|scaler|rng_state|training_args|dataloader_state|sampler"
    r"|dl_state_dict|pytorch_model_fsdp).*"
)
"""Names of files that training leaves beside an adapter."""

FORMATS = ("model.safetensors", "pytorch_model.bin")
"""Names of weight files, the one that is preferred first; in shards with an index beside them."""

_TOKENIZER = ("tokenizer.json", "*.model")


class UnreadableCheckpoint(ValueError):
    """A checkpoint whose files do not give full-precision weights; the message says why."""


def locate(model: str | Path, revision: str | None = None) -> Directory | Repository:
    """Return the files of a local directory, or else of a model repository.

    Args:
        model: Directory or repository id.
        revision: Branch, tag or commit of the repository.
    """
    directory = Path(model)
    return Directory(directory) if directory.is_dir() else Repository(str(model), revision)


def check_model_files(model: str | Path, tokenizer: bool = True) -> None:
    """Check that what is given as a base model can be one, before anything of it is read.

    Args:
        model: Directory, path of a `.gguf` file, or repository id, which is taken as it is.
        tokenizer: Whether its tokenizer will be needed too.

    Raises:
        UnreadableCheckpoint: If it is the directory of an adapter, or of a run that holds adapters,
            or if a file that is needed is a pointer of git-lfs; says what to do.
    """
    path = Path(model)
    if path.is_file():
        check_pointer(path)
    if not path.is_dir():
        return
    adapter = _adapter_in(path)
    if adapter is not None and not holds_model(path):
        raise UnreadableCheckpoint(_no_base_model(path, adapter))
    needed = ["config.json", *_weights_of(path), *(_TOKENIZER if tokenizer else ())]
    for file in (file for pattern in needed for file in sorted(path.glob(pattern))):
        check_pointer(file)


def holds_model(directory: Path) -> bool:
    """Whether a directory holds the weights of a whole model, as far as names tell."""
    if (directory / ADAPTER_CONFIG).is_file() and not (directory / "config.json").is_file():
        return False
    return any(
        file.suffix in _WEIGHT_SUFFIXES and not _NO_MODEL.fullmatch(file.name)
        for file in directory.iterdir()
    )


def check_pointer(path: Path) -> None:
    """Check that a file is what it should be, and not what git keeps in its place.

    Raises:
        UnreadableCheckpoint: If it is a pointer of git-lfs; says what to do.
    """
    with path.open("rb") as file:
        pointer = file.read(len(_POINTER)) == _POINTER
    if pointer:
        raise UnreadableCheckpoint(
            f"{path} is a pointer of git-lfs and not the file itself, which was never fetched: run "
            f"`git lfs pull` in {path.parent}"
        )


class Directory:
    """The files of a checkpoint in a local directory.

    Attributes:
        name: The directory, for messages.
        revision: None; that of a repository's is the commit that its files come from.
    """

    revision = None

    def __init__(self, path: Path) -> None:
        self.name, self._path = str(path), path

    def find(self, filename: str) -> Path | None:
        """Return the path of a file, None if the checkpoint has none of that name."""
        path = self._path / filename
        if not path.is_file():
            return None
        check_pointer(path)
        return path

    def what_else(self) -> str:
        """Return a clause that lists other weight files, empty if none are known."""
        files = sorted(p.name for p in self._path.iterdir() if p.suffix in _WEIGHT_SUFFIXES)
        return f" (it has {', '.join(files)})" if files else ""


class Repository:
    """The same of a model repository, from the cache or the hub."""

    def __init__(self, repository: str, revision: str | None) -> None:
        self.name, self.revision = repository, revision

    def find(self, filename: str) -> Path | None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HFValidationError

        try:
            path = Path(hf_hub_download(self.name, filename, revision=self.revision))
        except EntryNotFoundError:
            return None
        except HFValidationError as error:
            raise UnreadableCheckpoint(
                f"{self.name!r} is neither a directory nor the id of a model repository"
            ) from error
        except OSError as error:
            raise UnreadableCheckpoint(
                f"cannot get {filename} of {self.name!r}, revision {self.revision or 'main'}: "
                f"{error}"
            ) from error
        if path.parent.parent.name == "snapshots":
            self.revision = path.parent.name
        return path

    def what_else(self) -> str:
        return " in the cache or on the hub"


def _weights_of(directory: Path) -> list[str]:
    """Patterns of the weight files that loading a model takes: one format, the first there is."""
    for name in FORMATS:
        stem, _, suffix = name.partition(".")
        index = f"{name}.index.json"
        if any((directory / file).is_file() for file in (name, index)):
            return [index, name, f"{stem}-*.{suffix}"]
    return []


def _adapter_in(directory: Path) -> Path | None:
    """The directory of an adapter: this one, or the newest below it."""
    return directory if (directory / ADAPTER_CONFIG).is_file() else adapter_below(directory)


def _no_base_model(directory: Path, adapter: Path) -> str:
    try:
        known = read_adapter_config(adapter)
    except (OSError, ValueError):
        known = {}
    base = known.get("base_model_name_or_path")
    key = "alphalora.init_from" if known.get("peft_type") == "LORA" else "lora_model_dir"
    what = "an adapter" if adapter == directory else f"the adapter {adapter.name}"
    return (
        f"{directory} holds {what} and no base model. Name the model that it was trained on as "
        f"`base_model`{f' ({base})' if base else ''}, and {adapter} as `{key}`."
    )
