"""How the scripts in recipes/ and datasets/ begin and end."""

import logging
import sys
from collections.abc import Callable

from ..errors import AudiogenError


def run_script(main: Callable[[], None], stopped: str = "nothing that was saved is lost") -> int:
    """Runs a script's `main` with the library's own messages shown -> its exit status.

    What a user can mend is told in one line, without a traceback.

    Args:
        stopped: what to say after Ctrl-C.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("audiogen").setLevel(logging.INFO)
    try:
        main()
    except (AudiogenError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return getattr(error, "exit_code", AudiogenError.exit_code)
    except KeyboardInterrupt:
        print(f"stopped: {stopped}", file=sys.stderr)
        return 130
    return 0
