"""The API and its console in this process, with what two models have come to, and without any server."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from aiokafka.structs import ConsumerRecord

from holdfast.api.app import make_app
from holdfast.api.context import Api
from holdfast.api.tokens import Role, create_token
from holdfast.settings import Settings
from holdfast_schemas import TOPICS

NOW = datetime.now(UTC)
AT = NOW.isoformat()
URL = "http://holdfast.example"
VISIBLE, SECRET = "pricing", "salaries"


class Site:
    """The whole site in this process, with a board of two models, and no servers."""

    def __init__(self, folder: Path, *, url: str = URL, **settings: Any) -> None:
        self.url = url
        self.tokens: dict[str, str] = {}
        lines = []
        for name, role, limits in (
            ("admin", Role.ADMIN, {}),
            ("viewer", Role.VIEWER, {}),
            ("limited", Role.ADMIN, {"models": [VISIBLE]}),
            ("over", Role.ADMIN, {"expires": NOW - timedelta(seconds=1)}),
        ):
            self.tokens[name], line = create_token(name, role, **limits)  # type: ignore[arg-type]
            lines.append(line)
        self.file = folder / "tokens"
        self.file.write_text("\n".join(lines))
        document = {
            "api": {"tokens_file": str(self.file), **settings},
            "notify": {"console_url": url},
            "policies": str(folder),
        }
        self.api = Api(Settings.model_validate(document))
        self.api.follower.caught_up.set()
        self.app = make_app(self.api)
        for model in (VISIBLE, SECRET):
            self._fill(model)

    def _fill(self, model: str) -> None:
        common = {"model": model, "version": "v1", "actor": "ci", "reason": f"release of {model}"}
        incident = {
            "incident_id": f"i-{model}",
            "dedup_key": f"holdfast/{model}/v0",
            "status": "triggered",
            "severity": "critical",
            "model": model,
            "bad_version": "v0",
            "action": "fenced",
            "opened_at": AT,
            "seen": 9,
            "blocked": 9,
            "blocked_by_check": {},
            "policy": "p",
            "runbook_url": "https://r.example/",
        }
        audit = {
            "audit_id": f"a-{model}",
            "at": AT,
            "action": "promote",
            "outcome": "applied",
            "detail": "d",
            "epoch": 1,
        }
        tally = {"type": "tally", "model": model, "policy": f"{model}@0123456789ab", "approved": 9, "blocked": 1}
        self.take("routes", {**common, "epoch": 1, "state": "auto", "since": AT})
        self.take("state", {"model": model, "versions": {"v1": {}}})
        self.take("incidents", incident)
        self.take("audit", {**audit, **common})
        self.take("control", tally)

    def take(self, role: str, document: dict[str, Any]) -> None:
        key = str(document.get(TOPICS[role].key, document["model"])).encode()
        value, topic = json.dumps(document).encode(), getattr(self.api.settings.topics, role)
        self.api.board.take([ConsumerRecord(topic, 0, 0, 0, 0, key, value, None, len(key), len(value), ())])

    def client(self, name: str | None = None) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self.tokens[name]}"} if name else {}
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url=self.url, headers=headers)

    async def browser(self, name: str) -> httpx.AsyncClient:
        async with self.client() as client:
            assert (await client.post("/login", data={"token": self.tokens[name]})).status_code == 303
        signed_in = self.client()
        signed_in.cookies.update(client.cookies)
        return signed_in
