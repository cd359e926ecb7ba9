"""A checkpoint's parameters as a plain Llama has them: W = U V multiplied out, codes dequantised, W + s B A folded in.

All of it is formed in float32, one matrix at a time. Format: docs/formats.md 7.
"""

from torch import Tensor

from puna.arch.modules import EMBEDDING, HEAD
from puna.errors import UsageError
from puna.model.embedding import FactoredEmbedding
from puna.model.linears.adapter import Adapter
from puna.model.linears.kind import dense_weight
from puna.weights.checkpoint import CheckpointHeader
from puna.weights.kinds import empty_linear
from puna.weights.names import ExpectedTensor, entry_of_each, expected_tensors
from puna.weights.stored import StoredTensors
from puna.weights.tensor_header import BLOCKS
from puna.weights.tensors import refuse_non_finite

__all__ = ["DenseTensors"]


class DenseTensors:
    """The dense parameters of a checkpoint by path, read when they are asked for.

    Attributes: shapes: of every parameter, in model order. dtypes: the type that each is stored in, of factors theirs.
    """

    def __init__(self, header: CheckpointHeader, adapter: Adapter | None = None) -> None:
        """Errors: CheckpointMismatch: an adapter for another model. FormatError. UsageError: it would untie the head."""
        self._header, self._adapter = header, adapter
        self._stored = StoredTensors(header)
        self._parts = {expected.path: expected for expected in header.expected()}
        self._entries = entry_of_each(header.stored.linears)
        self.shapes = {item.path: item.shape for item in expected_tensors(header.config, kind="hf")}
        self.dtypes = {path: self._stored.dtype(self._part_of(path)) for path in self.shapes}
        if adapter is not None:
            if header.config.tied_embeddings and not adapter.tensors.keys().isdisjoint((EMBEDDING, HEAD)):
                raise UsageError(
                    f"{header.path}: the adapter changes the embedding or the head alone, and here they are one weight",
                    "puna adapt merge unties them; then convert the merged model",
                )
            adapter.check_fits({path.removesuffix(".weight"): shape for path, shape in self.shapes.items()})

    def __getitem__(self, path: str) -> Tensor:
        """A parameter: as it is stored, or float32 where it had to be formed. Errors: FormatError: NaN or infinity."""
        module = path.removesuffix(".weight")
        if module in self._entries:
            weight = self._formed(module)
        elif path in self._parts:
            weight = self._stored[self._parts[path]]
        else:
            weight = self._table()
        refuse_non_finite(self._header.path, path, weight)
        if self._adapter is not None and module in self._adapter.tensors:
            weight = self._adapter.merged(module, weight)
        return weight

    def codes(self, path: str) -> Tensor | None:
        """The stored codes of a parameter that is kept in blocks, in the file's own layout; None where an adapter changes it."""
        is_changed = self._adapter is not None and path.removesuffix(".weight") in self._adapter.tensors
        if is_changed or self.dtypes[path] not in BLOCKS:
            return None
        return self._stored.mapped(self._parts[path])[0]

    def _part_of(self, path: str) -> ExpectedTensor:
        """The stored tensor whose type a parameter takes: its own, that of dense factors, a norm in place of codes."""
        module = path.removesuffix(".weight")
        if module not in self._entries:
            return self._parts.get(path) or self._parts[f"{module}.Z"]
        own = {"low_rank": "U", "fused": "U", "corrected": "L"}.get(self._entries[module].kind)
        return self._parts.get(f"{module}.{own}", self._parts["norm.weight"])

    def _table(self) -> Tensor:
        """The input table of its factors; a tied head gets its mean too, which moves all logits alike."""
        parts = (self._stored[self._parts[f"{EMBEDDING}.{name}"]] for name in ("Z", "R", "mean"))
        return FactoredEmbedding(*parts).dense_weight()

    def _formed(self, module: str) -> Tensor:
        """A weight of its parts, the shared factor of a group among them."""
        entry = self._entries[module]
        d_out, d_in = self.shapes[f"{module}.weight"]
        linear, tensors = empty_linear(entry, d_out, d_in), {}
        for name in linear.state_dict():
            own = f"{module}.{name}"
            tensors[name] = self._stored[self._parts[own if own in self._parts else f"{entry.paths[0]}.{name}"]]
        linear.load_state_dict(tensors, assign=True)
        return dense_weight(linear)
