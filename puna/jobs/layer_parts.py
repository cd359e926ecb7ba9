"""What a compression layer by layer has finished, on the disk: each layer's factors and the stream into the next one.

A layer's files are written whole, then the journal that tells of them, by their digests, is replaced, then the stream
before is removed: killed at any moment, what the journal tells of is there, and the rest is removed on opening.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from puna.compression.layerwise import Factors, Stream
from puna.errors import CheckpointMismatch
from puna.files import JOURNAL, read_json, remove_folder, sha256_file, staged_file, write_json
from puna.jobs.resuming import check_data, other_machine
from puna.training.checkpoint import machine_record
from puna.weights.safetensors_file import read_tensor_headers
from puna.weights.tensors import map_tensor, read_tensors, write_tensors

__all__ = ["LayerParts", "judged_before"]

_STREAM = "stream"


class LayerParts:
    """A folder of finished layers; `layers` counts them, `seconds` is what the last one took (None: there is none).

    `notices` says what costs the equality to the bit.
    """

    def __init__(self, folder: Path, data: Mapping[str, str]) -> None:
        """Args:   data: the digests of what the factors are made of, by name.
        Errors: CheckpointMismatch: begun from other data, or a file was changed since.
        """
        self._folder, self._data = folder, dict(data)
        self._files: dict[str, str] = {}
        self.layers, self.notices = 0, list[str]()
        self.seconds: float | None = None
        if not (folder / JOURNAL).exists():
            remove_folder(folder)
            return
        journal: dict[str, Any] = read_json(folder / JOURNAL)
        check_data(folder, journal["data"], self._data)
        self._files, self.layers, self.seconds = journal["files"], journal["layers"], journal["seconds"]
        self.notices += filter(None, [other_machine(journal["machine"])])
        self._verify()

    @property
    def bytes(self) -> int:
        """What the finished layers take on the disk."""
        return sum((self._folder / name).stat().st_size for name in self._files)

    def stream(self, lengths: tuple[int, ...]) -> Stream:
        """The stream into the next layer, in memory. Args: lengths: tokens of each window."""
        path = self._folder / self._stream_name(self.layers)
        return Stream(dict(read_tensors(path, {_STREAM: None}))[_STREAM], lengths)

    def save(
        self,
        factors: Mapping[str, Factors],
        stream: Stream | None,
        clock: Callable[[], float],
        judged: Mapping[str, Any],
    ) -> None:
        """Keep another layer.

        Args:   stream: into the next one; None: there is none. clock: tells the seconds that the layer took.
                judged: how the dense model was judged, for `judged_before`.
        Errors: DiskFull.
        """
        before, after = self._stream_name(self.layers), self._stream_name(self.layers + 1)
        tensors = {
            f"{path}.{name}": part for path, pair in factors.items() for name, part in zip("UV", pair, strict=True)
        }
        self._write(self._layer_name(self.layers), tensors)
        if stream is not None:
            self._write(after, {_STREAM: stream.x_ND})
        self._files.pop(before, None)
        self.layers, self.seconds = self.layers + 1, clock()
        facts = {"data": self._data, "machine": machine_record(), "judged": dict(judged)}
        journal = {**facts, "layers": self.layers, "seconds": self.seconds, "files": self._files}
        write_json(self._folder / JOURNAL, journal)
        remove_folder(self._folder / before)

    def factors(self, layer: int) -> dict[str, Factors]:
        """(U, V) of a finished layer's Linears by path, left in their file, mapped."""
        path = self._folder / self._layer_name(layer)
        mapped = {header.name: map_tensor(self._folder, header) for header in read_tensor_headers(path)[0]}
        paths = dict.fromkeys(name.rpartition(".")[0] for name in mapped)
        return {each: (mapped[f"{each}.U"], mapped[f"{each}.V"]) for each in paths}

    def _write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        with staged_file(self._folder / name) as staged:
            write_tensors(staged, tensors)
        self._files[name] = sha256_file(self._folder / name)

    def _verify(self) -> None:
        for path in self._folder.iterdir():
            if path.name not in (JOURNAL, *self._files):
                remove_folder(path)  # what a kill left behind the last journal
        for name, digest in self._files.items():
            path = self._folder / name
            if not path.is_file() or sha256_file(path) != digest:
                raise CheckpointMismatch(
                    f"{path}: changed since it was written", f"remove {self._folder} to begin anew"
                )

    @staticmethod
    def _layer_name(layer: int) -> str:
        return f"layer_{layer:04d}.safetensors"

    @staticmethod
    def _stream_name(layer: int) -> str:
        return f"stream_{layer:04d}.safetensors"


def judged_before(folder: Path) -> dict[str, Any]:
    """What the last `save` in a folder was given as `judged`; empty where nothing was saved."""
    return read_json(folder / JOURNAL)["judged"] if (folder / JOURNAL).exists() else {}
