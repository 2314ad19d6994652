"""What a PromQL expression asks for, and what the catalogue of metrics has."""

from collections.abc import Iterator
from typing import Any

import promql_parser
from prometheus_client.metrics import MetricWrapperBase

from holdfast import metrics

CATALOGUE: dict[str, MetricWrapperBase] = {
    name: value for name, value in vars(metrics).items() if isinstance(value, MetricWrapperBase)
}
_ENDS = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def exported() -> dict[str, set[str]]:
    """The labels of each sample that a process of Holdfast can export, by the sample's name."""
    samples = {
        f"{metric._name}{end}": {*metric._labelnames, *(("le",) if end == "_bucket" else ())}
        for metric in CATALOGUE.values()
        for end in _ENDS[metric._type]
    }
    # Standard metrics, which have no labels that matter here.
    ours = tuple(metric._name for metric in CATALOGUE.values())
    for family in metrics.REGISTRY.collect():
        if not family.name.startswith(ours):
            samples |= {sample.name: set(sample.labels) for sample in family.samples}
    return samples


def selectors(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Each metric that an expression selects, with the labels that it matches on. Raises ValueError if it is none."""
    todo: list[Any] = [promql_parser.parse(expression)]
    while todo:
        node = todo.pop()
        if isinstance(node, promql_parser.VectorSelector):
            yield node.name or "", {matcher.name for matcher in node.matchers.matchers}
        parts = (getattr(node, part, None) for part in ("lhs", "rhs", "expr", "param", "vector_selector"))
        todo += [part for part in parts if part is not None]
        if isinstance(node, promql_parser.Call):
            todo += node.args
