"""Models by name: the built-in catalogue, and files of one's own.

A model file is a Hugging Face `config.json`, or YAML (or JSON) with one of these keys:

- `config`: a Hugging Face config;
- `transformer`: the fields of `TransformerSpec`;
- `operators`: a network of operators (`costmodels.graph_import.operator_graph`).

A `.pt2` file is a program saved by `torch.export.save`; it needs torch to be read, as an `.onnx` file needs
the package onnx.

The catalogue holds one model file per model, `aliases.yaml` its other names. Only the asked model's file is
read.
"""

from dataclasses import replace
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from costmodels.graph import ModelGraph
from costmodels.graph_import.hf_config import model_from_hf_config
from costmodels.graph_import.transformer import TransformerSpec, transformer_from_spec
from hardware.errors import SpecError, UnknownNameError
from hardware.schema import read_yaml_text, validate

__all__ = ["find_model", "hf_config", "model_aliases", "model_names", "published_params", "read_model_file"]

_KINDS = ("config", "transformer", "operators")
_NOTES = ("name", "source", "published_params")
_SUFFIXES = (".json", ".yaml", ".yml", ".pt2", ".onnx")


def _folder() -> Traversable:
    return files("costmodels") / "data" / "models"


@cache
def model_names() -> tuple[str, ...]:
    """Return the names of the catalogue, sorted; aliases are left out."""
    found = (entry.name for entry in _folder().iterdir())
    return tuple(sorted(n[: -len(".yaml")] for n in found if n.endswith(".yaml") and n != "aliases.yaml"))


@cache
def model_aliases() -> dict[str, str]:
    """Return the catalogue's other names, in lower case, each with the name it stands for."""
    text = (_folder() / "aliases.yaml").read_text(encoding="utf-8")
    return {alias: str(name) for alias, name in read_yaml_text(text, "aliases.yaml").items()}


def find_model(name_or_path: str) -> ModelGraph:
    """Return the model of that name (case does not matter) or in that file or folder.

    Raises
    ------
    UnknownNameError
        if neither the catalogue nor the file system has it; suggests near names.
    SpecError
        if the file does not describe a model.

    Examples
    --------
    >>> find_model("llama-3.1-8b").num_params
    8030261248
    >>> find_model("meta-llama/Llama-3.1-8B").name
    'llama-3.1-8b'
    """
    name = name_or_path.lower()
    if name in model_names():
        return _built_in(name)
    path = Path(name_or_path)
    if path.is_dir() and (path / "config.json").is_file():
        return read_model_file(path / "config.json")
    if path.is_file() or path.suffix.lower() in _SUFFIXES:
        return read_model_file(path)
    if name in model_aliases():
        return _built_in(model_aliases()[name])
    raise UnknownNameError("model", name_or_path, [*model_names(), *model_aliases()])


def published_params(name: str) -> int | None:
    """Return the parameter count that the makers of the catalogue's model `name` publish, if exact."""
    entry = _entry(name).get("published_params")
    return None if entry is None else int(entry["value"])


def hf_config(name_or_path: str) -> dict[str, Any] | None:
    """Return the Hugging Face configuration that a model was read from; None where it came in another form.

    Raises
    ------
    UnknownNameError, SpecError
        as `find_model`.
    """
    find_model(name_or_path)
    name, path = name_or_path.lower(), Path(name_or_path)
    if name in model_names():
        data = _entry(name)
    elif path.exists():
        file = path / "config.json" if path.is_dir() else path
        if file.suffix.lower() in (".pt2", ".onnx"):
            return None
        data = read_yaml_text(file.read_text(encoding="utf-8"), str(file))
    else:
        data = _entry(model_aliases()[name])
    config = data if "model_type" in data else data.get("config")
    return dict(config) if isinstance(config, dict) else None


def read_model_file(path: Path | str) -> ModelGraph:
    """Return the model in the file at `path`, called as the file says or after the file (or its folder).

    Raises
    ------
    SpecError
        if the file cannot be read or does not describe a model.
    """
    file = Path(path)
    if file.suffix.lower() == ".pt2":
        from costmodels.graph_import.torch_export import read_torch_export

        return read_torch_export(file)
    if file.suffix.lower() == ".onnx":
        from costmodels.graph_import.onnx_file import read_onnx

        return read_onnx(file)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SpecError(str(file), [f"cannot be read ({reason})"]) from error
    data = read_yaml_text(text, str(file))
    name = file.resolve().parent.name if file.name == "config.json" else file.stem
    return _model(data, str(data.get("name") or name), str(file))


def _entry(name: str) -> dict[str, Any]:
    file = _folder() / f"{name}.yaml"
    return read_yaml_text(file.read_text(encoding="utf-8"), f"{name}.yaml")


@cache
def _built_in(name: str) -> ModelGraph:
    data = _entry(name)
    source = str(data["source"]["ref"])
    if "transformer" in data:
        # Built-in files are validated by the tests; building pydantic's schema here would cost 50 ms.
        return transformer_from_spec(TransformerSpec(name=name, source=source, **data["transformer"]))
    return replace(_model(data, name, f"{name}.yaml"), source=source)


def _model(data: dict[str, Any], name: str, where: str) -> ModelGraph:
    if "model_type" in data or not any(kind in data for kind in _KINDS):
        return model_from_hf_config(data, name, where=where)
    kinds = [kind for kind in _KINDS if kind in data]
    problems = [f"{kind}: a file holds one of {', '.join(_KINDS)}" for kind in kinds[1:]]
    if kinds[0] == "operators":
        if problems:
            raise SpecError(where, problems)
        # networkx takes 0.1 s to import, and only networks of operators need it.
        from costmodels.graph_import.operator_graph import model_from_operators

        return model_from_operators(data, name, where=where)
    accepted = (kinds[0], *_NOTES)
    problems += [
        f"{key}: unexpected key (accepted: {', '.join(accepted)})"
        for key in data
        if key not in accepted and key not in _KINDS
    ]
    if not isinstance(data[kinds[0]], dict):
        problems.append(f"{kinds[0]}: {data[kinds[0]]!r} is not a mapping of keys to values")
    if problems:
        raise SpecError(where, problems)
    if kinds[0] == "config":
        return model_from_hf_config(data["config"], name, where=where)
    fields = {"name": name, "source": where, **data["transformer"]}
    return transformer_from_spec(validate(TransformerSpec, fields, where, prefix="transformer"))
