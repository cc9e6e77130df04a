"""The version of the package. It lives here and nowhere else."""

__version__ = "0.1.0"
