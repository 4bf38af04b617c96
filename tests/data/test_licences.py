"""Licences: every spelling that sources use falls into its class."""

import pytest

from data.licences import CLASSES, license_class, parse_licenses


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CC0-1.0", "cc0"),
        ("CC0", "cc0"),
        ("https://creativecommons.org/publicdomain/zero/1.0/", "cc0"),
        ("public-domain", "public-domain"),
        ("LicenseRef-public-domain", "public-domain"),
        ("CC-PDM-1.0", "public-domain"),
        ("CC-BY", "cc-by"),
        ("CC-BY-4.0", "cc-by"),
        ("cc by 2.0", "cc-by"),
        ("CC_BY_3.0_IGO", "cc-by"),
        ("CC-BY-SA-4.0", "cc-by-sa"),
        ("CC-BY-ND-4.0", "cc-by-nd"),
        ("CC-BY-NC-4.0", "cc-by-nc"),
        ("CC-BY-NC-SA-3.0", "cc-by-nc-sa"),
        ("CC-BY-ND-NC-1.0", "cc-by-nc-nd"),
        ("http://creativecommons.org/licenses/by-nc-nd/4.0", "cc-by-nc-nd"),
        ("open-access", "other"),
        ("MIT", "other"),
        ("bylaws", "other"),
        ("CC-BY-SA-ND-9", "other"),
        ("", "unknown"),
        ("  ", "unknown"),
        (None, "unknown"),
    ],
)
def test_classes(name, expected):
    assert license_class(name) == expected
    assert expected in CLASSES


def test_parse():
    assert parse_licenses("") == ()
    assert parse_licenses(" CC-BY , cc0,") == ("cc0", "cc-by")
    with pytest.raises(ValueError, match=r"--licenses 'cc-by,gpl': no class gpl; choose from cc0, .*, unknown"):
        parse_licenses("cc-by,gpl")
