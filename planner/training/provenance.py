"""What a training plan was made from: the tool, its inputs and the coefficients that took part."""

from hashlib import sha256
from importlib.metadata import version
from importlib.resources import files

from costmodels.calibrated import current
from costmodels.job import TrainingJob
from costmodels.kernels.times import kernel_model
from hardware.cluster import Cluster
from planner.plan import Provenance

__all__ = ["training_provenance"]


def training_provenance(job: TrainingJob, cluster: Cluster) -> Provenance:
    """Return the tool's version and the hashes of model, cluster and coefficient files."""
    inputs = {"model": repr(job.model), "cluster": repr((cluster.name, cluster.groups, cluster.levels))}
    return Provenance(
        tool_version=version("meshwright"),
        inputs={name: sha256(text.encode()).hexdigest() for name, text in inputs.items()},
        coefficients=_coefficients(cluster),
    )


def _coefficients(cluster: Cluster) -> dict[str, str]:
    folder = files("costmodels") / "data" / "coefficients"
    kernels = {kernel_model(group.node.device).source.file for group in cluster.groups}
    wanted = [("kernels", f"{name}.json") for name in sorted(kernels)]
    for room in ("collectives", "training"):
        names = sorted(e.name for e in (folder / room).iterdir() if e.name.endswith(".json"))
        wanted += [(room, name) for name in names]
    found = {
        f"{room}/{name}": sha256((folder / room / name).read_bytes()).hexdigest() for room, name in wanted
    }
    calibration = current()
    return found if calibration is None else {**found, "calibration": calibration.sha256}
