"""The exceptions that the command line turns into a short message and an exit code."""


class LmsiError(Exception):
    """A mistake that the user can mend; the message says what was found and names the remedy.

    Everything else that is raised is a bug and keeps its traceback.
    """

    exit_code = 2


class TryAgain(LmsiError):
    """No mistake of the user's: another process is gone, and the same command goes on.

    Its exit code is EX_TEMPFAIL of sysexits.h (BSD): whoever starts processes starts them anew on
    it, and not on a mistake.
    """

    exit_code = 75
