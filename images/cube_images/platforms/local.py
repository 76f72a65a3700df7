# SPDX-License-Identifier: Apache-2.0
"""The local target: QEMU, OVMF of the lock, an emulated TPM, Secure Boot off."""

from cube_images import predict
from cube_images.platforms.registers import Prediction, launch_register, of_pcr, predicted, unknown

_BASIS = "compared with the TPM's quote at every `make up`"


def registers(uki: bytes, disk_head: bytes, launch: bytes | None = None) -> Prediction:
    """What the emulated TPM's registers will hold."""
    found = predict.measurements(uki, disk_head)
    firmware = "OVMF's own code and settings; PCR 0 is recorded in the manifest, nothing gates on it"
    return Prediction(
        "local",
        "QEMU q35 with OVMF and swtpm",
        ("Secure Boot is off", "no option ROM (`romfile=`)"),
        (
            *(unknown(f"PCR {pcr}", "sha256", firmware) for pcr in (0, 1)),
            *(predicted(f"PCR {pcr}", "sha256", of_pcr(found, pcr), _BASIS) for pcr in (2, 4, 5, 7)),
            launch_register(launch),
            *(predicted(f"PCR {pcr}", "sha256", of_pcr(found, pcr), _BASIS) for pcr in (9, 11)),
        ),
    )
