"""Versions of packages, also of a variegrad that is imported from its sources and was never installed."""

__version__ = "0.2.0"


def version(package: str) -> str:
    """The version of `package`."""
    if package == "variegrad":
        return __version__
    from importlib import metadata  # noqa: PLC0415 - 20 ms that `import variegrad` does not need

    return metadata.version(package)
