"""Files of a checkpoint: in a local directory, or in the cache of a model hub."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

__all__ = ["CheckpointFiles", "UnreadableCheckpoint", "locate"]

_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".h5", ".msgpack")


class UnreadableCheckpoint(ValueError):
    """A checkpoint whose files do not give full-precision weights; the message says why."""


class CheckpointFiles(Protocol):
    """The files of one checkpoint."""

    @property
    def name(self) -> str:
        """The checkpoint's directory or repository id, for messages."""

    @property
    def revision(self) -> str | None:
        """The commit that the files come from, None for a directory."""

    def find(self, filename: str) -> Path | None:
        """Return the path of a file, None if the checkpoint has none of that name."""

    def what_else(self) -> str:
        """Return a clause that lists other weight files, empty if none are known."""


def locate(model: str | Path, revision: str | None = None) -> CheckpointFiles:
    """Return the files of a local directory, or else of a model repository.

    Args:
        model: Directory or repository id.
        revision: Branch, tag or commit of the repository.
    """
    directory = Path(model)
    return _Directory(directory) if directory.is_dir() else _Repository(str(model), revision)


class _Directory:
    revision = None

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def name(self) -> str:
        return str(self._path)

    def find(self, filename: str) -> Path | None:
        path = self._path / filename
        return path if path.is_file() else None

    def what_else(self) -> str:
        files = sorted(p.name for p in self._path.iterdir() if p.suffix in _WEIGHT_SUFFIXES)
        return f" (it has {', '.join(files)})" if files else ""


class _Repository:
    def __init__(self, repository: str, revision: str | None) -> None:
        self.name = repository
        self.revision = revision

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
