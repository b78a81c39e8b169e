"""Python's logging into Triton's log. Importable inside Triton's stub only."""

import logging

import triton_python_backend_utils as pb_utils


class _TritonHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        message = self.format(record)
        if record.levelno >= logging.ERROR:
            pb_utils.Logger.log_error(message)
        elif record.levelno >= logging.WARNING:
            pb_utils.Logger.log_warn(message)
        else:
            pb_utils.Logger.log_info(message)


def log_to_triton(model_name: str) -> logging.Logger:
    """Routes the root logger of this process to Triton's log, each line beginning with the model's name."""
    handler = _TritonHandler()
    handler.setFormatter(logging.Formatter(f"{model_name}: %(message)s"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    return logging.getLogger(model_name)
