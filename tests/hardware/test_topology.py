import pytest

from hardware.catalog import find_node
from hardware.topology import Link, Part, PartKind, Pool, Topology


def _link(a: str, b: str, **more: object) -> Link:
    return Link(a=a, b=b, technology="nvlink3", bytes_per_s=25e9, latency_s=1e-6, **more)


def _gpu(name: str, **more: object) -> Part:
    return Part(id=name, kind=PartKind.ACCELERATOR, **more)


@pytest.mark.parametrize(
    ("parts", "links", "message"),
    [
        ([_gpu("a"), _gpu("a")], [], "part 'a' is given twice"),
        ([_gpu("a"), _gpu("b")], [_link("a", "c")], "link a - c: no part is called 'c'"),
        ([_gpu("a"), _gpu("b")], [_link("a", "a")], "joins a part with itself"),
        ([_gpu("a"), _gpu("b")], [_link("a", "b", pool="p")], "no pool is called 'p'"),
        ([_gpu("a", package="q")], [], "part a: no package is called 'q'"),
        ([Part(id="s", kind=PartKind.SWITCH)], [], "no part is an accelerator"),
        ([_gpu("a"), _gpu("b"), _gpu("c")], [_link("a", "b")], "disconnected: no path from a to c"),
    ],
)
def test_a_machine_that_cannot_be_is_refused(parts: list[Part], links: list[Link], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Topology(parts=tuple(parts), links=tuple(links), pools=(Pool(name="x", bytes_per_s=1e9),))


def test_the_graph_is_a_multigraph_of_typed_parts_and_links() -> None:
    graph = find_node("frontier").topology.graph
    assert graph.is_multigraph()
    assert graph.nodes["gcd0"]["kind"] == "die"
    assert graph.nodes["gcd1"]["part"].package == "pkg0"
    assert sum(data["capacity"] for data in graph["gcd0"]["gcd1"].values()) == 200e9
    assert (
        sum(1 for _, _, data in graph.edges(data=True) if data["link"].technology == "infinity-fabric") == 12
    )


def test_restricting_devices_keeps_the_other_parts() -> None:
    topology = find_node("dgx-h100").topology.restricted(["gpu0", "gpu1"])
    assert topology.devices == ("gpu0", "gpu1")
    assert len(topology.nics) == 8
    assert all("gpu2" not in (link.a, link.b) for link in topology.links)
