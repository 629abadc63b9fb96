"""Loads the weights of a frozen module from a state_dict of a frozen module, or of a float one, rounding them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..engines.shared.rounding import MOST, Rounded, rounded
from .frozen_weights import Entry, Store, apart, is_matrix, shapes_of


class Loaded(NamedTuple):
    """What was found in a state_dict for a module.

    keys     the keys that belong to the module
    missing  the module's keys that the state_dict does not have
    errors   messages about values that do not fit
    store    the new weights, or None if there were no keys, or any errors
    """

    keys: set[str]
    missing: list[str]
    errors: list[str]
    store: Store | None


def load(store: Store, state_dict: Mapping[str, Any], prefix: str) -> Loaded:
    """Read the weights of a module; missing ones stay as they are."""
    keys: set[str] = set()
    missing, errors = [], []
    with apart():
        entries = store.entries()
        for name, shape in shapes_of(store.sizes, store.cell).items():
            key = prefix + name
            given = state_dict.get(key)
            if given is None:
                missing.append(key)
                continue
            keys.add(key)
            scale = None
            if isinstance(given, Tensor) and given.dtype == torch.int8 and store.format == torch.int8:
                scale = state_dict.get(key + "_scale")
                if scale is None:
                    missing.append(key + "_scale")
                    continue
                keys.add(key + "_scale")
            try:
                entries[name] = _entry(store, key, is_matrix(name), given, scale, shape)
            except ValueError as error:
                errors.append(str(error))
        new = None if errors or not keys else Store(store.sizes, store.format, store.cell, entries)
    return Loaded(keys, missing, errors, new)


def _entry(store: Store, key: str, matrix: bool, given: Any, scale: Any, shape: tuple[int, ...]) -> Entry:
    """One weight, checked; raises ValueError if it does not fit."""
    _check_tensor(key, given, shape)
    format, own = store.format, store.like.dtype
    if scale is not None:
        _check_tensor(key + "_scale", scale, shape[:1])
        return _of_integers(key, given.cpu(), scale.detach().cpu())
    if matrix and format is not None:
        # Another 16-bit format is an error, since rounding twice is hardly intended.
        if given.dtype not in (format, torch.float32, torch.float64):
            what = f"{format}, or torch.float32 to be rounded to it"
            raise ValueError(f"{key}: Expected {what}, got {given.dtype}")
        return rounded(given.cpu().float(), format, key)
    if not given.is_floating_point() and given.dtype != own:
        raise ValueError(f"{key}: Expected {own}, got {given.dtype}")
    tensor = given.detach().to("cpu", own, copy=True)
    return Rounded(tensor) if matrix else tensor


def _check_tensor(key: str, given: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(given, Tensor):
        raise ValueError(f"{key}: Expected a tensor, got {type(given).__name__}")
    if given.is_meta:
        raise ValueError(f"{key}: Expected a tensor with numbers, got one on the meta device")
    if given.shape != shape:
        raise ValueError(f"size mismatch for {key}: Expected {shape}, got {tuple(given.shape)}")


def _of_integers(key: str, values: Tensor, scale: Tensor) -> Rounded:
    """int8 values with their scales, which must be finite and not negative; rounding never makes -128."""
    if int(values.min()) < -MOST:
        raise ValueError(f"{key}: Expected integers from {-MOST} to {MOST}, got {int(values.min())}")
    if not scale.is_floating_point() or not bool((scale.isfinite() & (scale >= 0)).all()):
        raise ValueError(f"{key}_scale: Expected finite float32 of at least 0, got {scale.dtype} up to {scale.max()}")
    return Rounded(values.clone(), scale.to(torch.float32, copy=True))
