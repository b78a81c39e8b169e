"""Exit status 0 when the launcher says that the server is ready, else 1. For HEALTHCHECK in images, which may have no
curl. Triton itself goes on saying so when its Python processes are dead.

MIXTRAL_HEALTH_PORT: where /ready is, 8003 if not set. MIXTRAL_HEALTH_HOST: 127.0.0.1 if not set.
"""

import http.client
import os
import sys

TIMEOUT_S = 4.0


def main() -> int:
    host, port = os.environ.get("MIXTRAL_HEALTH_HOST", "127.0.0.1"), int(os.environ.get("MIXTRAL_HEALTH_PORT", "8003"))
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/ready")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        print(f"{host}:{port} does not answer: {error}")
        return 1
    print(f"{host}:{port} answers {status}")
    return 0 if status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
