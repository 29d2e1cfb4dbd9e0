import functools

import pytest
from tiny_models import compose


@pytest.fixture(scope="module")
def shared_model(parts):
    """Composes each combination once, for tests that do not change the model."""
    return functools.cache(lambda *combination: compose(parts, *combination))


@pytest.fixture
def forwards():
    """Counts forward passes of the language model."""

    class Counter:
        def watch(self, model):
            self.count = 0
            model.model.language_model.register_forward_hook(self._add)

        def _add(self, *args):
            self.count += 1

    return Counter()
