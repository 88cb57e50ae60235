"""Build a model graph from a Hugging Face `config.json`.

Keys that a config leaves out take the value that the format's own config class gives them. What a config says
wrongly is reported all at once, with its key, its value and what is accepted.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from costmodels.graph import ModelGraph
from costmodels.graph_import.hf_decoders import DECODERS
from costmodels.graph_import.hf_encoders import ENCODERS
from costmodels.graph_import.hf_experts import MIXTURES
from costmodels.graph_import.hf_fields import Fields
from costmodels.graph_import.hf_hybrids import HYBRIDS
from costmodels.graph_import.transformer import TransformerSpec, transformer_from_spec
from hardware.errors import SpecError

__all__ = ["model_from_hf_config", "model_types", "read_hf_config"]


def model_types() -> tuple[str, ...]:
    """Return the model types that can be read, sorted."""
    return tuple(sorted(DECODERS | MIXTURES | HYBRIDS | ENCODERS))


def read_hf_config(path: Path | str) -> ModelGraph:
    """Return the graph of the config at `path`, named after its folder.

    Raises
    ------
    SpecError
        if the file cannot be read, is no JSON object, or has wrong or missing keys.
    """
    file = Path(path)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a UTF-8 text file"
        raise SpecError(str(file), [f"cannot be read: {reason}"]) from error
    except json.JSONDecodeError as error:
        raise SpecError(str(file), [f"not JSON: {error}"]) from error
    if not isinstance(config, dict):
        raise SpecError(str(file), [f"holds a {type(config).__name__}, where a JSON object is accepted"])
    name = file.resolve().parent.name if file.name == "config.json" else file.stem
    return model_from_hf_config(config, name, where=str(file))


def model_from_hf_config(config: Mapping[str, object], name: str, *, where: str = "config") -> ModelGraph:
    """Return the graph that `config` describes.

    Parameters
    ----------
    config : the parsed `config.json`.
    name : what to call the model.
    where : the file, for messages.

    Raises
    ------
    SpecError
        if the model type is unknown, or keys are missing or wrong.
    """
    family = config.get("model_type")
    known = model_types()
    if not isinstance(family, str) or family not in known:
        near = get_close_matches(str(family).lower(), known, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"accepted: {', '.join(known)}"
        found = "missing" if family is None else f"{family!r} is not a known model type"
        raise SpecError(where, [f"model_type: {found}; {hint}"])
    fields = Fields(config)
    try:
        graph = _build(fields, name, family)
    except ValueError as error:
        raise SpecError(where, fields.problems or [str(error)]) from error
    if fields.problems:
        raise SpecError(where, list(dict.fromkeys(fields.problems)))
    return replace(graph, source=where)


def _build(fields: Fields, name: str, family: str) -> ModelGraph:
    if family in DECODERS or family in MIXTURES:
        dimensions = (DECODERS | MIXTURES)[family](fields)
        return transformer_from_spec(TransformerSpec(name=name, family=family, **dimensions))
    return (HYBRIDS | ENCODERS)[family](fields, name, family)
