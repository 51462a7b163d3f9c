"""What a soak concludes from its samples."""

from tests.chaos.soak import grown, growth


def test_what_levelled_off_has_not_grown():
    samples = [{"MB of daemon": mb} for mb in (80, 120, 150, 151, 152, 151, 150, 152)]
    figures = growth(samples)
    assert figures == {"MB of daemon": (150.5, 151)}
    assert grown(figures) == []


def test_what_goes_on_growing_is_named():
    samples = [{"files of code": 20 + 4 * n, "threads of code": 9} for n in range(8)]
    assert grown(growth(samples)) == ["files of code: from 30 to 46"]
