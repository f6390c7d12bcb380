"""The version, from the metadata of the installed package; pyproject.toml alone states it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("flowinv_fast")
except PackageNotFoundError:  # running from a source tree that was never installed
    VERSION = "unknown"
