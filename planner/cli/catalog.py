"""`meshwright catalog`: what is known by name, and one entry in full."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from planner.cli.errors import readable_errors
from planner.cli.options import CatalogOption, JsonOption, NodesOption

__all__ = ["clusters", "devices", "models", "nodes"]

ActionArgument = Annotated[str, typer.Argument(metavar="[list|show]", help="What to do; list by default.")]
NameArgument = Annotated[str | None, typer.Argument(metavar="[NAME]", help="The entry to show.")]


def devices(
    action: ActionArgument = "list",
    name: NameArgument = None,
    catalog: CatalogOption = None,
    json: JsonOption = False,
) -> None:
    """List accelerators, or show one with the source of every number."""
    with readable_errors():
        from hardware.catalog import device_names, device_sources, find_device
        from planner.cli.render_catalog import print_device, print_devices

        dirs = tuple(catalog or ())
        if _shown(action, name, device_names(catalogs=dirs)) is None:
            found = [find_device(n, catalogs=dirs) for n in device_names(catalogs=dirs)]
            _print(found, json, lambda: print_devices(found))
        else:
            device = find_device(str(name), catalogs=dirs)
            _print(device, json, lambda: print_device(device, device_sources(str(name), catalogs=dirs)))


def nodes(
    action: ActionArgument = "list",
    name: NameArgument = None,
    catalog: CatalogOption = None,
    json: JsonOption = False,
) -> None:
    """List node templates, or show one: its parts, links and levels."""
    with readable_errors():
        from hardware.catalog import find_node, node_names
        from planner.cli.render_catalog import node_document, print_node, print_nodes

        dirs = tuple(catalog or ())
        if _shown(action, name, node_names(catalogs=dirs)) is None:
            found = [find_node(n, catalogs=dirs) for n in node_names(catalogs=dirs)]
            _print([node_document(n) for n in found], json, lambda: print_nodes(found))
        else:
            node = find_node(str(name), catalogs=dirs)
            _print(node_document(node), json, lambda: print_node(node))


def clusters(
    action: ActionArgument = "list",
    name: NameArgument = None,
    number: NodesOption = None,
    catalog: CatalogOption = None,
    json: JsonOption = False,
) -> None:
    """List clusters, or show one: its levels, and what rings, cuts and all-to-alls get."""
    with readable_errors():
        from hardware.catalog import cluster_names, find_cluster
        from hardware.figures import describe_cluster
        from planner.cli.render_catalog import print_cluster, print_clusters

        dirs = tuple(catalog or ())
        if _shown(action, name, cluster_names(catalogs=dirs), paths=True) is None:
            found = [find_cluster(n, catalogs=dirs) for n in cluster_names(catalogs=dirs)]
            _print([c.name for c in found], json, lambda: print_clusters(found))
        else:
            cluster = find_cluster(str(name), number, catalogs=dirs)
            document = describe_cluster(cluster)
            _print(document, json, lambda: print_cluster(cluster, document))


def models(action: ActionArgument = "list", name: NameArgument = None, json: JsonOption = False) -> None:
    """List models, or show one: its shape and its parameters."""
    with readable_errors():
        from costmodels.models import find_model, model_names
        from planner.cli.render_catalog import model_document, print_model, print_models

        if _shown(action, name, model_names(), paths=True) is None:
            found = [find_model(n) for n in model_names()]
            _print([model_document(m) for m in found], json, lambda: print_models(found))
        else:
            model = find_model(str(name))
            _print(model, json, lambda: print_model(model))


def _shown(action: str, name: str | None, known: Sequence[str], *, paths: bool = False) -> str | None:
    """Return the name to show, None for a list."""
    from hardware.errors import InputError

    if action == "list" and name is None:
        return None
    if action == "show" and name is not None:
        return name
    if action == "show":
        accepted = ", ".join(known) + (" or a path" if paths else "")
        message = f"show needs a name: {accepted}"
    else:
        message = f"{action!r} {name or ''} is not understood; write 'list' or 'show NAME'"
    raise InputError(message)


def _print(value: object, as_json: bool, render: Any) -> None:
    if not as_json:
        render()
        return
    from planner.plan_io import plan_text

    typer.echo(plan_text(value), nl=False)
