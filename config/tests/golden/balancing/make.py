"""Writes the expected hashes of subjects and the endpoints that they go to, from an implementation that shares nothing
with ours but docs/balancing.md.

    python3 -m venv /tmp/golden && /tmp/golden/bin/pip install xxhash
    /tmp/golden/bin/python config/tests/golden/balancing/make.py

What is written is frozen: it says where people's sessions and caches are.
"""

import bisect
import pathlib

import xxhash

HERE = pathlib.Path(__file__).parent
MASK = (1 << 64) - 1
PLACES, RING_PLACES_MAX, STEPS_MAX, LISTED = 160, 1 << 18, 8192, 4

SETS = {
    "one": [("10.0.0.1:80", 1)],
    "five": [(f"10.0.0.{at}:8080", 1) for at in range(1, 6)],
    "weights": [("10.0.0.1:80", 100), ("10.0.0.2:80", 50), ("10.0.0.3:80", 1), ("10.0.0.4:80", 33), ("10.0.0.5:80", 65535)],
    "twice": [("10.0.0.1:80", 1), ("10.0.0.2:80", 2), ("10.0.0.2:80", 5), ("10.0.0.3:80", 3), ("10.0.0.4:80", 0)],
    "kinds": [("[2001:db8::1]:80", 1), ("[::1]:8080", 2), ("unix:///run/app.sock", 3), ("127.0.0.1:9000", 2), ("[fe80::1]:1", 1)],
    "hundred": [(f"10.1.{at // 16}.{at % 16}:80", 1 + at % 3) for at in range(100)],
    "many": [(f"10.2.{at // 256}.{at % 256}:80", 1) for at in range(2000)],
}
SUBJECTS = [b"", b"a", b"user-1", b"\x00", b"\xff\xfe\x80", "길목".encode(), b"s" * 300, b"9f2c4e01a7d85b36"]
SUBJECTS += [b"%d" % (number * number) for number in range(1, 40)]


def mixed(number):
    """fmix64 of MurmurHash3."""
    number = ((number ^ number >> 33) * 0xFF51AFD7ED558CCD) & MASK
    number = ((number ^ number >> 33) * 0xC4CEB9FE1A85EC53) & MASK
    return number ^ number >> 33


def place_of(text):
    return mixed(xxhash.xxh3_64_intdigest(text.encode(), 0))


def subject_hash(subject):
    return mixed(xxhash.xxh3_64_intdigest(subject, 1))


def members_of(listed):
    """Each address once, with its largest weight, in the order of their bytes."""
    members = {}
    for address, weight in listed:
        members[address] = max(weight, members.get(address, 0))
    return sorted(((address, weight) for address, weight in members.items() if weight > 0), key=lambda m: m[0].encode())


def ring(members):
    heaviest = max(weight for _, weight in members)
    most = min(PLACES, RING_PLACES_MAX // len(members))
    points = []
    for owner, (address, weight) in enumerate(members):
        places = max(1, (2 * most * weight + heaviest) // (2 * heaviest))
        points += [(place_of(f"{address}#{at}"), owner) for at in range(places)]
    points.sort()
    places = [place for place, _ in points]

    def order(number):
        first = bisect.bisect_left(places, number)
        for step in range(len(points)):
            yield points[(first + step) % len(points)][1]
    return order


def maglev(members, rows=65537):
    """The paper's algorithm: in its n-th turn the heaviest takes its n-th row; another one takes a row in a turn in which
    its rows are not ahead of its weight."""
    heaviest = max(weight for _, weight in members)
    orders = []
    for address, _ in members:
        number = place_of(address)
        orders.append([(number & 0xFFFFFFFF) % rows, (number >> 32) % (rows - 1) + 1])
    table, filled, had, turn = [None] * rows, 0, [0] * len(members), 0
    while filled < rows:
        for owner, (_, weight) in enumerate(members):
            if filled == rows or had[owner] * heaviest > turn * weight:
                continue
            order = orders[owner]
            while table[order[0]] is not None:
                order[0] = (order[0] + order[1]) % rows
            table[order[0]] = owner
            had[owner] += 1
            filled += 1
        turn += 1

    def order(number):
        yield table[number % rows]
        for step in range(1, STEPS_MAX):
            yield table[mixed((number + step) & MASK) % rows]
    return order


def maglev_of_shard(members):
    return maglev(members, 1021)


def first_of(order):
    found = []
    for _, owner in zip(range(STEPS_MAX), order):
        if owner not in found:
            found.append(owner)
        if len(found) == LISTED:
            break
    return found


def write(name, head, lines):
    (HERE / name).write_text("\n".join([f"# {head} Written by make.py.", *lines]) + "\n")


write("members.txt", "set, weight, address.",
      (f"{name} {weight} {address}" for name, listed in SETS.items() for address, weight in listed))
write("subjects.txt", "hash of a subject, subject in hexadecimal.",
      (f"{subject_hash(subject)} {subject.hex()}" for subject in SUBJECTS))
write("orders.txt", f"table, set, subject in hexadecimal, the first {LISTED} that it goes to.",
      (f"{table.__name__} {name} {subject.hex() or '-'} {' '.join(members[owner][0] for owner in first_of(order(subject_hash(subject))))}"
       for table in (ring, maglev, maglev_of_shard) for name, listed in SETS.items() for members in [members_of(listed)]
       for order in [table(members)] for subject in SUBJECTS))
