"""Splits: by patient, the same test set for every run, and labelled patients that really have labels."""

import json
from pathlib import Path

import pytest

from action.data.cases import Case, Sets
from action.data.split import Split, load_split, make_split, save_split
from action.errors import InputError


def cases(patients, unlabeled=(), frames=2):
    """Cases of patients p1, p2, ...; `unlabeled`: names of cases without labels."""
    names = [(f"p{p}", f"p{p}_{f}") for p in range(1, patients + 1) for f in range(frames)]
    return [Case(name, p, Path(name), None if name in unlabeled else Path(f"{name}_gt")) for p, name in names]


def members(split):
    return [*split.labeled, *split.unlabeled, *split.validation, *split.test]


@pytest.mark.parametrize(
    ("patients", "sizes"), [(100, (70, 10, 20)), (24, (17, 2, 5)), (10, (7, 1, 2)), (3, (1, 1, 1))]
)
def test_every_patient_is_in_exactly_one_set(patients, sizes):
    split = make_split(cases(patients), labeled=1, seed=0)
    assert sorted(members(split)) == sorted({case.patient for case in cases(patients)})
    assert (len(split.labeled) + len(split.unlabeled), len(split.validation), len(split.test)) == sizes
    assert len(split.labeled) == 1


def test_names_are_in_natural_order():
    split = make_split(cases(30), labeled=10, seed=1)
    for names in (split.labeled, split.unlabeled, split.test):
        assert list(names) == sorted(names, key=lambda name: int(name[1:]))


def test_seed_chooses_the_labelled_and_nothing_else():
    splits = [make_split(cases(40), labeled=3, seed=seed) for seed in range(8)]
    assert len({split.test for split in splits}) == len({split.validation for split in splits}) == 1
    assert len({split.labeled for split in splits}) > 4
    assert splits[0] == make_split(cases(40), labeled=3, seed=0)
    moved = make_split(cases(40), labeled=3, seed=0, shuffle_seed=1)
    assert moved.test != splits[0].test


def test_fewer_labelled_patients_are_part_of_more():
    one, three, seven = (set(make_split(cases(40), labeled=n, seed=5).labeled) for n in (1, 3, 7))
    assert one < three < seven


def test_order_of_the_cases_does_not_matter():
    assert make_split(cases(20)[::-1], labeled=2, seed=3) == make_split(cases(20), labeled=2, seed=3)


@pytest.mark.parametrize("counts", [(13, 4, 14), (13.0, 4.0, 14.0)])
def test_numbers_of_patients_instead_of_fractions(counts):
    split = make_split(cases(31), counts, labeled=2, seed=0)
    assert (len(split.labeled + split.unlabeled), len(split.validation), len(split.test)) == (13, 4, 14)


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ((90, 10, 31), "asks for 131 patients, but there are 10"),
        ((5, 1, 1), "asks for 7 patients, but there are 10"),
        ((0.5, 0.1, 0.1), "must sum to 1"),
        ((0.7, 0.3), "three"),
        ((1.2, -0.4, 0.2), "three"),
        ((6.5, 1, 2.5), "whole numbers"),
        ((8, 0, 2), "each set needs one"),
    ],
)
def test_impossible_shares(shares, words):
    with pytest.raises(InputError, match=words):
        make_split(cases(10), shares, labeled=1, seed=0)


def test_too_few_patients_for_three_sets():
    with pytest.raises(InputError, match="2 patients are too few"):
        make_split(cases(2), labeled=1, seed=0)


@pytest.mark.parametrize("labeled", [8, 0, -1])
def test_more_labelled_patients_than_there_are(labeled):
    with pytest.raises(InputError, match=rf"{labeled} labelled patients asked for, but 7 of the 7"):
        make_split(cases(10), labeled=labeled, seed=0)


def file(tmp_path, **sets):
    content = {"train": ["p1", "p2", "p3", "p10"], "validation": ["p4"], "test": ["p5", "p6"]} | sets
    path = tmp_path / "split.json"
    path.write_text(json.dumps({key: names for key, names in content.items() if names is not None}))
    return path


def test_a_file_overrides_the_fractions(tmp_path):
    given = [case for case in cases(10) if case.patient not in ("p7", "p8", "p9")]
    split = make_split(given, labeled=4, seed=0, file=file(tmp_path))
    assert split == Split(("p1", "p2", "p3", "p10"), (), ("p4",), ("p5", "p6"))


def test_patients_without_labels_are_never_labelled(tmp_path):
    given = [case for case in cases(10, unlabeled=("p2_1", "p10_0")) if case.patient not in ("p7", "p8", "p9")]
    for seed in range(6):  # a patient with one unlabelled frame of two is unlabelled
        assert make_split(given, labeled=2, seed=seed, file=file(tmp_path)).labeled == ("p1", "p3")
    with pytest.raises(InputError, match="3 labelled patients asked for, but 2 of the 4"):
        make_split(given, labeled=3, seed=0, file=file(tmp_path))


@pytest.fixture
def ten():
    return [case for case in cases(10, unlabeled=("p2_1",)) if case.patient not in ("p7", "p8", "p9")]


def test_labelled_patients_in_the_order_of_the_list(tmp_path, ten):
    path = file(tmp_path, train=["p10", "p2", "p3", "p1"])
    for seed in range(3):
        assert make_split(ten, labeled=2, seed=seed, order="list", file=path).labeled == ("p3", "p10")
    assert {make_split(ten, labeled=2, seed=seed, file=path).labeled for seed in range(9)} > {("p3", "p10")}


def test_labelled_patients_by_name(tmp_path, ten):
    split = make_split(ten, labeled=["p10", "p1"], seed=0, file=file(tmp_path))
    assert split.labeled == ("p1", "p10") and split.unlabeled == ("p2", "p3")


def test_the_file_may_name_them_in_the_order_in_which_they_are_labelled(tmp_path, ten):
    path = file(tmp_path, labeled=["p10", "p1"])
    assert [make_split(ten, labeled=n, seed=3, file=path).labeled for n in (1, 2)] == [("p10",), ("p1", "p10")]
    assert make_split(ten, labeled=["p3"], seed=0, file=path).labeled == ("p3",)  # the flag comes first
    with pytest.raises(
        InputError, match=r"3 labelled patients asked for, but 2 of 'labeled' of .*split\.json are named"
    ):
        make_split(ten, labeled=3, seed=0, file=path)


@pytest.mark.parametrize(
    ("named", "words"),
    [
        (["p1", "p99"], "names p99, which is no training patient"),
        (["p4"], "names p4, which is no training patient .* choose among p1, p3, p10"),
        (["p2"], "names p2, which is no training patient with labels for every image"),
        (["p1", "p1"], "names p1 twice"),
        ([], "0 labelled patients asked for"),
    ],
)
def test_names_that_cannot_be_labelled(tmp_path, ten, named, words):
    with pytest.raises(InputError, match=words):
        make_split(ten, labeled=named, seed=0, file=file(tmp_path))
    if named:
        with pytest.raises(InputError, match=rf"'labeled' of .*split\.json {words}"):
            make_split(ten, labeled=1, seed=0, file=file(tmp_path, labeled=named))


def test_a_list_of_the_labelled_that_is_none(tmp_path, ten):
    with pytest.raises(InputError, match="'labeled' must be a list"):
        make_split(ten, labeled=1, seed=0, file=file(tmp_path, labeled="p1"))


@pytest.mark.parametrize(("case", "name"), [("p4_0", "validation"), ("p6_1", "test")])
def test_validation_and_test_patients_need_labels(tmp_path, case, name):
    given = [c for c in cases(10, unlabeled=(case,)) if c.patient not in ("p7", "p8", "p9")]
    with pytest.raises(InputError, match=rf"split\.json: {name} patients without labels: {case[:2]}"):
        make_split(given, labeled=1, seed=0, file=file(tmp_path))


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        ({"test": ["p5", "p6", "p1"]}, "twice: p1"),
        ({"test": ["p5", "p99"]}, "not in the data: p99"),
        ({"test": ["p5"]}, "leaves out patients p6"),
        ({"validation": []}, "leaves out patients p4"),
        ({"validation": [], "test": ["p4", "p5", "p6"]}, "'validation' is empty"),
        ({"validation": None}, "'validation' must be a list"),
        ({"train": "p1"}, "'train' must be a list"),
    ],
)
def test_files_that_do_not_divide_the_patients(tmp_path, sets, words):
    given = [case for case in cases(10) if case.patient not in ("p7", "p8", "p9")]
    with pytest.raises(InputError, match=rf"split\.json.*{words}"):
        make_split(given, labeled=1, seed=0, file=file(tmp_path, **sets))


@pytest.mark.parametrize("content", [None, "{", "[1, 2]"])
def test_unreadable_split_files(tmp_path, content):
    if content is not None:
        (tmp_path / "split.json").write_text(content)
    for read in (load_split, lambda path: make_split(cases(10), labeled=1, seed=0, file=path)):
        with pytest.raises(InputError, match=r"split\.json"):
            read(tmp_path / "split.json")


def test_written_and_read_again(tmp_path):
    split = make_split(cases(20), labeled=3, seed=0)
    save_split(split, tmp_path / "split.json")
    assert load_split(tmp_path / "split.json") == split
    assert [path.name for path in tmp_path.iterdir()] == ["split.json"]


PRESCRIBED = Sets(test=("p3", "p7"), source="imagesTs")


@pytest.mark.parametrize(("shares", "validation"), [((0.7, 0.1, 0.2), 1), ((0.4, 0.4, 0.2), 4), ((5, 3, 2), 3)])
def test_a_prescribed_test_set_leaves_the_others_to_be_dealt(shares, validation):
    split = make_split(cases(10), shares, labeled=1, seed=0, prescribed=PRESCRIBED)
    assert split.test == ("p3", "p7") and len(split.validation) == validation
    assert len(split.labeled + split.unlabeled) == 8 - validation


def test_numbers_that_do_not_go_with_a_prescribed_test_set():
    with pytest.raises(InputError, match="asks for 3 test patients, but 2 are prescribed"):
        make_split(cases(10), (5, 2, 3), labeled=1, seed=0, prescribed=PRESCRIBED)


def test_a_file_comes_before_what_is_prescribed(tmp_path):
    given = [case for case in cases(10) if case.patient not in ("p7", "p8", "p9")]
    split = make_split(given, labeled=1, seed=0, file=file(tmp_path), prescribed=Sets(test=("p1",)))
    assert split.test == ("p5", "p6")


def test_a_prescribed_list_keeps_its_order():
    prescribed = Sets(("p5", "p2", "p1"), ("p3", "p4"), (), "the lists")
    five = cases(5)
    assert make_split(five, labeled=2, seed=0, order="list", prescribed=prescribed).labeled == ("p2", "p5")
