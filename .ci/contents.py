"""Says what a wheel or a source distribution holds that it should not, or lacks: `contents.py TREE FILE...`.

TREE is a checkout without anything that git ignores.  A source distribution holds all of it, and what setuptools adds.
A wheel holds the package without its C sources, the compiled kernel, and the metadata.
"""

import re
import sys
import tarfile
import zipfile
from pathlib import Path

KERNEL = "torchlstm/engines/cpu/_kernel.abi3.so"
ADDED_TO_SOURCES = {"PKG-INFO", "setup.cfg"}
METADATA = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"}


def files_of(file: Path) -> set[str]:
    """The names of the files in an archive; of a source distribution, below its one folder."""
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as wheel:
            return {name for name in wheel.namelist() if not name.endswith("/")}
    with tarfile.open(file) as sources:
        return {member.name.split("/", 1)[1] for member in sources if not member.isdir()}


def expected(file: Path, tree: set[str], version: str) -> set[str]:
    """The names that should be in it."""
    if file.suffix != ".whl":
        return tree | ADDED_TO_SOURCES
    package = {name for name in tree if re.match(r"torchlstm/(.*\.py|py\.typed)$", name)}
    assert {"torchlstm/__init__.py", "torchlstm/py.typed"} <= package
    return package | {KERNEL} | {f"torchlstm-{version}.dist-info/{name}" for name in METADATA}


def main(tree: Path, files: list[Path]) -> int:
    """Compare; returns the exit code."""
    names = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    version = re.search(r'^__version__ = "(.*)"$', (tree / "torchlstm/__init__.py").read_text(), re.MULTILINE)[1]
    wrong = 0
    for file in files:
        tag = r"-cp310-abi3-\w+(\.\w+)*\.whl" if file.suffix == ".whl" else r"\.tar\.gz"
        found, wanted = files_of(file), expected(file, names, version)
        if file.suffix != ".whl":
            found = {name for name in found if not name.startswith("torchlstm.egg-info/")}
        faults = [f"{name}: should not be there" for name in sorted(found - wanted)]
        faults += [f"{name}: is missing" for name in sorted(wanted - found)]
        if not re.fullmatch(rf"torchlstm-{re.escape(version)}{tag}", file.name):
            faults.append("its name is another")
        print(f"{file.name}: {len(found)} files, {file.stat().st_size / 1024:.0f} KiB", *faults, sep="\n  ")
        wrong += len(faults)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]))
