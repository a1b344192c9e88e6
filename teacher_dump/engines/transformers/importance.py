"""First-order importance of a model's heads, feed-forward neurons and residual dimensions.

Importance is how much a loss changes, to first order, when a part is taken away (Hou et al. 2020, "DynaBERT", arXiv
2004.04037, section 2.1; Chen et al. 2021, "Extract Then Distill", arXiv 2104.11928). Sums are over the rows r of a
sample, each of which counts as a batch of its own, so that it does not matter how rows are batched:

- head h of a layer: sum of |dL_r / dmask_h|, where mask_h = 1 multiplies the head's output;
- neuron j of a layer: sum of |W1_j . dL_r/dW1_j + b1_j dL_r/db1_j| + |W2_j . dL_r/dW2_j|, with the weights into and out
  of the neuron; in a gated network, the gate's weights are a third term;
- dimension j of the residual stream: sum over hidden states (the embeddings and each layer) and tokens of
  |x_j dL_r/dx_j|.

None of these needs the gradient of a weight. Scaling a tensor by a mask, or by all weights into it, changes it in
proportion to itself, so each term is a sum of activation times gradient: over a head's output for its mask, over a
neuron's value before the activation function for W1 and b1, and over its value after it for W2. So the memory is that
of activations alone, and a batch gives the terms of each of its rows.

Shapes: B rows, L tokens of the longest, N layers, H heads, D width, F neurons.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from shared.errors import TeacherError
from shared.models.attention import AlreadyRoutedError, configs_of, own_attention, routed
from shared.models.probe import probe_inputs
from teacher_dump.engines.batch import Batch
from teacher_dump.engines.transformers.teacher import Teacher

# (logits or None, last hidden states [B, L, D], batch) -> the sum of the rows' losses
Loss = Callable[[Tensor | None, Tensor, Batch], Tensor]


def importance_of(teacher: Teacher, batches: Iterable[Batch], loss: Loss) -> dict[str, Tensor]:
    """`heads` [N, H], `neurons` [N, F] and `residual` [D], float32 on the host, with one batch in memory at a time.

    Raises:
        TeacherError: for an architecture in which heads and neurons are not found, or for NaN or infinity.
    """
    networks = _networks_of(teacher)
    sums: dict[str, Tensor] = {}
    for batch in batches:
        for name, term in _terms(teacher, networks, batch.to(teacher.device), loss).items():
            sums[name] = sums[name] + term if name in sums else term
    if not all(values.isfinite().all() for values in sums.values()):
        raise TeacherError("--importance: NaN or infinity in the teacher's gradients; try --dtype fp32.")
    return {name: values.float() for name, values in sums.items()}


@dataclass(frozen=True)
class _Network:
    """The feed-forward network of a layer.

    Attributes:
        into: the projections into its neurons: one, or in a gated network two.
        out: the projection out of them.
    """

    into: tuple[nn.Module, ...]
    out: nn.Module


@dataclass
class _Seen:
    """The tensors of one forward pass: of each layer the heads' outputs [B, L, H, D of a head], and the neurons' values
    before [B, L, F or 2F] and after [B, L, F] the activation function."""

    heads: dict[int, Tensor]
    before: dict[int, list[Tensor]]
    after: dict[int, Tensor]


def _terms(teacher: Teacher, networks: list[_Network], batch: Batch, loss: Loss) -> dict[str, Tensor]:
    """The sums over the rows of one batch, float64 on the host."""
    with torch.enable_grad(), _watched(teacher, networks) as seen:
        inputs = {name: tensor for name, tensor in batch.inputs.items() if teacher.takes(name)}
        output = teacher.model(**inputs, output_hidden_states=True, return_dict=True)
        hidden = list(output.hidden_states)
        value = loss(teacher.task.logits_of(output), hidden[-1], batch)
    layers = range(len(networks))
    groups = [
        [seen.heads[layer] for layer in layers],
        [tensor for layer in layers for tensor in seen.before[layer]],
        [seen.after[layer] for layer in layers],
        hidden,
    ]
    watched = [tensor for group in groups for tensor in group]
    gradients = iter(torch.autograd.grad(value, watched, allow_unused=True))
    is_token_BL = batch.inputs["attention_mask"].bool()
    products = [[_product(each, next(gradients), is_token_BL) for each in group] for group in groups]
    heads, before, after, states = products
    per_layer = len(before) // len(networks)
    neurons = [_of_rows(term_BLF) for term_BLF in after]
    for at, term in enumerate(before):
        # A projection into gates and values at once is two, side by side.
        wide = term.unflatten(-1, (-1, len(neurons[0])))
        neurons[at // per_layer] = neurons[at // per_layer] + _of_rows(wide).sum(0)
    return {
        "heads": torch.stack([_of_rows(term_BLHD.sum(-1)) for term_BLHD in heads]),
        "neurons": torch.stack(neurons),
        "residual": sum((term_BLD.abs().sum((0, 1)).cpu().double() for term_BLD in states), torch.zeros(())),
    }


def _product(tensor: Tensor, gradient: Tensor | None, is_token_BL: Tensor) -> Tensor:
    """Tensor times gradient, float32; zero at padding, and for a tensor on which the loss does not depend."""
    if gradient is None:
        return torch.zeros_like(tensor, dtype=torch.float32)
    at_BL = is_token_BL.to(tensor.device).view(*is_token_BL.shape, *[1] * (tensor.dim() - 2))
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return torch.where(at_BL, tensor.detach().to(wide) * gradient.to(wide), 0.0)


def _of_rows(term_BL: Tensor) -> Tensor:
    """The absolute sums over each row's tokens, summed over rows; float64 on the host (some devices have none)."""
    return term_BL.sum(1).abs().sum(0).cpu().double()


@contextmanager
def _watched(teacher: Teacher, networks: list[_Network]) -> Iterator[_Seen]:
    """In the block, forward passes build a graph although no weight needs a gradient, and fill in what is watched."""
    seen = _Seen({}, {}, {})
    number_of = {id(module): number for number, layer in enumerate(teacher.trunk.modules) for module in layer.modules()}

    def begin(module: nn.Module, given: Any, output: Tensor) -> Tensor:
        seen.heads.clear()
        seen.before.clear()
        seen.after.clear()
        # The copy may be changed in place; what needs a gradient by itself may not.
        return output.detach().requires_grad_().clone()

    def attend(own: str, module: nn.Module, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        output, weights = own_attention(own, module)(module, *arguments, **options)
        if id(module) in number_of:
            seen.heads[number_of[id(module)]] = output
        return output, weights

    def keep_output(module: nn.Module, given: Any, output: Tensor) -> None:
        seen.before.setdefault(number_of[id(module)], []).append(output)

    def keep_input(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen.after[number_of[id(module)]] = given[0]

    with ExitStack() as stack:
        stack.enter_context(_routed(teacher, attend))
        hooks = [teacher.model.get_input_embeddings().register_forward_hook(begin)]
        for network in networks:
            hooks += [module.register_forward_hook(keep_output) for module in network.into]
            hooks.append(network.out.register_forward_pre_hook(keep_input))
        for hook in hooks:
            stack.callback(hook.remove)
        yield seen


@contextmanager
def _routed(teacher: Teacher, attend: Callable[..., tuple[Tensor, Tensor | None]]) -> Iterator[None]:
    try:
        with routed(configs_of(teacher.model), attend):
            yield
    except AlreadyRoutedError:
        raise _refusal(teacher, "its attention is used by something else") from None


def _networks_of(teacher: Teacher) -> list[_Network]:
    """The feed-forward network of each layer, found by running a probe.

    In the order in which they run, the linear modules of a layer after its attention are the projection of the heads'
    outputs, one or two projections into neurons, and one out of them.

    Raises:
        TeacherError: where a layer is anything else, or layers differ in heads or neurons.
    """
    model, layers = teacher.model, teacher.trunk.modules
    if model.config.is_encoder_decoder or not layers or not teacher.trunk.gives_states:
        raise _refusal(teacher, "it is no single stack of layers")
    ran: list[list[Any]] = [[] for _ in layers]
    number_of = {id(module): number for number, layer in enumerate(layers) for module in layer.modules()}

    def attend(own: str, module: nn.Module, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        output, weights = own_attention(own, module)(module, *arguments, **options)
        if id(module) in number_of:
            ran[number_of[id(module)]].append(output.shape[2:])
        return output, weights

    def note(module: nn.Module, given: Any, output: Any) -> None:
        ran[number_of[id(module)]].append(module)

    linear = [module for layer in layers for module in layer.modules() if isinstance(module, nn.Linear | Conv1D)]
    hooks = [module.register_forward_hook(note) for module in linear]
    try:
        with _routed(teacher, attend), torch.inference_mode():
            model(**probe_inputs(model))
    finally:
        for hook in hooks:
            hook.remove()
    found = [_network(teacher, calls) for calls in ran]
    if len({(heads, _sizes(network.out)[0]) for heads, network in found}) > 1:
        raise _refusal(teacher, "its layers differ in their numbers of heads or neurons")
    return [network for _, network in found]


def _network(teacher: Teacher, calls: list[Any]) -> tuple[int, _Network]:
    """(heads, the feed-forward network) of a layer, from what ran in it: linear modules, and the attention's shape."""
    attended = [at for at, call in enumerate(calls) if isinstance(call, torch.Size)]
    if len(attended) != 1:
        raise _refusal(teacher, "its attention cannot be looked into")
    (heads, width), after = calls[attended[0]], calls[attended[0] + 1 :]
    if len(after) not in (3, 4):
        raise _refusal(teacher, "its feed-forward networks are not two or three projections")
    projection, *into, out = after
    neurons = _sizes(out)[0]
    # A single projection may be into gates and values at once.
    wide = {neurons, 2 * neurons} if len(into) == 1 else {neurons}
    fits = (
        _sizes(projection) == (heads * width, teacher.width)
        and _sizes(out)[1] == teacher.width
        and all(_sizes(module)[0] == teacher.width and _sizes(module)[1] in wide for module in into)
        and len({id(module) for module in after}) == len(after)
    )
    if not fits:
        raise _refusal(teacher, "its layers are not attention and one feed-forward network")
    return heads, _Network(tuple(into), out)


def _sizes(module: Any) -> tuple[int, int]:
    """(width of the input, width of the output) of a linear module."""
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    return module.in_features, module.out_features


def _refusal(teacher: Teacher, reason: str) -> TeacherError:
    return TeacherError(
        f"--importance: the heads and neurons of {type(teacher.model).__name__} are not found, because {reason}; leave "
        "the option out."
    )
