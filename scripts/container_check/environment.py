"""The image, the driver and the container's limits."""

from container_check.check import Failed, NotAvailable, Outcome
from container_check.machine import Machine
from container_check.workplace import Workplace
from mixtral_serving.server.preflight import SHM_NEEDED

IMAGE_TAG = "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"
FALLBACK_TAG = "nvcr.io/nvidia/tritonserver:25.10-trtllm-python-py3"
LIBRARY_VERSION = "1.2.1"
# Triton's compatibility table: the image's own driver, the series that CUDA 13 accepts, and those of the fallback.
BUILT_FOR, OLDEST_SERIES, FALLBACK_DRIVER = "590.44.01", 580, "575.57.08"
SHM_WANTED = 2**30  # several stubs grow with the requests; NVIDIA's own command lines ask for this
STACK_WANTED = 64 * 2**20  # likewise
OLDEST_SM = 80


def image(workplace: Workplace) -> Outcome:
    machine = workplace.machine
    if machine.image is None:
        raise NotAvailable(f"this is not NVIDIA's image, which is {IMAGE_TAG}")
    if wrong := image_faults(machine):
        raise Failed(*wrong, advice=f"use {IMAGE_TAG}, and install into it with `make` or deploy/Dockerfile")
    triton = machine.triton or "of unknown version"
    return Outcome.passed(
        f"container {machine.image}, Triton {triton}, tensorrt_llm {machine.packages['tensorrt_llm']}"
    )


def image_faults(machine: Machine) -> list[str]:
    faults = []
    if not machine.python.startswith("3.12."):
        faults.append(f"Python is {machine.python}, Triton's stub in this image loads 3.12")
    library = machine.packages["tensorrt_llm"]
    if library is None:
        faults.append("tensorrt_llm is not installed for this Python; the image's environment must be first on PATH")
    elif library.split("+")[0] != LIBRARY_VERSION:
        faults.append(f"tensorrt_llm is {library}, this project is written for {LIBRARY_VERSION}")
    faults += [f"{name} is not installed" for name in ("torch", "transformers", "numpy") if not machine.packages[name]]
    numpy = machine.packages["numpy"]
    if numpy and int(numpy.split(".")[0]) >= 2:
        faults.append(f"numpy is {numpy}, Triton's Python stub corrupts tensors silently from 2.0 on")
    return faults


def driver(workplace: Workplace) -> Outcome:
    machine = workplace.machine
    if machine.driver is None or not machine.gpus:
        raise NotAvailable("no NVIDIA GPU: nvidia-smi is missing or finds none; a container needs --gpus all")
    if fault := driver_fault(machine.driver):
        raise Failed(fault, advice=DRIVER_ADVICE)
    if machine.gpus[0].sm < OLDEST_SM:
        raise Failed(
            f"GPU 0 is SM{machine.gpus[0].sm}, the kernels for these weights begin with SM{OLDEST_SM} (A100)",
            advice="use an A100 or later, or --runtime pytorch",
        )
    return Outcome.passed(f"driver {machine.driver}{_remark(machine.driver)}")


DRIVER_ADVICE = (
    f"install driver {BUILT_FOR} or any of the {OLDEST_SERIES} series or later on the host; where that cannot be, use "
    f"{FALLBACK_TAG} (TensorRT-LLM 1.0.0, CUDA 12.9, built for driver {FALLBACK_DRIVER}), and build every engine again "
    f"in it: engines do not move between versions"
)


def driver_fault(version: str) -> str | None:
    """What is wrong with this driver for the pinned image, in a sentence."""
    series = version.split(".")[0]
    if not series.isdigit():
        return f"the driver's version is {version}, which is no version number"
    if int(series) < OLDEST_SERIES:
        return f"the driver is {version}, CUDA 13.1 of this image needs the {OLDEST_SERIES} series or later"
    return None


def _remark(version: str) -> str:
    older = int(version.split(".")[0]) < int(BUILT_FOR.split(".")[0])
    return f", older than the image's own {BUILT_FOR}: CUDA's compatibility mode" if older else ""


def limits(workplace: Workplace) -> Outcome:
    machine = workplace.machine
    if machine.image is None:
        raise NotAvailable("these are limits of a container, and this is not NVIDIA's image")
    notes = limit_notes(machine)
    if machine.shm_bytes < SHM_NEEDED:
        raise Failed(*notes, advice="start the container with --shm-size=1g")
    return Outcome.passed(*notes)


def limit_notes(machine: Machine) -> list[str]:
    """What is there, and how to ask for more where NVIDIA recommends it."""
    stack, memlock = (size if size is None else size / 2**20 for size in (machine.stack, machine.memlock))
    return [
        f"/dev/shm {machine.shm_bytes / 2**20:.0f} MiB free"
        + ("" if machine.shm_bytes >= SHM_WANTED * 0.9 else ", better 1 GiB: --shm-size=1g"),
        f"memlock {'unlimited' if memlock is None else f'{memlock:g} MiB, better unlimited: --ulimit memlock=-1'}",
        f"stack {'unlimited' if stack is None else f'{stack:g} MiB'}"
        + ("" if stack is None or stack * 2**20 >= STACK_WANTED else f", better 64: --ulimit stack={STACK_WANTED}"),
    ]
