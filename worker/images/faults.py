"""Whose fault a failed image is: only the template's own is worth remembering, because only another commit mends it."""

import errno

from worker.errors import BackendBusy, Misconfigured, WorkerError


class TemplateFault(Misconfigured):
    """This commit of the template cannot become an image, however often it is tried."""

    code = "template_refused"


def refusal(why: str, *, code: str | None = None) -> TemplateFault:
    """The one wording for a tree that is not built."""
    return TemplateFault(f"check template: {why}", hint="mend the template repository and try again", code=code)


def of_disk(error: OSError) -> WorkerError:
    """What a failing write below the build cache means."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return BackendBusy(
            "write build cache: the disk is full", hint="make room below MOLECULE_LOCAL_BUILD_CACHE", code="disk_full"
        )
    hint = "make MOLECULE_LOCAL_BUILD_CACHE writable for the worker"
    return Misconfigured("write build cache: the folder cannot be used", hint=hint, code="build_cache")
