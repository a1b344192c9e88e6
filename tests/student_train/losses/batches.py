"""A tiny student, a batch of a dump, and the loss between the two, as tests of single losses need them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModel, BertConfig, PreTrainedModel

from student_train.data.batch import Batch
from student_train.data.batches import collate
from student_train.data.sources import DumpSource
from student_train.forward.observe import outputs_of, targets_of
from student_train.losses.total import total_loss

ROWS = [0, 15, 7, 3]


def student_of(layers: int = 2, width: int = 24, heads: int = 4) -> PreTrainedModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=128,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=32,
        initializer_range=0.3,
        attn_implementation="eager",
    )
    return AutoModel.from_config(config, attn_implementation="eager").eval()


def batch_of(source: DumpSource, rows: list[int] = ROWS) -> Batch:
    columns = [column.name for codec in source.vectors.values() for column in codec.columns]
    return collate({0: source.load(0, columns)}, np.asarray([[0, row] for row in rows]), source)


def loss_of(spec: Any, model: nn.Module, projections: nn.ModuleDict, source: DumpSource, batch: Batch) -> Tensor:
    outputs = outputs_of(model, batch, source, bool(spec.student_layers), attention_layers=spec.attention_layers)
    return total_loss((spec,), outputs, targets_of(batch, source), projections)[0]


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
