"""The KL of relations that `dump` measures is that of the loss on relations."""

import pytest
import torch

from shared.dump.codecs import Float16Vectors, Int8Vectors
from shared.dump.weights.projections import AttentionLayer, Part, Projections
from teacher_dump.tensor_files.relations_error import relations_kl


def test_it_is_the_mean_over_parts_heads_and_tokens_of_the_formula_in_float64() -> None:
    torch.manual_seed(0)
    lengths, width = (5, 0, 1, 9), 12
    inputs_MD = torch.randn(sum(lengths), 10)
    codec = Int8Vectors(name="x", width=10)
    coded_MD = codec.decode(codec.encode(inputs_MD))
    tensors = {f"{part}.weight": torch.randn(width, 10) for part in ("queries", "keys", "values")}
    part = Part(width=width)
    made = Projections(AttentionLayer(heads=2, head_width=6, queries=part, keys=part, values=part), tensors)
    total, count, start = 0.0, 0, 0
    for length in lengths:
        for weight in tensors.values():
            p_LW, q_LW = ((each[start : start + length] @ weight.T).double() for each in (inputs_MD, coded_MD))
            for head in range(12):  # of one channel each
                for token in range(length):
                    log_p, log_q = ((each[:, head] * each[token, head]).log_softmax(0) for each in (p_LW, q_LW))
                    total += float((log_p.exp() * (log_p - log_q)).sum())
                    count += 1
        start += length
    found = relations_kl(made, inputs_MD, coded_MD, lengths)
    assert found == pytest.approx(total / count, rel=1e-3)
    assert found > 1e-5
    half = Float16Vectors(name="x", width=10)
    assert relations_kl(made, inputs_MD, half.decode(half.encode(inputs_MD)), lengths) < found / 10
    assert relations_kl(made, inputs_MD, inputs_MD, lengths) == 0
