import json

import numpy as np
import pytest

from hardware.catalog import find_cluster
from hardware.errors import InputError, SpecError
from hardware.importers.cluster_text import imported_cluster
from hardware.importers.mpigraph import import_mpigraph
from hardware.importers.nccl_tests import import_nccl_tests, samples_text
from hardware.importers.nccl_xml import read_nccl_xml
from hardware.importers.topology_matrix import nvlink_technology, read_topology
from hardware.measured_links import links_from_matrices

MPIGRAPH = """START mpiGraph v1.5
MsgSize\t1048576
Procs\t3

1 of 3 (33.3%)
Send max\t200.0

Send\ta:0\tb:1\tc:2\t
a:0 to\t0.000\t100.000\t200.000\t
b:1 to\t110.000\t0.000\t210.000\t
c:2 to\t120.000\t130.000\t0.000\t

Recv\ta:0\tb:1\tc:2\t
a:0 from\t0.000\t1.000\t2.000\t
b:1 from\t3.000\t0.000\t4.000\t
c:2 from\t5.000\t6.000\t0.000\t
END mpiGraph
"""

NVIDIA = """\t\x1b[4mGPU0\tGPU1\tGPU2\tGPU3\tNIC0\tCPU Affinity\tNUMA Affinity\x1b[0m
GPU0\t X \tNV2\tNV1\tSYS\tPIX\t0-19\t0
GPU1\tNV2\t X \tSYS\tNV1\tPIX\t0-19\t0
GPU2\tNV1\tSYS\t X \tNV2\tSYS\t20-39\t1
GPU3\tSYS\tNV1\tNV2\t X \tSYS\t20-39\t1
NIC0\tPIX\tPIX\tSYS\tSYS\t X

Legend:

  X    = Self
  NV#  = Connection traversing a bonded set of # NVLinks
"""

ROCM = """============================ ROCm System Management Interface ============================
================================ Weight between two GPUs =================================
       GPU0         GPU1
GPU0   0            15
GPU1   15           0
=============================== Link Type between two GPUs ===============================
       GPU0         GPU1
GPU0   0            XGMI
GPU1   XGMI         0
====================================== Numa Nodes =======================================
"""

NPU = """\t   NPU0       NPU1       CPU Affinity
NPU0\t   X          HCCS       144-167
NPU1\t   HCCS       X          144-167

Legend:
"""

NCCL_XML = """<system version="1"><cpu numaid="0">
<pci busid="0000:0a:00.0"><gpu dev="0" sm="80" rank="0">
<nvlink target="0000:c1:00.0" count="12" tclass="0x068000"/></gpu></pci>
<pci busid="0000:0b:00.0"><gpu dev="1" sm="80" rank="1">
<nvlink target="0000:c1:00.0" count="12" tclass="0x068000"/></gpu></pci>
<pci busid="0000:0c:00.0"><gpu dev="2" sm="80" rank="2">
<nvlink target="0000:c1:00.0" count="12" tclass="0x068000"/></gpu></pci>
<nic><net name="mlx5_0" dev="0" speed="200000"/></nic>
</cpu></system>
"""

NCCL_TESTS = """# nThread 1 nGpus 1 minBytes 8 maxBytes 1024
#
# Using devices
#  Rank  0 Group  0 Pid 1 on  host-a device  0 [0x0f] NVIDIA A100-SXM4-80GB
#  Rank  1 Group  0 Pid 1 on  host-b device  0 [0x0f] NVIDIA A100-SXM4-80GB
#
#       size         count      type   redop    root     time   algbw   busbw #wrong
           0             0     float     sum      -1     0.10    0.00    0.00      0
     1048576        262144     float     sum      -1    50.00   20.97   41.94      0
  1073741824     268435456     float     sum      -1  9000.00  119.30  180.50      0
"""


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


def test_mpigraph_text_holds_mebibytes_that_rows_send(tmp_path):
    links = import_mpigraph([write(tmp_path, "m.txt", MPIGRAPH)])
    assert links.hosts == ("a", "b", "c")
    assert links.bytes_per_s[0, 0, 2] == pytest.approx(200 * 2**20)
    assert links.bytes_per_s[0, 2, 0] == pytest.approx(120 * 2**20)
    assert links.spread_frac is None


def test_a_receive_table_alone_is_turned_over(tmp_path):
    text = MPIGRAPH.replace("Send\t", "Sent\t")
    links = import_mpigraph([write(tmp_path, "m.txt", text)])
    assert links.bytes_per_s[0, 1, 0] == pytest.approx(1 * 2**20)


def test_snapshots_in_another_host_order_are_lined_up(tmp_path):
    first = {"1": {"gpus": ["x", "y"], "bandwidth": [[0, 10], [20, 0]]}}
    second = {"1": {"gpus": ["y", "x"], "bandwidth": [[0, 24], [12, 0]]}}
    paths = [write(tmp_path, f"{i}.json", json.dumps(d)) for i, d in enumerate((first, second))]
    links = import_mpigraph(paths)
    assert links.bytes_per_s[:, 0, 1] == pytest.approx([10e6, 12e6])
    assert links.mean_bytes_per_s[1, 0] == pytest.approx(2 / (1 / 20e6 + 1 / 24e6))
    assert links.spread_frac[0, 1] == pytest.approx(np.std(np.log([10, 12]), ddof=1))


def test_files_over_parts_of_the_hosts_must_cover_every_pair(tmp_path):
    def part(a, b):
        return write(tmp_path, f"{a}{b}.json", json.dumps({"gpus": [a, b], "bandwidth": [[0, 10], [20, 0]]}))

    joined = import_mpigraph([part("x", "y"), part("y", "z"), part("x", "z")])
    assert joined.hosts == ("x", "y", "z")
    assert joined.bytes_per_s[0, 2, 0] == pytest.approx(20e6)
    with pytest.raises(SpecError, match=r"2 pairs of 2 hosts are in no file \(x to z"):
        import_mpigraph([part("x", "y"), part("y", "z")])


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"gpus": ["x", "y"], "bandwidth": [[0, -3], [4, 0]]}, "x to y is -3"),
        ({"gpus": ["x", "y"], "bandwidth": [[0, 0], [4, 0]]}, "x to y is 0"),
        ({"gpus": ["x", "y"], "bandwidth": [[0, 3]]}, "shape"),
        ({"gpus": ["x", "y"], "bandwidth": [[0, 3], [4]]}, "differ in length"),
        ({"gpus": ["x", "x"], "bandwidth": [[0, 3], [4, 0]]}, "'x' is given twice"),
        ({"gpus": 5, "bandwidth": []}, "5 is no list"),
        ({"hosts": []}, "expected 'gpus' and 'bandwidth'"),
    ],
)
def test_bad_matrices_are_named(tmp_path, table, problem):
    with pytest.raises(SpecError, match=problem) as caught:
        import_mpigraph([write(tmp_path, "bad.json", json.dumps(table))])
    assert "bad.json" in str(caught.value)


def test_short_mpigraph_text_is_named_by_line(tmp_path):
    text = MPIGRAPH.replace("b:1 to\t110.000\t0.000\t210.000\t", "b:1 to\t110.000\t0.000\t")
    with pytest.raises(SpecError, match="line 10: 2 rates for 3 hosts"):
        import_mpigraph([write(tmp_path, "m.txt", text)])


def test_an_imported_cluster_keeps_its_links(tmp_path):
    text = imported_cluster(
        "mpigraph", [write(tmp_path, "m.txt", MPIGRAPH)], node="dgx-a100", device=None, name="mine"
    )
    cluster = find_cluster(write(tmp_path, "c.yaml", text))
    assert cluster.num_devices == 24
    assert cluster.measured_links.hosts == ("a", "b", "c")
    assert cluster.measured_links.bytes_per_s[0, 0, 1] == pytest.approx(100 * 2**20, rel=1e-5)
    with pytest.raises(SpecError, match="measured_links names 3 hosts"):
        find_cluster(write(tmp_path, "d.yaml", text.replace("count: 3", "count: 4")))
    with pytest.raises(SpecError, match="a to b is -1"):
        find_cluster(write(tmp_path, "e.yaml", text.replace("1.04858e+08", "-1.0")))


def test_a_hybrid_mesh_becomes_links_of_its_pairs(tmp_path):
    text = imported_cluster(
        "nvidia-smi-topo", [write(tmp_path, "t.txt", NVIDIA)], node=None, device="v100-32gb", name="mine"
    )
    node = find_cluster(write(tmp_path, "c.yaml", text)).groups[0].node
    direct = {(k.a, k.b): k.count for k in node.topology.links if k.technology == "nvlink2"}
    assert direct == {("gpu0", "gpu1"): 2, ("gpu0", "gpu2"): 1, ("gpu1", "gpu3"): 1, ("gpu2", "gpu3"): 2}
    assert len(node.topology.nics) == 1


@pytest.mark.parametrize(
    ("kind", "text", "device", "size"),
    [
        ("rocm-smi", ROCM, "mi300x", 2),
        ("npu-smi", NPU, "ascend-910b", 2),
        ("nccl-xml", NCCL_XML, "a100-80gb", 3),
    ],
)
def test_other_tools_make_nodes(tmp_path, kind, text, device, size):
    made = imported_cluster(kind, [write(tmp_path, "t.txt", text)], node=None, device=device, name="mine")
    cluster = find_cluster(write(tmp_path, "c.yaml", made))
    assert cluster.num_devices == size
    assert cluster.device.name == device


def test_switched_xml_has_one_switch_and_the_port_rate(tmp_path):
    made = imported_cluster(
        "nccl-xml", [write(tmp_path, "a.xml", NCCL_XML)] * 2, node=None, device="a100-80gb", name="mine"
    )
    cluster = find_cluster(write(tmp_path, "c.yaml", made))
    assert cluster.num_nodes == 2
    assert cluster.groups[0].node.topology.nics[0].bytes_per_s == pytest.approx(25e9)
    assert any(part.id == "scale-up-switch" for part in cluster.groups[0].node.topology.parts)


def test_a_host_of_pcie_devices_keeps_its_switches_and_sockets(tmp_path):
    """Eight L40S in pairs under four switches of two sockets: the levels of the catalogue's own such host."""

    def path(i, j):
        return "X" if i == j else "PIX" if i // 2 == j // 2 else "NODE" if i // 4 == j // 4 else "SYS"

    rows = [[f"GPU{i}", *(path(i, j) for j in range(8))] for i in range(8)]
    text = "\n".join("\t".join(row) for row in [["", *(row[0] for row in rows)], *rows])
    made = imported_cluster(
        "nvidia-smi-topo", [write(tmp_path, "t.txt", text)], node=None, device="l40s", name="mine"
    )
    mine, known = find_cluster(write(tmp_path, "c.yaml", made)), find_cluster("aws-g6e", 1)
    assert [(v.size, v.technology) for v in mine.levels] == [(v.size, v.technology) for v in known.levels]
    assert [v.bytes_per_s for v in mine.levels] == pytest.approx([v.bytes_per_s for v in known.levels])


def test_quads_of_npus_share_the_link_between_their_sockets(tmp_path):
    """Two HCCS quads: fast inside, a share of the sockets' link across, as in the catalogue's own server."""
    rows = [
        [f"NPU{i}", *("X" if i == j else "HCCS" if i // 4 == j // 4 else "SYS" for j in range(8))]
        for i in range(8)
    ]
    text = "\n".join("  ".join(row) for row in [["    ", *(row[0] for row in rows)], *rows])
    made = imported_cluster(
        "npu-smi", [write(tmp_path, "t.txt", text)], node=None, device="ascend-910a", name="mine"
    )
    mine, known = find_cluster(write(tmp_path, "c.yaml", made)), find_cluster("atlas-910a", 1)
    assert [v.size for v in mine.levels] == [v.size for v in known.levels]
    assert [v.bytes_per_s for v in mine.levels] == pytest.approx([v.bytes_per_s for v in known.levels])


def test_devices_two_hops_apart_have_no_link_of_their_own(tmp_path):
    """A ring of four: rocm-smi calls every pair XGMI and counts the hops in a table of its own."""
    names = [f"GPU{i}" for i in range(4)]
    heading = "       " + "  ".join(names)
    far = [[0 if i == j else 1 + (abs(i - j) == 2) for j in range(4)] for i in range(4)]
    hops = "\n".join(f"{n}  {'  '.join(map(str, row))}" for n, row in zip(names, far, strict=True))
    kinds = "\n".join(
        f"{n}  {'  '.join('0' if i == j else 'XGMI' for j in range(4))}" for i, n in enumerate(names)
    )
    text = (
        f"=== Hops between two GPUs ===\n{heading}\n{hops}\n\n"
        f"=== Link Type between two GPUs ===\n{heading}\n{kinds}\n\n=== End ===\n"
    )
    made = imported_cluster(
        "rocm-smi", [write(tmp_path, "t.txt", text)], node=None, device="mi300x", name="mine"
    )
    topology = find_cluster(write(tmp_path, "c.yaml", made)).groups[0].node.topology
    direct = {(k.a, k.b) for k in topology.links if k.technology == "xgmi"}
    assert direct == {("gpu0", "gpu1"), ("gpu0", "gpu3"), ("gpu1", "gpu2"), ("gpu2", "gpu3")}


def test_uneven_pcie_hosts_are_read(tmp_path):
    """Three devices on one switch, one on another; the port sits beside the fourth."""
    rows = [
        ["GPU0", "X", "PIX", "PIX", "SYS", "SYS"],
        ["GPU1", "PIX", "X", "PIX", "SYS", "SYS"],
        ["GPU2", "PIX", "PIX", "X", "SYS", "SYS"],
        ["GPU3", "SYS", "SYS", "SYS", "X", "PIX"],
        ["NIC0", "SYS", "SYS", "SYS", "PIX", "X"],
    ]
    text = "\n".join("\t".join(row) for row in [["", *(row[0] for row in rows)], *rows])
    made = imported_cluster(
        "nvidia-smi-topo", [write(tmp_path, "t.txt", text)], node=None, device="l40s", name="mine"
    )
    topology = find_cluster(write(tmp_path, "c.yaml", made)).groups[0].node.topology
    assert {k.a if k.b == "nic0" else k.b for k in topology.links if "nic0" in (k.a, k.b)} == {"psw1"}


def test_ports_of_storage_and_management_are_left_out(tmp_path):
    """A port that shares a switch with no device does not count where others do."""
    rows = ("\tGPU0\tGPU1\tNIC0\tNIC1", "GPU0\tX\tNV2\tPXB\tSYS", "GPU1\tNV2\tX\tPXB\tSYS")
    more = "\n".join([*rows, "NIC0\tPXB\tPXB\tX\tSYS", "NIC1\tSYS\tSYS\tSYS\tX"])
    found = read_topology(write(tmp_path, "t.txt", more), "nvidia-smi-topo")
    assert found.nics == ("NIC0",)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [("count=", 'count="x" was=', "count is 'x'"), ("speed=", 'speed="-1" was=', "speed is '-1'")],
)
def test_numbers_of_nccl_xml_are_checked(tmp_path, old, new, why):
    with pytest.raises(SpecError, match=why):
        read_nccl_xml(write(tmp_path, "bad.xml", NCCL_XML.replace(old, new)))


@pytest.mark.parametrize("name", ["dgx-1v", "dgx-a100", "dgx-h100", "hgx-h20", "hgx-b200", "gb200-nvl72"])
def test_nvlink_generations_are_those_of_the_catalogue(name):
    node = find_cluster(name, 1).groups[0].node
    assert nvlink_technology(node.device.name) in {link.technology for link in node.topology.links}


def test_an_uneven_topology_is_refused(tmp_path):
    text = NVIDIA.replace("GPU1\tNV2", "GPU1\tNV1")
    with pytest.raises(SpecError, match="GPU0 - GPU1: NV2 one way, NV1 the other"):
        read_topology(write(tmp_path, "t.txt", text), "nvidia-smi-topo")


def test_nccl_tests_rate_the_fabric_and_make_samples(tmp_path):
    path = write(tmp_path, "all_reduce_perf.txt", NCCL_TESTS)
    runs = import_nccl_tests([path])
    assert runs[0].hosts == ("host-a", "host-b")
    assert runs[0].samples[0].time_s == pytest.approx(50e-6)
    assert samples_text(runs).splitlines()[1].startswith("all_reduce,2,2,1048576,5e-05,4.194e+10")
    text = imported_cluster("nccl-tests", [path], node="dgx-a100", device=None, name="mine")
    cluster = find_cluster(write(tmp_path, "c.yaml", text))
    assert cluster.node_bytes_per_s(0, "ib") == pytest.approx(180.5e9)
    with pytest.raises(SpecError, match="no line '# Rank"):
        import_nccl_tests([write(tmp_path, "x.txt", "hello\n")])


def test_nccl_tests_are_read_by_column_and_doubts_are_noted(tmp_path):
    """Long times have no decimals, in-place figures stand behind, and a file name need not say the test."""
    heading = "#       size count type redop root time algbw busbw #wrong time algbw busbw #wrong"
    ranks = NCCL_TESTS[: NCCL_TESTS.index("#       size")]
    row = " 17179869184 4294967296 float {} -1 {} 171.80 {} 0 99000 173.5 173.5 0\n"
    path = write(tmp_path, "log.txt", f"{ranks}{heading}\n{row.format('sum', '100000', '171.80')}")
    (run,) = import_nccl_tests([path])
    assert (run.op, run.peak_bus_bytes_per_s) == ("all_reduce", pytest.approx(171.8e9))
    assert run.samples[0].time_s == pytest.approx(0.1)
    halved = write(tmp_path, "half.txt", f"{ranks}{heading}\n{row.format('sum', '100000', '85.90')}")
    assert import_nccl_tests([halved])[0].op == "reduce_scatter"
    for word, value, why in (("sum", "nan", "must be positive"), ("none", "100000", "which collective")):
        bad = write(tmp_path, "bad.txt", f"{ranks}{heading}\n{row.format(word, value, '171.80')}")
        with pytest.raises(SpecError, match=why):
            import_nccl_tests([bad])
    text = imported_cluster("nccl-tests", [path], node="dgx-h100", device=None, name="mine")
    assert "# note: log.txt: ran on 2 of the 16 devices of its 2 hosts" in text
    assert "# note: log.txt: ran on NVIDIA A100-SXM4-80GB, and node dgx-h100 holds h100" in text


def test_import_says_what_it_needs(tmp_path):
    path = write(tmp_path, "m.txt", MPIGRAPH)
    with pytest.raises(InputError, match="needs --node"):
        imported_cluster("mpigraph", [path], node=None, device=None, name="x")
    with pytest.raises(InputError, match="accepted: mpigraph"):
        imported_cluster("pigraph", [path], node=None, device=None, name="x")
    with pytest.raises(SpecError, match="cannot be read"):
        imported_cluster("mpigraph", [tmp_path / "none"], node="dgx-a100", device=None, name="x")
    with pytest.raises(SpecError, match="at least one matrix"):
        links_from_matrices("x", ("a", "b"), [])
