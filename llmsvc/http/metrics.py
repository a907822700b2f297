"""``/metrics``: Prometheus' text, collected when it is asked for. https://prometheus.io/docs/instrumenting/exposition_formats"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from llmsvc.service import Service

Counts = Counter[tuple[str, int]]
"""Answered requests by kind and status."""

_GAUGES = {
    "running": ("llmsvc_running", "Answers in the model's batch"),
    "queued": ("llmsvc_queued", "Requests that wait for a place in it"),
    "kv_tokens": ("llmsvc_kv_tokens", "Tokens in the KV cache"),
    "memory_bytes": ("llmsvc_model_memory_bytes", "Memory of the weights"),
}
_COUNTERS = {
    "tokens": ("llmsvc_tokens", "Generated tokens"),
    "prompt_tokens": ("llmsvc_prompt_tokens", "Tokens of prompts"),
    "cached_tokens": ("llmsvc_cached_prompt_tokens", "Tokens of prompts that were not computed again"),
}
_HISTOGRAMS = {
    "first": ("llmsvc_ttft_seconds", "From the request to the first token"),
    "between": ("llmsvc_inter_token_seconds", "Between two tokens of an answer"),
}


def add_routes(router: APIRouter, service: Service, counts: Counts) -> None:
    registry = CollectorRegistry()
    registry.register(_Collector(service, counts))
    ProcessCollector(registry=registry)

    @router.get("/metrics")
    def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class _Collector(Collector):
    def __init__(self, service: Service, counts: Counts) -> None:
        self._service, self._counts = service, counts

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily("llmsvc_http_requests", "Answered requests", labels=["path", "status"])
        for (path, status), number in sorted(self._counts.items()):
            requests.add_metric([path, str(status)], number)
        yield requests
        rows = self._service.pool.list()
        for key, (name, text) in _GAUGES.items():
            yield _family(GaugeMetricFamily(name, text, labels=["model"]), {row["id"]: row[key] for row in rows})
        meters = dict(self._service.turns.crossing.meters)
        for key, (name, text) in _COUNTERS.items():
            values = {model: getattr(meter, key) for model, meter in meters.items()}
            yield _family(CounterMetricFamily(name, text, labels=["model"]), values)
        answers = CounterMetricFamily("llmsvc_answers", "Answers that ended", labels=["model", "finish"])
        for model, meter in meters.items():
            for finish, number in dict(meter.finished).items():
                answers.add_metric([model, str(finish)], number)
        yield answers
        for key, (name, text) in _HISTOGRAMS.items():
            histogram = HistogramMetricFamily(name, text, labels=["model"])
            for model, meter in meters.items():
                found = getattr(meter, key)
                histogram.add_metric([model], found.buckets(), found.sum)
            yield histogram


def _family(family: Any, values: dict[str, float]) -> Metric:
    for model, value in values.items():
        family.add_metric([model], value)
    made: Metric = family
    return made
