"""The one kind of failure that is worth remembering: the template's own, which only another commit can mend."""

from worker.errors import Misconfigured


class TemplateFault(Misconfigured):
    """This commit of the template cannot become an image, however often it is tried."""

    code = "template_refused"


def refusal(why: str, *, code: str | None = None) -> TemplateFault:
    """The one wording for a tree that is not built."""
    return TemplateFault(f"check template: {why}", hint="mend the template repository and try again", code=code)
