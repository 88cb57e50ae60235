"""Which degrees a model can be cut into for serving: heads by tp, layers by pp, experts by ep."""

from costmodels.graph import Attention, Experts, ModelGraph

__all__ = ["DEGREE_RULES", "broken_rule", "degree_problems"]

DEGREE_RULES = {
    "tp-divides-heads": "tensor parallelism must divide the attention heads",
    "ep-divides-experts": "expert parallelism must divide the experts",
}


def _divided_by(model: ModelGraph, axis: str) -> list[int]:
    """Return the numbers that the degree of an axis must divide: attention heads for tp, experts for ep."""
    operators = [op for block in model.blocks for op in block.operators]
    if axis == "ep":
        return [op.num_experts for op in operators if isinstance(op, Experts)]
    return [op.num_heads for op in operators if isinstance(op, Attention)]


def broken_rule(model: ModelGraph, *, tp: int, ep: int) -> str | None:
    """Return the rule that degrees break on this model; None for legal ones."""
    if any(heads % tp for heads in _divided_by(model, "tp")):
        return "tp-divides-heads"
    if any(experts % ep for experts in _divided_by(model, "ep")):
        return "ep-divides-experts"
    return None


def degree_problems(model: ModelGraph, *, tp: int, pp: int, dp: int, ep: int) -> list[str]:
    """Return why degrees, from 1, cannot be those of one instance, in words; empty where they can."""
    problems = []
    if rule := broken_rule(model, tp=tp, ep=ep):
        axis, degree = ("tp", tp) if rule.startswith("tp") else ("ep", ep)
        numbers = _divided_by(model, axis)
        legal = [d for d in range(1, min(numbers) + 1) if not any(number % d for number in numbers)]
        accepted = ", ".join(map(str, legal))
        problems.append(
            f"{axis}: {degree} is not accepted for {model.name}; {DEGREE_RULES[rule]} ({accepted})"
        )
    if ep > 1 and not _divided_by(model, "ep"):
        problems.append(f"ep: {ep} for {model.name}, which has no experts")
    elif tp * dp % ep:
        problems.append(f"ep: {ep} does not divide tp x dp = {tp * dp}")
    if pp > model.num_layers:
        problems.append(f"pp: {pp} stages for {model.num_layers} layers")
    return problems
