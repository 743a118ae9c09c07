#!/usr/bin/env python3
"""What sharding costs: CPU time per request of one proxy, plain and with its service divided over two shards.

As fail_fast.py measures, with a new key in each request, so that each is read, hashed and looked up.

    shards.py [--gilmok PATH] [--rounds 5] [--seconds 4] [--connections 64]

plain: one endpoint and nothing else; named: two, which say their shard, and no rule; slots, maglev: the rule by the header
x-user-id. Both shards are one backend.
Needs: wrk and nginx (Debian packages).
"""
from compare import BACKEND
from fail_fast import measure

NAMED = f'shard = "0"\n[[services.backend.endpoints]]\naddress = "localhost:{BACKEND}"\nshard = "1"\n'
RULE = NAMED + '[services.backend.sharding]\nkey = "header:x-user-id"\n'
KINDS = {"plain": "", "named": NAMED, "slots": RULE + 'strategy = "slots"\nmap = { "0" = "0-8191", "1" = "8192-16383" }\n',
         "maglev": RULE + 'strategy = "maglev"\nshards = ["0", "1"]\n'}

if __name__ == "__main__":
    measure(__doc__, KINDS)
