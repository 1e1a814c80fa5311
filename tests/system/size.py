"""How large the tests of endurance are: as CI can bear it, or in full (`make prove`)."""

import os


def full() -> bool:
    """Whether MOLECULE_TEST_SIZE asks for the full size."""
    return os.environ.get("MOLECULE_TEST_SIZE") == "full"
