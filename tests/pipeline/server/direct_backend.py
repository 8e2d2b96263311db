"""A backend of the server's application without Ray: it predicts one photo at a time."""

from pipeline.server.app import digest_token
from pipeline.server.batches import predict_jobs
from pipeline.server.metrics import ServerMetrics
from pipeline.server.options import ServeOptions

OPTIONS = ServeOptions(max_bytes=40_000, max_pixels=20_000, max_batch=1, max_waiting=2, max_masks=3)


class DirectBackend:
    """Predict in the process of the test, one photo at a time."""

    def __init__(self, *models, token=""):
        self.options, self.metrics = OPTIONS, ServerMetrics()
        self.models = {model.name: model for model in models}
        self.token_digest = digest_token(token) if token else ""
        self.error = None

    async def predict(self, job):
        if self.error:
            raise self.error
        (found,) = predict_jobs([job])
        return found
