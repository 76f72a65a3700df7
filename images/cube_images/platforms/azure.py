# SPDX-License-Identifier: Apache-2.0
"""Azure, Standard_NCC40ads_H100_v5: the paravisor's virtual TPM. The SNP launch digest is Microsoft's firmware."""

from cube_images import predict
from cube_images.platforms.registers import Prediction, launch_register, of_pcr, predicted, unknown

MACHINE = "Standard_NCC40ads_H100_v5"
# Which kinds of events, in which order, a log of this machine has; published with the quote of the same boot by
# cohere-ai/cvm-measure (tests/fixtures/eventlog and golden, test_azure_snp.py; Apache-2.0).
SEQUENCES = {
    4: ("EV_EFI_ACTION", "EV_SEPARATOR", "EV_EFI_BOOT_SERVICES_APPLICATION", "EV_EFI_BOOT_SERVICES_APPLICATION"),
    5: ("EV_SEPARATOR", "EV_EFI_GPT_EVENT", "EV_EFI_ACTION", "EV_EFI_ACTION"),
    9: ("EV_EVENT_TAG", "EV_EVENT_TAG"),
}
_BASIS = (
    "the sequence of events as published of a Standard_NCC40ads_H100_v5; their content as on the local target,"
    " since the log itself was not at hand"
)
_SECURE_BOOT = (
    "with Secure Boot on the stub may start the kernel without the firmware's measuring it;"
    " no log of this machine shows which"
)


def registers(
    uki: bytes, disk_head: bytes, launch: bytes | None = None, *, secure_boot: bool = False
) -> Prediction:
    """What a machine's registers will hold; `launch` is the payload of its launch document."""
    found = predict.measurements(uki, disk_head)
    own = "Microsoft's firmware and the machine's configuration"
    programs = (
        unknown("PCR 4", "sha256", _SECURE_BOOT)
        if secure_boot
        else predicted("PCR 4", "sha256", of_pcr(found, 4), _BASIS)
    )
    return Prediction(
        "azure",
        MACHINE,
        (f"Secure Boot is {'on' if secure_boot else 'off'}",),
        (
            unknown(
                "SNP", "sha384", "the launch digest is of Microsoft's paravisor and firmware, not of the image"
            ),
            *(unknown(f"PCR {pcr}", "sha256", own) for pcr in (0, 1)),
            predicted(
                "PCR 2", "sha256", of_pcr(found, 2), "a separator alone, as quoted on a Standard_NCC40ads_H100_v5"
            ),
            programs,
            predicted("PCR 5", "sha256", of_pcr(found, 5), _BASIS),
            unknown("PCR 7", "sha256", "the key databases that the gallery image's UEFI settings or Azure set"),
            launch_register(launch),
            predicted("PCR 9", "sha256", of_pcr(found, 9), _BASIS),
            predicted("PCR 11", "sha256", of_pcr(found, 11), _BASIS),
        ),
    )
