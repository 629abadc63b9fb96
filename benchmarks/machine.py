"""What a processor is: its family and model, the name of its design, and its widest vectors."""

import platform
import re
from pathlib import Path
from typing import Any

# Those of Linux's flags that decide how fast a matrix product is.
_FLAGS = re.compile(r"avx\w*|fma|f16c|amx\w*|sse4_2|neon|asimd\w*|sve\w*|i8mm|bf16")

_VENDORS = {"AuthenticAMD": "AMD", "GenuineIntel": "Intel"}

# By vendor and family, the models of each design, first to last.  As in Linux's arch/x86/kernel/cpu/amd.c and
# arch/x86/include/asm/intel-family.h.
_DESIGNS: dict[tuple[str, int], dict[str, list[tuple[int, int]]]] = {
    ("AMD", 23): {
        "Zen": [(0x00, 0x2F), (0x50, 0x5F)],
        "Zen 2": [(0x30, 0x4F), (0x60, 0x7F), (0x90, 0x91), (0xA0, 0xAF)],
    },
    ("AMD", 25): {
        "Zen 3": [(0x00, 0x0F), (0x20, 0x5F)],
        "Zen 4": [(0x10, 0x1F), (0x60, 0xAF)],
    },
    ("AMD", 26): {"Zen 5": [(0x00, 0x2F), (0x40, 0x4F), (0x60, 0x7F)]},
    ("Intel", 6): {
        "Haswell": [(0x3C, 0x3C), (0x3F, 0x3F), (0x45, 0x46)],
        "Broadwell": [(0x3D, 0x3D), (0x47, 0x47), (0x4F, 0x4F), (0x56, 0x56)],
        "Skylake": [(0x4E, 0x4E), (0x5E, 0x5E)],
        "Skylake to Cooper Lake, server": [(0x55, 0x55)],  # the stepping tells them apart
        "Kaby Lake or Coffee Lake": [(0x8E, 0x8E), (0x9E, 0x9E)],
        "Comet Lake": [(0xA5, 0xA6)],
        "Ice Lake": [(0x6A, 0x6A), (0x6C, 0x6C), (0x7D, 0x7E)],
        "Tiger Lake": [(0x8C, 0x8D)],
        "Rocket Lake": [(0xA7, 0xA7)],
        "Alder Lake": [(0x97, 0x97), (0x9A, 0x9A)],
        "Raptor Lake": [(0xB7, 0xB7), (0xBA, 0xBA), (0xBF, 0xBF)],
        "Meteor Lake": [(0xAA, 0xAA), (0xAC, 0xAC)],
        "Sapphire Rapids": [(0x8F, 0x8F)],
        "Emerald Rapids": [(0xCF, 0xCF)],
        "Granite Rapids": [(0xAD, 0xAE)],
    },
}


def processor(text: str | None = None) -> dict[str, Any]:
    """The processor: `name` as it calls itself, `vendor`, `family`, `model`, `design`, and the `flags` that matter.

    Unknown fields are None.  `text` is a /proc/cpuinfo, by default this machine's, where there is one.
    """
    if text is None:
        try:
            text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        except OSError:
            text = ""

    def first(field: str) -> str | None:
        found = re.search(rf"^(?:{field})[ \t]*:[ \t]*(.+)$", text, re.MULTILINE)
        return found[1].strip() if found else None

    vendor, family, model = first("vendor_id"), first("cpu family"), first("model")
    known: dict[str, Any] = {
        "name": first("model name") or platform.processor() or platform.machine() or "unknown",
        "vendor": _VENDORS.get(vendor or "", vendor),
        "family": int(family) if family and family.isdigit() else None,
        "model": int(model) if model and model.isdigit() else None,
        "flags": sorted({flag for flag in (first("flags|Features") or "").split() if _FLAGS.fullmatch(flag)}),
    }
    return known | {"design": _design(known)}


def _design(known: dict[str, Any]) -> str | None:
    for name, ranges in _DESIGNS.get((known["vendor"], known["family"]), {}).items():
        if known["model"] is not None and any(low <= known["model"] <= high for low, high in ranges):
            return name
    return None


def _vectors(flags: list[str]) -> str:
    """The widest vectors that the kernel could use."""
    has = set(flags)
    if {"avx512f", "avx512dq", "avx512vl"} <= has:
        return ", AVX-512"
    if {"avx2", "fma"} <= has:
        return ", AVX2"
    return ", NEON" if has & {"neon", "asimd"} else ""


def described(known: dict[str, Any]) -> str:
    """A processor in words: "AMD family 25 model 17 (Zen 4), AVX-512"; without numbers, the name it reports."""
    if known["family"] is None or known["model"] is None:
        return f"{known['name']}{_vectors(known['flags'])}"
    design = f" ({known['design']})" if known["design"] else ""
    return f"{known['vendor']} family {known['family']} model {known['model']}{design}{_vectors(known['flags'])}"


def short(known: dict[str, Any]) -> str:
    """A processor's name for file names: vendor and design, or vendor, family and model of an unknown design."""
    if known["design"]:
        return f"{known['vendor']} {known['design']}"
    return described(known | {"flags": []})


def slugify(machine: str) -> str:
    """A machine's name as part of a file's name: "Intel(R) Xeon(R) CPU @ 2.20GHz" -> "intel-xeon"."""
    plain = re.sub(r"\((r|tm)\)|\bcpu\b|\bprocessor\b|@.*|\b\d+-core\b", " ", machine.lower())
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "unknown"
