"""How many threads a kernel may ask for: torch's number, and what cgroups grant."""

from pathlib import Path

import pytest
import torch

from torchlstm.engines.shared import threads

V2 = {"proc/self/cgroup": "0::/a/b\n"}
V1 = {"proc/self/cgroup": "5:memory:/m\n3:cpu,cpuacct:/docker/7\n0::/\n"}
QUOTA, PERIOD = "cpu.cfs_quota_us", "cpu.cfs_period_us"

MACHINES = {
    "no-linux": ({}, None),
    "v2-none": (V2, None),
    "v2-max": (V2 | {"sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, None),
    "v2-two": (V2 | {"sys/fs/cgroup/a/b/cpu.max": "200000 100000\n"}, 2),
    "v2-rounded-down": (V2 | {"sys/fs/cgroup/a/b/cpu.max": "399999 100000\n"}, 3),
    "v2-at-least-one": (V2 | {"sys/fs/cgroup/a/b/cpu.max": "20000 100000\n"}, 1),
    "v2-other-period": (V2 | {"sys/fs/cgroup/a/b/cpu.max": "200000 50000\n"}, 4),
    "v2-least-of-parents": (
        V2 | {"sys/fs/cgroup/a/b/cpu.max": "400000 100000\n", "sys/fs/cgroup/a/cpu.max": "300000 100000\n"},
        3,
    ),
    "v2-parent-only": (V2 | {"sys/fs/cgroup/a/b/cpu.max": "max 100000", "sys/fs/cgroup/a/cpu.max": "2000 1000"}, 2),
    "v2-in-a-container": (V2 | {"sys/fs/cgroup/cpu.max": "500000 100000\n"}, 5),
    "v2-not-ours": (V2 | {"sys/fs/cgroup/a/c/cpu.max": "100000 100000\n"}, None),
    "hybrid": ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/unified/a/cpu.max": "200000 100000"}, 2),
    "v1-none": (
        V1 | {f"sys/fs/cgroup/cpu/docker/7/{QUOTA}": "-1\n", f"sys/fs/cgroup/cpu/docker/7/{PERIOD}": "9\n"},
        None,
    ),
    "v1-two": (V1 | {f"sys/fs/cgroup/cpu/docker/7/{QUOTA}": "25\n", f"sys/fs/cgroup/cpu/docker/7/{PERIOD}": "10\n"}, 2),
    "v1-in-a-container": (
        V1 | {f"sys/fs/cgroup/cpu,cpuacct/{QUOTA}": "300000\n", f"sys/fs/cgroup/cpu,cpuacct/{PERIOD}": "100000\n"},
        3,
    ),
    "v1-other-controller": (
        {"proc/self/cgroup": "5:cpuset:/a\n"}
        | {f"sys/fs/cgroup/cpu/a/{QUOTA}": "100000\n", f"sys/fs/cgroup/cpu/a/{PERIOD}": "100000\n"},
        None,
    ),
    "garbage": (V2 | {"sys/fs/cgroup/cpu.max": "many\n"}, None),
    "empty": (V2 | {"sys/fs/cgroup/cpu.max": ""}, None),
    "garbled-list": ({"proc/self/cgroup": "0:\n"}, None),
}


@pytest.mark.parametrize(("files", "expected"), MACHINES.values(), ids=MACHINES)
def test_quota(files: dict[str, str], expected: int | None, tmp_path: Path) -> None:
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert threads.quota(tmp_path) == expected


@pytest.mark.parametrize(
    ("given", "quota", "expected"), [(1, None, 1), (4, None, 4), (4, 2, 2), (4, 8, 4), (2, 1, 1), (1, 3, 1)]
)
def test_count(given: int, quota: int | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: given)
    monkeypatch.setattr(threads, "quota", lambda: quota)
    assert threads.count() == expected
