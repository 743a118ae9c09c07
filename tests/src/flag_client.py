"""Asks flags by OpenFeature's own Python provider: questions on standard input, what came of each on standard output, as JSON."""

import json
import sys

from openfeature import api
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext

base, token = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
headers = (lambda: {"Authorization": f"Bearer {token}"}) if token else None
api.set_provider(OFREPProvider(base, headers_factory=headers))
client = api.get_client()
ask = {
    "Boolean": client.get_boolean_details,
    "Float": client.get_float_details,
    "Integer": client.get_integer_details,
    "Object": client.get_object_details,
    "String": client.get_string_details,
}


def answer(question):
    context = dict(question.get("context", {}))
    key = context.pop("targetingKey", None)
    details = ask[question["type"]](question["key"], question["default"], EvaluationContext(key, context))
    return {
        "value": details.value,
        "variant": details.variant,
        "reason": details.reason and str(getattr(details.reason, "value", details.reason)),
        "error": details.error_code and details.error_code.value,
        "message": details.error_message,
        "metadata": dict(details.flag_metadata or {}),
    }


json.dump([answer(question) for question in json.load(sys.stdin)], sys.stdout)
