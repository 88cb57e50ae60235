"""The single-model requests that a request of several models stands for."""

from dataclasses import fields, replace

from hardware.errors import SpecError
from planner.serving.models import ModelDemand
from planner.serving.request import ServeRequest

__all__ = ["model_requests"]


def model_requests(request: ServeRequest) -> tuple[ServeRequest, ...]:
    """Return one request per model, each with its own traffic and targets and the limits of the whole.

    Raises
    ------
    SpecError
        if a model appears twice, or `model` is given as well.
    """
    if not request.models:
        return (request,)
    names = [demand.model for demand in request.models]
    problems = []
    if request.model is not None:
        problems.append(f"models: give either model ({request.model}) or models ({', '.join(names)})")
    if len(set(names)) < len(names):
        problems.append(f"models: a model appears twice in {', '.join(names)}")
    if problems:
        raise SpecError("request", problems)
    return tuple(
        replace(
            request,
            models=(),
            **{
                f.name: getattr(demand, f.name)
                for f in fields(ModelDemand)
                if getattr(demand, f.name) is not None
            },
        )
        for demand in request.models
    )
