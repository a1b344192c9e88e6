"""A campaign: `python -m tests.campaign MINUTES` attacks dumps, runs and commands until the time is over.

It prints what was tried and what became of it, names each fault with the line that repeats it, and ends with 1 if there
is any. `just campaign 30` runs it.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "POLARS_MAX_THREADS": "2"}
os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
os.environ["PYTHONPATH"] = str(ROOT)

from tests.campaign import attempts, commands, material, runner  # noqa: E402
from tests.campaign.calls import Calls  # noqa: E402
from tests.campaign.flips import Flips  # noqa: E402
from tests.campaign.kills import Kills  # noqa: E402
from tests.campaign.run_flips import RunFlips  # noqa: E402

KINDS: dict[str, runner.Kind] = {kind.name: kind for kind in (Kills(), Flips(), RunFlips(), Calls())}


def main() -> int:
    """Run the campaign and return the exit code."""
    options = _options()
    kinds = [KINDS[name] for name in options.only or ([options.repeat[0]] if options.repeat else KINDS)]
    commands.warm_up()
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        place = Path(folder)
        runner.prepare(kinds, place, material.make)
        if options.repeat:
            ended = runner.one(kinds[0], int(options.repeat[1]), place, options.seed)
            for attempt in ended:
                print(f"{attempt.outcome}: {attempt.what}\n    {attempt.words}")
            return int(any(attempt.outcome in attempts.FAULTS for attempt in ended))
        ended = runner.campaign(kinds, place, options.seed, options.minutes * 60, options.jobs, _say)
    print(attempts.table(ended, [kind.name for kind in kinds]))
    faults = attempts.faults(ended, options.seed)
    print("\n".join(faults) or "no fault")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(attempts.as_json(ended, options.seed, options.minutes), encoding="utf-8")
    return int(bool(faults))


def _say(attempt: attempts.Attempt) -> None:
    if attempt.outcome in attempts.FAULTS:
        print(f"{attempt.outcome}: {attempt.kind} {attempt.number}: {attempt.what}: {attempt.words}", file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="campaign", description=__doc__)
    parser.add_argument("minutes", type=float, nargs="?", default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(KINDS), action="append", help="this kind of attack alone; repeatable")
    parser.add_argument("--repeat", nargs=2, metavar=("KIND", "NUMBER"), help="make one attempt of the seed again")
    parser.add_argument("--jobs", type=int, default=2, help="processes at the same time")
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "campaign.json", help="where the result is written")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
