"""Fold parametrizations: a student that was trained in another form becomes a plain model of transformers."""

from torch import nn
from torch.nn.utils import parametrize


def fold(model: nn.Module) -> None:
    """Replace every parametrized tensor of a model by its value, in place; other models stay as they are."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            found = module.parametrizations
            assert isinstance(found, nn.ModuleDict)
            for name in list(found):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
