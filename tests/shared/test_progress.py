import pytest

from shared import progress
from shared.progress import human_rate


@pytest.mark.parametrize(
    ("rate", "text"),
    [(25_000.4, "25,000/s"), (12, "12/s"), (1.54, "1.5/s"), (0.24, "4.2 s a step"), (0.001, "16 min 40 s a step")],
)
def test_slow_work_is_told_by_the_time_that_a_piece_takes(rate: float, text: str) -> None:
    assert human_rate(rate, "steps") == text


def test_work_whose_first_piece_takes_long_is_shown_without_a_rate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with progress.Progress("student", "steps", 3, bar=False) as shown:
        shown.advance(0)
        shown.advance(1)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "student: 0 of 3 steps"
    assert second.startswith("student: 1 of 3 steps, ")
    assert second.endswith(" left")
