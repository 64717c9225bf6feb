"""What the benchmark's commands share: how they end."""

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from tests.stage import MissingError, StageError


def main_guard(main: Callable[[], None]) -> NoReturn:
    """Run `main` and exit: 0 done, 1 failed, 2 a program is missing, 128+N signal N."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        main()
    except StageError as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, MissingError) else 1)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    sys.exit(0)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)
