"""Texts of the configuration that Kafka or the operating system takes only in a certain form.

Each function returns the text as it is, and raises ValueError with what is wrong and how to write it.
"""

import re
from typing import Annotated

from pydantic import AfterValidator

MAX_TOPIC = 249
"""Characters of a topic's name: Kafka makes files of it."""
MAX_NAME = 200
"""Characters of a group's or a worker's name, which are parts of longer names."""
_PORTS = range(1, 65536)


def topic_name(text: str) -> str:
    """By Kafka's rules."""
    if not text:
        raise ValueError("it is empty; write the topic's name, or leave the key out for the default name")
    if text in (".", "..") or not re.fullmatch(r"[a-zA-Z0-9._-]+", text):
        raise ValueError(f"{text!r} cannot be the name of a topic; use letters of ASCII, digits, '.', '_' and '-'")
    if len(text) > MAX_TOPIC:
        raise ValueError(f"the name of a topic has {len(text)} characters; Kafka takes at most {MAX_TOPIC}")
    return text


def plain_name(text: str) -> str:
    """Of a group or a worker: visible characters on one line, with no space at either end."""
    if not text.strip():
        raise ValueError("it is empty; write a name, or leave the key out for the default name")
    if text != text.strip() or not text.isprintable():
        raise ValueError(f"{text!r} cannot be used as a name; remove spaces at its ends and invisible characters")
    if len(text) > MAX_NAME:
        raise ValueError(f"the name has {len(text)} characters; shorten it to {MAX_NAME}")
    return text


def addresses(text: str) -> str:
    """`host:port`, and more of them after commas; a host in brackets may be an IPv6 address."""
    for one in text.split(","):
        match = re.fullmatch(r"\s*(?:\w+://)?(\[[0-9a-fA-F:.]+\]|[^\s:/\[\],]+)(?::(\d+))?\s*", one)
        if match is None or (match[2] is not None and int(match[2]) not in _PORTS):
            raise ValueError(f"{one.strip()!r} is not an address; write 'host:port', and commas between several")
    return text


def host(text: str) -> str:
    """Where a server listens; an empty one would be every interface of the machine."""
    if not text.strip() or text != text.strip():
        raise ValueError("it is not an address to listen on; write '127.0.0.1', or '0.0.0.0' for all of this machine")
    return text


TopicName = Annotated[str, AfterValidator(topic_name)]
PlainName = Annotated[str, AfterValidator(plain_name)]
Addresses = Annotated[str, AfterValidator(addresses)]
Host = Annotated[str, AfterValidator(host)]
