"""Define the errors that the command line turns into a short message and an exit code."""


class LmsiError(Exception):
    """A mistake that the user can fix; the message names it and the remedy.

    All other exceptions are bugs and keep their traceback.
    """

    exit_code = 2


class TryAgain(LmsiError):
    """No mistake: another process of the run is gone, and the same command continues the run.

    The exit code is EX_TEMPFAIL of sysexits.h (BSD). Launchers restart a process that exits with
    it, and leave one that exits with a mistake.
    """

    exit_code = 75


class DoesNotFit(LmsiError):
    """A run was checked as asked, and does not fit into the memory of the devices."""

    exit_code = 3
