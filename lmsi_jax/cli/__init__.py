"""Run the `lmsi` command."""


def run_command() -> int:
    """Runs `lmsi` and returns its exit code, also if Ctrl-C comes before it handles signals."""
    try:
        from lmsi_jax.cli.main import main

        return main()
    except KeyboardInterrupt:
        return 130
