"""`dump --attention-inputs`: the projections with which queries, keys and values are computed from a layer's input."""

from shared.dump.signals import ATTENTION_INPUTS
from shared.dump.weights.projections import to_file
from shared.dump.weights.tensor_file import TensorFile
from shared.errors import UsageError
from shared.options import flag_of
from teacher_dump.engines.base import Engine
from teacher_dump.request import Request


def attention(request: Request, engine: Engine) -> TensorFile | None:
    """The file of the projections of the layers whose inputs are recorded, in the teacher's own type.

    Raises:
        TeacherError: for a teacher whose queries, keys and values cannot be computed from them.
    """
    layers = attention_input_layers(request, engine)
    layers += [signal.layer for signal in request.signals if signal.site == ATTENTION_INPUTS and signal.layer]
    if not layers:
        return None
    tensors, facts = to_file(engine.attention_projections(sorted(set(layers)), request.max_length))
    return TensorFile.of(tensors, **facts)


def attention_input_layers(request: Request, engine: Engine) -> list[int]:
    """The layers of --attention-inputs. Raises UsageError for layers that the teacher lacks."""
    offered = [layer for layer in engine.offers().get(ATTENTION_INPUTS, ()) if layer is not None]
    if request.attention_inputs != "none" and not offered:
        # Refused with what the teacher gives, when the signal is checked.
        return [1]
    return layers_named("attention_inputs", request.attention_inputs, max(offered, default=0))


def layers_named(option: str, named: str, layers: int) -> list[int]:
    """The layers that an option names: none, last, all or numbers from 1 to `layers`.

    Raises:
        UsageError: for anything else.
    """
    known = {"none": [], "last": [layers], "all": list(range(1, layers + 1))}
    if named in known:
        return known[named]
    numbers = named.split(",")
    if not all(part.isdecimal() and len(part) < 10 and 1 <= int(part) <= layers for part in numbers):
        raise UsageError(
            f"{flag_of(option)} {named!r}: use none, last, all, or layers from 1 to {layers} such as "
            f"{max(1, layers - 1)},{layers}."
        )
    return sorted({int(part) for part in numbers})
