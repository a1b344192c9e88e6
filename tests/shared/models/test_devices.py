import pytest
import torch

from shared.errors import UsageError
from shared.models.devices import usable_device


def test_the_cpu_can_be_used() -> None:
    assert usable_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["meta", "nonsense", "", "cpu:x", "cuda:99", "xla", "-1", "cpu\n"])
def test_a_device_that_cannot_compute_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be used here") as raised:
        usable_device(name)
    assert "\n" not in str(raised.value)
