"""What tests have in common that talk to kernels."""

from __future__ import annotations

import pytest

# of the libraries that talk to the kernel, not of ours
IGNORED = [
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning:(jupyter_client|zmq|traitlets|asyncio).*"
    ),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
VIEW_TYPE = "application/vnd.jupyter.widget-view+json"
