"""What the sync and the async client share about the gRPC channel."""

DEFAULT_URL = "localhost:8001"
DEFAULT_IDLE_TIMEOUT_S = 60.0

# After the final response the server only has to close the stream. Waiting for that, instead of cancelling, keeps a
# cancel from racing with the server's own clean-up of the finished request.
CLOSE_TIMEOUT_S = 1.0

# gRPC's default of 4 MiB is less than the prompt log probabilities of a long prompt with alternatives.
CHANNEL_OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def idle_message(url: str, idle_timeout_s: float) -> str:
    return f"{url} sent nothing for {idle_timeout_s:g} s (idle timeout), the request was cancelled"
