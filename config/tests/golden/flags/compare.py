#!/usr/bin/env python3
"""Compares Gilmok's flags with two other evaluators of flagd's format, on random sets and contexts.

    pip install openfeature-flagd-core==2.0.0            # hashes by version 3
    npm i @openfeature/flagd-core@4.0.1 @openfeature/core@1.12.0   # hashes by version 2
    cargo build -p gilmok-config --example evaluate_flags
    ./compare.py --cases 100000 [--hash 3|2] [--node FOLDER_OF_node_modules] [--seed N] [--write cases.ndjson]

Prints every difference that is not one of those that docs/flags.md explains, and how many of each there were.
--write keeps the cases on which both agree, for tests/flags.rs.
"""
import argparse
import json
import logging
import random
import subprocess
import sys
from pathlib import Path

logging.disable(logging.CRITICAL)
ROOT = Path(__file__).resolve().parents[4]
NOW = 1_700_000_000
NODE = r"""
const { FlagdCore } = require('@openfeature/flagd-core');
const quiet = { error() {}, warn() {}, info() {}, debug() {} };
Date.now = () => NOW * 1000;
let core;
require('readline').createInterface({ input: process.stdin }).on('line', (line) => {
  const message = JSON.parse(line);
  if (message.set) {
    core = new FlagdCore(undefined, quiet);
    core.setConfigurations(JSON.stringify(message.set));
    console.log('{}');
    return;
  }
  const found = core.resolveStringEvaluation(message.key, '', message.context, quiet);
  console.log(JSON.stringify({ variant: found.variant ?? null, reason: found.reason, error: found.errorCode }));
});
""".replace("NOW", str(NOW))


class Dice(random.Random):
    """Random flags and contexts."""

    VARIANTS = ["a", "b", "c", "d"]
    PATHS = ["tier", "email", "age", "version", "tags", "user.name", "user.age", "nested.list.0", "missing", "flag",
             "$flagd.flagKey", "$flagd.timestamp", "targetingKey", "score", "empty"]
    WORDS = ["", "gold", "silver", "a", "b", "user", "0", "1", "10", "9", "@example.com", "true", "1.2.3", "v2", "ä"]

    def literal(self):
        return self.choice([self.choice(self.WORDS), self.choice(self.WORDS), self.randint(-3, 30), True, False, None,
                            self.choice([0.5, 1.25, 2.0, -7.75])])

    def var(self):
        path = self.choice(self.PATHS)
        return self.choice([{"var": path}, {"var": path}, {"var": [path]}, {"var": [path, self.literal()]}])

    def value(self, depth):
        if depth <= 0 or self.random() < 0.4:
            return self.var() if self.random() < 0.6 else self.literal()
        kind = self.randrange(10)
        below = lambda: self.value(depth - 1)
        if kind == 0:
            return {"cat": [below() for _ in range(self.randint(1, 3))]}
        if kind == 1:
            return {self.choice(["+", "-", "*", "/", "%"]): [self.number(depth - 1), self.number(depth - 1)]}
        if kind == 2:
            return {"substr": [self.text(depth - 1), self.randint(-4, 4)] + self.choice([[], [self.randint(-3, 5)]])}
        if kind == 3:
            return {self.choice(["min", "max"]): [self.number(depth - 1) for _ in range(self.randint(1, 3))]}
        if kind == 4:
            return {"if": [self.condition(depth - 1), below(), below()]}
        if kind == 5:
            return self.list(depth - 1)
        if kind == 6:
            return {"reduce": [self.numbers(), {"+": [{"var": "accumulator"}, {"var": "current"}]}, self.randint(0, 5)]}
        if kind == 7:
            return {self.choice(["and", "or"]): [below(), below()]}
        return self.condition(depth - 1)

    def number(self, depth):
        return self.choice([self.randint(-5, 20), self.choice([0.5, 1.5]), {"var": self.choice(["age", "score", "user.age"])}])

    def text(self, depth):
        return self.choice([self.choice(self.WORDS), {"var": self.choice(["tier", "email", "user.name", "targetingKey"])},
                            {"cat": [{"var": "tier"}, self.choice(self.WORDS)]}])

    def numbers(self):
        return self.choice([[1, 2, 3], {"var": "numbers"}, []])

    def list(self, depth):
        return self.choice([[self.literal() for _ in range(self.randint(0, 3))], {"var": "tags"},
                            {"merge": [{"var": "tags"}, self.literal()]}, {"missing": [self.choice(self.PATHS[:9])]},
                            {"missing_some": [1, ["tier", "missing"]]},
                            {"map": [self.numbers(), {"*": [{"var": ""}, 2]}]},
                            {"filter": [self.numbers(), {">": [{"var": ""}, 1]}]}])

    def condition(self, depth):
        kind = self.randrange(12)
        if kind <= 2:
            return {self.choice(["==", "!="]): self.alike(depth)}
        if kind == 3:
            return {self.choice(["===", "!=="]): self.alike(depth)}
        if kind <= 5:
            pair = self.choice([[self.number(0), self.number(0)], [self.text(0), self.text(0)]])
            return {self.choice(["<", "<=", ">", ">="]): pair}
        if kind == 6:
            return {"in": self.choice([[self.text(0), self.text(0)], [self.literal(), self.list(0)], [self.text(0), {"var": "tags"}]])}
        if kind == 7:
            return {self.choice(["starts_with", "ends_with"]): [self.text(0), self.choice(self.WORDS + [3])]}
        if kind == 8:
            return {"sem_ver": [{"var": "version"}, self.choice(["=", "!=", "<", "<=", ">", ">=", "^", "~", "=="]),
                                self.choice(["1.2.3", "v1.2.3", "1.2", "2", "2.0.0-alpha", "1.2.3+x", "nonsense", 1.2])]}
        if kind == 9:
            return {self.choice(["!", "!!"]): [self.value(depth - 1)]}
        if kind == 10:
            return {self.choice(["all", "some", "none"]): [self.numbers(), {">": [{"var": ""}, self.randint(0, 3)]}]}
        return {self.choice(["and", "or"]): [self.condition(depth - 1) if depth > 0 else self.var() for _ in range(2)]}

    def alike(self, depth):
        """Two values that may well be equal."""
        a = self.var()
        return [a, self.choice([self.literal(), self.var(), self.choice(self.WORDS)])]

    def fractional(self, depth):
        by = self.choice([None, None, {"var": "targetingKey"}, {"var": "email"}, {"cat": [{"var": "$flagd.flagKey"}, {"var": "user.name"}]},
                          {"var": "age"}, {"var": "user"}, {"var": "score"}, {"var": "missing"}, {"var": "flag"}])
        weight = lambda: self.choice([self.randint(0, 100), self.randint(0, 100), 0, -5, 1,
                                      {"-": [{"var": "age"}, 10]}, {"if": [{"==": [{"var": "tier"}, "gold"]}, 50, 5]}, 2**31 - 1, 1.5])
        bucket = lambda: self.choice([[self.result(0)], [self.result(0), weight()], [self.result(0), weight()], [self.result(0), weight()]])
        return {"fractional": ([] if by is None else [by]) + [bucket() for _ in range(self.randint(1, 4))]}

    def result(self, depth):
        if depth <= 0:
            return self.choice(self.VARIANTS + self.VARIANTS + ["e", None])
        kind = self.randrange(6)
        if kind == 0:
            return self.choice(self.VARIANTS)
        if kind <= 2:
            return self.fractional(depth - 1)
        if kind == 3:
            return {"if": [self.condition(2), self.result(depth - 1), self.condition(1), self.result(depth - 1), self.result(depth - 1)]}
        return {"if": [self.condition(2), self.result(depth - 1), self.result(depth - 1)]}

    def flag(self):
        flag = {"state": self.choice(["ENABLED"] * 9 + ["DISABLED"]), "variants": {name: name for name in self.VARIANTS + ["true", "false"]}}
        default = self.choice(["a", "b", "c", None, "absent"])
        if default != "absent":
            flag["defaultVariant"] = default
        rule = self.choice([self.result(3)] * 6 + [self.condition(2), {}, None])
        if isinstance(rule, dict):
            flag["targeting"] = rule
        return flag

    def context(self):
        everything = {
            "targetingKey": self.choice([f"user-{self.randrange(1000)}", "", "ä-7"]), "tier": self.choice(["gold", "silver", "", None, 3]),
            "email": self.choice(["ann@example.com", "bob@example.org"]), "age": self.choice([0, 7, 30, -3, 12.5, 41.0]),
            "version": self.choice(["1.2.3", "v2.0.0", "2.0", "1.2.3-beta.2", "x", 2, 1.2, ""]), "tags": self.choice([["a", "b"], [], [1, "1"]]),
            "user": {"name": self.choice(["jack", "queen"]), "age": self.randint(0, 90)}, "nested": {"list": [5, 6]}, "flag": self.choice([True, False]),
            "score": self.choice([0.1, 99.5, 7]), "numbers": self.choice([[1, 2, 3], [0], []]), "empty": "",
        }
        return {key: value for key, value in everything.items() if self.random() < 0.85}


class Python:
    """openfeature-flagd-core, in this process."""

    def __init__(self):
        import time

        from openfeature.contrib.tools.flagd.core import FlagdCore
        from openfeature.contrib.tools.flagd.core.targeting import targeting as module
        from openfeature.evaluation_context import EvaluationContext

        sys.modules["openfeature.contrib.tools.flagd.core.targeting.targeting"].time = type("Clock", (), {"time": lambda: NOW})
        self.core, self.context = FlagdCore, EvaluationContext
        del time, module

    def set(self, flags):
        self.engine = self.core()
        self.engine.set_flags(json.dumps(flags))

    def ask(self, key, context):
        attributes = {name: value for name, value in context.items() if name != "targetingKey"}
        try:
            found = self.engine.resolve_string_value(key, "", self.context(context.get("targetingKey"), attributes))
        except Exception as error:
            code = getattr(error, "error_code", None)
            return {"variant": None, "reason": "ERROR", "error": code.value if code else type(error).__name__}
        return {"variant": found.variant, "reason": str(found.reason.value), "error": None}


class Process:
    """One that answers lines."""

    def __init__(self, command, **options):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)

    def say(self, message):
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def set(self, flags):
        return self.say({"set": flags})

    def ask(self, key, context):
        return self.say({"key": key, "context": context, "now": NOW})


def mend(version):
    """Makes the Python evaluator reckon as JavaScript's JsonLogic does, where docs/flags.md says that Gilmok does."""
    import math

    from json_logic import builtins
    from openfeature.contrib.tools.flagd.core.targeting import custom_ops, targeting as _

    operators = sys.modules["openfeature.contrib.tools.flagd.core.targeting.targeting"].OPERATORS

    def number(value):
        if isinstance(value, list):
            return number(text(value))
        if isinstance(value, str):
            stripped = value.strip()
            if stripped == "":
                return 0
            try:
                return math.nan if "n" in stripped.lower() or "_" in stripped else float(stripped)
            except ValueError:
                return math.nan
        return builtins.to_number(value)

    def text(value):
        if isinstance(value, bool) or value is None or isinstance(value, str):
            return builtins.to_string(value) if not isinstance(value, bool) else str(value).lower()
        if isinstance(value, float):
            return str(int(value)) if value.is_integer() else repr(value)
        if isinstance(value, list):
            return ",".join("" if item is None else text(item) for item in value)
        return builtins.to_string(value)

    def is_text(value):
        return isinstance(value, (str, list, dict))

    def strictly(a, b):
        if isinstance(a, bool) or isinstance(b, bool):
            return a is b
        if isinstance(a, (list, dict)) or isinstance(b, (list, dict)):
            return a is b
        return a == b

    def loosely(a, b):
        if a is None or b is None:
            return a is b
        if isinstance(a, (list, dict)) and isinstance(b, (list, dict)):
            return a is b
        if isinstance(a, str) and is_text(b) or isinstance(b, str) and is_text(a):
            return text(a) == text(b)
        return number(a) == number(b)

    def ordered(compare):
        def two(a, b):
            return compare(text(a), text(b)) if is_text(a) and is_text(b) else compare(number(a), number(b))

        return lambda data, a=None, b=None, c=None, *_: two(a, b) and (c is None or two(b, c))

    def contains(data, needle=None, haystack=None, *_):
        if isinstance(haystack, list):
            return any(strictly(item, needle) for item in haystack)
        return isinstance(haystack, str) and haystack != "" and text(needle) in haystack

    def divided(a, b):
        a, b = number(a), number(b)
        if b == 0:
            return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a)
        return a / b

    def rest(a, b):
        a, b = number(a), number(b)
        return math.nan if b == 0 or math.isnan(a) or math.isinf(a) else math.fmod(a, b)

    def extreme(pick):
        def found(data, *values):
            numbers = [number(value) for value in values]
            return math.nan if any(math.isnan(n) for n in numbers) else pick(numbers)

        return found

    def fraction(argument, parse=custom_ops._parse_fraction):
        # 31.0 is as whole as 31, which is what JSON says too.
        if isinstance(argument, list) and len(argument) == 2 and isinstance(argument[1], float) and argument[1].is_integer():
            argument = [argument[0], int(argument[1])]
        if isinstance(argument, list) and argument and isinstance(argument[0], (list, dict)):
            raise ValueError
        return parse(argument)

    custom_ops._parse_fraction = fraction
    if version == 2:
        def second_way(data, arguments):
            by, buckets = (arguments[0], arguments[1:]) if not isinstance(arguments[0], list) else (None, arguments)
            key = data.get("targetingKey")
            if by is None and isinstance(key, str) and key:
                by = data["$flagd"]["flagKey"] + key
            return by if isinstance(by, str) else None, buckets

        custom_ops._resolve_bucket_by = second_way
        custom_ops.cbor2 = type("Bytes", (), {"dumps": staticmethod(lambda text, canonical: text.encode())})
    operators.update({
        "==": lambda data, a=None, b=None, *_: loosely(a, b), "!=": lambda data, a=None, b=None, *_: not loosely(a, b),
        "===": lambda data, a=None, b=None, *_: strictly(a, b), "!==": lambda data, a=None, b=None, *_: not strictly(a, b),
        "<": ordered(lambda a, b: a < b), "<=": ordered(lambda a, b: a <= b),
        ">": ordered(lambda a, b: a > b), ">=": ordered(lambda a, b: a >= b),
        "+": lambda data, *values: sum(map(number, values)), "*": lambda data, *values: math.prod(map(number, values)),
        "-": lambda data, a=None, b=None, *_: -number(a) if b is None else number(a) - number(b),
        "/": lambda data, a=None, b=None, *_: divided(a, b), "%": lambda data, a=None, b=None, *_: rest(a, b),
        "min": extreme(min), "max": extreme(max), "in": contains,
        "cat": lambda data, *values: "".join("" if value is None else text(value) for value in values),
    })


def is_same(mine, other):
    error = mine.get("error")
    return mine.get("variant") == other["variant"] and error == other.get("error") and (error or mine["reason"] == other["reason"])


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--cases", type=int, default=10_000)
    arguments.add_argument("--hash", type=int, default=3, choices=[2, 3])
    arguments.add_argument("--node", default=".")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--write")
    arguments.add_argument("--bare", action="store_true", help="compare with the others as they are")
    arguments.add_argument("--show", type=int, default=10)
    given = arguments.parse_args()
    if not given.bare:
        mend(given.hash)
    ours = Process([str(ROOT / "target/debug/examples/evaluate_flags")])
    mended = Python()
    theirs = mended if given.hash == 3 else Process(["node", "-e", NODE], cwd=given.node)
    dice, differences, strange, outvoted, kept = Dice(given.seed), [], 0, 0, []
    for at in range(0, given.cases, 20):
        flags = {f"flag-{n}": dice.flag() for n in range(5)}
        document = {"flags": flags, "metadata": {"hashVersion": given.hash}}
        for other in {mended, theirs}:
            other.set(json.loads(json.dumps(document)))
        said = ours.set(document)
        assert "refused" not in said, said
        agreed = []
        for key, flag in flags.items():
            for _ in range(4):
                context = dice.context()
                mine, other = ours.ask(key, context), theirs.ask(key, context)
                if is_same(mine, other):
                    agreed.append([key, context, mine.get("variant"), mine.get("error") or mine["reason"]])
                    continue
                if given.hash == 2 and is_same(mine, mended.ask(key, context)):
                    # flagd's JavaScript gives up where a number is none, and has ways of its own with null.
                    outvoted += 1
                    continue
                strange += 1
                told = {"rule": flag.get("targeting"), "default": flag.get("defaultVariant"), "context": context,
                        "ours": mine, "theirs": other}
                differences.append(json.dumps(told, ensure_ascii=False))
        kept.append({"flags": flags, "hash": given.hash, "cases": agreed})
    # The shortest ones say most.
    for told in sorted(differences, key=len)[: given.show]:
        print(told)
    print(f"{given.cases} cases, {strange} differences; JavaScript was outvoted on {outvoted}")
    if given.write:
        Path(given.write).write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in kept))
    sys.exit(strange > 0)


if __name__ == "__main__":
    main()
