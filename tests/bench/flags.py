#!/usr/bin/env python3
"""What telling flags costs: CPU time per request of one proxy, plain and with ten flags in the header, two of them dynamic.

As fail_fast.py measures, with another subject in each request, so that each is hashed and placed.

    flags.py [--gilmok PATH] [--rounds 5] [--seconds 4] [--connections 64]

plain: one endpoint and nothing else; static: ten flags that are the same for everybody; dynamic: two of them by a share of
the users; targeted: those two behind a rule as well; guarded: as dynamic, and both are watched by variant.
Needs: wrk and nginx (Debian packages).
"""
from fail_fast import measure

TELL = '[services.backend.flags]\nemit = ["*"]\nsubject = ["header:x-user-id"]\n[flags.set.flags]\n'
SHARE = 'targeting = { fractional = [["on", 10], ["off", 90]] }, '
RULE = 'targeting = { if = [{ ends_with = [{ var = "targetingKey" }, "7"] }, "on", { fractional = [["on", 10], ["off", 90]] }] }, '
GUARD = '"x-gilmok" = { guard = { metrics = ["errors", "latency"], onFail = "tell" } }, '


def flags(more):
    """Ten flags, two of which say this."""
    said = lambda n: more if n < 2 else ""
    return TELL + "".join(f'feature-{n} = {{ {said(n)}state = "ENABLED", variants = {{ on = true, off = false }}, '
                          'defaultVariant = "off" }\n' for n in range(10))


KINDS = {"plain": "", "static": flags(""), "dynamic": flags(SHARE), "targeted": flags(RULE), "guarded": flags(SHARE + GUARD)}

if __name__ == "__main__":
    measure(__doc__, KINDS)
