from tests.fuzz.stage import Stage


def test_an_edited_manifest_is_refused_or_changes_nothing(stage: Stage) -> None:
    counts = stage.search("manifest", 400)
    assert counts["refused"] > 100
    assert counts["done"] > 5


def test_a_forged_bundle_is_refused_or_explains(stage: Stage) -> None:
    counts = stage.search("forgery", 400)
    assert counts["refused"] > 100
    assert counts["done"] > 5


def test_what_is_no_file_is_refused(stage: Stage) -> None:
    counts = stage.search("no file", 30)
    assert counts["refused"] > 15
    assert set(counts) == {"refused"}
