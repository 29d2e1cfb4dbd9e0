"""Makes this process a client of a Hub on loopback."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hub_server import HubServer
from huggingface_hub import constants


@contextmanager
def loopback_hub(cache: Path) -> Iterator[HubServer]:
    """
    Make this process use a Hub on loopback with a separate cache. `huggingface_hub` reads its settings when it is imported.
    """
    with HubServer() as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr("transformers.utils.hub._hf_api", None)
        patch.setenv("HF_TOKEN", server.token)
        yield server
