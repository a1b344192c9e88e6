"""A batch's rows as chains: rows without words, and the way to padded tensors and back."""

import pytest
import torch

from student_train.chains.batch import Chains, legal_transitions, viterbi

BIO = ("O", "B-X", "I-X")


@pytest.mark.parametrize("counts", [(0, 2, 0, 3, 1), (4,), (0, 0)])
def test_rows_without_words_have_no_chain(counts: tuple[int, ...]) -> None:
    chains = Chains(torch.tensor(counts), legal_transitions(BIO))
    logits_NC = torch.randn(sum(counts), 3, generator=torch.Generator().manual_seed(0))
    tags_N = viterbi(logits_NC, chains, None)
    assert tags_N.shape == (sum(counts),)
    if sum(counts):
        padded = chains.padded(logits_NC)
        assert padded.shape == (sum(count > 0 for count in counts), max(counts), 3)
        assert torch.equal(chains.flat(padded), logits_NC)


def test_each_row_is_a_chain_of_its_own() -> None:
    """A tag that continues an entity is legal after the last tag of the row before, but not as the first of a row."""
    logits_NC = torch.tensor([[0.0, 9.0, 0.0], [1.0, 0.0, 9.0]])
    assert viterbi(logits_NC, Chains(torch.tensor([2]), legal_transitions(BIO)), None).tolist() == [1, 2]
    assert viterbi(logits_NC, Chains(torch.tensor([1, 1]), legal_transitions(BIO)), None).tolist() == [1, 0]
