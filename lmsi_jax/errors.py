"""The one exception that the command line turns into a short message and exit code 2."""


class LmsiError(Exception):
    """A mistake that the user can mend; the message says what was found and names the remedy.

    Everything else that is raised is a bug and keeps its traceback.
    """
