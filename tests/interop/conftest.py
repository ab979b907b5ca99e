"""The marker of tests that read real weights."""


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "weights: reads real models from the folder that LMSI_WEIGHTS names"
    )
