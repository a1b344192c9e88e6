"""A bidirectional LSTM as a Hugging Face model: the smallest and fastest student for classification.

The student of Mukherjee & Awadallah 2019, "Distilling Transformers into Simple Neural Networks with Unlabeled Transfer
Data" (arXiv 1910.01769), and of XtremeDistil (Mukherjee & Awadallah 2020, arXiv 2004.05686). Rows are pooled by the
maximum over time, as in InferSent (Conneau et al. 2017, arXiv 1705.02364).

This file needs only torch and transformers: `save_pretrained` copies it beside the weights, so that the folder can also
be loaded where lectern is not installed, with `trust_remote_code=True`. If this module has been imported, the Auto
classes load the model without it.

Shape suffixes:
    B  rows of a batch
    L  positions of the longest row
    D  width: of the embeddings, or of a layer's output (both directions together)
    C  classes
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import (
    BaseModelOutput,
    ModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

Output = TypeVar("Output", bound=ModelOutput)

# Rows are read in groups: of at least this share of the longest row's length, and of at least this number of rows.
ALIKE, FEWEST_ALIKE = 0.75, 4


class BiLSTMConfig(PretrainedConfig):
    """The shape of a BiLSTM; `hidden_size` is the width of a layer's output, half of it from each direction.

    `embedding_rows` is the number of the `vocab_size` ids that have their own embeddings; None means all of them.

    >>> BiLSTMConfig(hidden_size=301)
    Traceback (most recent call last):
    ValueError: hidden_size must be even, one half for each direction of the BiLSTM, and is 301.
    """

    model_type = "lectern_bilstm"

    def __init__(
        self,
        vocab_size: int = 30522,
        embedding_size: int = 300,
        hidden_size: int = 600,
        num_hidden_layers: int = 1,
        dropout: float = 0.1,
        pad_token_id: int | None = 0,
        embedding_rows: int | None = None,
        **kwargs: Any,
    ) -> None:
        if hidden_size % 2:
            raise ValueError(
                f"hidden_size must be even, one half for each direction of the BiLSTM, and is {hidden_size}."
            )
        super().__init__(**kwargs)
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.dropout = dropout
        self.pad_token_id = pad_token_id
        self.embedding_rows = embedding_rows


class TrimmedEmbedding(nn.Embedding):
    """Embeddings of some of a vocabulary's ids; all other ids have the row of the unknown token.

    `row_of_id` [vocabulary], int32, is saved with the weights, so the inputs are ids of the full tokenizer.
    """

    row_of_id: Tensor

    def __init__(self, ids: int, rows: int, width: int) -> None:
        super().__init__(rows, width)
        self.register_buffer("row_of_id", torch.zeros(ids, dtype=torch.int32))

    def keep(self, kept_ids: Tensor, unknown_id: int) -> None:
        """Give each of `kept_ids` [rows], which include the unknown token, the row of its index there."""
        self.row_of_id[kept_ids] = torch.arange(len(kept_ids), dtype=torch.int32)
        is_kept = torch.zeros_like(self.row_of_id, dtype=torch.bool)
        is_kept[kept_ids] = True
        self.row_of_id[~is_kept] = self.row_of_id[unknown_id].clone()

    def forward(self, input_ids: Tensor) -> Tensor:
        return super().forward(self.row_of_id[input_ids])


class BiLSTMPreTrainedModel(PreTrainedModel):
    """The base class of all models: configuration, names and initial weights."""

    config: BiLSTMConfig
    config_class = BiLSTMConfig
    base_model_prefix = "bilstm"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            # No layer norm follows: with the usual 0.02 of transformers, embeddings would hardly affect the gates.
            nn.init.normal_(module.weight, std=0.1)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LSTM):
            for name, parameter in module.named_parameters():
                if name.startswith("weight_ih"):
                    nn.init.xavier_uniform_(parameter)
                elif name.startswith("weight_hh"):
                    nn.init.orthogonal_(parameter)
                else:
                    nn.init.zeros_(parameter)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Module:
        """Resize the embeddings as in transformers. Raises ValueError for a trimmed vocabulary, which would be lost."""
        if self.config.embedding_rows is not None and new_num_tokens is not None:
            raise ValueError("The vocabulary of this BiLSTM is trimmed, so that its embeddings cannot be resized.")
        return super().resize_token_embeddings(new_num_tokens, *args, **kwargs)


class BiLSTMModel(BiLSTMPreTrainedModel):
    """Embeddings and a stack of bidirectional LSTM layers."""

    def __init__(self, config: BiLSTMConfig) -> None:
        super().__init__(config)
        # No padding_idx: padding never reaches a layer, and a tokenizer may pad with a token that also occurs in texts.
        self.embeddings: nn.Module = (
            nn.Embedding(config.vocab_size, config.embedding_size)
            if config.embedding_rows is None
            else TrimmedEmbedding(config.vocab_size, config.embedding_rows, config.embedding_size)
        )
        widths = [config.embedding_size] + [config.hidden_size] * config.num_hidden_layers
        # One module per layer, because a stack within nn.LSTM does not return the outputs of its lower layers.
        self.layers = nn.ModuleList(
            nn.LSTM(width, config.hidden_size // 2, batch_first=True, bidirectional=True) for width in widths[:-1]
        )
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple[Any, ...]:
        """Read rows `input_ids` [B, L] (or `inputs_embeds` [B, L, D]), padded on the right.

        `token_type_ids` are ignored; they are accepted because many tokenizers return them. The output is zero at
        padding; `hidden_states` are the embeddings and each layer's output.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("A BiLSTM takes either input_ids or inputs_embeds, and was given both or neither.")
        hidden_BLD = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if attention_mask is None:
            attention_mask = torch.ones(hidden_BLD.shape[:2], dtype=torch.long)
        lengths_B = _lengths(attention_mask)

        all_hidden: tuple[Tensor, ...] = (hidden_BLD,)
        for layer in self.layers:
            hidden_BLD = _read(layer, self.dropout(hidden_BLD), lengths_B)
            all_hidden += (hidden_BLD,)

        wants_hidden = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        result = BaseModelOutput(last_hidden_state=hidden_BLD, hidden_states=all_hidden if wants_hidden else None)
        return _as_asked(result, return_dict, self.config)


class BiLSTMWithHead(BiLSTMPreTrainedModel):
    """A BiLSTM with one linear layer: the base class of the heads, with the `forward` of classifiers."""

    head_name = "classifier"
    output_class: type[SequenceClassifierOutput | TokenClassifierOutput]

    def __init__(self, config: BiLSTMConfig) -> None:
        super().__init__(config)
        self.bilstm = BiLSTMModel(config)
        self.dropout = nn.Dropout(config.dropout)
        self.add_module(self.head_name, nn.Linear(config.hidden_size, self.classes(config)))
        self.post_init()

    def classes(self, config: BiLSTMConfig) -> int:
        """The number of logits for a row or a position."""
        return config.num_labels or 0

    def head(self, hidden_BLD: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The logits [..., C] of the BiLSTM's output: at each position, unless a subclass pools it."""
        logits: Tensor = getattr(self, self.head_name)(self.dropout(hidden_BLD))
        return logits

    def run(self, attention_mask: Tensor | None, **inputs: Any) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """(logits [..., C], hidden states if they are wanted or None)."""
        output = self.bilstm(attention_mask=attention_mask, return_dict=True, **inputs)
        return self.head(output.last_hidden_state, attention_mask), output.hidden_states

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ModelOutput | tuple[Any, ...]:
        """Inputs are those of `BiLSTMModel.forward`.

        With `labels`, one for each vector of logits (-100 for none), the loss is the cross-entropy.
        """
        logits, hidden_states = self.run(
            attention_mask, input_ids=input_ids, inputs_embeds=inputs_embeds, output_hidden_states=output_hidden_states
        )
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())
        result = self.output_class(loss=loss, logits=logits, hidden_states=hidden_states)
        return _as_asked(result, return_dict, self.config)


class BiLSTMForSequenceClassification(BiLSTMWithHead):
    """A BiLSTM with one linear layer on the maximum over time of its output: `labels` [B], `logits` [B, C]."""

    output_class = SequenceClassifierOutput

    def head(self, hidden_BLD: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The logits [B, C]."""
        # The output is zero at padding, and zero would be larger than a negative maximum.
        return super().head(_without_padding(hidden_BLD, attention_mask).amax(dim=1), None)


class BiLSTMForTokenClassification(BiLSTMWithHead):
    """A BiLSTM with one linear layer on its output at each position: `labels` [B, L], `logits` [B, L, C]."""

    output_class = TokenClassifierOutput


class BiLSTMForQuestionAnswering(BiLSTMWithHead):
    """A BiLSTM with one linear layer on its output at each position: logits of the answer's start and of its end."""

    head_name = "qa_outputs"

    def classes(self, config: BiLSTMConfig) -> int:
        """Two logits: start and end."""
        return 2

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ModelOutput | tuple[Any, ...]:
        """Inputs are those of `BiLSTMModel.forward`; outputs are `start_logits` and `end_logits` [B, L].

        With `start_positions` and `end_positions` [B], the loss is the mean of their two cross-entropies, each over the
        tokens of a row.
        """
        logits_BL2, hidden_states = self.run(
            attention_mask, input_ids=input_ids, inputs_embeds=inputs_embeds, output_hidden_states=output_hidden_states
        )
        loss = None
        if start_positions is not None and end_positions is not None:
            both = _without_padding(logits_BL2, attention_mask).unbind(-1)
            losses = map(nn.functional.cross_entropy, both, (start_positions, end_positions))
            loss = torch.stack(list(losses)).mean()
        start_BL, end_BL = logits_BL2.unbind(-1)
        result = QuestionAnsweringModelOutput(
            loss=loss, start_logits=start_BL, end_logits=end_BL, hidden_states=hidden_states
        )
        return _as_asked(result, return_dict, self.config)


def _without_padding(values_BLX: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The values with -inf at padding, so that padding affects neither a maximum nor a softmax."""
    if attention_mask is None:
        return values_BLX
    is_padding_BL = attention_mask.to(values_BLX.device) == 0
    return values_BLX.masked_fill(is_padding_BL[:, :, None], float("-inf"))


def _read(layer: nn.Module, hidden_BLD: Tensor, lengths_B: Tensor) -> Tensor:
    """A layer's output [B, L, D] for rows of these lengths, zero at padding.

    The backward direction begins at the last token of each row.
    """
    if torch.onnx.is_in_onnx_export():
        return _read_in_onnx(layer, hidden_BLD, lengths_B)
    if hidden_BLD.is_cuda:  # cuDNN reads both directions of packed rows at once.
        packed = pack_padded_sequence(hidden_BLD, lengths_B, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(layer(packed)[0], batch_first=True, total_length=hidden_BLD.shape[1])[0]
    groups, parts, device = _alike(lengths_B), [], hidden_BLD.device
    for rows in groups:
        longest = int(lengths_B[rows].max())
        part_BLD = hidden_BLD.index_select(0, rows.to(device))[:, :longest]
        padding = 0, 0, 0, hidden_BLD.shape[1] - longest
        parts.append(nn.functional.pad(_read_alike(layer, part_BLD, lengths_B[rows]), padding))
    return torch.cat(parts).index_select(0, torch.cat(groups).argsort().to(device))


def _alike(lengths_B: Tensor) -> list[Tensor]:
    """Groups of rows of similar length, longest first.

    Padding within a group is read too, but very small groups would cost more time than the padding.
    """
    order = lengths_B.argsort(descending=True)
    lengths, starts = lengths_B[order].tolist(), [0]
    for at in range(FEWEST_ALIKE, len(lengths) - FEWEST_ALIKE + 1):
        if lengths[at] < ALIKE * lengths[starts[-1]] and at - starts[-1] >= FEWEST_ALIKE:
            starts.append(at)
    return list(order.tensor_split(starts[1:]))


def _read_alike(layer: nn.Module, hidden_BLD: Tensor, lengths_B: Tensor) -> Tensor:
    """`_read` by oneDNN, which trains up to four times as fast as with packed rows.

    Padding after a row does not change the outputs before it if a direction reads from the left. So both directions
    read from the left, the backward one with reversed rows.
    """
    rows, length = hidden_BLD.shape[:2]
    at_L = torch.arange(length)
    is_real_BL = at_L < lengths_B[:, None]
    turned_BL = torch.where(is_real_BL, lengths_B[:, None] - 1 - at_L, at_L) + length * torch.arange(rows)[:, None]
    turned = turned_BL.flatten().to(hidden_BLD.device)

    def turn(values_BLD: Tensor) -> Tensor:
        return values_BLD.flatten(0, 1).index_select(0, turned).view_as(values_BLD)

    both_BLD = torch.cat([_one_way(layer, hidden_BLD, ""), turn(_one_way(layer, turn(hidden_BLD), "_reverse"))], dim=-1)
    return both_BLD.masked_fill(~is_real_BL.to(hidden_BLD.device)[..., None], 0)


def _one_way(layer: nn.Module, hidden_BLD: Tensor, suffix: str) -> Tensor:
    """The output of one direction of a layer, which reads from left to right."""
    weights = [getattr(layer, f"{name}_l0{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    nothing_1BH = hidden_BLD.new_zeros(1, hidden_BLD.shape[0], weights[1].shape[1])
    found: Tensor = torch.lstm(
        hidden_BLD, (nothing_1BH, nothing_1BH), weights, True, 1, 0.0, layer.training, False, True
    )[0]
    return found


def _read_in_onnx(layer: nn.Module, hidden_BLD: Tensor, lengths_B: Tensor) -> Tensor:
    """`_read` as the ONNX operator LSTM, which takes the lengths as an input. ONNX has no packed rows.

    With H units, torch stacks the gates in the order input, forget, cell, output [4H, ...]; the operator needs input,
    output, forget, cell, and both directions in one tensor [2, 4H, ...].
    """

    def both(name: str) -> Tensor:
        directions = []
        for suffix in ("", "_reverse"):
            entry, forget, cell, output = getattr(layer, f"{name}_l0{suffix}").chunk(4)
            directions.append(torch.cat([entry, output, forget, cell]))
        return torch.stack(directions)

    recurrent = both("weight_hh")
    biases = torch.cat([both("bias_ih"), both("bias_hh")], dim=1)
    rows, length = hidden_BLD.shape[:2]
    width = recurrent.shape[-1]
    output_L2BH = torch.onnx.ops.symbolic(
        "LSTM",
        (hidden_BLD.transpose(0, 1), both("weight_ih"), recurrent, biases, lengths_B.int()),
        {"direction": "bidirectional", "hidden_size": width},
        dtype=hidden_BLD.dtype,
        shape=(length, 2, rows, width),
    )
    return output_L2BH.permute(2, 0, 1, 3).flatten(2)


def _lengths(attention_mask_BL: Tensor) -> Tensor:
    """The number of tokens of each row [B], on the CPU, where packing needs them."""
    if torch.onnx.is_in_onnx_export():  # a graph cannot refuse its input
        return attention_mask_BL.sum(dim=1)
    mask_BL = attention_mask_BL.cpu().long()
    is_bad_B = (mask_BL[:, 0] == 0) | (mask_BL.diff(dim=1) > 0).any(dim=1)
    if is_bad_B.any():
        raise ValueError(
            "A BiLSTM reads rows of at least one token, padded on the right; the attention mask is otherwise in rows "
            f"{is_bad_B.nonzero().flatten().tolist()} of the batch."
        )
    return mask_BL.sum(dim=1)


def _as_asked(output: Output, return_dict: bool | None, config: BiLSTMConfig) -> Output | tuple[Any, ...]:
    """The output as an object, or as a tuple if `return_dict` is False."""
    wants_object = config.return_dict if return_dict is None else return_dict
    return output if wants_object else output.to_tuple()


# Register the model with the Auto classes of this process ...
AutoConfig.register(BiLSTMConfig.model_type, BiLSTMConfig, exist_ok=True)
AutoModel.register(BiLSTMConfig, BiLSTMModel, exist_ok=True)
AutoModelForSequenceClassification.register(BiLSTMConfig, BiLSTMForSequenceClassification, exist_ok=True)
AutoModelForTokenClassification.register(BiLSTMConfig, BiLSTMForTokenClassification, exist_ok=True)
AutoModelForQuestionAnswering.register(BiLSTMConfig, BiLSTMForQuestionAnswering, exist_ok=True)
# ... and save this file with the model, with the class to use for each Auto class.
BiLSTMConfig.register_for_auto_class()
BiLSTMModel.register_for_auto_class("AutoModel")
BiLSTMForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
BiLSTMForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")
BiLSTMForQuestionAnswering.register_for_auto_class("AutoModelForQuestionAnswering")
