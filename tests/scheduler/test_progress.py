from trainer.scheduler.progress import progress


def test_progress_goes_from_0_to_1():
    assert [progress(step, 3, 7) for step in range(3, 8)] == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_an_empty_phase_is_at_its_start():
    assert progress(5, 5, 5) == 0.0
