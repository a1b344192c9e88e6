"""Projections against plain float64 formulas, and files that cannot be those of a dump."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from shared.dump.weights.projections import AttentionLayer, Norm, Part, Projections, from_file, rotated, to_file
from shared.errors import DumpError

HEADS, HEAD_WIDTH, WIDTH, TOKENS = 4, 6, 10, 7


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def layer_norm(values: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    return torch.stack(
        [(row - row.mean()) / math.sqrt(row.var(unbiased=False) + epsilon) * weight + bias for row in values]
    )


def rms_norm(values: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return torch.stack([row / math.sqrt(row.pow(2).mean() + epsilon) * weight for row in values])


@pytest.mark.parametrize("style", ["halves", "pairs"])
def test_a_head_is_rotated_by_its_place_times_the_frequencies(style: Any) -> None:
    heads_NHd, frequencies = draw(TOKENS, HEADS, HEAD_WIDTH, seed=0), torch.tensor([1.0, 0.1], dtype=torch.float64)
    places = torch.tensor([0, 1, 2, 3, 0, 1, 50])
    expected = heads_NHd.clone()
    for token, place in enumerate(places.tolist()):
        for number, frequency in enumerate(frequencies.tolist()):
            one, other = (number, number + 2) if style == "halves" else (2 * number, 2 * number + 1)
            turn = complex(math.cos(place * frequency), math.sin(place * frequency))
            for head in range(HEADS):
                value = complex(*heads_NHd[token, head, [one, other]].tolist()) * turn
                expected[token, head, one], expected[token, head, other] = value.real, value.imag
    torch.testing.assert_close(rotated(heads_NHd, places, frequencies, style), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("entry", [None, "layer", "rms"])
def test_a_part_is_norm_projection_norm_of_heads_factor_and_rotation(entry: Any) -> None:
    inputs, places = draw(TOKENS, WIDTH, seed=1), torch.arange(TOKENS)
    width = HEADS * HEAD_WIDTH
    tensors = {
        "norm.weight": draw(WIDTH, seed=2),
        "norm.bias": draw(WIDTH, seed=3),
        "queries.weight": draw(width, WIDTH, seed=4),
        "queries.bias": draw(width, seed=5),
        "queries.norm.weight": draw(HEAD_WIDTH, seed=6),
        "inverse_frequencies": torch.tensor([1.0, 0.01], dtype=torch.float64),
    }
    if entry == "rms":
        del tensors["norm.bias"]
    queries = Part(width=width, norm=Norm(kind="rms", epsilon=1e-3), scale=0.7, rotation="halves")
    norm = None if entry is None else Norm(kind=entry, epsilon=1e-2)
    plain = Part(width=width)
    layer = AttentionLayer(heads=HEADS, head_width=HEAD_WIDTH, norm=norm, queries=queries, keys=plain, values=plain)
    expected = inputs
    if entry == "layer":
        expected = layer_norm(inputs, tensors["norm.weight"], tensors["norm.bias"], 1e-2)
    elif entry == "rms":
        expected = rms_norm(inputs, tensors["norm.weight"], 1e-2)
    expected = expected @ tensors["queries.weight"].T + tensors["queries.bias"]
    heads = [rms_norm(head, tensors["queries.norm.weight"], 1e-3) for head in expected.split(HEAD_WIDTH, dim=1)]
    turned = rotated(0.7 * torch.stack(heads, 1), places, tensors["inverse_frequencies"], "halves")
    found = Projections(layer, tensors).part("queries", inputs, places)
    torch.testing.assert_close(found, turned.flatten(1), rtol=1e-12, atol=1e-12)


def made(width: int = 8, inputs: int = 6) -> Projections:
    tensors = {f"{part}.weight": draw(width, inputs, seed=0) for part in ("queries", "keys", "values")}
    part = Part(width=width)
    return Projections(AttentionLayer(heads=2, head_width=width // 2, queries=part, keys=part, values=part), tensors)


def test_what_is_written_is_read() -> None:
    tensors, facts = to_file({5: made(), 6: made()})
    found = from_file(tensors, facts)
    assert list(found) == [5, 6]
    assert found[6].facts == made().facts
    assert all(torch.equal(found[5].tensors[name], tensor) for name, tensor in made().tensors.items())


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"layers": {"0": {}}}, "facts about the projections of attention are damaged"),
        ({"layers": 3}, "facts about the projections of attention are damaged"),
        ({"heads": 3}, "queries and keys are not heads of width 4"),
        ({"values": {"width": 7}}, r"the projections of layer 5 are .* wide, which is not what the manifest says"),
        ({"norm": {"kind": "layer", "epsilon": 1e-5}}, r"the projections of layer 5 do not fit the manifest"),
        ({"norm": {"kind": "layer", "epsilon": -1}}, "damaged"),
        ({"keys": {"width": 8, "rotation": "halves"}}, r"the projections of layer 5 do not fit the manifest"),
    ],
)
def test_facts_that_cannot_be_true_are_one_sentence(change: dict[str, Any], problem: str) -> None:
    tensors, facts = to_file({5: made()})
    changed = change if "layers" in change else {"layers": {"5": facts["layers"]["5"] | change}}
    with pytest.raises(DumpError, match=problem):
        from_file(tensors, changed)
