"""The fields of a prediction, by the names that policies use."""

REQUIRED = ("prediction_id", "model", "model_version", "entity_id")
OPTIONAL = ("value", "outputs", "currency", "predicted_at", "segment")
FIELD_NAMES = (*REQUIRED, *OPTIONAL)


def field_names_hint() -> str:
    return ", ".join((*FIELD_NAMES, "outputs.<name>", "features.<name>"))


def is_field(name: str) -> bool:
    """Whether a policy may read `name`."""
    return name in FIELD_NAMES or is_number_field(name)


def is_number_field(name: str) -> bool:
    """Whether `name` may be a number."""
    return name == "value" or (name.startswith(("outputs.", "features.")) and not name.endswith("."))
