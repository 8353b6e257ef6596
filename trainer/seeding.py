"""Randomness has a name: every random number of a run is a function of (run seed, purpose, step, problem,
node, place).

Nothing reads or sets a global generator, so numbers do not depend on batch composition, timing, or on what
was drawn before; a run that is resumed draws what the unbroken run would have drawn.

`uniforms` is the counter-based generator Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011), vectorised over nodes.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_ROUNDS = 10
_WORD = 2**64 - 1
ROOT_PATH = 0


def named_seed(*names: int | str) -> int:
    """A 64-bit seed for these names in this order. Names are told apart: ("ab", "c") is not ("a", "bc")."""
    hashed = blake2b(digest_size=8)
    for name in names:
        part = f"{type(name).__name__}:{name}".encode()
        hashed.update(len(part).to_bytes(8, "little") + part)
    return int.from_bytes(hashed.digest(), "little")


def generator(*names: int | str) -> np.random.Generator:
    """A numpy generator of its own for these names."""
    return np.random.Generator(np.random.Philox(key=named_seed(*names)))


def child_paths(parents: NDArray[np.uint64], numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
    """[N] 64-bit name of each child from its parent's name [N] and its number among its siblings [N], from 0.

    The root's is `ROOT_PATH`. The finaliser of SplitMix64: distinct paths collide with probability about
    2^-64.
    """
    with np.errstate(over="ignore"):  # arithmetic is modulo 2^64 on purpose
        mixed = parents * np.uint64(0xD1342543DE82EF95) + (
            numbers.astype(np.uint64) + np.uint64(1)
        ) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        named: NDArray[np.uint64] = mixed ^ (mixed >> np.uint64(31))
    return named


def child_path(parent: int, number: int) -> int:
    """`child_paths` of a single child, in plain integers."""
    mixed = (parent * 0xD1342543DE82EF95 + (number + 1) * 0x9E3779B97F4A7C15) & _WORD
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _WORD
    return mixed ^ (mixed >> 31)


def uniforms(
    keys: NDArray[np.uint64], paths: NDArray[np.uint64], count: int, first: int = 0
) -> NDArray[np.float64]:
    """[N, count] numbers strictly between 0 and 1, multiples of 2^-32 plus 2^-33: of each node's stream those
    from place `first` on, which is a multiple of 4.

    keys [N]: `named_seed` of each node's tree; paths [N]: `child_paths`. Number i of a node is the same for
    every `count`.
    """
    blocks = -(-count // 4)
    counter = np.empty((4, len(keys), blocks), np.uint64)
    counter[0] = np.arange(first // 4, first // 4 + blocks, dtype=np.uint64)
    counter[1] = (paths & _LOW)[:, None]
    counter[2] = (paths >> _HALF)[:, None]
    counter[3] = 0
    words = philox(counter, np.stack([keys & _LOW, keys >> _HALF])[:, :, None])
    flat = np.moveaxis(words, 0, -1).reshape(len(keys), blocks * 4)[:, :count]
    numbers: NDArray[np.float64] = (flat.astype(np.float64) + 0.5) * 2.0**-32
    return numbers


def philox(counter: NDArray[np.uint64], key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Philox4x32-10. counter [4, ...], key [2, ...], 32-bit words held in uint64. Returns [4, ...]."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for number in range(_ROUNDS):
        left, right = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        round_0 = (k0 + np.uint64(number * _WEYL[0] & 0xFFFFFFFF)) & _LOW
        round_1 = (k1 + np.uint64(number * _WEYL[1] & 0xFFFFFFFF)) & _LOW
        c0, c1, c2, c3 = (
            (right >> _HALF) ^ c1 ^ round_0,
            right & _LOW,
            (left >> _HALF) ^ c3 ^ round_1,
            left & _LOW,
        )
    return np.stack([c0, c1, c2, c3])
