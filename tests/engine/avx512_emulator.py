"""The AVX-512 tier of the CPU engine, run in an emulated Skylake-X: `python tests/engine/avx512_emulator.py [--cases 24] [--root DIR]`.

For machines without AVX-512. Bochs boots a Debian kernel whose only program is the engine's fuzz (tests/engine/cpp/engine_fuzz.cpp), linked
statically. There all tiers must agree on every case, avx512 among them, and the digests must be those of the same program on this
machine. Exits 1 and names the difference, or what is missing.

Takes six minutes on one core, of which the boot is one and a half. Needs a C++ compiler and these packages of Debian, installed, or
unpacked with `dpkg -x` into DIR together with the libraries that they depend on:

    apt-get install bochs bochs-term bochsbios vgabios isolinux syslinux-common xorriso busybox-static linux-image-amd64
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import zip_longest
from pathlib import Path

from encodec_fast.kernels.cpu import build as native_build

FUZZ = Path(__file__).parent / "cpp" / "engine_fuzz.cpp"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
# Debian's package -> where it puts what is needed here; the last that is found counts.
FILES = {
    "bochs": ("usr/bin/bochs", "usr/bin/bochs-bin"),
    "bochs-term": (f"{LIBRARIES}/bochs/plugins/libbx_term_gui.so",),
    "bochsbios": ("usr/share/bochs/BIOS-bochs-latest",),
    "vgabios": ("usr/share/vgabios/vgabios.bin",),
    "isolinux": ("usr/lib/ISOLINUX/isolinux.bin",),
    "syslinux-common": ("usr/lib/syslinux/modules/bios/ldlinux.c32",),
    "xorriso": ("usr/bin/xorriso",),
    "busybox-static": ("usr/bin/busybox", "bin/busybox"),
    "linux-image-amd64": ("boot/vmlinuz-*-amd64",),
}

INIT = """#!/busybox sh
/busybox mount -t proc proc /proc
/busybox grep -m1 ^flags /proc/cpuinfo
/engine_fuzz 0 {cases}
echo "exit status: $?"
/busybox sleep 1  # the serial line is slower than the processor
/busybox poweroff -f
"""
OUTPUT = re.compile(r"^tiers: (?P<tiers>.*)\n(?P<results>(?:.*\n)*?exit status: \d+)$", re.MULTILINE)

# clearcpuid takes XSAVEC (321) and XSAVES (323) from the kernel: Bochs 2.7 states a wrong size for what they save, on which Linux
# switches AVX off; with plain XSAVE it does not. The other options spare a slow processor checks that mean nothing on this one.
BOOT = """DEFAULT linux
PROMPT 0
LABEL linux
 KERNEL /vmlinuz
 INITRD /initrd
 APPEND console=ttyS0,115200 quiet clearcpuid=321,323 mitigations=off nopti random.trust_cpu=on tsc=reliable no_timer_check
"""

MACHINE = """display_library: term
megs: 512
romimage: file={bios}
vgaromimage: file={vgabios}
cpu: model=corei7_skylake_x, count=1, ips=50000000, reset_on_triple_fault=0
clock: sync=none, time0=local
boot: cdrom
ata0-master: type=cdrom, path=boot.iso, status=inserted
com1: enabled=1, mode=file, dev=serial.log
log: bochs.log
panic: action=fatal
error: action=ignore
"""


def find_files(root: Path) -> dict[str, Path]:
    """The file of each package in FILES. Exits with the names of those that are not under `root`."""
    found = {}
    for package, patterns in FILES.items():
        paths = [path for pattern in patterns for path in sorted(root.glob(pattern))]
        if package == "busybox-static":  # package busybox has the same path, but needs libraries, which the guest has not
            paths = [path for path in paths if b"/ld-linux" not in path.read_bytes()[:4096]]
        if paths:
            found[package] = paths[-1].resolve()
    missing = [f"{patterns[-1]} ({package})" for package, patterns in FILES.items() if package not in found]
    if missing:
        sys.exit(f"the emulator lacks {', '.join(missing)} under {root}: apt-get install {' '.join(FILES)}")
    return found


def run(command: list[str], folder: Path, given: bytes = b"", environment: dict[str, str] | None = None) -> bytes:
    """What the command prints. Exits with that, and its errors, where it fails."""
    done = subprocess.run(command, cwd=folder, input=given, env=environment, capture_output=True)
    if done.returncode:
        sys.exit(f"FAILED on this machine: {' '.join(command)}\n{(done.stdout + done.stderr).decode(errors='replace').strip()}")
    return done.stdout


def build_fuzz(folder: Path) -> Path:
    """The fuzz as a program that needs no library, from the engine's own translation units and flags."""
    compiler = native_build.find_compiler()
    if compiler is None:
        sys.exit("the fuzz can't be built without a C++ compiler: apt-get install g++")
    try:
        objects = native_build.compile_units(folder, compiler, "x86_64")
    except native_build.BuildError as error:
        sys.exit(f"FAILED on this machine: {error}")
    # whole: before glibc 2.34, std::thread of a static program calls functions that the linker takes for optional, and leaves at 0
    threads = ("-Wl,--whole-archive", "-lpthread", "-Wl,--no-whole-archive")
    command = [*compiler, "-std=c++17", "-O1", "-static", f"-I{native_build.SOURCES}", str(FUZZ), *objects]
    run([*command, *threads, "-o", "engine_fuzz"], folder)
    return folder / "engine_fuzz"


def run_emulated(fuzz: Path, cases: int, files: dict[str, Path], root: Path) -> str:
    """What the guest prints on its serial line: the processor's flags, the fuzz's output, its exit status. If nothing, Bochs' errors."""
    folder, disc, guest = fuzz.parent, fuzz.parent / "disc", fuzz.parent / "guest"
    disc.mkdir()
    (guest / "proc").mkdir(parents=True)
    shutil.copy(fuzz, guest / "engine_fuzz")
    shutil.copy(files["busybox-static"], guest / "busybox")
    (guest / "init").write_text(INIT.format(cases=cases))
    (guest / "init").chmod(0o755)
    pack = [str(files["busybox-static"]), "cpio", "-o", "-H", "newc"]
    (disc / "initrd").write_bytes(run(pack, guest, b"proc\ninit\nbusybox\nengine_fuzz\n"))
    for package, name in {"linux-image-amd64": "vmlinuz", "isolinux": "isolinux.bin", "syslinux-common": "ldlinux.c32"}.items():
        shutil.copy(files[package], disc / name)
    (disc / "isolinux.cfg").write_text(BOOT)
    (folder / "machine").write_text(MACHINE.format(bios=files["bochsbios"], vgabios=files["vgabios"]))
    (folder / "debugger").write_text("c\n")  # Debian's Bochs starts in its debugger: continue
    plugins = str(files["bochs-term"].parent)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(root / LIBRARIES), "LTDL_LIBRARY_PATH": plugins, "TERM": "vt100"}
    boot = ("-b", "isolinux.bin", "-c", "boot.cat", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table")
    run([str(files["xorriso"]), "-as", "mkisofs", "-o", "boot.iso", *boot, "disc"], folder, environment=environment)
    emulator = [str(files["bochs"]), "-q", "-rc", "debugger", "-f", "machine"]
    limit, serial = 900 + 60 * cases, folder / "serial.log"
    try:  # its exit status says nothing: it is 1 when the guest switches itself off
        done = subprocess.run(emulator, cwd=folder, env=environment, timeout=limit, input=b"", capture_output=True)
        errors = done.stderr.decode(errors="replace")
    except subprocess.TimeoutExpired:
        errors = f"stopped after {limit} s"
    return (serial.read_text(errors="replace") if serial.exists() else "") or errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("--root", type=Path, default=Path("/"), help="where the packages are unpacked; default: where they are installed")
    options = parser.parse_args()
    begin, root = time.monotonic(), options.root.resolve()
    files = find_files(root)
    with tempfile.TemporaryDirectory() as folder:
        fuzz = build_fuzz(Path(folder))
        here = run([str(fuzz), "0", str(options.cases)], fuzz.parent).decode().splitlines()
        print(f"{time.monotonic() - begin:.0f} s: the fuzz is built, and has run here; starting the emulator", flush=True)
        serial = run_emulated(fuzz, options.cases, files, root)
    there = OUTPUT.search(serial)
    if there is None:
        sys.exit(f"FAILED: the guest did not finish; the end of what it printed:\n{serial[-2000:]}")
    if not re.search(r"^flags.* avx512f\b", serial, re.MULTILINE):
        sys.exit("FAILED: the guest's kernel does not list avx512f")
    if "avx512" not in there["tiers"].split():
        sys.exit(f"FAILED: the fuzz ran on {there['tiers']} in the emulator, not on avx512")
    for got, expected in zip_longest(there["results"].splitlines(), [*here, "exit status: 0"], fillvalue=""):
        if got != expected:
            sys.exit(f"FAILED: the emulator printed {got!r}, this machine {expected!r}")
    print(f"{time.monotonic() - begin:.0f} s: {len(here)} cases have the same bits there on each of {there['tiers']} and here")


if __name__ == "__main__":
    main()
