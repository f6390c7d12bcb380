"""The version, from the metadata of the installed package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("flowinv_fast")
except PackageNotFoundError:  # running from a source tree that was never installed
    VERSION = "0.1.0"
