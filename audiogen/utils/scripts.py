"""Run the scripts in recipes/ and datasets/."""

import logging
import sys
from collections.abc import Callable

from ..errors import AudiogenError, reports


def run_script(main: Callable[[], None], stopped: str = "nothing that was saved is lost") -> int:
    """Run a script's `main` with the library's log messages shown, and return the exit status.

    An error that the user can fix is printed as one line, without a traceback.

    Args:
        main: the script.
        stopped: message after Ctrl-C.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("audiogen").setLevel(logging.INFO)
    try:
        main()
    except (AudiogenError, OSError) as error:
        if not isinstance(error, AudiogenError) or reports(error):
            print(f"error: {error}", file=sys.stderr)
        return getattr(error, "exit_code", AudiogenError.exit_code)
    except KeyboardInterrupt:
        print(f"stopped: {stopped}", file=sys.stderr)
        return 130
    return 0
