"""The optional group: collected only where it is named (`pytest tests/third_party`), for it needs more packages.

Named, it runs whole: a package that is missing is an error, not a skip.
"""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    named = [(config.invocation_params.dir / argument.split("::")[0]).resolve() for argument in config.args]
    if any(path.is_relative_to(HERE) for path in named):
        return None
    return collection_path.is_relative_to(HERE) or None
