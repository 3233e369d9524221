"""test_reader.py: snapshots are plain HDF5: docs/snapshot-format.md's reader dequantizes a layer, h5dump and h5ls read every
file; and HDF5 files that are not what the manifest says, with digests that are right, are refused without a crash."""
import os
import re
import shutil
import subprocess
import sys

from snapdir import SRC, check, copy, finish, header_sha256, need, path, read_manifest, seal, snapshot, write

need("h5py", "numpy")
import h5py  # noqa: E402
import numpy as np  # noqa: E402


def crc32c_table():
    table = []
    for i in range(256):
        for _ in range(8):
            i = i >> 1 ^ (0x82F63B78 if i & 1 else 0)
        table.append(i)
    return table


TABLE = crc32c_table()


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


def read_docs(directory):
    """The ten lines of the docs on an export: noise of mean 0 and deviation 1 comes out."""
    with open(os.path.join(SRC, "docs", "snapshot-format.md")) as file:
        program = re.search(r"```python\n(.*?)```", file.read(), re.S).group(1)
    done = snapshot("export", directory, path("export.h5"))
    check(done.returncode == 0, f"export {done.stderr.strip()}")
    done = subprocess.run([sys.executable, "-c", program, path("export.h5")], capture_output=True, text=True)
    found = re.match(r"\((\d+), 128\) mean (-?[\d.]+), deviation ([\d.]+)", done.stdout)
    check(bool(found) and int(found[1]) % 128 == 0 and abs(float(found[2])) < 0.02 and abs(float(found[3]) - 1) < 0.03,
          f"the docs' reader: {done.stdout.strip()} {done.stderr.strip()[-300:]}")


def bytes_of(text):
    return text.decode() if isinstance(text, bytes) else text


def check_arrays(directory):
    """Segments, tail and export hold the same pages; checksums by a table made here; ids."""
    manifest = read_manifest(directory)
    export = h5py.File(path("export.h5"))
    first = int(export.attrs["first_quantized_page"])
    check(first == 1 and bytes_of(export.attrs["kv"]) == "int4:kc:g128:nohad:s1:r2", f"attributes of the export: {dict(export.attrs)}")
    ids = [int(i * 2654435761 % 2**32 >> 8 & 0x1FF) for i in range(manifest["sequence"]["n_tokens"])]
    check(list(export["tokens"]) == ids, "token ids of the export")
    at = 0
    for entry in manifest["segments"] + [manifest["tail"]]:
        file = h5py.File(os.path.join(directory, entry["file"]))
        n, tail = file["k"].shape[0], entry is manifest["tail"]
        group = 1 if tail else 8
        start = int(file.attrs["first_quantized_page"])
        for b in range(n):
            for p in range(group):
                page = start + b * group + p
                mine = file["k"][b, 3, 2].reshape(group, 128, -1)[p]
                if page < 1:
                    check(not mine.any(), "places of sink pages are zero")
                    continue
                theirs = export["k"][page - first, 3, 2]
                if not (mine == theirs).all():
                    check(False, f"page {page} of {entry['file']} is the export's")
                pieces = [file["k"], file["k_meta"], file["v"], file["v_meta"]]
                data = b"".join(d[b, 3, 2].reshape(group, -1)[p].tobytes() for d in pieces)
                if crc32c(data) != file["crc"][b, 3, 2, p] or file["crc"][b, 3, 2, p] != export["crc"][page - first, 3, 2, 0]:
                    check(False, f"checksum of page {page} of {entry['file']}")
                at += 1
        f16 = file["f16"][0, 1, 3].tobytes() if "f16" in file else b""
        check(not f16 or crc32c(f16) == file["f16_crc"][0, 1, 3], f"checksum of an f16 page of {entry['file']}")
    check(at == 20, f"{at} quantized pages compared, their checksums by a table of this test")
    check(crc32c(b"123456789") == 0xE3069283, "the table is right")


def tools(directory):
    for tool in ["h5dump", "h5ls"]:
        if not shutil.which(tool):
            print(f"no {tool}: not tried")
            continue
        for name in sorted(os.listdir(directory)):
            if not name.endswith(".h5"):
                continue
            line = [tool, "-H", os.path.join(directory, name)] if tool == "h5dump" else [tool, "-v", os.path.join(directory, name)]
            done = subprocess.run(line, capture_output=True, text=True)
            check(done.returncode == 0 and "k_meta" in done.stdout and not done.stderr, f"{tool} {name}")
            if tool == "h5dump":
                done = subprocess.run([tool, "-d", "crc", "-c", "2,2,1,1" if "seg" in name else "1,1,1,1", os.path.join(directory, name)], capture_output=True, text=True)
                check(done.returncode == 0 and "DATA" in done.stdout, f"{tool} reads {name}")


def place(name, file, entry):
    """Offsets as they are now; of what has none, behind the end of the file, which is made longer."""
    end = os.path.getsize(file)
    offsets = {}
    if name != "garbage":
        with h5py.File(file) as opened:
            for key in entry["datasets"]:
                if key in opened and isinstance(opened.get(key, getlink=True), h5py.HardLink) and isinstance(opened[key], h5py.Dataset):
                    offsets[key] = opened[key].id.get_offset()
    for key, part in entry["datasets"].items():
        part["offset"] = offsets.get(key) or end
        if part["offset"] == end:
            end += part["bytes"]
    os.truncate(file, end)


def hostile(name, directory, change, said):
    """A segment made anew by `change`, sealed with right digests of its size and header. Must be refused, by a line that names the file
    and says this of it (a regular expression); no text: it must be taken."""
    bad = copy(directory, name)
    manifest = read_manifest(bad)
    entry = manifest["segments"][0]
    file = os.path.join(bad, entry["file"])
    change(file, entry)
    place(name, file, entry)
    entry["bytes"] = os.path.getsize(file)
    entry["header_sha256"] = header_sha256(file, entry)
    seal(bad, manifest)
    if not said:  # what is done to the others is refused for its own sake
        done = snapshot("verify", bad)
        check(done.returncode == 0, f"{name}: is whole {done.stderr.strip()[-200:]}")
        return
    line = re.escape(f"{file}: ") + said
    for words in [["verify", bad], ["export", bad, path("hostile.h5")]]:
        done = snapshot(*words)
        check(done.returncode == 1 and re.fullmatch(f"bitshard: error: {line}\n", done.stderr) and not done.stdout,
              f"{name}: {words[0]}: exit {done.returncode}, {(done.stderr or done.stdout).strip()[-150:]}")
    check(not os.path.exists(path("hostile.h5")), f"{name}: nothing is exported")
    done = snapshot("ls", bad)
    rows = done.stdout.splitlines()[1:]
    check(done.returncode == 0 and len(rows) == 1 and re.search(f" {line}$", rows[0]), f"{name}: ls: exit {done.returncode}, {rows}")


def remake(file, make):
    """The same datasets and attributes but for what `make` does first."""
    old = {}
    with h5py.File(file) as source:
        for key in source:
            old[key] = source[key][:]
        attributes = dict(source.attrs)
    os.unlink(file)
    with h5py.File(file, "w", libver=("v110", "v110")) as to:
        made = make(to, old) or []
        for key, value in old.items():
            if key not in made:
                to.create_dataset(key, data=value)
        for key, value in attributes.items():
            to.attrs[key] = value
    os.chmod(file, 0o600)


def external(to, old):
    secret = path("secret")
    with open(secret, "wb") as file:
        file.write(b"s" * old["k"].nbytes)
    to.create_dataset("k", shape=old["k"].shape, dtype=old["k"].dtype, external=[(secret, 0, old["k"].nbytes)])
    return ["k"]


def external_link(to, old):
    with h5py.File(path("other.h5"), "w") as other:
        other.create_dataset("k", data=old["k"])
    to["k"] = h5py.ExternalLink(path("other.h5"), "/k")
    return ["k"]


def soft_link(to, old):
    to.create_dataset("real", data=old["k"])
    to["k"] = h5py.SoftLink("/real")
    return ["k"]


def filtered(to, old):
    to.create_dataset("k", data=old["k"], chunks=(1, 1, 1, 1024, 64), compression="gzip", fletcher32=True)
    return ["k"]


def chunked(to, old):
    to.create_dataset("k", data=old["k"], chunks=(1, 1, 1, 1024, 64))
    return ["k"]


def huge(to, old):
    to.create_dataset("k", shape=(2**40, 8, 4, 1024, 64), maxshape=(None,) * 5, chunks=(1, 1, 1, 1024, 64), dtype="u1")
    return ["k"]


def virtual(to, old):
    layout = h5py.VirtualLayout(shape=old["k"].shape, dtype="u1")
    layout[:] = h5py.VirtualSource(path("nowhere.h5"), "k", shape=old["k"].shape)
    to.create_virtual_dataset("k", layout)
    return ["k"]


def other_type(to, old):
    to.create_dataset("k", data=old["k"].view(np.int8))
    return ["k"]


def a_group(to, old):
    to.create_group("k")
    return ["k"]


def one_more(to, old):
    to.create_dataset("more", data=np.zeros(10))


def as_it_was(to, old):
    return []


def garbage(file, entry):
    with open(file, "wb") as out:
        out.write(b"\x89HDF\r\n\x1a\n" + os.urandom(4096) * 600)


directory = path("good")
write("1x1", "int4", 8, directory, "2048,3000")
read_docs(directory)
check_arrays(directory)
tools(directory)
SAID = {external: "dataset k: is stored in another file", external_link: "dataset k: is a soft or external link",
        soft_link: "dataset k: is a soft or external link", filtered: "dataset k: layout is not contiguous",
        chunked: "dataset k: layout is not contiguous", huge: "dataset k: layout is not contiguous",
        virtual: "dataset k: layout is not contiguous", other_type: "dataset k: type is not the format's",
        a_group: "dataset k: cannot be opened", one_more: "holds more than its 8 datasets", as_it_was: ""}
for make, said in SAID.items():
    hostile(make.__name__, directory, lambda file, entry, make=make: remake(file, make), said)
hostile("garbage", directory, garbage, "HDF5: open: bad superblock .*")
check(snapshot("verify", directory).returncode == 0, "and the good one is still good")
finish()
