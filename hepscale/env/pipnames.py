"""What to install for modules whose distributions are called otherwise, where nothing tells."""

from __future__ import annotations

__all__ = ["NAMESPACES", "module_of", "pip_name"]

# Packages of which each part is a distribution of its own.
NAMESPACES = frozenset(
    {"azure", "backports", "google", "jaraco", "ruamel", "sphinxcontrib", "zope"}
)

_PIP_NAMES = {
    "Crypto": "pycryptodome",
    "OpenSSL": "pyopenssl",
    "PIL": "pillow",
    "ROOT": "root",
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "docx": "python-docx",
    "dotenv": "python-dotenv",
    "fitz": "pymupdf",
    "git": "gitpython",
    "google.protobuf": "protobuf",
    "jwt": "pyjwt",
    "magic": "python-magic",
    "mpl_toolkits": "matplotlib",
    "mpl_toolkits.basemap": "basemap",
    "pkg_resources": "setuptools",
    "psycopg2": "psycopg2-binary",
    "pylab": "matplotlib",
    "rucio": "rucio-clients",
    "serial": "pyserial",
    "skhep": "scikit-hep",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "skopt": "scikit-optimize",
    "sksparse": "scikit-sparse",
    "tlz": "toolz",
    "umap": "umap-learn",
    "usb": "pyusb",
    "yaml": "pyyaml",
    "zmq": "pyzmq",
}
_MODULES = {pip: module for module, pip in _PIP_NAMES.items()}


def pip_name(module: str) -> str:
    """Return the name under which pip most likely knows a module."""
    known = module
    while known:
        if known in _PIP_NAMES:
            return _PIP_NAMES[known]
        known = known.rpartition(".")[0]
    return module.replace(".", "-").replace("_", "-")


def module_of(distribution: str) -> str:
    """Return a module that a distribution provides under another name, or ""."""
    return _MODULES.get(distribution, "")
