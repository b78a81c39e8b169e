"""The version of this project."""

from importlib import metadata


def project_version() -> str:
    try:
        return metadata.version("mixtral-triton")
    except metadata.PackageNotFoundError:  # run from the source tree
        return "source"
