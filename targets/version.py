"""The version of the package, which written files name."""

__version__ = "0.2.0"
