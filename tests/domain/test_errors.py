from uia_lab.domain.errors import suggestion
from uia_lab.domain.tasks import TASKS


def test_what_is_nearly_right_is_named():
    assert "Did you mean 'summarization'?" in suggestion("sumarization", TASKS)


def test_what_is_longer_than_any_name_is_not_compared():
    """Sixteen megabytes of it would take the event loop for many seconds."""
    assert suggestion("text-generation-" * 1_000_000, TASKS).startswith(" Known: ")
