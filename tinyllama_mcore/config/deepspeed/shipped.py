"""The DeepSpeed JSONs that come with the package: found by name, as in `--deepspeed_config zero3`.

Neighbour: `document` reads what is found here. In a checkout `ds_configs/` at the root is a link to the same files.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from tinyllama_mcore.config.errors import ConfigError
from tinyllama_mcore.config.strict_json import did_you_mean

_SUFFIX = ".json"


def _directory() -> Path:
    """Where they lie; pip unpacks what it installs, so that it is a directory."""
    return Path(str(resources.files("tinyllama_mcore"))) / "ds_configs"


def names() -> list[str]:
    """Their names, sorted: what --deepspeed_config takes in place of a path."""
    return sorted(path.stem for path in _directory().glob(f"*{_SUFFIX}"))


def find(given: str) -> str:
    """The path of the JSON that is named: a file wins; a word without a slash or .json names one of the package.

    Raises:
        ConfigError: no such file, and no such name (with the one it resembles).
    """
    path, known = Path(given), names()
    if given in known and not path.is_file():
        return str(_directory() / f"{given}{_SUFFIX}")
    if path.exists():
        return given
    if given == path.name and path.suffix != _SUFFIX:
        raise ConfigError(
            f"{given}: no such file, and no DeepSpeed JSON of this name comes with tinyllama_mcore"
            f"{did_you_mean(given, known)}"
        )
    if path.suffix == _SUFFIX and path.stem in known:
        raise ConfigError(f"{given}: no such file; the JSON that comes with tinyllama_mcore is named {path.stem}")
    return given  # whoever reads it names what it resembles beside it
