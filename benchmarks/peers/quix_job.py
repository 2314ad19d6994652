"""The five checks in Quix Streams, exactly once.

Usage: quix_job.py BOOTSTRAP GROUP SOURCE APPROVED BLOCKED FLOORS
"""

import sys
from typing import Any

from five_checks import is_sane, read_floors
from quixstreams import Application  # type: ignore[import-not-found]  in an environment of its own
from quixstreams.models import Topic  # type: ignore[import-not-found]

bootstrap, group, source, approved_topic, blocked_topic, floors_path = sys.argv[1:]
floors = read_floors(floors_path)
app = Application(
    bootstrap,
    consumer_group=group,
    auto_offset_reset="earliest",
    auto_create_topics=False,
    processing_guarantee="exactly-once",
    commit_interval=0.5,
    loglevel="WARNING",
)
approved, blocked = app.topic(approved_topic), app.topic(blocked_topic)


def choose(event: dict[str, Any], *_: object) -> Topic:
    sane = is_sane(
        floors, event["entity_id"], event["value"], event["features"]["cost"], event["currency"], event["segment"]
    )
    return approved if sane else blocked


app.dataframe(app.topic(source)).to_topic(choose)
app.run()
