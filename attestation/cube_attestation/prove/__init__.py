# SPDX-License-Identifier: Apache-2.0
"""Shows that a verifier refuses: mutates evidence that passes, and expects each mutant's own reason code.

A forger has keys of his own, never a vendor's. Three ways make his evidence as good as it can get. He edits bytes:
the vendor's signature then fails. He signs under chains that are like the vendor's but for the keys (a *twin*):
where the policy is told to trust that chain's root, his evidence is correctly signed, and only its content is left
to refuse. And the policy is moved under evidence that stays genuine, which so becomes the correctly signed evidence
of another firmware, chip or environment.
"""
