"""Outputs of a model that its topic may not carry: blocked, whatever their checks would say.

Who may write a topic of predictions may name any model in it. With inputs of their own (`[[inputs]]`) models are bound
to topics, and with Kafka's access control topics are bound to logins. What names another model there counts against the
topic: the model has no tally of it, and is not hurt.
"""

import numpy as np

from holdfast.core.arrays import jsonable
from holdfast.core.grouping import Batch
from holdfast.core.judgement import Found, Judgement
from holdfast_schemas import Severity

CHECK = "not_allowed_here"


def block(batch: Batch, model: str, topic: str) -> Judgement:
    """Block all of the batch: `topic` may not carry `model`."""
    size = len(batch.columns)
    found = Found(CHECK, Severity.ERROR, True, "model", jsonable(model), f"a model that {topic} may carry")
    judgement = Judgement(np.zeros(size, dtype=np.bool_), {row: [found] for row in range(size)})
    judgement.counts[CHECK, True] = size
    return judgement
