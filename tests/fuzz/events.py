"""Events as no producer should send them, from a seed: values at every limit, mutated in structure and in bytes."""

import json

NUMBERS = [
    *(0, 1, -1, 4.999, 5, 10, 20, 20.5, 50, 100, 1e3, 1e16, -0.0, 0.1, 0.5, 1.0000001, 1e308, -1e308, 5e-324, 10**20),
    *(True, None, "1.5", "", "NaN", [], [0.5, 0.5], [0.2, 0.3, 0.5], [1e308, 1e308], [-0.0], {}, {"x": 1}),
]
RAW_NUMBERS = [
    *("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1E+400", "9" * 320, "-" + "9" * 400, "-0", "-0.0", "-0e5"),
    *(
        "1e-400",
        "-1e-400",
        "01",
        "+1",
        ".5",
        "1.",
        "0x10",
        "1_000",
        "1e",
        "1e400",
        "1e5",
        "true",
        "nul",
        "1" + "0" * 308,
    ),
]
ENTITIES = ["a", "b", "c", "d", "e", "", "é", "商品", "a" * 1000, "a" * 1001, "\ud800", "a\u0000b", 7, None]
TIMES = [
    *("2026-11-24T10:00:00Z", "2026-11-24T09:59:00Z", "2026-11-24T08:00:00Z", "2026-11-24T10:00:05Z"),
    *("2026-11-24T10:00:06Z", "2026-11-24T11:00:00+01:00", "2026-11-24T10:00:00", "yesterday", "", 1795514400, None),
    *("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"),
]
KEYS = [
    "value",
    "model",
    "entity_id",
    "cost",
    "segment",
    "outputs",
    "features",
    "x",
    "",
    "prediction_id",
    "a_long_key_name_1",
]


def event(rng):
    """Mostly fine; now and then one of its members is not."""
    often = rng.random() < 0.5
    odd = lambda usual, others: rng.choice(others) if not often and rng.random() < 0.15 else usual  # noqa: E731
    result = {
        "prediction_id": odd(f"p-{rng.randrange(10**6)}", ENTITIES),
        "model": odd("pricing", ["other", "", "pricing ", None]),
        "model_version": odd(rng.choice(["v1", "v2"]), ["bad", "v 3", "{v}", "", 3, "v" * 201, "é"]),
        "entity_id": odd(rng.choice("abcde"), ENTITIES),
        "value": odd(round(rng.uniform(5, 60), 2), NUMBERS),
        "currency": odd("USD", ["EUR", "usd", "", 5, None, "['USD']"]),
        "predicted_at": odd("2026-11-24T09:59:30Z", TIMES),
        "segment": odd(rng.choice(["cameras", "phones"]), [None, "", 5, "cameras ", "é"]),
        "outputs": odd(
            {"p": [0.25, 0.75], "low": 1, "high": 2},
            [
                *(
                    {},
                    None,
                    {"p": [0.5, 0.6]},
                    {"p": 0.5},
                    {"low": 3, "high": 2, "p": [1]},
                    {"p": []},
                    {"low": None},
                    [1],
                ),
                *({"p": [None]}, {"p": "x"}, {"low": -0.0, "p": [1]}, {str(i): -0.0 for i in range(300)}),
            ],
        ),
        "features": odd(
            {
                "cost": odd(4.5, NUMBERS),
                "list_price": odd(100, NUMBERS),
                "tier": odd("gold", [1, True, ["gold"], None]),
            },
            [None, {}, [], "x", {"cost": {"deep": 1}}, {"cost": 1, "more": {"value": 2, "model": "m"}}],
        ),
    }
    if rng.random() < 0.1:
        result[rng.choice(KEYS) + rng.choice(["", "_2"])] = rng.choice(NUMBERS)
    if rng.random() < 0.05:
        del result[rng.choice(list(result))]
    return result


def raw_event(rng):
    """The bytes of an event, and now and then of none."""
    separators = rng.choice([(",", ":"), (", ", ": "), (" ,\n ", "\t : ")]) if rng.random() < 0.2 else (",", ":")
    raw = json.dumps(event(rng), ensure_ascii=rng.random() < 0.1, separators=separators).encode(
        "utf-8", "surrogatepass"
    )
    for _ in range(rng.choice([0, 0, 0, 1, 1, 2])):
        raw = rng.choice(MUTATIONS)(rng, raw)
    return None if rng.random() < 0.001 else raw


def _byte(rng, raw):
    if not raw:
        return b"{"
    at = rng.randrange(len(raw))
    return raw[:at] + bytes([rng.randrange(256)]) + raw[at + rng.randrange(2) :]


def _cut(rng, raw):
    start, end = sorted((rng.randrange(len(raw) + 1), rng.randrange(len(raw) + 1)))
    return rng.choice((raw[:start], raw[:start] + raw[end:], raw[:end] + raw[start:]))


def _number(rng, raw):
    """A number as JSON may or may not have it, in the place of another."""
    tokens = [i for i, c in enumerate(raw) if c in b"0123456789" and raw[i - 1 : i] in (b":", b",", b"[", b" ")]
    if not tokens:
        return raw
    at = end = rng.choice(tokens)
    while raw[end : end + 1] in b"0123456789.eE+-" and end < len(raw):
        end += 1
    return raw[:at] + rng.choice(RAW_NUMBERS).encode() + raw[end:]


def _twice(rng, raw):
    """A member in front, whose key may stand there already, plainly or behind an escape."""
    key = json.dumps(rng.choice(KEYS)).encode()
    if rng.random() < 0.3 and len(key) > 3:
        key = b'"\\u%04x' % key[1] + key[2:]
    member = key + b":" + rng.choice([json.dumps(rng.choice(NUMBERS)), rng.choice(RAW_NUMBERS)]).encode()
    braces = [i for i, c in enumerate(raw) if c == ord("{")] or [0]
    at = rng.choice(braces) + 1
    return raw[:at] + member + (b"," if raw[at : at + 1] != b"}" else b"") + raw[at:]


def _deep(rng, raw):
    depth = rng.choice((3, 50, 10_000))
    nest = rng.choice((b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth))
    return raw[:-1] + b',"deep":' + nest + b"}"


def _text(rng, raw):
    bad = rng.choice((b"\xff", b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"\x00", b"\xef\xbb\xbf", b"\\", b'"', b"\\/"))
    at = rng.randrange(len(raw) + 1)
    return raw[:at] + bad + raw[at:]


MUTATIONS = [_byte, _byte, _cut, _number, _number, _twice, _twice, _text, _deep]
