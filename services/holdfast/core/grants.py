"""One line of an access list of Kafka."""

import shlex
from dataclasses import dataclass
from typing import Literal

from holdfast_schemas import Party


@dataclass(frozen=True, slots=True)
class Grant:
    """One party may do these operations on these resources; `prefixed`: on all whose names begin so."""

    party: Party | Literal["monitor"]
    principal: str
    kind: Literal["topic", "group", "transactional-id"]
    names: tuple[str, ...]
    operations: tuple[str, ...]
    prefixed: bool = False

    def command(self, bootstrap_servers: str, command_config: str) -> str:
        """The line for a shell that grants it."""
        words = ["kafka-acls.sh", "--bootstrap-server", bootstrap_servers, "--command-config", command_config]
        words += ["--add", "--allow-principal", self.principal]
        words += [word for operation in self.operations for word in ("--operation", operation)]
        words += [word for name in self.names for word in (f"--{self.kind}", name)]
        return shlex.join([*words, "--resource-pattern-type", "prefixed" if self.prefixed else "literal"])
