"""Which CPUs the emulated boards have, and the files in which a program looks that up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_ARMV8 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_ARMV8_2 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"


@dataclass(frozen=True)
class Profile:
    """A board as a program sees it.

    ``cpu`` is QEMU's name of the CPU, ``part`` the core's part number in the Main ID Register (Arm's technical
    reference manuals), ``features`` the names of Linux in ``/proc/cpuinfo``, ``note`` where the emulation differs.
    """

    name: str
    title: str
    core: str
    cpu: str
    part: str
    features: str
    cores: int = 4
    note: str = ""

    def files(self) -> Iterator[tuple[str, str]]:
        """Path and content of what describes the CPU; a guest without them would read the host's."""
        yield "proc/cpuinfo", self._cpuinfo()
        yield "proc/device-tree/model", f"{self.title} (emulated)\0"
        everyone = f"0-{self.cores - 1}\n"
        for name in ("online", "possible", "present"):
            yield f"sys/devices/system/cpu/{name}", everyone
        for core in range(self.cores):
            yield f"sys/devices/system/cpu/cpu{core}/regs/identification/midr_el1", f"{self._midr():#018x}\n"
            topology = f"sys/devices/system/cpu/cpu{core}/topology"
            yield f"{topology}/core_id", f"{core}\n"
            yield f"{topology}/physical_package_id", "0\n"
            yield f"{topology}/core_cpus", f"{1 << core:x}\n"  # without it OpenVINO's thread library fails
            yield f"{topology}/package_cpus", f"{(1 << self.cores) - 1:x}\n"

    def _cpuinfo(self) -> str:
        core = (
            f"Features\t: {self.features}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
            f"CPU variant\t: 0x0\nCPU part\t: {self.part}\nCPU revision\t: 0\n\n"
        )
        cores = "".join(f"processor\t: {number}\nBogoMIPS\t: 108.00\n{core}" for number in range(self.cores))
        return f"{cores}Model\t\t: {self.title} (emulated)\n"

    def _midr(self) -> int:
        """Main ID Register: implementer 0x41 (Arm), variant 0, architecture by features (0xf), part, revision 0."""
        return 0x41 << 24 | 0xF << 16 | int(self.part, 16) << 4


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("jetson-nano", "NVIDIA Jetson Nano", "Cortex-A57", "cortex-a57", "0xd07", _ARMV8),
        Profile(
            *("pi4", "Raspberry Pi 4 Model B", "Cortex-A72", "cortex-a72", "0xd08"),
            features="fp asimd evtstrm crc32 cpuid",
            note="QEMU also runs the AES and SHA instructions, which the BCM2711 of a real one does not have",
        ),
        Profile("pi5", "Raspberry Pi 5 Model B", "Cortex-A76", "cortex-a76", "0xd0b", _ARMV8_2),
        Profile(
            *("orin", "NVIDIA Jetson Orin", "Cortex-A78AE", "neoverse-n1", "0xd42", _ARMV8_2),
            cores=6,
            note="QEMU has no Cortex-A78AE; a Neoverse N1 stands in, with the same fp16 and dot-product instructions",
        ),
    )
}
