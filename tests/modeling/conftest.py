import functools

import pytest
from tiny_models import compose


@pytest.fixture(scope="module")
def shared_model(parts):
    """Composes each combination once, for tests that do not change the model."""
    return functools.cache(lambda *combination: compose(parts, *combination))
