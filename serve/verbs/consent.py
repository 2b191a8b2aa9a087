"""Permission to send pictures elsewhere: typed by the person who read the list, or given by a script as its hash.

Knows nothing about pictures or the network.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from serve.verbs import terminal

if TYPE_CHECKING:
    from data_gen.passes.teach_report import TeachReport

_SHOWN = 5
TYPED = 8
"""Characters of the manifest's sha256 that a person types."""


def with_consent(run: Callable[[bool | str], TeachReport], *, asked: bool, manifest: str | None) -> TeachReport:
    """Run the teacher. If it needs permission and `--allow-egress` was given, ask on a terminal and run again.

    Raises EgressError `denied` if nobody gives it.
    """
    from data_gen.hosted.egress import Denied

    try:
        return run(manifest if asked and manifest else False)
    except Denied as denied:
        if not asked or manifest or not sys.stdin.isatty():
            raise
        offer = denied.offer
        with offer.manifest.open(encoding="utf-8") as stream:
            for line in itertools.islice(stream, _SHOWN):
                item = json.loads(line)
                terminal.note(f"  {item['path']}  {item['bytes']} bytes  {item['words']}")
        whole = f"The whole list, with every word that goes along: {offer.manifest}"
        terminal.note(f"{offer}.\n{whole}\nsha256 {offer.sha256}")
        sys.stderr.write(f"Type the first {TYPED} characters of that sha256 to send them, anything else to stop: ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() != offer.sha256[:TYPED]:
            raise
        return run(offer.sha256)
