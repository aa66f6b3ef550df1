"""Example mappings: the only place that names a data set. `template.toml` is for one's own log."""

from importlib.resources import files

from features.errors import PairliftError, did_you_mean


def example_names() -> list[str]:
    """Return the names of the example data sets."""
    found = [f.name.removesuffix(".toml") for f in files(__name__).iterdir() if f.name.endswith(".toml")]
    return sorted(name for name in found if name != "template")


def example_text(name: str) -> str:
    """Return the TOML of an example, or of `template`; PairliftError for an unknown name."""
    if name != "template" and name not in example_names():
        raise PairliftError(f"there is no example '{name}'{did_you_mean(name, example_names())}")
    return (files(__name__) / f"{name}.toml").read_text()
