"""What the tensors of one training step take, moment by moment: the step runs on tensors that have only shapes.

Shape legend: B rows, T tokens of a row, h hidden size, a heads x head size, i intermediate size, V vocabulary.

Autograd keeps, of each operation, what its gradient needs. Counted by hand for one layer of GLM that is trained in
full in float32, in numbers per token:

- each of the two norms: its input, the normalized input (for the gradient of the scale) and its result, which the next
  projections need: 3h
- attention: queries, keys and values (both as wide as the queries by then) and the result: 4a
- the MLP: gate and up in one tensor, silu(gate), and the product that the last projection takes: 4i

Together 6h + 4a + 4i; for GLM-4-9B 95,744 numbers or 383 kB a token and layer. Fused layers (`fused_layers.py`) keep no
normalized input, and of the MLP gate and up alone: 4h + 4a + 2i, 60,160 numbers. But the sum is another one for each
adapter (LoRA keeps what goes into its dropout and its two matrices, and nothing for the frozen weight), for each data
type (autocast keeps copies), with a mask, with experts, and for each architecture; and the backward pass needs room of
its own. So it is not written down here, but counted: the model's own layers run forward and backward on fake tensors,
which have a shape, a type and a lifetime, and no memory. All layers are alike, so that two or three of them are enough.
A test holds the count against the formula above, `benchmarks/estimate_accuracy.py` against real steps.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode  # not public, but what `torch.export` is built on
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glmtune.errors import GlmtuneError
from glmtune.kernels.fused_layers import KINDS, MLPS, FusedLayers

from .loss_memory import fused_loss

ACTIVATIONS, LOGITS, GRADIENTS = "activations", "logits", "gradients"

NUM_LAYERS_COUNTED = (2, 3)
"""The first layer may keep less than the others: below it nothing is trained under LoRA."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The shape of a micro-batch, and how it is trained on."""

    num_rows: int
    length_tokens: int
    """Of each row."""
    num_labelled: int
    """Tokens with a label, over all rows."""
    is_packed: bool
    """Whether the rows lie end to end, for an attention that is told where each begins; else side by side."""
    has_mask: bool
    """Whether attention needs a mask: B x T x T, once for the model and once more in each layer."""


@dataclass(frozen=True)
class Moment:
    """Bytes in use at one moment of a step, beside weights and the optimizer's state."""

    activations: float = 0
    """What autograd keeps, and what the operation at hand works on."""
    logits: float = 0
    """Logits and what else the loss needs."""
    gradients: float = 0
    """Of weights."""

    @property
    def total(self) -> float:
        """Return the sum of all parts."""
        return self.activations + self.logits + self.gradients


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """The two moments that a step's peak can be at; what is in between lies between them."""

    start: Moment
    """When the backward pass starts: all activations are there, but few gradients."""
    end: Moment
    """When it ends: all gradients are there, but the activations of one layer only."""


def step_memory(
    model: Any,
    batch: Batch,
    *,
    autocast: torch.dtype | None,
    has_gradients: bool,
    device: str,
    fuses_layers: bool = True,
    shards_weights: bool = False,
    loss_dtype: torch.dtype = torch.float32,
    has_wide_layers: bool = False,
) -> dict[bool, StepMemory]:
    """Return what a forward and backward pass takes, without and with gradient checkpointing (False and True).

    Args:
        model: On the `meta` device, adapted; it is left with fewer layers and with other weights, of no more use.
        batch: The shape of the input.
        autocast: The type that is computed in, where it is not that of the weights.
        has_gradients: Whether gradients of an earlier micro-batch are there already (gradient accumulation).
        device: `cpu` or `cuda`, which the loss is computed on.
        fuses_layers: Whether layers are trained in their cheaper form, see `fused_layers.py`.
        shards_weights: Whether weights are whole only inside of their modules (ZeRO-3).
        loss_dtype: What a CPU computes the loss in.
        has_wide_layers: Whether its linear layers compute in float32 what autocast would compute in half.

    Raises:
        GlmtuneError: The model computes something that depends on more than shapes.
    """
    decoder = _decoder(model)
    layers = list(decoder.layers)
    kinds = KINDS if not shards_weights else (MLPS,)
    counted = [n for n in NUM_LAYERS_COUNTED if n <= len(layers)]
    if len(counted) < len(NUM_LAYERS_COUNTED):
        counted = [len(layers)]
    num_missing = len(layers) - max(counted)
    counts: dict[bool, list[StepMemory]] = {False: [], True: []}
    decoder.layers = nn.ModuleList(layers[-max(counted) :])
    with FakeTensorMode(allow_non_fake_inputs=True), _data_dependence_explained(model):
        _give_shapes(model, device)
        layers = list(decoder.layers)
        # In this order: what checkpointing sets up for adapters stays when it is switched off.
        for checkpointing, found in counts.items():
            _set_checkpointing(model, checkpointing)
            for n in counted:
                decoder.layers = nn.ModuleList(layers[-n:])
                fused = FusedLayers(
                    model, recomputes=checkpointing or shards_weights, kinds=kinds, is_wide=has_wide_layers
                )
                with fused.in_use() if fuses_layers else nullcontext():
                    found.append(
                        _count(
                            model,
                            batch,
                            autocast=autocast,
                            has_gradients=has_gradients,
                            device=device,
                            loss_dtype=loss_dtype,
                        )
                    )
    return {
        checkpointing: StepMemory(
            start=_extrapolate(found[0].start, found[-1].start, num_missing),
            end=_extrapolate(found[0].end, found[-1].end, num_missing),
        )
        for checkpointing, found in counts.items()
    }


def _set_checkpointing(model: Any, is_on: bool) -> None:
    if is_on:
        # Which random numbers a dropout draws makes no difference to its size.
        model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})


class _LiveTensors(TorchDispatchMode):
    """Counts the bytes of all storages that live, by what they are for, and keeps every moment of it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kind = ACTIVATIONS
        """What the storages made from now on are for."""
        self.moments: list[Moment] = []
        self._bytes = {ACTIVATIONS: 0, LOGITS: 0, GRADIENTS: 0}
        self._kinds: dict[int, str | None] = {}
        self._references: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.count(leaf, self.kind)
        return result

    def count(self, tensor: torch.Tensor, kind: str | None) -> None:
        """Count the storage of a tensor for as long as it lives; None is for what is not to be counted."""
        storage = tensor.untyped_storage()
        key = id(storage)  # a storage keeps its Python object for life
        if key in self._references:
            return
        num_bytes = storage.nbytes()
        self._references[key] = weakref.ref(storage, partial(self._forget, key, num_bytes))
        self._kinds[key] = kind
        self._add(kind, num_bytes)
        self.moments.append(Moment(**self._bytes))

    def call_gradient(self, weight: torch.Tensor) -> None:
        """Count the tensor that has become a weight's gradient as such."""
        assert weight.grad is not None, "called when a gradient has arrived"
        storage = weight.grad.untyped_storage()
        key = id(storage)
        if key in self._references and self._kinds[key] not in (GRADIENTS, None):
            self._add(self._kinds[key], -storage.nbytes())
            self._kinds[key] = GRADIENTS
            self._add(GRADIENTS, storage.nbytes())

    def _forget(self, key: int, num_bytes: int, reference: weakref.ref[Any]) -> None:
        del self._references[key]
        self._add(self._kinds.pop(key), -num_bytes)

    def _add(self, kind: str | None, num_bytes: int) -> None:
        if kind is not None:
            self._bytes[kind] += num_bytes


def _count(
    model: Any,
    batch: Batch,
    *,
    autocast: torch.dtype | None,
    has_gradients: bool,
    device: str,
    loss_dtype: torch.dtype,
) -> StepMemory:
    tensors = _LiveTensors()
    for tensor in (*model.parameters(), *model.buffers()):
        tensors.count(tensor, None)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trained:
        weight.grad = torch.empty_like(weight) if has_gradients else None
        if weight.grad is not None:
            tensors.count(weight.grad, GRADIENTS)
    handles = [weight.register_post_accumulate_grad_hook(tensors.call_gradient) for weight in trained]
    last_layer_since = _watch_last_layer(model, tensors, handles)
    inputs = _inputs(batch, device)
    with tensors, _loss_for_logits(model, batch.num_labelled, tensors, device, loss_dtype):
        with torch.autocast("cpu", dtype=autocast) if autocast else nullcontext():
            loss = model(**inputs, use_cache=False).logits
        loss.backward()
    for handle in handles:
        handle.remove()
    for weight in trained:
        weight.grad = None
    return StepMemory(
        start=max(tensors.moments, key=lambda moment: moment.activations + moment.logits),
        end=max(tensors.moments[last_layer_since[0] :], key=lambda moment: moment.total),
    )


class _Starts(list[int]):
    """Where rows begin that lie end to end: of all tensors of a batch the one whose values decide about memory."""

    def __init__(self, starts: Iterable[int], device: str) -> None:
        super().__init__(starts)
        self.device = torch.device(device)

    def tolist(self) -> list[int]:
        return self


def _inputs(batch: Batch, device: str) -> dict[str, Any]:
    ids = torch.zeros(batch.num_rows, batch.length_tokens, dtype=torch.long)
    if batch.is_packed:
        starts = _Starts(range(0, ids.numel() + 1, batch.length_tokens), device)
        return {"input_ids": ids.view(1, -1), "cu_seq_lens_q": starts, "max_length_q": batch.length_tokens}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids) if batch.has_mask else None}


def _watch_last_layer(model: Any, tensors: _LiveTensors, handles: list[Any]) -> list[int]:
    """Return a list whose only number becomes that of the moment when the backward pass reaches the first layer."""
    since = [0]

    def note(gradient: torch.Tensor) -> None:
        since[0] = len(tensors.moments)

    def watch(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and args[0].requires_grad:
            args[0].register_hook(note)

    layers = _decoder(model).layers
    if len(layers) > 1:
        handles.append(layers[1].register_forward_pre_hook(watch))
    return since


@contextmanager
def _loss_for_logits(
    model: Any, num_labelled: int, tensors: _LiveTensors, device: str, loss_dtype: torch.dtype
) -> Iterator[None]:
    """Have the model return the loss in the place of logits, as in training."""
    head = _base(model).get_output_embeddings()
    logits = head.forward

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        tensors.kind = LOGITS
        if isinstance(head, nn.Linear) and head.bias is None:
            loss = fused_loss(hidden, head, num_labelled, device, loss_dtype)
        else:  # one of an adapter: its logits are computed whole
            few = logits(hidden).flatten(0, 1)[:num_labelled].float()
            loss = F.cross_entropy(few, torch.zeros(num_labelled, dtype=torch.long), reduction="sum")
        tensors.kind = ACTIVATIONS
        return loss

    head.forward = forward
    try:
        yield
    finally:
        head.forward = logits


def _base(model: Any) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _decoder(model: Any) -> Any:
    decoder = _base(model).get_decoder()
    if not isinstance(getattr(decoder, "layers", None), nn.ModuleList):
        raise GlmtuneError(f"the layers of {type(_base(model)).__name__} are not where those of other models are")
    return decoder


def _give_shapes(model: Any, device: str) -> None:
    """Put fake tensors in the place of those on the `meta` device, which autocast does not know."""
    # Not `to_empty`, which comes twice to a module that stands in two places, as the embeddings below PEFT's prefix do,
    # and cannot exchange a fake tensor for another.
    made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if id(tensor) not in made:
                empty = torch.empty_like(tensor, device="cpu")
                is_weight = isinstance(tensor, nn.Parameter)
                made[id(tensor)] = tensor, nn.Parameter(empty, tensor.requires_grad) if is_weight else empty
            setattr(module, name, made[id(tensor)][1])
    _base(model).tie_weights()
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout) and module.p and device == "cuda":
            module.forward = partial(_dropout_on_cuda, module.p)  # type: ignore[method-assign]


def _dropout_on_cuda(share: float, states: torch.Tensor) -> torch.Tensor:
    """Keep one byte for each number, as a GPU does; a CPU keeps its factors in the type of the numbers."""
    return torch.native_dropout(states, share, True)[0]


@contextmanager
def _data_dependence_explained(model: Any) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # an operation that looks at values, or that is not there for these types
        reason = str(error).splitlines()[0]
        raise GlmtuneError(f"the memory of {type(_base(model)).__name__} cannot be counted: {reason}") from error


def _extrapolate(fewer: Moment, more: Moment, num_layers: int) -> Moment:
    """Return what `more` becomes with so many more layers, where each adds what the last one added to `fewer`."""
    return Moment(*(b + num_layers * (b - a) for a, b in zip(astuple(fewer), astuple(more))))
