import pytest

from shared.progress import human_rate


@pytest.mark.parametrize(
    ("rate", "text"),
    [(25_000.4, "25,000/s"), (12, "12/s"), (1.54, "1.5/s"), (0.24, "4.2 s a step"), (0.001, "16 min 40 s a step")],
)
def test_slow_work_is_told_by_the_time_that_a_piece_takes(rate: float, text: str) -> None:
    assert human_rate(rate, "steps") == text
