"""A prediction: one output of a model for one entity."""

from typing import Annotated, Any, Self

from pydantic import AfterValidator, ConfigDict, model_validator

from holdfast_schemas._base import Contract, NonEmpty, UtcTime

Identity = Annotated[NonEmpty | int, AfterValidator(str)]
"""A text, or a JSON integer, which is read as its decimal text."""


class Prediction(Contract):
    """A record of the topic `predictions`; the record's key is `entity_id`.

    Members that are not named here pass through Holdfast untouched.
    """

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "anyOf": [
                {"properties": {name: {"not": {"type": "null"}}}, "required": [name]} for name in ("value", "outputs")
            ]
        },
    )

    prediction_id: Identity
    """Unique; it names this output in findings and to people."""
    model: Identity
    model_version: Identity
    entity_id: Identity
    """What the output is about (a product, a customer, …): `max_change` and tables go by it. It begins and ends with a
    visible character."""
    value: float | None = None
    """The output, in the unit of the model (a price in `currency`, a score, …)."""
    outputs: dict[str, float | list[float]] | None = None
    """Several outputs: name to number, or to a list of numbers such as a probability vector."""
    currency: str | None = None
    predicted_at: UtcTime | None = None
    segment: str | None = None
    """The group whose bounds and recent values hold for it."""
    features: dict[str, Any] | None = None
    """What the model saw; `expression` reads the numbers among them."""

    @model_validator(mode="after")
    def _has_an_output(self) -> Self:
        if self.value is None and self.outputs is None:
            raise ValueError("a prediction needs `value` or `outputs`")
        return self
