"""The API's own page: its OpenAPI document as plain facts for the template, which loads nothing from outside."""

from typing import Any


def operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Every operation: its method, path and tag, what it takes, and what it answers."""
    schemas = document["components"]["schemas"]

    def resolved(schema: dict[str, Any]) -> dict[str, Any]:
        name = schema.get("$ref", "").rpartition("/")[2]
        return {**schemas[name], "name": name} if name else schema

    def takes(operation: dict[str, Any]) -> list[dict[str, Any]]:
        found = [
            {
                "name": one["name"],
                "where": one["in"],
                "needed": one.get("required", False),
                "fits": _fits(resolved(one["schema"])),
                "says": one.get("description", one["schema"].get("description", "")),
            }
            for one in operation.get("parameters", [])
        ]
        for content in operation.get("requestBody", {}).get("content", {}).values():
            body = resolved(content["schema"])
            found += [
                {
                    "name": name,
                    "where": "body",
                    "needed": name in body.get("required", []),
                    "fits": _fits(resolved(member)),
                    "says": member.get("description", ""),
                }
                for name, member in body["properties"].items()
            ]
        return found

    def answers(operation: dict[str, Any]) -> list[tuple[str, str, str]]:
        return [
            (status, one["description"], resolved(content["schema"]).get("title", "") if content else "")
            for status, one in sorted(operation["responses"].items())
            for content in [next(iter(one.get("content", {}).values()), None)]
        ]

    return [
        {
            "method": method.upper(),
            "path": path,
            "tag": operation["tags"][0],
            "says": operation.get("description") or operation["summary"],
            "takes": takes(operation),
            "answers": answers(operation),
        }
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def _fits(schema: dict[str, Any]) -> str:
    """What a value must be, in a few words."""
    if "anyOf" in schema:
        return " or ".join(_fits(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    words = [schema.get("format") or schema.get("type", "anything")]
    if "pattern" in schema and schema["pattern"] != r"\S":
        words.append(schema["pattern"])
    if "minimum" in schema or "maximum" in schema:
        words.append(f"{schema.get('minimum', '')} to {schema.get('maximum', '')}")
    if "default" in schema and schema["default"] is not None:
        words.append(f"(default {schema['default']})")
    return " ".join(words)
