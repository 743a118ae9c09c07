"""Writes the expected hashes and shards beside this file, from implementations that share nothing with ours.

    python3 -m venv /tmp/golden && /tmp/golden/bin/pip install redis mmh3 xxhash fnvhash
    /tmp/golden/bin/python config/tests/golden/sharding/make.py

Slots are redis-py's, hashes those of zlib, binascii, mmh3, xxhash and fnvhash; ring, maglev, jump and rendezvous are
written here after the papers and docs/sharding.md. What is written is frozen: it says where people's data lies.
"""

import binascii
import bisect
import itertools
import json
import pathlib
import struct
import zlib

import fnvhash
import mmh3
import xxhash
from redis.crc import key_slot

HERE = pathlib.Path(__file__).parent
MASK = (1 << 64) - 1

KEYS = [b"", b"a", b"ab", b"abc", b"abcd", b"123456789", b"foo", b"bar", b"hello, world", b"\x00", b"\xff\xfe\x80",
        "길목".encode(), "user:ünïcode".encode(), b" ", b"a" * 300, b"{user1000}.following", b"{user1000}.followers",
        b"foo{}{bar}", b"foo{{bar}}zap", b"foo{bar}{zap}", b"foo{bar", b"}foo{bar}", b"{}", b"{", b"a{b}c{d}e"]
KEYS += [str(number).encode() for number in (0, 1, 2, 3, 4, 7, 10, 42, 1000, 16383, 16384, 4294967296, 2**64 - 1)]
KEYS += [b"user-%d" % number for number in range(200)]
KEYS += [bytes((number * 7 + index) % 256 for index in range(number)) for number in range(1, 260, 7)]

HASHES = {
    "crc16": lambda key: binascii.crc_hqx(key, 0),
    "crc32": zlib.crc32,
    "fnv1a_32": fnvhash.fnv1a_32,
    "fnv1a_64": fnvhash.fnv1a_64,
    "murmur3_32": lambda key: mmh3.hash(key, 0, signed=False),
    "xxh3_64": lambda key: xxhash.xxh3_64_intdigest(key, 0),
}


def mixed(number):
    """fmix64 of MurmurHash3."""
    number = ((number ^ number >> 33) * 0xFF51AFD7ED558CCD) & MASK
    number = ((number ^ number >> 33) * 0xC4CEB9FE1A85EC53) & MASK
    return number ^ number >> 33


def ring(hashed, shards):
    points = sorted((mixed(hashed(f"{name}#{at}".encode())), owner)
                    for owner, name in enumerate(shards) for at in range(160))
    places = [place for place, _ in points]
    return lambda key: points[bisect.bisect_left(places, mixed(hashed(key))) % len(points)][1]


def maglev(hashed, shards):
    rows = 65537
    permutations = []
    for name in shards:
        number = mixed(hashed(name.encode()))
        offset, skip = (number & 0xFFFFFFFF) % rows, (number >> 32) % (rows - 1) + 1
        permutations.append((offset, skip))
    table, filled, wanted = [None] * rows, 0, [0] * len(shards)
    while filled < rows:
        for owner, (offset, skip) in enumerate(permutations):
            while True:
                row = (offset + wanted[owner] * skip) % rows
                wanted[owner] += 1
                if table[row] is None:
                    break
            table[row] = owner
            filled += 1
            if filled == rows:
                break
    return lambda key: table[mixed(hashed(key)) % rows]


def jump(hashed, shards):
    def place(key):
        number, before, after = hashed(key), -1, 0
        while after < len(shards):
            before = after
            number = (number * 2862933555777941757 + 1) & MASK
            after = int((before + 1) * (float(1 << 31) / float((number >> 33) + 1)))
        return before
    return place


def rendezvous(hashed, shards):
    names = [mixed(hashed(name.encode())) for name in shards]
    def place(key):
        number = hashed(key)
        bids = [mixed(number ^ name) for name in names]
        return bids.index(max(bids))
    return place


def part(text):
    return struct.pack("<Q", len(text)) + text


def meaning(table):
    """Everything on which the shard of a key depends, in bytes."""
    strategy, out = table["strategy"], part(table["strategy"].encode())
    if strategy == "range":
        bounds = sorted((bound, name) for name, bounds in table["map"].items()
                        for bound in (bounds if isinstance(bounds, list) else [bounds]))
        written = [struct.pack("<q", int(bound)) if table.get("numeric") else bound.encode() for bound, _ in bounds[1:]]
        out += part(b"numeric") if table.get("numeric") else b""
        return out + b"".join(map(part, written)) + b"".join(part(name.encode()) for _, name in bounds)
    if strategy == "directory":
        for key, name in sorted(table["map"].items()):
            out += part(key.encode()) + part(name.encode())
        return out + part(b"") + part(table.get("default", "").encode())
    hashed = table.get("hash", "crc16" if strategy in ("slots", "modulo") else "xxh3_64")
    out += part(hashed.encode()) + bytes([strategy == "slots" and hashed == "crc16"])
    if strategy != "slots":
        return out + b"".join(part(name.encode()) for name in table["shards"])
    owners = {slot: name for name, text in table["map"].items() for run in text.split(",")
              for slot in range(int(run.split("-")[0]), int(run.split("-")[-1]) + 1)}
    runs = itertools.groupby(owners[slot] for slot in range(len(owners)))
    return out + b"".join(struct.pack("<Q", len(list(run))) + part(name.encode()) for name, run in runs)


MAPS = [
    {"strategy": "slots", "map": {"0": "0-8191", "1": "8192-12287,12288-16383"}},
    {"strategy": "slots", "slots": 8, "hash": "xxh3_64", "map": {"a": "0-1,6", "b": "2-5,7"}},
    {"strategy": "modulo", "hash": "crc32", "shards": ["0", "1", "2", "3"]},
    {"strategy": "range", "map": {"0": "", "1": "m", "2": "ma"}},
    {"strategy": "range", "numeric": True, "map": {"1": "1000", "0": ""}},
    {"strategy": "directory", "map": {"acme": "big", "b": "1"}, "default": "0"},
    {"strategy": "directory", "map": {"acme": "big"}},
    {"strategy": "ring", "shards": ["0", "1"]},
    {"strategy": "jump", "hash": "crc32", "shards": ["b", "a"]},
]


def write(name, head, lines):
    (HERE / name).write_text("\n".join([f"# {head} Written by make.py.", *lines]) + "\n")


write("hashes.txt", "hash, value, key in hexadecimal.",
      (f"{name} {hashed(key)} {key.hex()}" for name, hashed in HASHES.items() for key in KEYS))
write("slots.txt", "slot of Redis Cluster, key in hexadecimal.", (f"{key_slot(key)} {key.hex()}" for key in KEYS if key))
write("modulo.txt", "hash, shards, remainder, key in hexadecimal.",
      (f"{name} {many} {HASHES[name](key) % many} {key.hex()}"
       for name in ("crc32", "xxh3_64") for many in (3, 4, 1000) for key in KEYS[1:60]))
write("shards.txt", "strategy, hash, shards (named s0, s1 and so on), place of the shard, key in hexadecimal.",
      (f"{strategy.__name__} {name} {many} {place(key)} {key.hex()}"
       for strategy in (ring, maglev, jump, rendezvous) for name in ("xxh3_64", "crc32", "fnv1a_64")
       for many in (1, 2, 5, 16, 1000)
       for place in [strategy(HASHES[name], [f"s{at}" for at in range(many)])] for key in KEYS[1:-1:9]))
write("maps.txt", "hash of the map, the table as JSON.",
      (f"{xxhash.xxh3_64_hexdigest(meaning(table), 0)} {json.dumps({'key': 'host', **table})}" for table in MAPS))
