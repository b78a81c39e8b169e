"""Exit status 0 when Triton says that it is ready, else 1. For HEALTHCHECK in images, which may have no curl.

MIXTRAL_HTTP_PORT: where it listens, 8000 if not set. MIXTRAL_HTTP_HOST: 127.0.0.1 if not set.
"""

import http.client
import os
import sys

TIMEOUT_S = 4.0


def main() -> int:
    host, port = os.environ.get("MIXTRAL_HTTP_HOST", "127.0.0.1"), int(os.environ.get("MIXTRAL_HTTP_PORT", "8000"))
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/v2/health/ready")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        print(f"{host}:{port} does not answer: {error}")
        return 1
    print(f"{host}:{port} answers {status}")
    return 0 if status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
