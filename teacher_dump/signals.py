"""From the options of a command to the signals that it requests, with their codecs.

The threshold of a byte budget and the constants of vector codecs are fitted to a sample later (calibrate.py). Here they
get initial values.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import ValidationError

from shared.dump.codecs import (
    CODECS,
    VECTOR_KINDS,
    Codec,
    Dense,
    Draws,
    Selection,
    Sparse,
    Threshold,
    TopK,
    TopP,
    VectorCodec,
)
from shared.dump.codecs.selection.budget import FIRST_THRESHOLD
from shared.dump.codecs.selection.presets import DEFAULT_PRESET, PRESETS
from shared.dump.signals import ATTENTION_INPUTS, DISTRIBUTION, EMBEDDING, HIDDEN, RELATIONS, SITES, Signal, SignalKey
from shared.errors import TeacherError, UsageError
from shared.options import flag_of
from shared.validation import in_words, message_of
from teacher_dump.engines.base import Engine
from teacher_dump.request import MOST_TOP_P_IDS, Request, SignalRequest
from teacher_dump.tensor_files.attention import attention_input_layers, layers_named

Made = TypeVar("Made")
# (name of the signal, codec of its states) -> its codec
MakeExact = Callable[[str, str], Codec]

# More ids are worth more than finer probabilities (`just bench-codec`: threshold with 30 levels against 130).
BUDGET_LEVELS = 64
# Beyond them, a distribution is a single class, or uniform.
TEMPERATURES = 0.01, 1000


def distribution(
    request: Request, classes: int | None, exact: MakeExact | None, is_whole: bool = False
) -> tuple[Signal, ...]:
    """The signal of the distribution, or no signal for a task without distributions.

    Args:
        classes: the number of classes; None for a task without distributions.
        exact: makes the codec `Exact`; None if the classes are not a vocabulary.
        is_whole: whether the layout needs all logits.

    Raises:
        UsageError: for options that exclude each other, or that do not fit this number of classes.
        TeacherError: for --exact with a teacher whose logits cannot be computed from a state and a head.
    """
    codec = _codec_of_distribution(request, classes, exact, is_whole)
    return () if codec is None else (Signal.of(DISTRIBUTION, None, codec),)


def _codec_of_distribution(
    request: Request, classes: int | None, exact: MakeExact | None, is_whole: bool
) -> Codec | None:
    asked = _asked(request)
    if request.exact_codec not in VECTOR_KINDS:
        raise UsageError(f"--exact-codec {request.exact_codec!r}: use {', '.join(VECTOR_KINDS)}.")
    if request.exact_codec != "float16" and not request.exact:
        raise UsageError("--exact-codec says how --exact keeps last hidden states; give --exact too.")
    if classes is None:
        if asked:
            raise UsageError(f"the task {request.task} has no distribution; leave out {flag_of(next(iter(asked)))}.")
        return None
    for signal in request.signals:
        if SITES.named(signal.site).holds == "distributions":
            if asked:
                flag = flag_of(next(iter(asked)))
                raise UsageError(f"{flag} and the request for {signal.site!r} exclude each other.")
            if is_whole:
                raise UsageError(
                    f"the task {request.task} keeps all logits; leave out the request for {signal.site!r}."
                )
            return _codec_of(signal, classes)
    names = list(asked)
    if is_whole and set(names) - {"dense", "exact"}:
        raise UsageError(f"the task {request.task} keeps all logits, 8 bytes a token; leave out {flag_of(names[0])}.")
    if len(names) > 1 and names != ["top_k", "top_p"]:
        raise UsageError(f"{flag_of(names[0])} and {flag_of(names[1])} exclude each other; give only one of them.")
    if request.tail is not None and request.threshold is None and request.bytes_per_token is None:
        raise UsageError("--tail is for ids below a threshold; give it with --threshold or --bytes-per-token.")
    if request.exact and exact is None:
        raise UsageError(
            f"--exact is for vocabularies; the distributions of {request.task} are dense, which is exact already."
        )
    if request.exact or request.dense or (not asked and exact is None):
        if request.levels is not None or request.temperatures is not None or request.entropy:
            raise UsageError(
                "--levels, --temperatures and --entropy are for distributions of which some classes are kept; here "
                "all logits are kept, so leave them out."
            )
        if request.exact:
            assert exact is not None
            return exact(DISTRIBUTION, request.exact_codec)
        return Dense(name=DISTRIBUTION, classes=classes)
    selection, levels = _selection(request, classes)
    options: dict[str, Any] = {"temperatures": _temperatures(request.temperatures), "entropy": request.entropy}
    if levels is not None:
        options["levels"] = levels
    options["in_planes"] = selection.fixed_ids is not None
    return _checked(lambda: Sparse(name=DISTRIBUTION, selection=selection, vocabulary=classes, **options))


def hidden_layers(request: Request, has_others: bool, layers: int) -> list[int]:
    """The layers of --hidden none | last | all | 6,12, numbered as transformers' hidden_states: 0 for the embeddings.

    `has_others` says whether distributions or embeddings of rows are recorded.

    Raises:
        UsageError: for layers that the teacher lacks, or options of a codec if no vectors are requested.
    """
    if request.hidden_codec not in VECTOR_KINDS:
        raise UsageError(f"--hidden-codec {request.hidden_codec!r}: use {', '.join(VECTOR_KINDS)}.")
    if request.hidden == "none":
        vectors = {request.relations, request.attention_inputs} != {"none"} or request.signals
        if not has_others and not vectors:
            raise UsageError(f"the task {request.task} records vectors only; say which, for instance --hidden last.")
        if request.hidden_rank is not None:
            raise UsageError("--hidden-rank needs hidden states; say which, as in --hidden last.")
        if request.hidden_codec != "float16" and request.relations == "none":
            raise UsageError("--hidden-codec needs vectors; say which, as in --hidden last.")
        return []
    if request.hidden == "last":
        return [layers]
    if request.hidden == "all":
        return list(range(layers + 1))
    try:
        chosen = sorted({int(part) for part in request.hidden.split(",")})
    except ValueError:
        raise UsageError(f"--hidden {request.hidden!r}: use none, last, all or layer numbers such as 6,12.") from None
    for layer in chosen:
        if not 0 <= layer <= layers:
            raise UsageError(f"--hidden {layer}: this teacher has layers 0 (the embeddings) to {layers}.")
    return chosen


def relation_layers(request: Request, layers: int) -> list[int]:
    """The layers of --relations none | last | all | 5,6, numbered from 1. Raises UsageError for layers that the teacher
    lacks."""
    return layers_named("relations", request.relations, layers)


def requested(request: Request, has_distribution: bool, engine: Engine) -> list[SignalRequest]:
    """The requested vectors: those of --hidden, --relations and --attention-inputs, and those of `request.signals`.

    Raises:
        UsageError: for an unknown signal, a layer that the teacher lacks, or a signal that is requested twice.
        TeacherError: for a signal that the teacher cannot give.
    """
    codec, parameters = request.hidden_codec, dict[str, Any]()
    if request.hidden_rank is not None:
        codec, parameters = "low-rank", {"rank": request.hidden_rank, "coefficients": codec}
    has_others = has_distribution or engine.pooling is not None
    hidden = hidden_layers(request, has_others, _last_layer(engine, HIDDEN, request.hidden))
    asked = [SignalRequest(HIDDEN, layer, codec, parameters) for layer in hidden]
    if request.pooled_codec not in VECTOR_KINDS:
        raise UsageError(f"--pooled-codec {request.pooled_codec!r}: use {', '.join(VECTOR_KINDS)}.")
    if engine.pooling is not None:
        if not engine.offers().get(EMBEDDING):
            raise TeacherError(
                f"embeddings of rows: {engine.architecture} does not give the hidden states that they are pooled from; "
                "give --pooling none, or use another teacher."
            )
        asked.append(SignalRequest(EMBEDDING, None, request.pooled_codec))
    # Relations are products of queries, keys and values, which a low-rank basis of each would not preserve.
    asked += [
        SignalRequest(site, layer, request.hidden_codec)
        for layer in relation_layers(request, _last_layer(engine, RELATIONS[0], request.relations))
        for site in RELATIONS
    ]
    if request.attention_inputs_codec not in VECTOR_KINDS:
        raise UsageError(f"--attention-inputs-codec {request.attention_inputs_codec!r}: use {', '.join(VECTOR_KINDS)}.")
    if request.attention_inputs_codec != "int8" and request.attention_inputs == "none":
        raise UsageError("--attention-inputs-codec needs --attention-inputs; say which, as in --attention-inputs last.")
    asked += [
        SignalRequest(ATTENTION_INPUTS, layer, request.attention_inputs_codec)
        for layer in attention_input_layers(request, engine)
    ]
    asked += [signal for signal in request.signals if SITES.named(signal.site).holds == "vectors"]
    names = [str(SignalKey(signal.site, signal.layer)) for signal in asked]
    for signal, name in zip(asked, names, strict=True):
        engine.check(SignalKey(signal.site, signal.layer))
        if names.count(name) > 1:
            raise UsageError(f"signal {name!r} is requested twice; request it once.")
    return asked


def _last_layer(engine: Engine, site: str, asked: str) -> int:
    """The last layer of a site that --hidden or --relations requests; 0 if the option is "none"."""
    if asked == "none":
        return 0
    layers = [layer for layer in engine.offers().get(site, ()) if layer is not None]
    if not layers:
        engine.check(SignalKey(site, SITES.named(site).first_layer))
    return layers[-1]


def vectors(asked: SignalRequest, width: int) -> Signal:
    """The signal of vectors of this width, before it is fitted to a sample."""
    return Signal.of(asked.site, asked.layer, _codec_of(asked, width))


def _codec_of(asked: SignalRequest, size: int) -> Codec:
    """The requested codec, for distributions over `size` classes or vectors `size` wide."""
    kind, name = CODECS.named(asked.codec), str(SignalKey(asked.site, asked.layer))
    holds = SITES.named(asked.site).holds
    if issubclass(kind, VectorCodec) != (holds == "vectors"):
        raise UsageError(f"signal {name!r}: the codec {asked.codec!r} is not for {holds}; choose another one.")
    try:
        return kind.asked(name, size, **asked.parameters)
    except ValidationError as error:
        raise UsageError(f"signal {name!r}: codec {asked.codec!r}: {in_words(error, kind)}.") from None


def _asked(request: Request) -> dict[str, Any]:
    names = ("preset", "threshold", "bytes_per_token", "top_k", "top_p", "draws", "dense", "exact")
    values = {name: getattr(request, name) for name in names}
    return {name: value for name, value in values.items() if value is not None and value is not False}


def _selection(request: Request, classes: int) -> tuple[Selection, int | None]:
    """(the selection rule, the number of levels of its codes or None for the default)."""
    if request.top_k is not None and request.top_k > classes:
        raise UsageError(
            f"--top-k {request.top_k}: the teacher's distribution has {classes:,} classes; use 1 to {classes:,}."
        )
    tail = request.tail or "sample"
    if request.threshold is not None:
        return _checked(lambda: Threshold(threshold=request.threshold, tail=tail)), request.levels
    if request.bytes_per_token is not None:
        return _checked(lambda: Threshold(threshold=FIRST_THRESHOLD, tail=tail)), request.levels or BUDGET_LEVELS
    if request.top_p is not None:
        most = min(request.top_k or MOST_TOP_P_IDS, classes)
        return _checked(lambda: TopP(p=request.top_p, k=most)), request.levels
    if request.top_k is not None:
        return TopK(k=request.top_k), request.levels
    if request.draws is not None:
        return _checked(lambda: Draws(draws=request.draws)), request.levels
    name = DEFAULT_PRESET if request.preset is None else request.preset
    if name not in PRESETS:
        raise UsageError(f"--preset {name!r}: use {', '.join(PRESETS)}.")
    selection, levels = PRESETS[name]
    return selection, request.levels or levels


def _temperatures(text: str | None) -> tuple[float, ...]:
    try:
        found = sorted({float(part) for part in text.split(",")}) if text is not None else []
    except ValueError:
        raise UsageError(f"--temperatures {text!r:.80}: use numbers such as 2,4.") from None
    least, most = TEMPERATURES
    for value in found:
        if not least <= value <= most or value == 1:
            raise UsageError(f"--temperatures {value:g}: use numbers from {least:g} to {most:g} other than 1.")
    return tuple(found)


def _checked(make: Callable[[], Made]) -> Made:
    """The made value. Raises UsageError, which names the option, for a value that the codec refuses."""
    try:
        return make()
    except ValidationError as error:
        first = error.errors()[0]
        where = [str(part) for part in first["loc"]]
        name = where[-1] if where else "temperatures"
        flag = {"p": "--top-p", "k": "--top-k"}.get(name, flag_of(name))
        value = "" if not where else f" {first['input']}"
        raise UsageError(f"{flag}{value}: {message_of(first)}.") from None
