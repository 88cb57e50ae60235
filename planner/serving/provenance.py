"""What a serving plan was made from."""

from hashlib import sha256
from importlib.metadata import version
from importlib.resources import files

from costmodels.graph import ModelGraph
from costmodels.kernels.times import kernel_model
from planner.plan import Provenance
from planner.serving.offers import DeviceOffer
from planner.serving.request import ServeRequest

__all__ = ["serving_provenance"]


def serving_provenance(
    request: ServeRequest, models: tuple[ModelGraph, ...], offers: tuple[DeviceOffer, ...]
) -> Provenance:
    """Return the tool's version and the hashes of inputs and coefficient files."""
    inputs = {
        "model": repr(models[0] if len(models) == 1 else models),
        "devices": repr([(o.device, o.levels, o.usd_per_hour, *o.purchases) for o in offers]),
        "request": repr(request),
    }
    folder = files("costmodels") / "data" / "coefficients"
    kernels = sorted({f"{kernel_model(o.device).source.file}.json" for o in offers})
    wanted = [("kernels", name) for name in kernels] + [("serving", "engines.json")]
    return Provenance(
        tool_version=version("meshwright"),
        inputs={name: sha256(text.encode()).hexdigest() for name, text in inputs.items()},
        coefficients={
            f"{room}/{name}": sha256((folder / room / name).read_bytes()).hexdigest() for room, name in wanted
        },
        solver="highs",
        seed=0,
    )
