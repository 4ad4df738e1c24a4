"""Versions of packages, also of a variegrad that is imported from its sources and was never installed."""

from functools import cache

__version__ = "0.2.0"


def version(package: str) -> str:
    """The version of `package`."""
    if package == "variegrad":
        return __version__
    from importlib import metadata  # noqa: PLC0415 - 20 ms that `import variegrad` does not need

    return metadata.version(package)


@cache  # reading the packages' files takes milliseconds
def versions() -> dict[str, str]:
    """What the numbers of a run depend on besides its settings.

    Returns:
        Package → version.
    """
    import platform  # noqa: PLC0415 - as above

    found = {name: version(name) for name in ("variegrad", "torch", "numpy")}
    return {**found, "python": platform.python_version()}
