"""The page at `/`: one file, nothing from elsewhere, and a policy that lets nothing else run.

The API that it talks to is `serving.app`; the page of a report is `report.html`.
"""

import base64
import hashlib
import json
import re
from pathlib import Path

import numpy as np
from starlette.responses import Response

from megafuser.figures.palette import blend, specialist_colours

_FILE = Path(__file__).with_name("page.html")


class Page:
    """The page for K specialists."""

    def __init__(self, specialists: int) -> None:
        """Puts their colours in; their names come with the first answer, which needs the key."""
        colours = list(specialist_colours([str(index) for index in range(specialists)]).values())
        # a token's background is a mean of these by its weights, since blending is linear and weights sum to one
        backgrounds = blend(np.eye(specialists), colours)
        self._html = _FILE.read_text("utf-8").replace("[/*COLOURS*/]", json.dumps(backgrounds))
        self._policy = "; ".join(
            (
                "default-src 'none'",
                f"script-src {_hash(self._html, 'script')}",
                f"style-src {_hash(self._html, 'style')}",
                "connect-src 'self'",
                "img-src data:",
                "base-uri 'none'",
                "form-action 'none'",
                "frame-ancestors 'none'",
            )
        )

    def response(self) -> Response:
        """The page with its policy."""
        headers = {
            "Content-Security-Policy": self._policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        }
        return Response(self._html, media_type="text/html", headers=headers)


def _hash(html: str, tag: str) -> str:
    """The element's hash, as the policy wants it (Content Security Policy Level 3, section 2.3.1)."""
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    digest = hashlib.sha256(content.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
