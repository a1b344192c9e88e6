"""Bounds of the numbers that users give, and the configuration of the models that check them.

Bounds only keep out what no computer can do: an infinite weight, 10 ** 18 steps.
"""

from typing import Annotated

from pydantic import ConfigDict, Field

from shared.options import MOST

MOST_SEED = 2**32 - 1

# Unknown keys are errors, values cannot be changed later, and no number is NaN or infinite.
STRICT = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

# A number of steps, rows or tokens.
Count = Annotated[int, Field(ge=1, le=MOST)]
# A seed of random numbers, as numpy takes it.
Seed = Annotated[int, Field(ge=0, le=MOST_SEED)]
# A number of batches that are held at the same time.
Batches = Annotated[int, Field(ge=1, le=10_000)]
# A weight, a temperature or a limit: the square of it, and what it is multiplied with, stay finite in float32.
MOST_FACTOR = 1e12
Factor = Annotated[float, Field(ge=1 / MOST_FACTOR, le=MOST_FACTOR)]
# A factor that may be 0.
FactorOrZero = Annotated[float, Field(ge=0, le=MOST_FACTOR)]
# A number of passes over the rows.
Epochs = Annotated[float, Field(gt=0, le=MOST)]
