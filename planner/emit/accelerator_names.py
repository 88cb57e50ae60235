"""What others call a device: Slurm, Kubernetes, SkyPilot, and CUDA's compute capability."""

__all__ = ["compute_capability", "kubernetes_resource", "skypilot_name", "slurm_gres"]

_VENDOR_RESOURCE = {
    "nvidia": "nvidia.com/gpu",
    "amd": "amd.com/gpu",
    "huawei": "huawei.com/Ascend910",
    "intel": "habana.ai/gaudi",
    "google": "google.com/tpu",
}
_SKYPILOT = {
    "a100-80gb": "A100-80GB",
    "a100-40gb": "A100",
    "a10g": "A10G",
    "l40s": "L40S",
    "rtx-4090": "RTX4090",
    "rtx-pro-6000": "RTXPRO6000",
    "v100-16gb": "V100",
    "v100-32gb": "V100-32GB",
    "mi300x": "MI300X",
    "gh200": "GH200",
}
_CAPABILITY = (
    ("v100", (7, 0)), ("t4", (7, 5)), ("a100", (8, 0)), ("a800", (8, 0)), ("a30", (8, 0)), ("a10g", (8, 6)),
    ("a40", (8, 6)), ("rtx-a6000", (8, 6)), ("l4", (8, 9)), ("l40s", (8, 9)), ("rtx-4090", (8, 9)),
    ("h100", (9, 0)), ("h200", (9, 0)), ("h800", (9, 0)), ("h20", (9, 0)), ("gh200", (9, 0)),
    ("b200", (10, 0)), ("gb200", (10, 0)), ("b300", (10, 3)), ("gb300", (10, 3)), ("rtx-pro-6000", (12, 0)),
)  # fmt: skip
"""Beginnings of device names, and the compute capability in NVIDIA's table of CUDA devices."""
_SLURM = {"a100-80gb": "a100", "a100-40gb": "a100", "v100-16gb": "v100", "v100-32gb": "v100"}


def kubernetes_resource(vendor: str) -> str:
    """Return the extended resource that the vendor's device plug-in offers."""
    return _VENDOR_RESOURCE.get(vendor.lower(), f"{vendor.lower()}.com/gpu")


def skypilot_name(device: str) -> str:
    """Return SkyPilot's name: the data sheet's, in capitals."""
    return _SKYPILOT.get(device, device.upper())


def slurm_gres(device: str) -> str:
    """Return the gres type that sites give a device; sites may differ."""
    return _SLURM.get(device, device)


def compute_capability(device: str) -> tuple[int, int] | None:
    """Return the CUDA compute capability of a device; None for devices that have none."""
    found = [pair for name, pair in _CAPABILITY if device == name or device.startswith(f"{name}-")]
    return found[0] if found else None
