"""Asked of a server before anyone else may: do bytes come back as they went, and does the engine answer?"""

import secrets

import numpy as np
import tritonclient.grpc as grpc

from mixtral_runtime.errors import Internal
from mixtral_serving.server.command import Address

_TIMEOUT_S = 60.0


def self_test(address: Address) -> None:
    """Raises Internal when the echo differs (the numpy of the stubs is wrong) or the engine does not answer."""
    client = grpc.InferenceServerClient(f"{address.local_host}:{address.grpc_port}")
    sent = bytes(range(256)) + secrets.token_bytes(64)
    echo = grpc.InferInput("echo", [1, 1], "BYTES")
    echo.set_data_from_numpy(np.array([[sent]], np.object_))
    try:
        answer = client.infer("engine_info", [echo], client_timeout=_TIMEOUT_S)
    except grpc.InferenceServerException as error:
        raise Internal(f"the server is up but its self-test failed: {error.message()}") from error
    finally:
        client.close()
    received = answer.as_numpy("echo").reshape(-1)[0]
    if received != sent:
        raise Internal("the server changes bytes on their way: the numpy that its models import does not fit Triton")
