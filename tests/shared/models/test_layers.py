"""The layers of a model are the ones that its architecture calls its layers, counted as its hidden states are."""

from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PreTrainedModel

from shared.models.layers import layer_count, layers_of, numbered_layers
from student_train.students.bilstm import BiLSTMConfig, BiLSTMForTokenClassification
from tests.shared.models.architectures import DOES_NOT_PACK, LEFT_ALONE, PACKS, make, make_rows

# Architectures as they are by default (sizes are what the rule goes by), and where their base model has its layers.
ENCODER_LAYER = (
    *(
        "bert",
        "big_bird",
        "camembert",
        "convbert",
        "data2vec-text",
        "deberta",
        "deberta-v2",
        "electra",
        "ernie",
        "fnet",
    ),
    *("ibert", "longformer", "luke", "megatron-bert", "mobilebert", "mpnet", "nystromformer", "rembert", "roberta"),
    *("roformer", "xlm-roberta", "xlm-roberta-xl", "yoso"),
)
LAYERS = (
    *("biogpt", "cohere", "cohere2", "gemma", "gemma2", "gemma3_text", "gpt_neox", "gpt_oss", "granite", "jamba"),
    *("lfm2", "llama", "mamba", "mistral", "mixtral", "olmo2", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3"),
    *("qwen3_moe", "qwen3_next", "recurrent_gemma", "smollm3", "starcoder2", "zamba2", "modernbert-decoder"),
    *("eurobert", "modernbert", "nomic_bert"),
)
WHERE = {
    **dict.fromkeys(ENCODER_LAYER, "encoder.layer"),
    **dict.fromkeys(LAYERS, "layers"),
    **dict.fromkeys(("bloom", "codegen", "ctrl", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gptj"), "h"),
    **dict.fromkeys(("bigbird_pegasus", "opt", "plbart"), "decoder.layers"),
    **dict.fromkeys(("mpt", "rwkv"), "blocks"),
    "distilbert": "transformer.layer",
    "llama4_text": "model.layers",
    "reformer": "encoder.layers",
    "squeezebert": "encoder.layers",
    "xlnet": "layer",
}
# (where the layers are, where those are that hidden states number). Several stacks, or none that is counted.
UNALIKE = {
    "albert": ("encoder.albert_layer_groups", None),
    "bart": ("decoder.layers", "encoder.layers"),
    "blenderbot": ("decoder.layers", None),  # the configuration of the decoder alone counts the encoder's
    "funnel": ("encoder.blocks", None),
    "git": ("image_encoder.vision_model.encoder.layers", "encoder.layer"),
    "mbart": ("decoder.layers", "encoder.layers"),
    "perceiver": ("encoder.self_attends", None),
    "t5": ("decoder.block", "encoder.block"),
    "t5gemma": ("decoder.layers", "encoder.layers"),
    "xlm": ("ffns", "ffns"),
}


def by_default(kind: str) -> PreTrainedModel:
    """A model of the default size, without weights: with a head over its vocabulary, or over classes."""
    config = CONFIG_MAPPING[kind]()
    for name in ("MaskedLM", "CausalLM", "SequenceClassification"):
        auto_class = getattr(transformers, f"AutoModelFor{name}")
        if type(config) in auto_class._model_mapping:
            with torch.device("meta"):
                return auto_class.from_config(config)
    raise AssertionError(kind)


def place(model: PreTrainedModel, layers: Any) -> str | None:
    """What the base model calls the list of these modules; None for no modules."""
    names = [
        name
        for name, module in model.base_model.named_modules()
        if isinstance(module, nn.ModuleList) and len(layers) and list(module) == list(layers)
    ]
    return names[0] if names else None


@pytest.mark.parametrize("kind", WHERE)
def test_an_architectures_layers_are_found_and_are_those_that_hidden_states_number(kind: str) -> None:
    model = by_default(kind)
    assert place(model, layers_of(model)) == WHERE[kind]
    assert numbered_layers(model) == tuple(layers_of(model))
    assert len(numbered_layers(model)) == layer_count(model)


@pytest.mark.parametrize("kind", UNALIKE)
def test_of_several_stacks_the_largest_has_the_layers_and_the_counted_one_the_numbers(kind: str) -> None:
    model = by_default(kind)
    assert (place(model, layers_of(model)), place(model, numbered_layers(model))) == UNALIKE[kind]


@torch.inference_mode()
@pytest.mark.parametrize("kind", sorted({*PACKS, *DOES_NOT_PACK, *LEFT_ALONE} - {"albert", "mamba"}))
def test_the_layer_with_a_number_puts_out_the_hidden_state_of_that_number(kind: str) -> None:
    """But for ALBERT, whose layers are one module, and Mamba, whose hidden state 0 comes after its first layer."""
    model = make(kind)
    layers = numbered_layers(model)
    found: list[Any] = []
    for layer in layers:
        layer.register_forward_hook(lambda module, arguments, output: found.append(output))
    ids_BL = torch.from_numpy(make_rows((7,))[0].input_ids).long()[None]
    hidden = model(input_ids=ids_BL, output_hidden_states=True).hidden_states
    assert len(hidden) == len(layers) + 1
    for number, output in enumerate(found[:-1], 1):  # what follows the last layer may be normalised
        assert torch.equal(output[0] if isinstance(output, tuple) else output, hidden[number]), number


@pytest.mark.parametrize("count", [1, 3])
def test_a_bilstms_layers_are_its_lstms(count: int) -> None:
    model = BiLSTMForTokenClassification(BiLSTMConfig(vocab_size=40, hidden_size=8, num_hidden_layers=count))
    assert [type(layer) for layer in layers_of(model)] == [nn.LSTM] * count
    assert numbered_layers(model) == tuple(model.bilstm.layers)


def test_a_configuration_that_counts_other_layers_has_none_by_number() -> None:
    model = AutoModel.from_config(AutoConfig.for_model("distilbert", n_layers=2, dim=8, n_heads=2, hidden_dim=8))
    assert len(numbered_layers(model)) == layer_count(model) == 2
    model.config.num_hidden_layers = 3
    assert numbered_layers(model) == ()
    assert len(layers_of(model)) == 2


def test_a_model_without_any_list_of_modules_has_no_layers() -> None:
    model = AutoModel.from_config(AutoConfig.for_model("distilbert", n_layers=2, dim=8, n_heads=2, hidden_dim=8))
    model.transformer.layer = nn.Sequential(*model.transformer.layer)
    assert len(layers_of(model)) == 0
    assert numbered_layers(model) == ()
