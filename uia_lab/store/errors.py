"""The one error of the store."""

from uia_lab.domain.errors import InferenceError


class StoreError(InferenceError):
    """What was to be kept could not be, or what was kept could not be read."""

    code = "store_failed"
    http_status = 503
