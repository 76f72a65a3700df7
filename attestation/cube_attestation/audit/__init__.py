# SPDX-License-Identifier: Apache-2.0
"""Audit chains (formats §11): what a record is, how records are chained, how an export is checked. Pure."""
