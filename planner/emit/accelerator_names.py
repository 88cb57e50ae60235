"""What schedulers call a device: Slurm's gres type, Kubernetes' resource, SkyPilot's accelerator."""

__all__ = ["kubernetes_resource", "skypilot_name", "slurm_gres"]

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
