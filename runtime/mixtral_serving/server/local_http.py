"""How the launcher itself talks to its server: over HTTP, which needs no certificate on this machine."""

import http.client
import urllib.request

# No proxy of the environment: it would learn the admin token, and could not reach this machine's loopback.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def open_local(request: urllib.request.Request | str, timeout_s: float) -> http.client.HTTPResponse:
    """Raises HTTPError for an answer that is no success, another OSError when there is none."""
    answer: http.client.HTTPResponse = _OPENER.open(request, timeout=timeout_s)
    return answer
