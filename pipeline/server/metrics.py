"""Metrics of a replica in Prometheus' format."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BATCHES = (1, 2, 4, 8, 16, 32)


class ServerMetrics:
    """Counters of one replica since it started."""

    def __init__(self) -> None:
        # Not the process-wide one: tests make several servers in a process.
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "bsm_requests", "Answered requests.", ("path", "status"), registry=registry
        )
        self.seconds = Histogram(
            "bsm_predict_seconds",
            "Seconds from the first byte of a request for a prediction to its answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.waiting = Gauge(
            "bsm_waiting", "Photos that wait for a prediction or are predicted.", registry=registry
        )
        self.batch = Histogram(
            "bsm_batch_photos", "Photos of a batch.", buckets=_BATCHES, registry=registry
        )
        self.detections = Counter(
            "bsm_detections", "Returned detections, classes or masks.", registry=registry
        )
        self.swaps = Counter(
            "bsm_swaps",
            "Looks at an alias after which another version was loaded, or failed to load.",
            ("model", "outcome"),
            registry=registry,
        )
        self.version = Gauge(
            "bsm_model_version", "Version that predicts now.", ("model",), registry=registry
        )

    def waiting_now(self) -> int:
        """Return how many photos wait or are predicted."""
        (metric,) = self.waiting.collect()
        return int(metric.samples[0].value)

    def format(self) -> bytes:
        """Format all metrics as text."""
        return generate_latest(self._registry)
