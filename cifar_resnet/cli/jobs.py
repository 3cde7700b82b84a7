"""A job, called with its configuration as if this process had been started for it alone."""

import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from cifar_resnet import messages
from cifar_resnet.errors import Finished, RunError

Job = Callable[[Any], object]
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


def call(job: Job, config: Any, line: Sequence[str]) -> object:
    """Do one job, perhaps of several, and leave the process as it was: one that it starts is to do this job alone.

    Returns what the job returns, None where it was done before. `RunError` where a file cannot be written.
    """
    if config.needs_torch:
        messages.say_loading()  # within a second of Enter, for a mistake would have been answered by now
    arguments, environment = sys.argv, dict(os.environ)
    sys.argv = [arguments[0], *line]
    try:
        return job(config)
    except Finished as done:
        print(done)
        return None
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        where = error.filename or "the run folder"
        raise RunError(f"{where} cannot be written ({error.strerror}): make room") from error
    finally:  # the ranks that Lightning leaves there would be taken for those of the next job
        sys.argv = arguments
        os.environ.clear()
        os.environ.update(environment)
